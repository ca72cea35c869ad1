"""Run files: TOML into frozen dataclasses, and back.

    runs/x.toml, --set a.b=c -> tables -> the dataclass, each key checked -> a resolved file

The dataclass is the schema: its fields are the keys, its types what they may hold, its defaults
what is not written, in a table too that is written in part. A key that no field has, a value of
another type and a refused value are one sentence that names the key as it is written in the file.
"""

import dataclasses
import difflib
import json
import math
import subprocess
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, time
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from fulmen import __version__
from fulmen.files import shorten
from fulmen.sampling import shown
from fulmen.units import parse_count

C = TypeVar("C")
Bound = Annotated[float, "or inf"]
"""Number that a value may not pass; inf, as TOML has it, is no bound"""

_LARGEST_FILE: Final = 2**20
"""Most bytes of a run file"""
_MAX_DEPTH: Final = 50
"""Most tables and lists inside one another"""


def read_run_file(path: Path, kind: type[C], overrides: Sequence[str] = ()) -> C:
    """Read a run file as a dataclass.

    overrides  assignments such as optimizer.learning_rate=1e-3, which beat the file; a list's
               entries are counted from 0: stages.0.tokens=2M

    Raises ValueError, one sentence, for a file that is missing or a key that is wrong.
    """
    values = _read_toml(path)
    for override in overrides:
        _override(values, override)
    where = f"see {path}" + (" and --set" if overrides else "")
    try:
        _check_depth(values)
        return build(kind, values)
    except ValueError as error:
        raise ValueError(f"{error}, {where}") from None


def build(
    kind: type[C], values: Mapping[str, Any], prefix: str = "", *, default: C | None = None
) -> C:
    """Return a dataclass from the values of a table.

    prefix   name of the table with a dot at its end, for errors
    default  what the table is where nothing of it is written; its own defaults if omitted
    """
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known are {_some(fields)}"
            raise ValueError(f"unknown key {prefix}{shorten(name, 80)}, {hint}")
    given = {
        name: _typed(hints[name], values[name], f"{prefix}{name}", _default_of(field))
        for name, field in fields.items()
        if name in values
    }
    for name, field in fields.items():
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in given and not has_default and default is None:
            raise ValueError(f"{prefix}{name} is missing, it has no default")
    try:
        if default is not None:
            return dataclasses.replace(default, **given)  # type: ignore[type-var]
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return the table that a field is where it is not written; None for other fields."""
    made = field.default
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
    return made if dataclasses.is_dataclass(made) else None


def to_toml(config: Any) -> str:
    """Return a dataclass as the run file that gives it; defaults are written out, none left out."""
    return "\n".join(_table(config, "")).strip() + "\n"


def revision() -> str:
    """Return the version of this package, and its commit where it runs from a repository."""
    root = Path(__file__).parents[2]
    commit = ""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            commit = f", commit {done.stdout.strip()}"
    return f"fulmen {__version__}{commit}"


def changed_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass whose values are not their defaults, by name."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value != defaults[name]}


def differences(before: str, now: str) -> list[str]:
    """Return the keys whose values differ between two texts that `to_toml` made."""
    old, new = (dict(_leaves(tomllib.loads(text), "")) for text in (before, now))
    return [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{name}.{index}")
    else:
        yield name, value


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing, a run file is needed there")
    with path.open("rb") as file:
        text = file.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"{path} has more than {_LARGEST_FILE:,} bytes, no run file is that long")
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # UTF-8 and TOML alike
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def _check_depth(values: object) -> None:
    """Raise ValueError for tables and lists that are nested too deeply to be read or written."""
    left = [("", values, 0)]
    while left:
        name, value, depth = left.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"{shorten(name, 80)} is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(value, dict | list):
            own = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{name}.{key}" if name else str(key), one, depth + 1) for key, one in own]


def _override(values: dict[str, Any], text: str) -> None:
    """Put one assignment into the tables of a file."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ValueError(f"--set is {shown(text)}, it must be like optimizer.learning_rate=1e-3")
    place: Any = values
    for index, name in enumerate(names):
        is_last = index == len(names) - 1
        if isinstance(place, list):
            if not name.isdecimal() or int(name) >= len(place):
                raise ValueError(
                    f"--set names {shorten(key, 80)}, {'.'.join(names[:index])} has entries 0 to "
                    f"{len(place) - 1}"
                )
            if is_last:
                place[int(name)] = _value_of(value)
            place = place[int(name)]
        elif isinstance(place, dict):
            if is_last:
                place[name] = _value_of(value)
            else:
                place = place.setdefault(name, {})
        else:
            raise ValueError(
                f"--set names {shorten(key, 80)}, {'.'.join(names[:index])} is a value"
            )


