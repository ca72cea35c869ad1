"""Settings of `fulmen serve` in a TOML file: each flag is a key, and a flag beats its key.

    FILE -> read_settings -> values as flags are typed -> the flags' own parsers -> the command
    --print-config        -> the values that hold, as such a file

Keys stand at the top of the file, without tables: `max-num-seqs = 32` is `--max-num-seqs 32`. Only
`[[keys]]` is a list of tables: API keys with names and limits, which no flag could hold.
"""

import difflib
import json
import logging
import re
import stat
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fulmen.cli.help import USAGE_ERROR, Command
from fulmen.cli.options import (
    DEFAULT_SERVED,
    ENGINE_CONFIG,
    NONE,
    SERVER_CONFIG,
    defaults_of,
    shown_bytes,
)
from fulmen.files import shorten
from fulmen.sampling import shown

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.server import ApiKey

_MAX_BYTES: Final = 256 * 2**10
"""Largest file of settings; one with every setting has 10 KB"""
_OWN: Final = ("config", "print_config", "help", "same_model")
"""Options that no file holds"""
_SECRET: Final = ("api_keys",)
"""Options whose value is never printed"""
_RIVALS: Final = {
    "transcripts": "no_transcripts",
    "no_transcripts": "transcripts",
    "sessions": "no_sessions",
    "no_sessions": "sessions",
}
"""Options of which only one can hold: a flag beats the file's other one too"""
_CACHE: Final = "kv_cache_bytes"
"""Option whose default is shared by several models, while a value that is set holds for each"""
_WHOLE: Final = ("INTEGER", "PORT")
_NUMBERS: Final = ("NUMBER", "SECONDS", "DAYS")
"""Values of flags, as help shows them"""
_KEY_FIELDS: Final = (
    *("name", "key", "key-file"),
    *("max-running", "requests-per-minute", "tokens-per-minute"),
)
_KEY_EXAMPLE: Final = """
# ---- Keys

# API keys with names and limits, a table each, below all other settings. A limit that is left out
# does not hold; tokens are those of prompts that no cache had, and new ones.
# [[keys]]
# name = "alice"
# key-file = "alice.key"
# max-running = 4
# requests-per-minute = 60
# tokens-per-minute = 100000
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """Content of a file of settings."""

    path: Path
    values: Mapping[str, Any]
    """Value of each option in the file, by its name in Python, as its flag would give it"""
    keys: "tuple[ApiKey, ...]" = ()


class ConfiguredCommand(Command):
    """A command whose options may stand in a file that `--config` names.

    Keys of the file are in the context's `obj`, a tuple.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command with the settings of the file, where no flag says otherwise; or print
        them."""
        path = ctx.params["config"]
        settings = None if path is None else read_settings(path, ctx)
        ctx.obj = () if settings is None else settings.keys
        from_file = {} if settings is None else _in_effect(settings.values, ctx)
        ctx.params.update(from_file)
        with _in_words_of_file(ctx, settings, from_file):
            if ctx.params["print_config"]:
                print(as_toml(ctx), end="")
                return None
            return super().invoke(ctx)


def _in_effect(values: Mapping[str, Any], ctx: Any) -> dict[str, Any]:
    """Return the values whose options were not typed, and that differ from their defaults: so a
    file of all settings goes with any option, such as one that allows no other of some. The memory
    of several models counts even then: of the default each would get a part."""
    typed = {name for name in ctx.params if _is_typed(name, ctx)}
    if "same_model" in typed:
        typed.add("model")
    typed |= {_RIVALS[name] for name in typed & _RIVALS.keys()}
    defaults = _defaults()
    untyped = {name: value for name, value in values.items() if name not in typed}
    found = {
        name: value
        for name, value in untyped.items()
        if name not in defaults or defaults[name] != value
    }
    if _CACHE in untyped and _num_models({**ctx.params, **found}) > 1:
        found[_CACHE] = untyped[_CACHE]
    return found


def _num_models(values: Mapping[str, Any]) -> int:
    """Return how many models are served with these values of options."""
    if values["model"]:
        return len(values["model"])
    return 1 if values["same_model"] is not None else len(DEFAULT_SERVED)


def _defaults() -> dict[str, Any]:
    """Return the defaults of options by their names in Python, where they are the same for every
    model."""
    defaults = {**defaults_of(SERVER_CONFIG), **defaults_of(ENGINE_CONFIG)}
    defaults["model"] = list(DEFAULT_SERVED)
    del defaults["model_name"]
    return {name: value for name, value in defaults.items() if value is not None}


def _is_typed(name: str, ctx: Any) -> bool:
    source = ctx.get_parameter_source(name)
    is_there = ctx.params[name] not in (None, (), [])  # an argument for several may be none
    return is_there and source is not None and source.name == "COMMANDLINE"


@contextmanager
def _in_words_of_file(
    ctx: Any, settings: Settings | None, from_file: Mapping[str, Any]
) -> Iterator[None]:
    """Name the file and its key in an error about a flag that was not typed."""
    try:
        yield
    except (ValueError, USAGE_ERROR) as error:
        sentence = str(getattr(error, "message", error))
        flags = {o.opts[0]: _key_of(o) for o in ctx.command.params if o.name in from_file}
        if settings is None or sentence.partition(" ")[0] not in flags:
            raise
        said = re.sub(r"--[a-z][a-z-]*", lambda found: flags.get(found[0], found[0]), sentence)
        raise ValueError(f"{settings.path}: {said}") from None


# ---- reading ------------------------------------------------------------------------------------


def read_settings(path: Path, ctx: Any) -> Settings:
    """Read a file of settings for a command.

    ctx  the command's context, whose options the file may set

    Raises ValueError, one sentence with the file and the key, for anything that is no setting.
    """
    document = _read_toml(path)
    options = {_key_of(option): option for option in _options(ctx)}
    tables = document.pop("keys", [])
    values: dict[str, Any] = {}
    for key, value in document.items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            raise ValueError(_unknown(path, key, value, options))
        if option.name in values:
            other = next(each for each in document if each.replace("_", "-") == _key_of(option))
            raise ValueError(f"{path}: {other} and {key} are the same setting, one must go")
        values[option.name] = _read_value(value, option, ctx, f"{path}: {key}")
    settings = Settings(path, values, _read_keys(tables, path, options))
    if values.get("api_keys") or any("key" in table for table in tables):
        _warn_if_readable(path)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES:,} bytes, it is no file of settings")
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, it must be TOML") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply, it must be TOML without tables") from None
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {shorten(error)}") from None


def _options(ctx: Any) -> list[Any]:
    """Return the options and arguments of a command that a file may set."""
    return [option for option in ctx.command.params if option.name not in _OWN]


def _key_of(option: Any) -> str:
    """Return the key of an option: its flag without dashes before it."""
    return str(option.opts[0]).removeprefix("--")


def _unknown(path: Path, key: str, value: object, options: Mapping[str, Any]) -> str:
    """Return the sentence about a key that there is not."""
    if isinstance(value, dict):
        return (
            f"{path} has a table [{shorten(key, 80)}], settings stand at the top of the file and "
            "only [[keys]] are tables"
        )
    return f"{path}: {shorten(key, 80)} is no setting{_nearest(key, options)}"


def _nearest(key: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    wanted = key.replace("_", "-").lower()[:80]
    close = difflib.get_close_matches(wanted, list(known), 1, 0.5)
    return f", the nearest is {close[0]}" if close else ", `fulmen serve --print-config` lists all"


def _read_value(value: object, option: Any, ctx: Any, where: str) -> Any:
    """Return a value of the file as the option's flag would give it.

    where  names file and key in a ValueError
    """
    if getattr(option, "is_flag", False):
        if isinstance(value, bool):
            return value
        raise ValueError(f"{where} is {shown(value)}, it must be true or false")
    if _is_many(option):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            found = "a value of another type" if option.name in _SECRET else shown(value)
            raise ValueError(f"{where} is {found}, it must be a list of texts")
        typed: Any = items
    else:
        typed = _as_typed(value, option.metavar, where)
    try:
        return option.process_value(ctx, typed)
    except USAGE_ERROR as error:
        raise ValueError(f"{where}: {error.message.strip().rstrip('.')}") from None


def _is_many(option: Any) -> bool:
    """Return whether an option may be given several times, or an argument may be several."""
    return getattr(option, "multiple", False) or option.nargs == -1


def _as_typed(value: object, metavar: str | None, where: str) -> str:
    """Return a value as the text that would be typed after its flag."""
    kind = type(value)
    if metavar in _WHOLE:
        fits, needed = kind is int or value == "none", "a whole number"
    elif metavar in _NUMBERS:
        fits, needed = kind in (int, float) or value == "none", "a number"
    elif metavar == "TOKENS":
        fits, needed = kind in (int, str), "a whole number, or a text such as '40k'"
    elif metavar == "SIZE":
        fits, needed = kind is str, "a text such as '2GiB'"
    else:
        fits, needed = kind is str, "a text"
    if not fits:
        raise ValueError(f"{where} is {shown(value)}, it must be {needed}")
    return str(value)


def _read_keys(tables: object, path: Path, options: Mapping[str, Any]) -> "tuple[ApiKey, ...]":
    """Return the API keys of the file. No sentence shows a key."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: keys must be tables, each under [[keys]]")
    return tuple(
        _read_key(table, f"{path}: [[keys]] {place}", options)
        for place, table in enumerate(tables, 1)
    )


