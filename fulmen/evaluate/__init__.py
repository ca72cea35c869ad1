"""Accuracy of a model on tasks that can be checked, and its price in tokens."""

from fulmen.evaluate.curve import DEFAULT_CLOSING, Study, StudyConfig
from fulmen.evaluate.page import eval_page, write_page
from fulmen.evaluate.passes import EvalConfig, play_all
from fulmen.evaluate.plot import plot_svg
from fulmen.evaluate.report import summarize, tables
from fulmen.evaluate.requests import REQUEST_FIELDS
from fulmen.evaluate.results import FAILURES, Failure, Pass, Results, open_results, read_results
from fulmen.evaluate.scoreboard import (
    Sheet,
    as_table,
    compare,
    comparison_sheets,
    eval_sheets,
    summarize_passes,
)
from fulmen.evaluate.self_check import Finding, self_check
from fulmen.evaluate.statistics import Estimate, estimate

__all__ = [
    "DEFAULT_CLOSING",
    "FAILURES",
    "REQUEST_FIELDS",
    "Estimate",
    "EvalConfig",
    "Failure",
    "Finding",
    "Pass",
    "Results",
    "Sheet",
    "Study",
    "StudyConfig",
    "as_table",
    "compare",
    "comparison_sheets",
    "estimate",
    "eval_page",
    "eval_sheets",
    "open_results",
    "play_all",
    "plot_svg",
    "read_results",
    "self_check",
    "summarize",
    "summarize_passes",
    "tables",
    "write_page",
]
