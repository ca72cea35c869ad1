"""Notes that outlive a run: what is kept, by how many at once, and who is asked."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.agent import Notes
from fulmen.agent.tools import ToolError
from fulmen.chat import ChatRequest, read_messages
from tests.agent.working import m2_calls, says
from tests.cli.test_agent import _own_folders, agent, folder, results_of, run_name, served_script
from tests.cli.test_cli import called

__all__ = ["_own_folders", "folder"]

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.tuples(words, st.integers(-1, 3)), max_size=12))
def test_notes_are_as_a_plain_list_of_lines_would_be(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    notes = Notes(tmp_path_factory.mktemp("runs"), Path("/w"))
    expected: list[str] = []
    for text, place in steps:
        old = expected[place] if 0 <= place < len(expected) else ""
        line = " ".join(text.split())
        if not line and not old:
            with pytest.raises(ToolError, match="empty"):
                notes.keep(text, old)
            continue
        found = notes.keep(text, old)
        if line and old:
            expected[expected.index(old)] = found[expected.index(old)]
        elif old:
            expected.remove(old)
        elif found[-1:] != tuple(expected[-1:]) or len(found) > len(expected):
            expected.append(found[-1])
        assert list(found) == expected == list(notes.read())
        assert all(one.isprintable() for one in found)


def test_what_cannot_be_kept_changes_nothing(tmp_path: Path) -> None:
    notes = Notes(tmp_path, Path("/w"))
    notes.keep("one")
    with pytest.raises(ToolError, match="at most 1,000 go"):
        notes.keep("x" * 1001)
    with pytest.raises(ToolError, match="no such note"):
        notes.keep("two", "on")
    for number in range(8):
        notes.keep(f"{number}" * 990)
    with pytest.raises(ToolError, match="all notes would have"):
        notes.keep("9" * 990)
    assert len(notes.read()) == 9
    assert Notes(tmp_path, Path("/other")).read() == ()
    assert notes.path.stat().st_mode & 0o077 == 0
    assert (notes.clear(), notes.read()) == (9, ())


def test_none_is_lost_where_several_keep_some(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fulmen.agent import Notes\n"
        "for n in range(20): Notes(Path(sys.argv[1]), Path('/w')).keep(f'{sys.argv[2]} {n}')"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[2]
    started = [subprocess.Popen([*command, name], cwd=root) for name in ("a", "b", "c")]
    assert [one.wait(60) for one in started] == [0, 0, 0]
    found = Notes(tmp_path, Path("/w")).read()
    assert sorted(found) == sorted(f"{name} {n}" for name in "abc" for n in range(20))


def test_the_next_run_knows_and_a_resumed_one_reads_nothing_again(
    folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "config/fulmen/agent"
    home.mkdir(parents=True)
    (home / "agent.toml").write_text("notes = true\n")
    note = m2_calls(("note", {"text": "Tests run\nby make."}))
    asked: list[ChatRequest] = []

    def line(request: ChatRequest) -> str:
        asked.append(request)
        number = sum(one.role == "assistant" for one in read_messages(request.messages))
        return [note, says("m2", "Kept."), says("m2", "More.")][number]

    def system(request: ChatRequest) -> str:
        first = read_messages(request.messages)[0]
        return first.content if first.role == "system" else ""

    with served_script([line] * 20) as url:
        refused = agent(folder, url, "-p", "Go.", "--json", "--mode", "auto")
        assert (refused.returncode, results_of(refused)[0][:11]) == (3, "not allowed")
        first = agent(folder, url, "-p", "Go.", "--json", "--allow", "note")
        assert results_of(first) == ["kept; there are 1 notes now"]
        name, begun = run_name(), system(asked[-1])
        resumed = called("agent", "resume", name, "-p", "more", "--url", url)
        assert (resumed.returncode, system(asked[-1])) == (0, begun)
        agent(folder, url, "-p", "Go.", "--mode", "plan")
        assert "- Tests run by make." in system(asked[-1])
        assert "no words of the user" in system(asked[-1])
    told = called("agent", "notes", "--folder", folder)
    assert told.stdout == "- Tests run by make.\n"
    assert called("agent", "notes", "--folder", folder, "--clear").returncode == 0
    assert called("agent", "notes", "--folder", folder).stdout == ""
