"""The database of a log: its file, its owners, its bounds."""

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat.turn_rows import TurnRows
from tests.warm import python

OWNER, ANSWER, TALK, BODY = b"owner", b"answer", b"talk", b"body"


def opened(file: Path | None, **options: Any) -> TurnRows:
    given: dict[str, Any] = {"max_bytes": 2**20, "max_age_seconds": 100.0, "now": lambda: 0.0}
    return TurnRows(file, **(given | options))


def add(rows: TurnRows, key: bytes, payload: bytes = b"p", **changes: Any) -> None:
    given: dict[str, Any] = {
        "owner": OWNER,
        "answer": ANSWER,
        "conversation": TALK,
        "body": BODY,
        "turn_id": "t",
    }
    rows.add([key], payload, **(given | changes))


@pytest.fixture
def rows() -> Iterator[TurnRows]:
    one = opened(None)
    yield one
    one.close()


def test_rows_are_found_newest_first(rows: TurnRows) -> None:
    for number in range(3):
        add(rows, b"key", f"payload {number}".encode(), turn_id=str(number))
    found = rows.by_key(b"key", OWNER, ANSWER)
    assert [row.turn_id for row in found] == ["2", "1", "0"]
    assert rows.by_conversation(TALK, OWNER, ANSWER) == found
    assert rows.payloads([found[0].id, found[2].id, 99]) == {
        found[0].id: b"payload 2",
        found[2].id: b"payload 0",
    }
    add(rows, b"other", turn_id="0")
    newest = rows.by_turn_id("0", OWNER)
    assert newest is not None
    assert newest.id > found[0].id


def test_no_row_is_found_without_its_owner_or_its_answer(rows: TurnRows) -> None:
    add(rows, b"key")
    assert rows.by_key(b"key", b"other", ANSWER) == []
    assert rows.by_key(b"key", OWNER, b"other") == []
    assert rows.by_key(b"other", OWNER, ANSWER) == []
    assert rows.by_conversation(TALK, b"other", ANSWER) == []
    assert rows.by_conversation(TALK, OWNER, b"other") == []
    assert rows.by_turn_id("t", b"other") is None


def test_candidates_are_bounded(rows: TurnRows) -> None:
    for _ in range(200):
        add(rows, b"key")
    assert len(rows.by_key(b"key", OWNER, ANSWER)) == 64
    assert len(rows.by_conversation(TALK, OWNER, ANSWER)) == 64


def test_expired_turns_are_not_found_and_go(tmp_path: Path) -> None:
    clock = [0.0]
    file = tmp_path / "t"
    rows = opened(file, now=lambda: clock[0])
    add(rows, b"a")
    clock[0] = 50
    add(rows, b"b")
    clock[0] = 100
    assert len(rows.by_key(b"a", OWNER, ANSWER)) == 1
    clock[0] = 101
    assert rows.by_key(b"a", OWNER, ANSWER) == []
    assert [row.id for row in rows.by_conversation(TALK, OWNER, ANSWER)] == [2]
    add(rows, b"c")
    rows.close()
    assert numbers(file) == [(2,), (3,)]
    connection = sqlite3.connect(file)
    assert connection.execute("SELECT count(*) FROM keys").fetchone() == (2,)
    assert connection.execute("SELECT count(*) FROM payloads").fetchone() == (2,)
    connection.close()


def numbers(file: Path) -> list[tuple[int]]:
    connection = sqlite3.connect(file)
    found = connection.execute("SELECT id FROM turns ORDER BY id").fetchall()
    connection.close()
    return found


def test_a_clock_that_goes_back_keeps_the_last_use(tmp_path: Path) -> None:
    clock = [1000.0]
    rows = opened(None, now=lambda: clock[0])
    add(rows, b"a")
    clock[0] = 10.0
    assert rows.payloads([1]) == {1: b"p"}
    clock[0] = 1099.0
    assert len(rows.by_key(b"a", OWNER, ANSWER)) == 1
    rows.close()


def test_a_full_log_drops_as_much_as_it_needs(tmp_path: Path) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 0.001
        return clock[0]

    file = tmp_path / "t"
    rows = opened(file, now=now, max_bytes=2**20)
    for number in range(100):
        add(rows, str(number).encode(), os.urandom(50_000), turn_id=str(number))
        rows.payloads([1])
    kept = [one for one in range(100) if rows.by_turn_id(str(one), OWNER)]
    assert kept[0] == 0  # it was used all the time
    assert kept[1:] == list(range(100 - len(kept) + 1, 100))
    assert 15 < len(kept) < 22
    rows.close()
    assert file.stat().st_size < 2**20 + 2**18
    small = opened(file, now=now, max_bytes=200_000)
    add(small, b"new", b"p", turn_id="new")
    small.close()
    assert file.stat().st_size < 200_000 + 2**17
    assert 2 <= len(numbers(file)) <= 5