def _value_of(text: str) -> Any:
    """Return a value as TOML reads it; what TOML cannot read is text."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError, KeyError):
        return text.strip()


def _typed(kind: Any, value: Any, name: str, default: Any = None) -> Any:
    """Return a value of TOML as the type of a field; name is the key, for errors, and default what
    a table is in part."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        if value == "none":
            return None
        (inner,) = (each for each in arguments if each is not type(None))
        return _typed(inner, value, name, default)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {shown(value)}, it must be a table")
        return build(kind, value, f"{name}.", default=default)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            close = difflib.get_close_matches(str(value), map(str, arguments), n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            known = " or ".join(map(str, arguments))
            raise ValueError(f"{name} is {shown(value)}, it must be {known}{hint}")
        return value
    if origin is tuple:
        return _typed_tuple(arguments, value, name)
    if origin in (dict, Mapping) or kind is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {shown(value)}, it must be a table")
        of = arguments[1] if arguments else Any
        return {key: _typed(of, each, f"{name}.{key}") for key, each in value.items()}
    if kind in _READERS:
        return _READERS[kind](value, name)
    return value


def _typed_tuple(arguments: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    is_any_length = len(arguments) == 2 and arguments[1] is Ellipsis
    if not isinstance(value, list) or not (is_any_length or len(value) == len(arguments)):
        needed = "a list" if is_any_length else f"a list of {len(arguments)}"
        raise ValueError(f"{name} is {shown(value)}, it must be {needed}")
    kinds = [arguments[0]] * len(value) if is_any_length else arguments
    return tuple(
        _typed(each, one, f"{name}.{index}")
        for index, (each, one) in enumerate(zip(kinds, value, strict=True))
    )


def _whole(value: Any, name: str) -> int:
    """Read a whole number, or one as people write it: 40k, 1.5M."""
    if isinstance(value, str):
        try:
            return parse_count(value)
        except ValueError:
            pass
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    raise ValueError(f"{name} is {shown(value)}, it must be a whole number such as 512 or 40k")


def _number(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number may be larger than any float
            if math.isfinite(value):
                return float(value)
    raise ValueError(f"{name} is {shown(value)}, it must be a finite number")


def _bound(value: Any, name: str) -> float:
    return math.inf if value == math.inf else _number(value, name)


def _switch(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}, it must be true or false")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, it must be text")
    return value


def _path(value: Any, name: str) -> Path:
    text = _text(value, name)
    if not text or "\0" in text:
        raise ValueError(f"{name} is {shown(value)}, it must be a path")
    return Path(text)


_READERS: Final[Mapping[Any, Any]] = {
    int: _whole,
    float: _number,
    Bound: _bound,
    bool: _switch,
    str: _text,
    Path: _path,
}


def _some(names: Mapping[str, object]) -> str:
    shown_names = list(names)[:12]
    return ", ".join(shown_names) + (" and more" if len(names) > len(shown_names) else "")


def _table(config: Any, prefix: str) -> list[str]:
    """Return the lines of a table: its values first, then the tables in it."""
    values = (
        dict(config)
        if isinstance(config, Mapping)
        else {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    )
    lines = [f"{_key(name)} = {_shown(each)}" for name, each in values.items() if _is_value(each)]
    for name, each in values.items():
        full = f"{prefix}{_key(name)}"
        if isinstance(each, tuple) and not _is_value(each):
            for one in each:
                lines += ["", f"[[{full}]]", *_table(one, f"{full}.")]
        elif not _is_value(each):
            lines += ["", f"[{full}]", *_table(each, f"{full}.")]
    return lines


def _is_value(value: Any) -> bool:
    if isinstance(value, tuple) and value:
        return all(map(_is_value, value))
    return not (dataclasses.is_dataclass(value) or isinstance(value, Mapping))


def _key(name: str) -> str:
    is_bare = name and all(char.isascii() and (char.isalnum() or char in "-_") for char in name)
    return name if is_bare else _shown(name)


def _shown(value: Any) -> str:
    """Return a value as TOML writes it."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        # JSON's text is TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):  # in a list of TOML's own values
        return f"{{{', '.join(f'{_key(key)} = {_shown(each)}' for key, each in value.items())}}}"
    if isinstance(value, date | time):
        return value.isoformat()
    return repr(value)
