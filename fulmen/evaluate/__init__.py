"""Accuracy of a model, and its price in tokens."""

from fulmen.evaluate.curve import DEFAULT_CLOSING, Study, StudyConfig
from fulmen.evaluate.plot import plot_svg
from fulmen.evaluate.report import summarize, tables
from fulmen.evaluate.requests import REQUEST_FIELDS
from fulmen.evaluate.self_check import Finding, self_check

__all__ = [
    "DEFAULT_CLOSING",
    "REQUEST_FIELDS",
    "Finding",
    "Study",
    "StudyConfig",
    "plot_svg",
    "self_check",
    "summarize",
    "tables",
]
