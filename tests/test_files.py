"""A file is the old one or the whole new one; a JSON file is read within bounds or refused."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.files import (
    MAX_JSON_BYTES,
    check_replaceable,
    explain,
    full_reason,
    naming,
    read_json,
    read_json_if_present,
    replacing,
    replacing_path,
    shorten,
    write_text,
)
from tests.bounds import bounded


def test_a_replaced_file_is_the_old_one_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing_path(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "far" / "a", tmp_path / "link", tmp_path / "dangling"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "new" / "b")
    write_text(link, "new")
    write_text(dangling, "b")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert target.read_bytes() == b"new"
    assert (tmp_path / "new/b").read_bytes() == b"b"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe"])
def test_what_is_no_file_is_never_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "there"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        os.mkfifo(path)
    given = path
    if kind == "link to a pipe":
        given = tmp_path / "link"
        given.symlink_to(path)
    before = (path.lstat(), sorted(tmp_path.iterdir()))
    needed = f"{given} is a {kind.split()[-1]}, the name of a file is needed"
    with pytest.raises(ValueError, match=f"^{re.escape(needed)}$"):
        write_text(given, "x")
    assert (path.lstat(), sorted(tmp_path.iterdir())) == before


def test_a_device_is_no_file() -> None:
    with pytest.raises(ValueError, match="/dev/null is a device, the name of"):
        check_replaceable(Path("/dev/null"))


def test_text_is_written_as_utf8_into_folders_that_need_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**90), 10**90) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(values=st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_object_is_read_back(values: dict[str, object], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read_json(path) == read_json_if_present(path) == values


def test_an_absent_file_is_empty_only_where_it_is_optional(tmp_path: Path) -> None:
    assert read_json_if_present(tmp_path / "a.json") == {}
    with pytest.raises(ValueError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    for read in (read_json, read_json_if_present):
        with pytest.raises(ValueError, match="is not a file"):
            read(tmp_path)


LIMITED = """
import resource, sys
from pathlib import Path
from fulmen.files import explain, replacing, write_text
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    PROGRAM
except OSError as error:
    print(explain(error))
"""


@pytest.mark.parametrize(
    "program",
    [
        "write_text(path, 'x' * 5000)",
        "with replacing(path) as file: file.write(b'x' * 5000)",
        "with replacing(path) as file: [file.write(b'x' * 10) for _ in range(500)]",
    ],
)
@pytest.mark.parametrize("name", ["a.json", "\u4f1a" * 80])
def test_a_write_that_finds_no_room_names_its_file(program: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    run = subprocess.run(
        [sys.executable, "-c", LIMITED.replace("PROGRAM", program), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"{path}: file too large\n"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_without_room_is_named() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError) as error:  # noqa: PT011
        file.write(b"x")
    assert explain(error.value) == "the output: no space left on device"
    named = naming(error.value, Path("a/b"))
    assert explain(named) == "a/b: no space left on device"
    other = OSError(errno.ENOENT, "No such file or directory", "c")
    assert naming(other, Path("a/b")) is other


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left on device"),
        (OSError(errno.EFBIG, "x"), "file too large"),
        (RuntimeError("io: No space left on device (os error 28)"), "no space left on device"),
        (RuntimeError("something else"), None),
        (OSError(errno.ENOENT, "no such file"), None),
    ],
)
def test_a_full_disk_is_told_from_other_failures(error: Exception, reason: str | None) -> None:
    assert full_reason(error) == reason


@given(text=st.text(max_size=300) | st.integers(), limit=st.integers(1, 250))
def test_a_shortened_text_is_one_line_within_its_bound(text: object, limit: int) -> None:
    short = shorten(text, limit)
    assert short.isprintable()
    assert len(short) <= 10 * limit + len("... (300 characters)")
    if str(text).isprintable() and len(str(text)) <= limit:
        assert short == str(text)
    if len(str(text)) > limit:
        assert short.endswith(f"... ({len(str(text)):,} characters)")


HARMFUL = {
    "not UTF-8": (b'{"a": "\xff"}', "is not valid JSON"),
    "not JSON": (b"{a}", "is not valid JSON"),
    "cut off": (b'{"a": [1', "is not valid JSON"),
    "empty": (b"", "is not valid JSON"),
    "a list": (b"[1]", "must hold a JSON object, found list"),
    "lists in lists": (b'{"a": ' + b"[" * 900_000, "nested too deeply"),
    "closed lists": (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested too deeply"),
    "objects in objects": (b'{"a": ' * 400 + b"1" + b"}" * 400, "nested too deeply"),
    "many lists": (b'{"a": [' + b"[]," * 999_999 + b"1]}", "more than 1,000,000 values"),
    "many numbers": (b'{"a": [' + b"1," * 1_000_001 + b"1]}", "more than 1,000,000 values"),
    "many names": (
        b"{" + b",".join(b'"%d":0' % i for i in range(600_000)) + b"}",
        "more than 1,000,000 values",
    ),
    "a long text": (b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}', "more than 33,554,432 bytes"),
    "a long integer": (b'{"a": 1' + b"0" * 100 + b"}", "an integer of 101 digits"),
    "a negative one": (b'{"a": -' + b"9" * 100_000 + b"}", "an integer of 100001 digits"),
    "half a surrogate pair": (b'{"a": ["\\ud800"]}', "half of a surrogate pair"),
    "half a pair in a name": (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_json_file_that_could_hurt_is_one_sentence(kind: str, tmp_path: Path) -> None:
    content, sentence = HARMFUL[kind]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with bounded(), pytest.raises(ValueError, match=sentence) as error:
        read_json(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