def _what_is(field: str, options: Mapping[str, Any]) -> str:
    """Return what to say of a name in a key's table that is none of a key's."""
    if field in options:
        return "a setting of the server, which must stand above the first [[keys]]"
    return f"which a key has not{_nearest(field, _KEY_FIELDS)}"


def _read_key(table: Mapping[str, Any], where: str, options: Mapping[str, Any]) -> "ApiKey":
    from fulmen.server import ApiKey, read_key_file

    found: dict[str, Any] = {}
    for name, value in table.items():
        field = name.replace("_", "-")
        if field not in _KEY_FIELDS:
            raise ValueError(f"{where} has {shorten(name, 80)}, {_what_is(field, options)}")
        if field in found:
            raise ValueError(f"{where}: {field} is given twice, in two spellings")
        if field in ("name", "key", "key-file") and not isinstance(value, str):
            raise ValueError(f"{where}: {field} is no text, it must be one in quotes")
        found[field] = value
    if "name" not in found:
        raise ValueError(f"{where} has no name, it must have one")
    if ("key" in found) == ("key-file" in found):
        raise ValueError(f"{where} must have either key or key-file")
    if "key-file" in found:
        file = Path(found.pop("key-file"))
        keys = read_key_file(file)
        if len(keys) != 1:
            raise ValueError(f"{where}: {file} holds {len(keys)} keys, it must hold one")
        found["key"] = keys[0]
    try:
        return ApiKey(**{field.replace("-", "_"): value for field, value in found.items()})
    except ValueError as error:
        said = re.sub(r"^(max|requests|tokens)_\w+", lambda f: f[0].replace("_", "-"), str(error))
        raise ValueError(f"{where}: {said}") from None


