"""Accuracy of a model, and its price in tokens."""

from fulmen.evaluate.curve import DEFAULT_CLOSING, Study, StudyConfig
from fulmen.evaluate.plot import plot_svg
from fulmen.evaluate.report import summarize, tables

__all__ = ["DEFAULT_CLOSING", "Study", "StudyConfig", "plot_svg", "summarize", "tables"]
