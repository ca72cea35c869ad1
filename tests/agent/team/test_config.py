"""A team's file: all of it is read, and what is wrong with it is one sentence."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import AgentKind, SubAgent, TeamConfig, parse_team, read_team, team_of
from fulmen.agent.permissions import MODES
from tests.examples import examples

EXAMPLE = Path(__file__).parents[3] / "examples" / "team.toml"
ONE = '[[agents]]\nname = "a"\nrole = "worker"\n'


def test_the_example_is_a_team() -> None:
    team, text = read_team(EXAMPLE)
    assert team == parse_team(text, "t")
    assert {name: one.role for name, one in team.kinds.items()} == {
        "explorer": "explorer",
        "worker": "worker",
        "reviewer": "reviewer",
    }
    assert (team.max_tokens, team.max_seconds, team.max_answer) == (200_000, 3600, 8192)
    assert team.kinds["explorer"].count == 3
    assert parse_team(ONE, "t") == TeamConfig(agents=(AgentKind(name="a", role="worker"),))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "t has no agents, a team needs one or more tables [[agents]]"),
        ("agents = 3", "t has no agents, a team needs one or more tables [[agents]]"),
        ("agents = [3]", "t: agents 1 must be a table, it is 3"),
        ("[[agents]]", "t: agents 1: name is None, it must be a text of up to 20 small letters"),
        ('[[agents]]\nname = "a"', "t: agents 1 (a) has no role, it must be one of explorer"),
        (ONE + ONE, "t has two agents of the name a, count makes several"),
        (ONE + "count = 0", "t: agents 1 (a): count is 0, it must be a whole number from 1 to 64"),
        (ONE + "count = true", "count is True, it must be a whole number"),
        (ONE + 'tools = "all"', "tools is 'all', it must be one of coding, minimal"),
        (
            ONE + "model = 3",
            "t: agents 1 has 'model', it may have name, role, count, description, prompt",
        ),
        (ONE + "prompt = 3", "t: agents 1 (a): prompt is 3, it must be a text"),
        (ONE.replace('"a"', '"lead"'), "name is 'lead', which no agent beside the lead can have"),
        (ONE.replace("worker", "boss"), "role is 'boss', it must be one of explorer, worker"),
        (
            ONE.replace("worker", "reviewer") + 'mode = "auto"',
            "mode is 'auto', but a reviewer only reads, which is plan",
        ),
        (ONE + "[budget]\nmax-seconds = -1", "max-seconds of budget is -1, it must be a number"),
        (ONE + "[budget]\ntokens = 1", "t: budget has 'tokens', it may have max-tokens"),
        ("lead = 1\n" + ONE, "t: lead must be a table, it is 1"),
        ("a = ", "t is not valid TOML: "),
    ],
)
def test_a_mistake_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^t") as told:
        parse_team(text, "t")
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the team cannot be read: .*none\.toml"):
        read_team(tmp_path / "none.toml")


@given(
    st.text(max_size=200) | st.sampled_from([ONE]).flatmap(lambda one: st.text().map(one.__add__))
)
@settings(max_examples=examples(200), deadline=None)
def test_any_text_is_a_team_or_a_sentence(text: str) -> None:
    try:
        told = str(len(parse_team(text, "t").agents))
    except ValueError as error:
        told = str(error)
    assert told == "1" or told.startswith("t")


@pytest.mark.parametrize("lead", MODES)
@pytest.mark.parametrize("own", [None, *MODES])
def test_no_agent_may_more_than_its_lead_but_edit_its_copy(lead: str, own: str | None) -> None:
    worker = AgentKind(name="a", role="worker", mode=own)  # type: ignore[arg-type]
    widest = "accept-edits" if lead == "ask" else lead
    mode = worker.mode_under(lead)  # type: ignore[arg-type]
    assert MODES.index(mode) <= MODES.index(widest)
    reader = AgentKind(name="a", role="explorer")
    assert reader.mode_under(lead) == "plan"  # type: ignore[arg-type]


@given(
    st.lists(
        st.builds(
            SubAgent,
            name=st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,25}", fullmatch=True),
            description=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
            tools=st.none() | st.sampled_from([("Read", "Grep"), ("read", "bash"), ()]),
            model=st.sampled_from(["", "inherit", "opus"]),
            text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
        ),
        max_size=25,
    )
)
def test_sub_agents_of_folders_are_a_team_with_all_of_their_texts(agents: list[SubAgent]) -> None:
    text, notes = team_of(agents)
    if not text:
        assert not agents or len(notes) == len(agents)
        return
    team = parse_team(text, "folders")
    assert team.is_lead_alone
    left = [one for one in agents if any(f" {one.name} is left out" in note for note in notes)]
    for kind in team.agents:
        found = next(one for one in agents if one.name.lower().replace("-", "_")[:20] == kind.name)
        assert (kind.description, kind.prompt) == (found.description.strip(), found.text.strip())
        is_reader = found.tools is not None and "bash" not in found.tools
        assert kind.role == ("explorer" if is_reader else "worker")
    assert len(team.agents) >= len(agents) - len(left)
