"""Accuracy against thinking tokens: one long thought, cut at each budget and answered there."""

from fulmen.scale.plot import plot_svg
from fulmen.scale.report import summarize, tables
from fulmen.scale.study import DEFAULT_CLOSING, Study, StudyConfig

__all__ = ["DEFAULT_CLOSING", "Study", "StudyConfig", "plot_svg", "summarize", "tables"]
