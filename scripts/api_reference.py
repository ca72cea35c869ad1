#!/usr/bin/env python
"""Write the API reference, docs/api/*.md, from the docstrings: `python scripts/api_reference.py`.

Every room that users import gets one page with the names of its `__all__`, in the order of the
alphabet. griffe reads the sources: nothing is imported, and the pages do not depend on the machine.
`--check` writes nothing and exits with 1 if a page is stale.
"""

import argparse
import re
import sys
from pathlib import Path
from textwrap import dedent

import griffe

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs/api"
FIRST = ["sampling", "llm", "chat", "engine", "sessions", "models", "checkpoints"]
"""Rooms that most users look for; the others follow by name."""
FILES = {"fulmen.sampling": ["FinishReason", "Mask", "SamplingParams"]}
"""Names that users need of a file without `__all__`."""
LINES = 12
"""Most lines of a constant's value."""
LINE = 100
"""Longest line of a signature; a longer one has a parameter a line."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/api from the docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    check = parser.parse_args().check
    wanted = reference()
    present = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
    stale = sorted(name for name in wanted | present if wanted.get(name) != present.get(name))
    if check:
        if stale:
            sys.exit(f"stale: {', '.join(stale)}; run `python {sys.argv[0]}` and commit docs/api")
        return
    PAGES.mkdir(exist_ok=True)
    for name in stale:
        if name in wanted:
            (PAGES / name).write_text(wanted[name], encoding="utf-8")
        else:
            (PAGES / name).unlink()
        print(f"docs/api/{name}")


def reference() -> dict[str, str]:
    """Return the text of every page by its file name."""
    package = griffe.load("fulmen", search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(package, griffe.Module)
    homes: dict[str, str] = {}  # where a name is described: path of its definition -> its room
    packages = sorted(path.parent.name for path in ROOT.glob("fulmen/*/__init__.py"))
    others = [name for name in packages if name not in (*FIRST, "cli")]
    rooms = {f"fulmen.{name}": package[name] for name in (*FIRST, *others)}
    for path, room in rooms.items():
        for name in names(room):
            homes.setdefault(find(room, name).path, path)
    pages = {f"{path}.md": page(path, room, homes) for path, room in rooms.items()}
    pages["fulmen.md"] = page("fulmen", package, homes)
    pages["README.md"] = contents(package, rooms)
    return pages


def contents(package: griffe.Object, rooms: dict[str, griffe.Object]) -> str:
    lines = [
        "# API reference",
        "",
        "The names that each room of the package exports, made from the docstrings by",
        "`python scripts/api_reference.py`. A name that is not listed may change without notice.",
        "",
        "| import from | what it holds |",
        "| --- | --- |",
    ]
    for path, room in {"fulmen": package, **rooms}.items():
        lines.append(f"| [`{path}`]({path}.md) | {cell(summary(room))} |")
    return "\n".join(lines) + "\n"


def page(path: str, room: griffe.Object, homes: dict[str, str]) -> str:
    parts = [f"# {path}", prose(text_of(room))]
    listed = sorted(names(room), key=lambda name: (name.lower(), name))
    rows = []
    for name in listed:
        home = homes.get(find(room, name).path, path)
        link = f"#{anchor(name)}" if home == path else f"{home}.md#{anchor(name)}"
        item = find(room, name)
        file = item.filepath.relative_to(ROOT).as_posix()
        rows.append(f"| [`{name}`]({link}) | {cell(summary(item))} | [{file}](../../{file}) |")
    parts.append("\n".join(["| name | | defined in |", "| --- | --- | --- |", *rows]))
    for name in listed:
        item = find(room, name)
        if homes.get(item.path, path) == path:
            parts.append(section(name, item))
    return "\n\n".join(part for part in parts if part) + "\n"


def names(room: griffe.Object) -> list[str]:
    """Return the names that a room exports."""
    exports = FILES.get(room.path, room.exports)
    if exports is None:
        raise ValueError(f"{room.path} has no __all__, and {__file__} does not list its names")
    return [str(name) for name in exports if str(name) != "__version__"]


def find(room: griffe.Object, name: str) -> griffe.Object:
    """Return what a room exports as `name`: not the file that bears the same name."""
    item = target(room[name])
    return target(item[name]) if isinstance(item, griffe.Module) else item


def target(item: griffe.Object | griffe.Alias) -> griffe.Object:
    return item.final_target if isinstance(item, griffe.Alias) else item


def section(name: str, item: griffe.Object) -> str:
    if isinstance(item, griffe.Class):
        return class_section(name, item)
    if isinstance(item, griffe.Function):
        return "\n\n".join([f"## {name}", code(signature(name, item)), prose(text_of(item))])
    if not isinstance(item, griffe.Attribute | griffe.TypeAlias):
        raise TypeError(f"{item.path} is a {item.kind.value}, which no page can show")
    value = "\n".join(item.lines)  # as the source has it
    if len(item.lines) > LINES:
        value = f"{name} = ..."
    return "\n\n".join(part for part in [f"## {name}", code(value), prose(text_of(item))] if part)


def class_section(name: str, item: griffe.Class) -> str:
    public = {
        key: target(member)
        for key, member in item.members.items()
        if not key.startswith("_") and (not member.is_alias or member.target_path)
    }
    fields = [
        (key, member)
        for key, member in public.items()
        if isinstance(member, griffe.Attribute) and "property" not in member.labels
    ]
    bases = [str(base) for base in item.bases]
    parts = [f"## {name}"]
    init = item.members.get("__init__")
    if isinstance(init, griffe.Function):
        parts.append(code(signature(name, init, hide_return=True)))
        fields = [(key, member) for key, member in fields if text_of(member)]
    elif bases:
        parts.append(code(f"class {name}({', '.join(bases)})"))
    else:
        parts.append(code(f"class {name}"))
    parts.append(prose(text_of(item)))
    if isinstance(init, griffe.Function) and init.docstring is not None:
        parts.append(prose(text_of(init)))
    if is_described(fields):
        parts.append("\n".join(field(key, member) for key, member in fields))
    for key, member in public.items():
        if isinstance(member, griffe.Attribute) and "property" in member.labels:
            shown = f"{key}: {member.annotation}"
        elif isinstance(member, griffe.Function):
            shown = signature(key, member)
        else:
            continue
        parts += [f"### {name}.{key}", code(shown), prose(text_of(member))]
    return "\n\n".join(part for part in parts if part)


def is_described(fields: list[tuple[str, griffe.Attribute]]) -> bool:
    return any(member.annotation is not None for _, member in fields)


def field(name: str, item: griffe.Attribute) -> str:
    kind = f": {item.annotation}" if item.annotation is not None else ""
    line = f"- `{quoted(name + kind + shown_default(item.value))}`".replace("\n", " ")
    text = " ".join(text_of(item).split())
    return f"{line}  \n  {escape(text)}" if text else line


def signature(name: str, item: griffe.Function, *, hide_return: bool = False) -> str:
    """Write a function as Python would, one parameter a line where one line is too long."""
    parts: list[str] = []
    for parameter in item.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if kind == griffe.ParameterKind.keyword_only and not any(p.startswith("*") for p in parts):
            parts.append("*")
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind.value, "")
        annotation = "" if parameter.annotation is None else f": {parameter.annotation}"
        default = "" if stars else shown_default(parameter.default)
        parts.append(f"{stars}{parameter.name}{annotation}{default}")
    before = "async def " if "async" in item.labels else "" if hide_return else "def "
    if "classmethod" in item.labels:
        before = f"@classmethod\n{before}"
    if "staticmethod" in item.labels:
        before = f"@staticmethod\n{before}"
    after = f" -> {item.returns}" if item.returns is not None and not hide_return else ""
    line = f"{before}{name}({', '.join(parts)}){after}"
    if len(line.splitlines()[-1]) <= LINE or not parts:
        return line
    return f"{before}{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){after}"


def shown_default(value: object) -> str:
    """Return ` = value`; nothing for what has to be given."""
    return "" if value is None or str(value) == "field()" else f" = {value}"


def code(text: str) -> str:
    return f"```py\n{quoted(text)}\n```"


def quoted(text: str) -> str:
    """Return code with double quotes, as the sources have them."""
    return text if '"' in text else text.replace("'", '"')


def anchor(name: str) -> str:
    return name.lower().replace(".", "")


def text_of(item: griffe.Object) -> str:
    return item.docstring.value.strip() if item.docstring is not None else ""


def summary(item: griffe.Object) -> str:
    """Return the first sentence of a docstring."""
    first = " ".join(text_of(item).split("\n\n")[0].split())
    match = re.match(r"(.+?\.)(?: |$)", first)
    return (match.group(1) if match else first).rstrip(":")


def cell(text: str) -> str:
    return escape(text).replace("|", "\\|")


def prose(text: str) -> str:
    """Turn a docstring into Markdown: tables of shapes and indented lines become code."""
    if not text:
        return ""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        if all(line.startswith("    ") for line in lines) or is_columns(lines):
            blocks.append("```text\n" + dedent(block) + "\n```")
        else:
            blocks.append(escape(block))
    return "\n\n".join(blocks).replace("\n```\n\n```text\n", "\n\n")


def is_columns(lines: list[str]) -> bool:
    return any(re.search(r"\S {2,}\S", line) for line in lines)


def escape(text: str) -> str:
    """Keep `*` and `<` as they are written, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    special = r"([*<]|(?<!\w)_|_(?!\w))"  # an underscore within a word is no emphasis
    parts[::2] = [re.sub(special, r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    main()
