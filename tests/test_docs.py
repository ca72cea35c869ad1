"""Check what README and docs show: code, output, commands, links, paths, the API reference."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import pytest

from fulmen.catalog.download import cache_folder

ROOT = Path(__file__).parent.parent
WRITTEN = [ROOT / "README.md", *sorted(ROOT.glob("[A-Z]*.md")), *sorted(ROOT.glob("docs/*.md"))]
PAGES = list(dict.fromkeys([*WRITTEN, *sorted(ROOT.glob("docs/api/*.md"))]))
HOW_IT_WORKS = [
    *("agents", "chat", "checkpoints", "engine", "kernels", "models"),
    *("quantization", "scale", "sessions", "steering"),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SHOWN = re.compile(r"^```python\n(.*?)^```\n\s*prints\s*```text\n(.*?)^```", re.M | re.S)
UNSAID = r"(What|Whether|How|Of|Where|Which|Why|The same|One that|Those of|That of)\b"
"""Words that no docstring begins with; it begins with a verb or with the thing's noun."""


def named(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in paths]


def python_blocks() -> Iterator[Any]:
    for page in dict.fromkeys(WRITTEN):
        text = page.read_text(encoding="utf-8")
        shown = dict(SHOWN.findall(text))
        blocks = [code for language, code in FENCE.findall(text) if language == "python"]
        for number, code in enumerate(blocks):
            yield pytest.param(code, shown.get(code), id=f"{page.name}-{number}")


def skip_without_model(text: str) -> None:
    if "smollm2" in text and not (cache_folder() / "smollm2/model.gguf").exists():
        pytest.skip("smollm2 is not here, `fulmen models pull smollm2` brings it")


def run(*arguments: str) -> str:
    """Run Python in the root of the tree; return its stdout."""
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("code", "output"), list(python_blocks()))
def test_python_blocks_run_and_print_what_the_page_shows(
    code: str,
    output: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    skip_without_model(code)
    monkeypatch.chdir(ROOT)  # where paths of the docs begin
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert output is None or printed.strip() == output.strip()


def test_the_quick_start_prints_what_the_readme_shows() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"&& fulmen (chat [^\n]*)\n```\n\s*prints\s*```text\n(.*?)```", text, re.S)
    assert found is not None
    skip_without_model(found[1])
    start = "from fulmen.cli import main; main()"
    assert run("-c", start, *shlex.split(found[1])).strip() == found[2].strip()


def shown_runs() -> Iterator[Any]:
    """Yield each command that a page shows with the beginning of its output."""
    for page in dict.fromkeys(WRITTEN):
        for _, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if body.startswith("$ fulmen "):
                line, _, output = body.partition("\n")
                yield pytest.param(line, output, id=f"{page.name}: {line}")


