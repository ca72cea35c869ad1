"""Settings of a workspace count once their content is approved; remembered rules are kept."""

import multiprocessing
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import (
    AgentConfig,
    Approvals,
    RememberedRules,
    Rule,
    Rules,
    Setup,
    parse_config,
    project_file,
    read_project,
)
from tests.examples import examples

WHOLE = b"""
mode = "auto"
tools = "minimal"
instructions = ["HOUSE.md"]
[rules]
allow = ["bash(pytest *)"]
ask = ["bash(git commit *)"]
deny = ["read(**/.env)"]
[environment]
RUST_BACKTRACE = "1"
"""
NARROWING = Rules.parse(ask=["bash(git commit *)"], deny=["read(**/.env)"])


def written(workspace: Path, content: bytes) -> Path:
    path = project_file(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_holds_what_its_keys_say() -> None:
    config = parse_config(WHOLE, "agent.toml")
    assert (config.mode, config.tools, config.instructions) == ("auto", "minimal", ("HOUSE.md",))
    assert config.rules == NARROWING | Rules.parse(["bash(pytest *)"])
    assert config.environment == {"RUST_BACKTRACE": "1"}
    assert parse_config(b"", "agent.toml") == AgentConfig()


def test_only_what_takes_away_counts_before_approval(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path / "home")
    workspace = tmp_path / "ws"
    assert read_project(workspace, approvals) == (AgentConfig(), None)
    path = written(workspace, WHOLE)
    assert read_project(workspace, approvals) == (AgentConfig(rules=NARROWING), WHOLE)
    approvals.approve(path, WHOLE)
    assert read_project(workspace, approvals) == (parse_config(WHOLE, ""), None)
    changed = WHOLE.replace(b"pytest", b"python")
    written(workspace, changed)
    assert read_project(workspace, approvals) == (AgentConfig(rules=NARROWING), changed)
    written(workspace, WHOLE)
    assert read_project(workspace, approvals)[1] is None
    assert approvals.paths() == {str(path): 1}
    assert approvals.revoke(path) == 1
    assert approvals.revoke(path) == 0
    assert read_project(workspace, approvals)[1] == WHOLE


def test_an_approval_is_for_one_place(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path / "home")
    approvals.approve(written(tmp_path / "one", WHOLE), WHOLE)
    written(tmp_path / "other", WHOLE)
    assert read_project(tmp_path / "other", approvals)[1] == WHOLE


def test_a_file_that_only_takes_away_needs_no_approval(tmp_path: Path) -> None:
    written(tmp_path, b'[rules]\ndeny = ["bash(rm *)"]\n')
    config, waiting = read_project(tmp_path, Approvals(tmp_path / "home"))
    assert waiting is None
    assert config.rules == Rules.parse(deny=["bash(rm *)"])


def test_the_users_own_file_holds_and_a_workspaces_goes_over_it_once_approved(
    tmp_path: Path,
) -> None:
    home, workspace = tmp_path / "home", tmp_path / "ws"
    home.mkdir()
    dotfiles = tmp_path / "dotfiles.toml"
    dotfiles.write_text(
        'mode = "accept-edits"\nnetwork = true\nmax-turns = 9\nmax-seconds = 1.5\n'
        'context = "none"\n[rules]\nallow = ["bash(ls *)"]\n'
    )
    (home / "agent.toml").symlink_to(dotfiles)
    path = written(workspace, b'network = false\nmax-turns = 5\n[rules]\ndeny = ["bash(rm *)"]\n')
    setup = Setup.read(workspace, home)
    assert setup.config == AgentConfig(
        mode="accept-edits",
        has_network=True,
        limits={"turns": 9, "seconds": 1.5, "context": None},
        rules=Rules.parse(["bash(ls *)"], deny=["bash(rm *)"]),
    )
    assert setup.waiting == path.read_bytes()
    config = setup.approve().config
    assert config.has_network is False
    assert config.limits == {"turns": 5, "seconds": 1.5, "context": None}
    dotfiles.write_text("mode = 1")
    with pytest.raises(ValueError, match=r"home/agent\.toml: mode is 1"):
        Setup.read(workspace, home)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"mod = 1", "f has 'mod', it may have mode, tools, network, max-turns, max-tokens, "),
        (b"mode = 'yolo'", "f: mode is 'yolo', it must be one of plan, ask, accept-edits, auto"),
        (b"mode = 1", "f: mode is 1, it must be one of"),
        (b"tools = 'all'", "f: tools is 'all', it must be one of coding, minimal"),
        (b"rules = 1", "f: rules must be a table"),
        (b"[rules]\nalow = []", "f: rules has 'alow', it may have allow, ask, deny"),
        (b"[rules]\nallow = 'x'", "f: rules: allow must be a list of texts"),
        (b"[rules]\nallow = [1]", "f: rules: allow must be a list of texts"),
        (b"[rules]\nallow = ['bash(']", "f: the rule 'bash(' has no closing bracket at its end"),
        (b"network = 1", "f: network is 1, it must be true or false"),
        (b"max-turns = 1.5", 'f: max-turns is 1.5, it must be a whole number, or "none"'),
        (b"max-turns = true", 'f: max-turns is True, it must be a whole number, or "none"'),
        (b"max-tokens = '20k'", "f: max-tokens is '20k', it must be a whole number, or \"none\""),
        (b"context = -1", "f: context is -1, out of range"),
        (b"max-seconds = nan", "f: max-seconds is nan, out of range"),
        (b"max-seconds = 'x'", "f: max-seconds is 'x', it must be a number, or \"none\""),
        (b"[environment]\n'A B' = 'x'", "f: 'A B' cannot name a variable"),
        (b"[environment]\nA = 1", "f: A must be a text"),
        (b"mode = ", "f is not valid TOML: "),
        (b"\xff", "f is not text in UTF-8"),
        (b"a = " + b"[" * 10_000, "f is nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        parse_config(content, "f")


def test_a_link_a_pipe_and_a_large_file_are_refused(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path / "home")
    path = project_file(tmp_path)
    path.parent.mkdir()
    (tmp_path / "x").write_bytes(WHOLE)
    path.symlink_to(tmp_path / "x")
    with pytest.raises(ValueError, match="is behind a link"):
        read_project(tmp_path, approvals)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is not a file"):
        read_project(tmp_path, approvals)
    path.unlink()
    path.write_bytes(b"#" * 70_000)
    with pytest.raises(ValueError, match="more than 65,536 bytes"):
        read_project(tmp_path, approvals)


@settings(max_examples=examples(30), deadline=None)
@given(
    st.permutations(["bash(rm *)", "edit(a)", "grep"]), st.sampled_from(["allow", "ask", "deny"])
)
def test_settings_over_others_lose_no_rule(texts: list[str], name: str) -> None:
    one = AgentConfig(mode="auto", rules=Rules.parse(**{name: texts[:2]}), environment={"A": "1"})
    other = AgentConfig(rules=Rules.parse(deny=texts[1:]), environment={"A": "2"})
    both = one.under(other)
    assert both.rules == one.rules | other.rules
    assert both.mode == "auto"
    assert one.under(AgentConfig(mode="plan")).mode == "plan"
    assert both.environment == {"A": "2"}
    assert both.unapproved().rules.allow == frozenset()


def test_remembered_rules_are_of_one_workspace_and_not_in_it(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    one = RememberedRules(tmp_path / "home", tmp_path / "ws")
    assert one.read() == Rules()
    rules = frozenset((Rule.parse("bash(pytest *)"), Rule("bash", "python - <<'E'\nx\nE")))
    one.add(rules)
    one.add(frozenset((Rule("edit", "./a"),)))
    assert one.read() == Rules(rules | {Rule("edit", "./a")})
    assert RememberedRules(tmp_path / "home", tmp_path / "ws/../ws").read() == one.read()
    assert RememberedRules(tmp_path / "home", tmp_path).read() == Rules()
    assert one.forget(Rules(frozenset({Rule("edit", "./a"), Rule("bash", "other")}))) == 1
    assert one.read() == Rules(rules)
    assert list((tmp_path / "ws").iterdir()) == []


def remember(folder: Path, number: int) -> None:
    RememberedRules(folder, folder).add(frozenset((Rule("bash", f"x{number}"),)))


def test_agents_that_remember_at_once_lose_no_rule(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=remember, args=(tmp_path, one)) for one in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(RememberedRules(tmp_path, tmp_path).read().allow) == 8


def test_a_remembered_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    one = RememberedRules(tmp_path, tmp_path)
    one.add(frozenset((Rule("bash", "x"),)))
    (path,) = (tmp_path / "remembered").glob("*.json")
    path.write_text('{"allow": ["bash("]}')
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: the rule 'bash\\('"):
        one.read()
