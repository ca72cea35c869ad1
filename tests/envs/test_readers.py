"""GSM8K and other files of questions: rows of JSON and of Parquet, and what is wrong with them."""

import json
import sys
from pathlib import Path

import pytest

from fulmen.envs import NumberTask, Questions, load_environment

ROWS = [
    {"question": "How many?", "answer": "He had 3 + 4 = <<3+4=7>>7.\n#### 1,007"},
    {"question": "And now?", "answer": "#### -2.50"},
]


def file_of(folder: Path, rows: list[object]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_gsm8k_is_read_from_a_file(tmp_path: Path) -> None:
    environment = load_environment(f"gsm8k:{file_of(tmp_path, list(ROWS))}", seed=0)
    first, second = environment.task(0), environment.task(1)
    assert isinstance(first, NumberTask)
    assert isinstance(second, NumberTask)
    assert environment.num_tasks == 2
    assert first.number == 1007
    assert second.number * 2 == -5
    assert first.messages[0].content == "How many?"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"question": "a?", "answer": "It is 7."},
            "line 1 has the answer 'It is 7.', it must have ####",
        ),
        ({"question": "a?", "answer": 7}, "it must have #### in it"),
        ({"question": "a?", "answer": "#### none"}, "it must have a number in it"),
        ({"answer": "#### 1"}, "line 1 must be an object with question"),
    ],
)
def test_rows_that_are_not_gsm8k_are_one_sentence(
    tmp_path: Path, row: object, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        load_environment(f"gsm8k:{file_of(tmp_path, [row])}", seed=0)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    for kind in ("gsm8k", "ifeval"):
        with pytest.raises(
            ValueError, match=r"none\.jsonl is no file, it must be one of JSON lines"
        ):
            load_environment(f"{kind}:{tmp_path}/none.jsonl", seed=0)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and more")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"rows\.parquet needs pyarrow, install it with: pip"):
        Questions(path)


def test_parquet_is_read_where_pyarrow_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    environment = load_environment(f"gsm8k:{path}", seed=0)
    assert environment.num_tasks == 2
    assert environment.task(1).messages[0].content == "And now?"
    path.write_bytes(b"PAR1 and more")
    with pytest.raises(ValueError, match=r"is no Parquet file that can be read") as refusal:
        Questions(path)
    assert "\n" not in str(refusal.value)


def test_without_the_hub_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("gsm8k", "gsm8k:train", "ifeval"):
        with pytest.raises(
            ValueError, match=r"the hub did not give .*name a file of it"
        ) as refusal:
            load_environment(name, seed=0)
        assert "\n" not in str(refusal.value)
