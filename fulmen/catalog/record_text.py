"""The record of a training as text, in English or German: how it went, and what came of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fulmen.catalog.record import Record, ScoreRecord, StageRecord

if TYPE_CHECKING:  # its text holds these tables
    from fulmen.catalog.cards import Language

_WORDS: Final = {
    "en": {
        "record": "Record of the training",
        "total": "in total",
        "left": "{}, its result left out",
        "machine": "machine: {}",
        "scores": "Right answers to tasks that it was not trained on",
        "interval": "{} to {} %",
    },
    "de": {
        "record": "Protokoll des Trainings",
        "total": "insgesamt",
        "left": "{}, Ergebnis verworfen",
        "machine": "Rechner: {}",
        "scores": "Richtige Antworten auf Aufgaben, die nicht im Training vorkamen",
        "interval": "{} bis {} %",
    },
}
_STAGES: Final = {
    "en": {"learn": "next-token training", "practice": "reinforcement learning"},
    "de": {"learn": "Vorhersage des nächsten Tokens", "practice": "bestärkendes Lernen"},
}
_STAGE_HEAD: Final = {
    "en": ("stage", "tokens", "seconds"),
    "de": ("Phase", "Token", "Sekunden"),
}
_SCORE_HEAD: Final = {
    "en": ("task", "right", "of", "share", "95 % interval"),
    "de": ("Aufgabe", "richtig", "von", "Anteil", "95-%-Intervall"),
}
_POINTS: Final = str.maketrans(",.", ".,")
"""German marks in a number"""


def record_tables(record: Record, lang: "Language") -> list[str]:
    """Return the lines of the tables of stages and of scores; a table without rows is left out."""
    words = _WORDS[lang]
    lines: list[str] = []
    if record.stages:
        rows = [_stage_row(one, lang) for one in record.stages]
        if len(rows) > 1:
            tokens = sum(one.tokens for one in record.stages)
            rows.append((words["total"], _number(tokens, lang), _number(record.seconds, lang)))
        lines += ["", words["record"], *_table(_STAGE_HEAD[lang], rows)]
        lines.append(f"  {words['machine'].format(record.machine)}")
    if record.scores:
        scores = [_score_row(one, lang) for one in record.scores]
        lines += ["", words["scores"], *_table(_SCORE_HEAD[lang], scores)]
    return lines


def _stage_row(stage: StageRecord, lang: "Language") -> tuple[str, str, str]:
    name = _STAGES[lang].get(stage.name, stage.name)
    if not stage.is_kept:
        name = _WORDS[lang]["left"].format(name)
    return name, _number(stage.tokens, lang), _number(stage.seconds, lang)


def _score_row(score: ScoreRecord, lang: "Language") -> tuple[str, ...]:
    share = score.right / score.tasks if score.tasks else 0.0
    interval = _WORDS[lang]["interval"].format(_share(score.low, lang), _share(score.high, lang))
    counts = _number(score.right, lang), _number(score.tasks, lang)
    return score.name, *counts, f"{_share(share, lang)} %", interval


def _number(value: float, lang: "Language") -> str:
    return _in_language(f"{value:,.0f}", lang)


def _share(value: float, lang: "Language") -> str:
    return _in_language(f"{100 * value:.1f}", lang)


def _in_language(number: str, lang: "Language") -> str:
    return number.translate(_POINTS) if lang == "de" else number


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of columns, numbers at the right, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(["", row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (head, *rows)
    ]