@pytest.mark.parametrize(("line", "output"), list(shown_runs()))
def test_a_command_prints_what_the_page_shows(
    line: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = shlex.split(line.removeprefix("$ fulmen "))
    printed = run("-c", "from fulmen.cli import main; main()", *words)
    assert is_shown(printed, output)


def is_shown(printed: str, output: str) -> bool:
    """Return True if a page shows all that is printed but for cuts, which are lines of `...`."""
    first, *later = re.split(r"^\.\.\.\n", output, flags=re.M)
    if not printed.startswith(first):
        return False
    position = len(first)
    for part in later:
        start = printed.find(part, position)
        if start < 0:
            return False
        position = start + len(part)
    return position == len(printed) or output.endswith("\n...\n")


@pytest.mark.parametrize(
    ("output", "is_right"),
    [
        ("a\n\n b\nc\n", True),
        ("a\n...\n", True),
        ("a\n...\nc\n", True),
        ("...\nc\n", True),
        ("a\n\nb\nc\n", False),
        ("a\n", False),
        ("a\n...\n b\n", False),
        (" b\n...\n", False),
        ("a\n...\na\n", False),
    ],
)
def test_what_a_page_leaves_out_is_marked(output: str, is_right: bool) -> None:
    assert is_shown("a\n\n b\nc\n", output) is is_right


# Command lines


def command_lines(text: str) -> Iterator[str]:
    """Yield the `fulmen` commands of a page: in code spans, and as lines of blocks."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "sh", "text")]
    without = FENCE.sub("", text)
    blocks += re.findall(r"(?:^ {4}.*\n?)+", without, re.M)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.findall(r"(?:^|&& |\$ )\s*(fulmen .*?)(?=$|&&)", line)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?m)^ {4}.*$", "", without))
    yield from (span for span in spans if span.startswith("fulmen "))


@cache
def root_command() -> Any:
    from typer.main import get_command

    from fulmen.cli import app

    return get_command(app)


def check_command(line: str) -> None:
    """Raise AssertionError unless the command takes these flags, values and arguments."""
    words = shlex.split(line.replace("`", ""), comments=True)[1:]
    command = root_command()
    while hasattr(command, "commands"):
        default = getattr(command, "default_command", None)
        if default is not None and (not words or words[0] not in command.commands):
            command = command.commands[default]
            break
        if not words or words[0].startswith("-"):
            break
        if words[0].isupper():  # COMMAND stands for any
            return
        assert words[0] in command.commands, f"{line}: there is no {words[0]}"
        command = command.commands[words.pop(0)]
    known = {name: option for option in command.params for name in option.opts}
    known |= {name: option for option in command.params for name in option.secondary_opts}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    most = sum(p.nargs for p in arguments) if all(p.nargs > 0 for p in arguments) else len(words)
    given = 0
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "--":
            given += word != "..."
            continue
        name, equals, value = word.partition("=")
        if name in ("--help", "--install-completion", "--show-completion"):
            words = words[1:]
            continue
        assert name in known, f"{line}: {command.name} has no {name}"
        option = known[name]
        if option.is_flag:
            continue
        if not equals and words:
            value = words.pop(0)
        allowed = get_args(option.type_descriptor.annotation)  # of a Literal
        if allowed and all(isinstance(choice, str) for choice in allowed) and value:
            assert value in allowed, f"{line}: {name} is {value}"
    assert given <= most, f"{line}: {command.name} takes {most} arguments"


@pytest.mark.parametrize("page", named(PAGES))
def test_every_command_line_names_commands_and_flags_that_exist(page: Path) -> None:
    for line in command_lines(page.read_text(encoding="utf-8")):
        check_command(line)


def test_the_pages_show_the_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = {shlex.split(line)[1] for line in command_lines(text) if len(line.split()) > 1}
    assert shown >= {"chat", "generate", "sessions", "plan", "models", "quantize", "scale", "bench"}


@pytest.mark.parametrize(
    "line",
    [
        "fulmen chatt",
        "fulmen chat --temprature 0",
        "fulmen models list smollm2 m1",
        "fulmen quantize a b --bits 5",
        "fulmen models frobnicate",
    ],
)
def test_a_wrong_command_line_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_command(line)


def test_our_side_of_coming_from_exists() -> None:
    from fulmen.engine import EngineConfig
    from fulmen.sampling import SamplingParams

    fields = {
        one.name for config in (EngineConfig, SamplingParams) for one in dataclass_fields(config)
    }
    flags = {
        flag
        for command in ("chat", "serve")
        for option in root_command().commands[command].params
        for flag in option.opts
    }
    text = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")
    cells = [row.strip().strip("|").split(" | ")[1] for row in re.findall(r"^\| `.*$", text, re.M)]
    ours = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    assert len(ours) > 50
    for span in ours:
        if span.startswith("--"):
            assert span.split()[0] in flags, span
        for name in re.findall(r"\b(\w+)=", span):
            assert name in fields | {"params", "messages", "dtype", "trainable", "device"}, span
    names = re.search(r"`SamplingParams\((.*?)\)` \| the same names", text)
    assert names is not None
    assert set(names[1].split(", ")) <= fields


def test_flags_of_benchmarks_exist() -> None:
    checked = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for script, words in re.findall(r"python (benchmarks/\w+\.py)([^\n`&#]*)", text):
            source = (ROOT / script).read_text(encoding="utf-8")
            for flag in re.findall(r"--[a-z-]+", words):
                name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
                is_there = f'"{flag}"' in source or re.search(
                    rf"^ +{name}: Annotated", source, re.M
                )
                assert is_there, f"{page.name}: {script} has no {flag}"
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("page", named([one for one in PAGES if one.name != "CHANGELOG.md"]))
def test_names_of_the_package_can_be_imported(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        for name in re.findall(r"\bfulmen(?:\.[A-Za-z_]\w*)+", span):
            resolve_name(name)


# Links and paths


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", named(PAGES))
def test_paths_of_the_tree_exist(page: Path) -> None:
    text = re.sub(r"[a-z]+://\S+", "", page.read_text(encoding="utf-8"))
    pattern = r"(?<![\w./~-])(?:fulmen|tests|benchmarks|docs|scripts)/[\w./-]*\w"
    for path in re.findall(pattern, text):
        if not path.rpartition("/")[2].isupper():  # tests/ROOM stands for any
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", HOW_IT_WORKS)
def test_a_page_opens_with_the_life_of_its_thing(name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    first = re.search(r"^## (.*)\n\n(.*)$", text, re.M)
    assert first is not None
    assert first[1].startswith("The life of "), first[1]
    assert first[2].startswith("1. ")


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(docs/([\w-]+\.md)", text))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= links


@pytest.mark.parametrize("heading", ["Quick start", "Tests"])
def test_the_two_commands_of_the_readme_are_one_line_each(heading: str) -> None:
    assert run("scripts/readme_command.py", heading).startswith("pip install ")


def test_every_file_of_the_tree_in_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    entries = re.findall(r"^[├└]── (\S+)", text, re.M)
    assert entries
    for entry in entries:
        assert (ROOT / "fulmen" / entry).exists(), entry
    listed = {entry.rstrip("/") for entry in entries}
    present = {
        path.name
        for path in (ROOT / "fulmen").iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    }
    assert present - {"__init__.py"} == listed


# Docstrings


def test_the_api_reference_is_that_of_the_docstrings() -> None:
    pytest.importorskip("griffe", reason="griffelib, of the extra dev, reads the docstrings")
    run("scripts/api_reference.py", "--check")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", [])
        for statement in body if isinstance(body, list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.lineno, str(statement.value.value)


def test_a_docstring_begins_with_a_verb_or_a_noun() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for folder in ("fulmen", "tests", "benchmarks", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(path)
        if re.match(UNSAID, text)
    ]
    assert not found, "\n".join(found)


def test_our_flags_beside_those_of_others_exist() -> None:
    rows = re.findall(
        r"^\|.*\|(.*)\|$", (ROOT / "docs/coming-from.md").read_text(encoding="utf-8"), re.M
    )
    named = {flag for ours in rows for flag in re.findall(r"`(?:fulmen )?[^`]*?(--[a-z-]+)", ours)}
    helps = "".join(
        run("-c", "from fulmen.cli import main; main()", command, "--help")
        for command in ("chat", "generate", "serve", "quantize", "bench")
    )
    assert len(named) > 15
    assert {flag for flag in named if not re.search(rf"{flag}\b", helps)} == set()
