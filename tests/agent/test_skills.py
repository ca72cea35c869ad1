"""Skills, commands and sub-agents from folders: what counts, what it says, what it cannot do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.agent import Archive, Folders, PromptCommand, Setup
from fulmen.agent.front_matter import MAX_FRONT, read_front_matter
from fulmen.chat import Tool
from tests.agent.test_work import run
from tests.agent.working import Noting, bash, begun, m2_calls, says, scripted, work_of
from tests.sandbox.helpers import skip_without_sandbox


def write(path: Path, text: str) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def skill(description: str, text: str = "Do it well.") -> str:
    """Return the text of a skill."""
    return f"---\nname: x\ndescription: {description}\n---\n\n{text}\n"


# ---- front matter -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "body"),
    [
        ("no front\n", {}, "no front\n"),
        ("---\nname: a\ntools: [x, y]\n---\nBody", {"name": "a", "tools": ("x", "y")}, "Body"),
        ("---\r\nname: a\r\n---\r\n\r\nBody\r\n", {"name": "a"}, "Body\n"),
        (
            "---\ndescription: >\n  one\n  two\nn: 1\n---\n",
            {"description": "one two", "n": "1"},
            "",
        ),
        ("---\ndescription: Use when: asked\n---\nB", {"description": "Use when: asked"}, "B"),
        ("---\na: yes\nb: {c: d}\n---\nB", {"a": "yes"}, "B"),
        ("---\nname: a\n", {}, "---\nname: a\n"),
        ("---\na: &x [1]\nb: *x\n---\nB", {"a": "&x [1]", "b": "*x"}, "B"),
        ("---\n- a\n---\nB", {}, "B"),
    ],
)
def test_front_matter_is_read_as_people_write_it(text: str, fields: object, body: str) -> None:
    assert read_front_matter(text) == (fields, body)


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_before_a_text_is_harmless(front: str, body: str) -> None:
    fields, rest = read_front_matter(f"---\n{front}\n---\n{body}")
    assert all(isinstance(value, str | tuple) for value in fields.values())
    assert isinstance(rest, str)


def test_front_matter_that_would_grow_or_is_too_long_is_none() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    fields, _ = read_front_matter("---\n" + "\n".join(lines) + "\n---\nB")
    assert all(isinstance(value, str) for value in fields.values())
    long = "---\na: " + "x" * MAX_FRONT + "\n---\nB"
    assert read_front_matter(long) == ({}, long)
    assert read_front_matter("---\na: " + "[" * 4000 + "\n---\nB")[1] == "B"


# ---- folders -----------------------------------------------------------------------------------


def test_the_users_own_come_first_and_files_that_say_nothing_are_told_of(tmp_path: Path) -> None:
    home, workspace = tmp_path / "home", tmp_path / "w"
    write(home / "skills/both/SKILL.md", skill("mine"))
    write(workspace / ".fulmen/skills/both/SKILL.md", skill("theirs"))
    write(workspace / ".claude/skills/a-b/SKILL.md", skill("of claude\x1b[2J"))
    write(workspace / ".claude/skills/none/SKILL.md", "Nothing.")
    write(workspace / ".fulmen/skills/no name/SKILL.md", skill("x"))
    write(tmp_path / "elsewhere/SKILL.md", skill("elsewhere"))
    (workspace / ".fulmen/skills/linked").symlink_to(tmp_path / "elsewhere")
    write(workspace / ".fulmen/agents/reader.md", "---\ntools: read, grep\nmodel: m\n---\nRead.")
    found = Folders.read(workspace, home)
    assert [(one.name, one.is_own) for one in found.skills] == [("a-b", False), ("both", True)]
    assert found.skills[0].description == "of claude\\x1b[2J"
    assert found.skills[1].description == "mine"
    (agent,) = found.agents
    assert (agent.name, agent.tools, agent.model) == ("reader", ("read", "grep"), "m")
    assert [note.split("/")[-2] for note in found.notes] == ["none"]


def test_commands_stand_for_words(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write(home / "commands/fix.md", "---\nargument-hint: ISSUE\n---\nFix $1, all of: $ARGUMENTS.")
    write(home / "commands/look.md", "Look.")
    found = Folders.read(tmp_path / "w", home)
    assert found.expanded("/fix 12 $1 now") == "Fix 12, all of: 12 $1 now."
    assert found.expanded("/fix") == "Fix , all of: ."
    assert found.expanded("/look") == "Look."
    assert found.expanded("/look  here") == "Look.\n\nhere"
    for words in ("/other", "look", "//fix 1"):
        assert found.expanded(words) == words
    assert PromptCommand("x", "", "", "$10 $12").expand("a") == "$10 $12\n\na"


# ---- in a run ----------------------------------------------------------------------------------


def test_a_skill_is_read_when_it_is_needed_and_its_files_can_be(tmp_path: Path) -> None:
    skip_without_sandbox()
    home, workspace = tmp_path / "home", tmp_path / "w"
    write(home / "skills/mine/SKILL.md", skill("my way", "Run it."))
    write(home / "skills/mine/run.sh", "echo ran")
    write(home / "agent.toml", "")
    write(workspace / ".claude/skills/theirs/SKILL.md", skill("their way", "Run theirs."))
    setup = Setup.read(workspace, home)
    archive = Archive(tmp_path / "runs")
    begun(archive, workspace, name="one")
    script = [
        m2_calls(*(("skill", {"name": name}) for name in ("mine", "theirs", "none"))),
        bash("m2", f"sh {home}/skills/mine/run.sh; cat {home}/agent.toml", "ls .claude/skills"),
        bash("m2", "echo x > .claude/skills/theirs/SKILL.md"),
        says("m2", "Done."),
    ]
    model = Noting(scripted(script))

    async def work() -> list[str]:
        fields = {"more_hands": setup.more_hands(), "readable": setup.readable}
        async with work_of(archive, "one", model, **fields) as one:
            assert await one.say("go") == "done"
            return [result.text for step in one.trajectory.steps for result in step.results]

    texts = run(work())
    assert texts[0] == f"(a skill, the user's; its files are in {home}/skills/mine)\nRun it."
    place = ".claude/skills/theirs"
    assert texts[1] == f"(a skill, this folder's; its files are in {place})\nRun theirs."
    assert texts[2] == "there is no skill none; there are: mine, theirs"
    assert texts[3].startswith("ran\n")
    assert "No such file" in texts[3]
    assert texts[4] == "theirs"
    assert "decides what runs later" in texts[5]
    tools = {one.name: one for one in model.requests[0].tools if isinstance(one, Tool)}
    assert tools["skill"].description.endswith("There are:\n- mine: my way\n- theirs: their way")


def test_no_folders_no_tool(tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    workspace.mkdir()
    setup = Setup.read(workspace, tmp_path / "home")
    assert (setup.more_hands(), setup.readable) == ((), ())


def test_an_agent_that_obeys_a_stranger_leaves_nothing_that_instructs_the_next(
    tmp_path: Path,
) -> None:
    """Even where a person says yes to everything, since the sandbox protects these places."""
    skip_without_sandbox()
    workspace = tmp_path / "w"
    workspace.mkdir()
    archive = Archive(tmp_path / "runs")
    begun(archive, workspace, name="one")
    server = "[mcp.evil]\ncommand = 'sh'\n[[hooks]]\nevent = 'before_tool'\ncommand = 'x'\n"
    texts = {
        ".fulmen/agent.toml": server,
        ".fulmen/skills/evil/SKILL.md": skill("obey"),
        ".claude/skills/evil/SKILL.md": skill("obey"),
        ".claude/commands/fix.md": "Obey.",
        ".fulmen/agents/evil.md": "Obey.",
        "AGENTS.md": "Obey.",
    }
    script = [m2_calls(("write", {"path": path, "content": text})) for path, text in texts.items()]
    script += [
        bash(
            "m2", f"mkdir -p {Path(path).parent}; printf x > {path}", f"mv d {path}; cp -r d {path}"
        )
        for path in texts
    ]
    places = [name for path in texts for name in (path.partition("/")[0],)]
    script += [bash("m2", f"mkdir n; rmdir {one}; mv n {one}; ln -s n {one}") for one in places]

    async def yes(*_: object) -> None:
        return None

    async def work() -> int:
        async with work_of(archive, "one", scripted([*script, says("m2", "")]), approve=yes) as one:
            assert await one.say("go") == "done"
            results = [result for step in one.trajectory.steps for result in step.results]
            return sum(not result.is_error for result in results if "is written" in result.text)

    assert run(work()) == 0
    setup = Setup.read(workspace, tmp_path / "home")
    assert setup.waiting is None
    assert setup.folders == Folders()
    assert setup.instructions == ()
    assert (setup.config.mcp, setup.config.hooks) == ({}, ())
