"""The language of a text, by langdetect, which is not among what this package needs."""

from importlib.util import find_spec
from typing import Final

_LONGEST: Final = 10_000
"""Characters that langdetect looks at"""


def has_detector() -> bool:
    """Return True if langdetect is installed."""
    return find_spec("langdetect") is not None


def language_of(text: str) -> str | None:
    """Return the code of the language of a text, such as `en`; None where none is found."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it samples, and the same text must have the same language
    try:
        return str(detect(text[:_LONGEST]))
    except LangDetectException:
        return None
