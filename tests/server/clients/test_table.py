"""The table of coding clients is that of the clients there are, and its page keeps all else."""

import re
from pathlib import Path
from typing import Any, cast

import pytest

from fulmen.llm import LLM
from tests.server.clients import programs, table
from tests.server.clients.tasks import CLIENTS

PAGE = table.PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_client_in_its_dialect_and_the_version_that_is_installed() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| (\w+) \| 5 \|", PAGE, re.M)
    script = (programs.ROOT / "scripts" / "install_clients").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^(\w+)=([\d.]+)\b", script, re.M))
    wanted = [
        (client.program, versions[client.program.replace("-", "_")], client.dialect)
        for client in CLIENTS.values()
    ]
    assert rows == wanted


def test_a_new_table_takes_the_place_of_the_one_before_and_of_nothing_else() -> None:
    row = table.as_line(["x"] * len(table.COLUMNS))
    new = "\n".join([table.as_line(table.COLUMNS), row])
    page = table.with_table(PAGE, new)
    assert page.count(row) == 1
    head, _, tail = PAGE.partition(table.as_line(table.COLUMNS))
    assert page.startswith(head)
    assert page.endswith(tail[tail.index("\n\n") :])
    assert table.with_table(page, new) == page


def test_a_client_that_is_not_installed_did_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "CLIENTS", tmp_path)
    row = table.make_row("pi", CLIENTS["pi"], cast(LLM, None))
    assert row[:3] == ["pi", "did not run", "Chat"]
    assert len(row) == len(table.COLUMNS)


@pytest.mark.parametrize(
    ("program", "note", "text"),
    [
        ("node_modules/a/b/bin/x", "node_modules/a/b/package.json", '{"version": "1.2.3-linux"}'),
        ("node_modules/a/x.js", "node_modules/a/package.json", '{"version": "1.2.3"}'),
        ("a/bin/x", "a/installed", "a-b==1.2.3 c==4.5\n"),
    ],
)
def test_a_version_is_that_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, note: str, text: str
) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    (tmp_path / "package.json").write_text('{"version": "9"}')  # of the folder, not of a client
    for name, content in ((program, ""), (note, text)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert table.version_of(tmp_path / program) == "1.2.3"


def test_turns_are_read_as_the_log_writes_them() -> None:
    line: dict[str, Any] = {"turns": "matched:3,restored:12"}
    assert table.turns_of(line) == {"matched": 3, "restored": 12}
    assert table.turns_of({}) == {}