# ---- the file


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "t"
    rows = opened(file)
    add(rows, b"key")
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    for one in file.parent.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) == 0o600
    rows.close()
    file.chmod(0o644)
    opened(file).close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def foreign(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE notes (text)")
    connection.execute("INSERT INTO notes VALUES ('mine')")
    connection.commit()
    connection.close()


def changed(statement: str) -> Any:
    def change(file: Path) -> None:
        rows = opened(file)
        add(rows, b"key")
        rows.close()
        connection = sqlite3.connect(file)
        connection.execute(statement)
        connection.commit()
        connection.close()

    return change


def damaged(file: Path) -> None:
    rows = opened(file)
    for number in range(200):
        add(rows, str(number).encode(), bytes(1000))
    rows.close()
    content = bytearray(file.read_bytes())
    for place in range(4096 * 3, len(content), 4096):
        content[place : place + 200] = b"\xff" * 200
    file.write_bytes(content)


WRONG = {
    "text": lambda file: file.write_text("hello " * 1000),
    "zeros and text": lambda file: file.write_bytes(b"\0" * 100 + b"x" * 5000),
    "a head alone": lambda file: file.write_bytes(b"SQLite format 3\0" + bytes(20)),
    "another program's": foreign,
    "another version": changed("PRAGMA user_version = 7"),
    "no table of turns": changed("DROP TABLE turns"),
    "other columns": changed("ALTER TABLE payloads RENAME COLUMN turn TO other"),
    "damaged pages": damaged,
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_log_is_one_sentence_and_stays(tmp_path: Path, name: str) -> None:
    file = tmp_path / "t"
    WRONG[name](file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(ValueError, match=rf"^{file} ") as failed:
        opened(file)
    assert "\n" not in str(failed.value)
    assert before is None or file.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for file in (tmp_path / "file" / "t", tmp_path / "file" / "inner" / "t"):
        with pytest.raises(ValueError, match="cannot be used as a log of turns"):
            opened(file)


def test_an_empty_file_becomes_a_log(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.touch()
    rows = opened(file)
    add(rows, b"key")
    rows.close()
    assert numbers(file) == [(1,)]


def test_a_file_that_breaks_while_it_is_used_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "t"
    damaged(file)
    content = file.read_bytes()
    file.unlink()
    rows = opened(file)
    add(rows, b"key", bytes(500_000))
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with file.open("r+b") as broken:
        broken.seek(4096)
        broken.write(content[4096 * 3 : 4096 * 20])

    def use() -> None:
        for number in range(50):
            add(rows, str(number).encode(), bytes(5000))
            rows.by_key(b"key", OWNER, ANSWER)
            rows.payloads([1, 2, 3])

    with pytest.raises((ValueError, OSError), match=str(file)):
        use()
    rows.close()


def test_a_closed_log_and_a_locked_one_are_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.chat.turn_rows._BUSY_SECONDS", 0.1)
    file = tmp_path / "t"
    rows = opened(file)
    add(rows, b"key")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OSError, match="cannot be used: database is locked"):
        add(rows, b"other")
    assert rows.payloads([1]) == {1: b"p"}  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    add(rows, b"other")
    assert len(rows.by_key(b"other", OWNER, ANSWER)) == 1
    rows.close()
    rows.close()
    with pytest.raises(OSError, match="cannot be used"):
        rows.by_key(b"key", OWNER, ANSWER)


FILLER = """
import resource, signal, sys
from pathlib import Path
from tests.chat.test_turn_rows import ANSWER, OWNER, add, opened
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rows = opened(Path(sys.argv[1]), max_bytes=2**30)
add(rows, b"key")
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
failures = 0
for number in range(5):
    try:
        add(rows, b"big", bytes(150_000))
    except OSError as error:
        assert "cannot be used" in str(error), error
        failures += 1
assert failures, "the disk was not full"
assert len(rows.by_key(b"key", OWNER, ANSWER)) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, before)
add(rows, b"after")
assert len(rows.by_key(b"after", OWNER, ANSWER)) == 1
rows.close()
"""


def test_a_full_disk_loses_one_turn_and_the_log_goes_on(tmp_path: Path) -> None:
    command = python("-c", FILLER, tmp_path / "t")
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


OPENER = """
import sys
from pathlib import Path
from tests.chat.test_turn_rows import add, opened
ready = Path(sys.argv[1] + ".ready")
with ready.open("a") as file:
    file.write(".")
while ready.stat().st_size < 4:  # all begin at once
    pass
rows = opened(Path(sys.argv[1]))
for number in range(20):
    add(rows, b"key")
rows.close()
"""


def test_processes_that_start_together_make_one_database(tmp_path: Path) -> None:
    file = tmp_path / "t"
    processes = [
        subprocess.Popen(python("-c", OPENER, file), stderr=subprocess.PIPE) for _ in range(4)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert len(numbers(file)) == 80


def test_the_schema_is_that_of_version_one(tmp_path: Path) -> None:
    file = tmp_path / "t"
    opened(file).close()
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
