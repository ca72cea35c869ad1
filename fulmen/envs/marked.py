"""The answer that a reply ends with, after `Answer:`."""

import re
from typing import Final

ASKED: Final = "End with a line that begins with `Answer:` and has nothing but the answer after it."
"""Sentence of a question whose answer is one line"""
ASKED_LINES: Final = (
    "End with a line that is just `Answer:`, and then nothing but the answer, in the form above."
)
"""Sentence of a question whose answer is several lines"""
_MARK: Final = re.compile(r"^[ \t>#*_]*answer[*_]*[ \t]*:[*_]*", re.IGNORECASE | re.MULTILINE)
_FENCE: Final = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)
_LONGEST: Final = 20_000


def marked_answer(text: str) -> str | None:
    """Return what stands after the last `Answer:` that begins a line, without white space, a code
    fence or bold marks around it; None if there is none, or if it is longer than an answer."""
    marks = list(_MARK.finditer(text[-2 * _LONGEST :]))
    if not marks:
        return None
    answer = text[-2 * _LONGEST :][marks[-1].end() :].strip()
    if len(answer) > _LONGEST:
        return None
    if (found := _FENCE.match(answer)) is not None:
        answer = found[1].strip("\n")
    elif "\n" not in answer:
        answer = answer.strip("*`_ \t")
    return answer or None
