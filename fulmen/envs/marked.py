"""The answer that a reply ends with, after `Answer:`."""

import re
from typing import Final

ASKED: Final = "End with a line that begins with `Answer:` and has nothing but the answer after it."
"""Sentence of a question whose answer is one line"""
ASKED_LINES: Final = (
    "End with a line that is just `Answer:`, and then nothing but the answer, in the form above."
)
"""Sentence of a question whose answer is several lines"""
_MARK: Final = re.compile(
    r"^[ \t>#*_]{0,20}?(?P<opening>[*_]{0,3})answer(?P<closing>[*_]{0,3})[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_FENCE: Final = re.compile(r"\A(```|~~~)\w*\n(.*?)\n?\1\Z", re.DOTALL)
_LONGEST: Final = 20_000


def marked_answer(text: str) -> str | None:
    """Return what stands after the last `Answer:` that begins a line, without white space, a code
    fence or bold marks around it; None if there is none, or if it is longer than an answer.

    Bold marks within several lines stay: a star may be an answer's own.
    """
    text = text[-2 * _LONGEST :]
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    answer, opening = text[marks[-1].end() :], marks[-1]["opening"]
    if marks[-1]["closing"] or answer.startswith(opening):
        answer = answer[0 if marks[-1]["closing"] else len(opening) :].strip()
    else:  # marks around all of it, **Answer: 9**
        answer = answer.strip().removesuffix(opening).rstrip()
    if len(answer) > _LONGEST:
        return None
    if (found := _FENCE.match(answer)) is not None:
        answer = found[2].strip("\n")
    elif "\n" not in answer:
        if answer.endswith(("*.", "_.", "`.")):
            answer = answer[:-1]
        answer = answer.strip("*`_ \t")
    return answer or None
