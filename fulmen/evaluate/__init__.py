"""Accuracy of a model, and its price in tokens."""

from fulmen.evaluate.curve import DEFAULT_CLOSING, Study, StudyConfig
from fulmen.evaluate.plot import plot_svg
from fulmen.evaluate.report import summarize, tables
from fulmen.evaluate.requests import REQUEST_FIELDS

__all__ = [
    "DEFAULT_CLOSING",
    "REQUEST_FIELDS",
    "Study",
    "StudyConfig",
    "plot_svg",
    "summarize",
    "tables",
]