def _warn_if_readable(path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s holds API keys and others may read it, `chmod 600` keeps them out", path)


# ---- writing ------------------------------------------------------------------------------------


def as_toml(ctx: Any) -> str:
    """Return all settings of a command as a file that `--config` takes, each below its help.

    ctx  the command's context: values that were typed or read stand in place of defaults

    A setting without a value is a comment. API keys are left out.
    """
    lines = ["# Settings of `fulmen serve --config FILE`; a flag beats its line here."]
    defaults = _defaults()
    if _num_models(ctx.params) > 1:
        del defaults[_CACHE]
    panels: dict[str, list[str]] = {}
    for option in _options(ctx):
        value = ctx.params.get(option.name)
        if option.name == "model" and not value and ctx.params.get("same_model"):
            value = [ctx.params["same_model"]]
        if value in (None, [], ()):
            value = defaults.get(option.name)
        if option.name in _SECRET:
            value = None
        panel = getattr(option, "rich_help_panel", None) or "The model and the address"
        panels.setdefault(panel, []).extend(_setting_lines(option, value))
    for panel, text in panels.items():
        lines += ["", f"# ---- {panel}", *text]
    return "\n".join(lines) + "\n" + _KEY_EXAMPLE


def _setting_lines(option: Any, value: Any) -> list[str]:
    """Return the lines of one setting: its help as a comment, and its value."""
    said = re.sub(r"( ?May be repeated\.| ?Default: .*)+$", "", option.help or "")
    said = re.sub(r"--([a-z][a-z-]+)", r"\1", said)
    lines = ["", *textwrap.wrap(said, 98, initial_indent="# ", subsequent_indent="# ")]
    text = _value_as_toml(value, option)
    if text is None:
        kind = option.metavar or "VALUE"
        shape = kind if kind in (*_WHOLE, *_NUMBERS) else f'"{kind}"'
        shape = f"[{shape}]" if _is_many(option) else shape
        return [*lines, f"# {_key_of(option)} = {shape}"]
    return [*lines, f"{_key_of(option)} = {text}"]


def _value_as_toml(value: Any, option: Any) -> str | None:
    """Return a value as TOML writes it; None for one that is not set."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is NONE:
        return '"none"'
    if option.name == "model" and len(value) == 1:
        return _text_as_toml(value[0])
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text_as_toml(str(item)) for item in value) + "]"
    if option.metavar == "SIZE":
        return _text_as_toml(shown_bytes(value))
    if isinstance(value, int | float):
        return repr(value)
    return _text_as_toml(str(value))


def _text_as_toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
