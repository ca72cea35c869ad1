"""Answers as a judge is shown them: without thoughts, as data, and not at all if they are empty."""

import re
import unicodedata
from hashlib import sha256
from typing import Final

from fulmen.files import printable

MAX_CHARS: Final = 30_000
"""Longest text that is shown whole; of longer ones the middle is left out"""
_THOUGHT: Final = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_SENTENCE_END: Final = re.compile(r"[.!?:;\n]+")
_OPENERS: Final = frozenset(
    {
        *("solution", "answer", "the answer is", "final answer", "the final answer is", "result"),
        *("thought process", "final verdict", "verdict", "conclusion", "explanation"),
        *("let's solve this step by step", "let's think step by step", "step by step"),
        *("let's solve this problem step by step", "let us solve this step by step"),
        *("sure", "of course", "certainly", "here is the answer", "here is my answer"),
        *("great question", "thank you for the question", "i am happy to help"),
    }
)
"""Sentences after which an answer has still said nothing (arXiv:2507.08794)"""
_PRAISE: Final = re.compile(
    r"\b(?:full (?:score|marks?|points)|(?:top|highest|best|maximum) (?:score|grade|mark)|"
    r"10 out of 10|5 out of 5|10/10|5/5|impartial judge|(?:excellent|perfect|great) model|"
    r"(?:this|my|the) (?:answer|solution|response) is (?:\w+ly )?(?:correct|right|perfect))\b"
)
"""Words of an answer to its judge and not about the question"""
_VERDICTS: Final = frozenset({"correct", "right", "perfect", "true", "yes", "excellent"})


def spoken(content: str) -> str:
    """Return the content of an answer without thoughts that stand in it."""
    text = _THOUGHT.sub("", content)
    return text.rpartition("</think>")[2].strip()


def says_nothing(answer: str, question: str) -> bool:
    """Return whether an answer is empty: openers, praise of itself, signs, the question again."""
    words = _words(answer)
    if not words or words == _words(question):
        return True
    found = [one for part in _SENTENCE_END.split(answer) if (one := _words(part))]
    praising = [one for one in found if _PRAISE.search(one)]
    rest = [one for one in found if one not in praising and one not in _OPENERS]
    return not rest or (bool(praising) and all(one in _VERDICTS for one in rest))


def _words(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    return " ".join(re.findall(r"[\w'/]+", text))


def quoted(title: str, text: str, fence: str) -> str:
    """Return a text as data: between two lines that it cannot have in it, with nothing invisible,
    and no longer than a judge reads."""
    if len(text) > MAX_CHARS:
        half = MAX_CHARS // 2
        left_out = len(text) - 2 * half
        text = f"{text[:half]}\n({left_out:,} characters left out)\n{text[-half:]}"
    lines = "\n".join(map(printable, text.split("\n")))
    return f"{title}\n[{fence}]\n{lines}\n[/{fence}]"


def fence_of(seed: int, *texts: str) -> str:
    """Return a mark that no text can hold on purpose: it follows from all of them together."""
    digest = sha256(repr((seed, texts)).encode("utf-8", "surrogatepass")).hexdigest()
    return f"text {digest[:20]}"
