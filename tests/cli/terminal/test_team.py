"""The agents of a team at the terminal: who works, what each does, in lines that fit."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from fulmen.agent import Report, Trajectory
from fulmen.chat import ThinkingDelta, ToolCall
from fulmen.cli.terminal.team import MOST_ROWS, TeamSeen


def answer(num_new_tokens: int) -> dict[str, object]:
    return {"type": "answer", "num_new_tokens": num_new_tokens}


def test_each_agent_that_works_has_a_line_and_all_are_listed() -> None:
    team = TeamSeen()
    assert team.told(80) == ["no agent has begun yet"]
    first, second = (team.began(name, Trajectory()) for name in ("explorer-1", "worker-1"))
    first.event(ThinkingDelta("Hm"))
    second.record(answer(40))
    second.calling(ToolCall("bash", {"command": "pytest -q\x1b[2J"}))
    rows = ["".join(part.text for part in row) for row in team.rows(80)]
    assert rows[0].split() == ["explorer-1", "0", "steps,", "0", "tokens", "thinks"]
    assert rows[1].split()[:5] == ["worker-1", "1", "steps,", "40", "tokens"]
    assert rows[1].endswith("bash pytest -q\\x1b[2J")
    team.ended(Report("explorer-1", "", "done"))
    assert team.num_rows == len(team.rows(80)) == 1
    assert [row.split()[-1] for row in team.told(80)] == ["done", "-q\\x1b[2J"]


@given(
    st.integers(0, 12),
    st.integers(20, 200),
    st.text(max_size=200) | st.text("漢字かな", min_size=40),
)
def test_lines_fit_whatever_is_done(count: int, width: int, command: str) -> None:
    team = TeamSeen()
    for number in range(count):
        team.began(f"w-{number}", Trajectory()).calling(ToolCall("bash", {"command": command}))
    rows = ["".join(part.text for part in row) for row in team.rows(width)]
    assert len(rows) == team.num_rows <= MOST_ROWS + 1
    assert all("\n" not in row and cell_len(row) <= width for row in rows)
    if count > MOST_ROWS:
        assert rows[-1] == f"  ({count - MOST_ROWS} more work)"
