"""The record of a training: written, read again, refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.catalog import Language, Record, ScoreRecord, StageRecord
from fulmen.catalog.record_text import record_tables

RECORD = Record(
    machine="a processor, 2 cores",
    stages=(
        StageRecord(name="learn", tokens=1000, seconds=60.0),
        StageRecord(name="practice", tokens=10, seconds=1.5),
    ),
    scores=(ScoreRecord(name="basics:add:test", tasks=400, right=399, low=0.98, high=1.0),),
    seed=7,
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Record.read(tmp_path) is None
    RECORD.write(tmp_path)
    assert Record.read(tmp_path) == RECORD
    assert RECORD.seconds == 61.5


def test_a_stage_that_was_left_out_says_so() -> None:
    learn, practice = RECORD.stages
    record = replace(RECORD, stages=(learn, replace(practice, is_kept=False)))
    said_in: dict[Language, str] = {
        "en": "reinforcement learning, its result left out",
        "de": "bestärkendes Lernen, Ergebnis verworfen",
    }
    for lang, said in said_in.items():
        assert said in "\n".join(record_tables(record, lang))
        assert said not in "\n".join(record_tables(RECORD, lang))


@pytest.mark.parametrize(
    "text", ["{}", '{"machine": "x", "stages": 3}', '{"stages": [{"a": 1}], "scores": []}']
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match=r"record\.json is no record of a training"):
        Record.read(tmp_path)
