"""Flags: those that several commands share, and those made from the fields of a dataclass.

A field becomes a flag in kebab case, its docstring the help. The docstrings and the types are read
from source text, so that help needs no import of torch.
"""

import ast
import inspect
import math
import re
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args, get_origin

import typer

from fulmen.cli import completion
from fulmen.cli.help import (
    ACCESS,
    ENGINE,
    HISTORIES,
    LIMITS,
    LOADING,
    LOG,
    REMOTE,
    SAMPLING,
    SESSION,
    STRUCTURE,
    THINKING,
    USAGE_ERROR,
)
from fulmen.cli.output import readable_argument
from fulmen.units import parse_bytes, parse_count

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.llm import LLM
    from fulmen.sessions import SessionStore

DEFAULT_MODEL: Final = "mini-m1"
"""Model of a conversation: it comes with the package"""
DEFAULT_AGENT_MODEL: Final = "mini-m2"
"""Model of an agent: it comes with the package too"""
DEFAULT_SERVED: Final = (DEFAULT_MODEL, DEFAULT_AGENT_MODEL)
"""Models that fulmen serve serves where none is named"""
DEFAULT_TEXT_MODEL: Final = "smollm2"
"""Model that continues a text: those of the package know no texts"""

MODEL_OPTION: Final[dict[str, Any]] = {
    "metavar": "NAME",
    "autocompletion": completion.models,
    "show_default": False,
}
MODEL_HELP: Final = (
    "A name that fulmen models list shows, a hub id such as MiniMaxAI/MiniMax-M2, a folder or a "
    "GGUF file."
)
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=f"{MODEL_HELP} Default: {DEFAULT_MODEL}.",
        **MODEL_OPTION,
    ),
]
TalkingModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"{MODEL_HELP} With --url, its name there. Default: {DEFAULT_MODEL}.",
        **MODEL_OPTION,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask a server in place of a model on this machine, such as http://127.0.0.1:8000. "
        "It decides about all sampling that no option names.",
        rich_help_panel=REMOTE,
    ),
]
UrlKeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Key for --url. Default: FULMEN_API_KEY in the environment, else OPENAI_API_KEY or "
        "ANTHROPIC_API_KEY, by dialect.",
        rich_help_panel=REMOTE,
    ),
]
UrlDialectOption = Annotated[
    Literal["auto", "openai", "anthropic"],
    typer.Option(
        help="API that --url speaks. Default: auto, as the URL or the server's list of models "
        "tells.",
        show_default=False,
        rich_help_panel=REMOTE,
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of all sessions. Default: ~/.local/share/fulmen/sessions.",
        rich_help_panel=SESSION,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Device that runs the model: cpu, cuda, cuda:1. Default: cpu.",
        show_default=False,
        autocompletion=completion.one_of("cpu", "cuda"),
        rich_help_panel=ENGINE,
    ),
]


def _ignore_option(panel: str) -> Any:
    return typer.Option(
        "--ignore-config-field",
        metavar="FIELD",
        help="Load the model as if its config.json did not have this field. May be repeated.",
        show_default=False,
        rich_help_panel=panel,
    )


IgnoreOption = Annotated[list[str] | None, _ignore_option(ENGINE)]
IgnoreInFileOption = Annotated[list[str] | None, _ignore_option(LOADING)]
"""Option of a command that reads a checkpoint and runs no engine"""
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]

ENGINE_CONFIG: Final = "fulmen.engine.EngineConfig"
"""Name of the engine's config for `with_flags_of`; importing it would import torch."""

SERVER_CONFIG: Final = "fulmen.server.ServerConfig"
"""Name of a server's config; importing it would import the web framework."""

_FLAG_NAMES: Final = {
    "kv_cache_bytes": "--kv-cache",
    "num_draft_tokens": "--draft-tokens",
    "max_token_gap_seconds": "--max-token-gap",
    "api_keys": "--api-key",
    "aliases": "--alias",
    "volatile_lines": "--volatile-line",
    "allowed_origins": "--allowed-origin",
    "allowed_hosts": "--allowed-host",
    "max_body_bytes": "--max-body",
}
"""Flags that are not their field in kebab case."""
_TOKEN_COUNTS: Final = (
    "max_tokens",
    "thinking_budget",
    "max_model_len",
    "max_num_batched_tokens",
)
"""Fields whose flag takes 40k."""
_METAVARS: Final = {
    "json_schema": "SCHEMA|FILE",
    "regex": "PATTERN",
    "host": "ADDRESS",
    "port": "PORT",
    "api_keys": "KEY",
    "model_name": "NAME",
    "aliases": "NAME",
    "transcripts": "FILE",
    "trace_endpoint": "URL",
    "sessions": "FOLDER",
    "transcript_days": "DAYS",
    "volatile_lines": "PATTERN",
    "allowed_origins": "ORIGIN",
    "allowed_hosts": "NAME",
    **dict.fromkeys(
        (
            "read_timeout_seconds",
            "request_timeout_seconds",
            "drain_seconds",
            "ping_seconds",
            "max_token_gap_seconds",
        ),
        "SECONDS",
    ),
}
"""Values whose kind says more than TEXT"""
_PANELS: Final = {
    **dict.fromkeys(("thinking_budget", "thinking_soft_end", "answer_share"), THINKING),
    **dict.fromkeys(("json_schema", "regex", "choice", "strict_tools"), STRUCTURE),
    **dict.fromkeys(("host", "port", "model_name", "aliases", "strict_model_names"), None),
    **dict.fromkeys(("api_keys", "allowed_origins", "allowed_hosts"), ACCESS),
    **dict.fromkeys(
        (
            "keep_thoughts",
            "lenient_history",
            "drop_images",
            "transcripts",
            "transcript_bytes",
            "transcript_days",
            "sessions",
            "session_bytes",
            "max_sessions",
            "volatile_lines",
        ),
        HISTORIES,
    ),
    **dict.fromkeys(
        (
            "max_body_bytes",
            "max_queued",
            "max_answers",
            "read_timeout_seconds",
            "request_timeout_seconds",
            "drain_seconds",
            "ping_seconds",
        ),
        LIMITS,
    ),
    **dict.fromkeys(("log_content", "log_format", "trace", "trace_endpoint"), LOG),
}
"""Panels of help for fields that are not in their config's own"""
NONE: Final = object()
"""Value of a flag that was given as `none`; a flag that was not given is None."""


def with_flags_of(
    config: type | str,
    *,
    into: str = "given",
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
    shows_defaults: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a flag for each field of a dataclass to a command.

    config          the dataclass, or its dotted name where importing it would import torch
    into            argument of the command that receives the fields whose flags were given
    only            fields that get a flag; all if omitted
    without         fields that get none
    shows_defaults  show the dataclass's defaults in help, where they are the ones that hold
    notes           sentences of this command alone in the help of some fields
    """
    fields = _fields(config)
    unknown = {*(only or ()), *without} - {field.name for field in fields}
    assert not unknown, unknown
    chosen = [
        field
        for field in fields
        if (only is None or field.name in only) and field.name not in without
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name != into]

        @wraps(command)
        def run(**arguments: Any) -> None:
            given = _given({field.name: arguments.pop(field.name) for field in chosen})
            try:
                if isinstance(config, type):
                    config(**given)  # refuses a wrong value before anything is loaded
            except ValueError as error:
                said = in_flags(str(error), names)
                raise USAGE_ERROR(said) from None
            try:
                command(**arguments, **{into: given})
            except ValueError as error:
                said = in_flags(str(error), names)
                if said == str(error):
                    raise
                raise ValueError(said) from error

        panel = ENGINE if config == ENGINE_CONFIG else SAMPLING
        names = {field.name: field.flag for field in fields}
        flags = [
            field.parameter(names, panel, shows_defaults, (notes or {}).get(field.name))
            for field in chosen
        ]
        # All are called by keyword; flags of a config lead their panel.
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*flags, *own]
        )
        return run

    return decorate


def defaults_of(config: str) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields by their names, without importing it; None for
    one that has a name of its own.

    config  dotted name of the dataclass
    """
    return {field.name: field.default for field in _fields(config)}


def in_flags(sentence: str, flags: Mapping[str, str]) -> str:
    """Return a sentence about a field of a dataclass in the words of the command line: the flag in
    place of the field that it begins with, and of others it names."""
    if re.split(r"\W", sentence, maxsplit=1)[0] not in flags:
        return sentence
    first = re.sub(r"^\w+", lambda found: flags[found[0]], sentence)
    others = r"(?<![\w-])(\w+_\w+|\w+(?= are given))\b"
    return re.sub(others, lambda found: flags.get(found[0], found[0]), first)


def _given(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields whose flags were given."""
    given: dict[str, Any] = {}
    for name, value in typed.items():
        if value is None or value == []:
            continue
        if value is NONE:
            value = None
        given[name] = tuple(value) if isinstance(value, list) else value
    if str(given.get("json_schema")).endswith(".json"):  # a file: no JSON ends in .json
        given["json_schema"] = read_text_file(Path(given["json_schema"]))
    return given


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a dataclass, read from its source text."""

    name: str
    kind: Any
    """Type of the field"""
    default: Any
    doc: str | None

    @property
    def flag(self) -> str:
        """Name of the field on the command line."""
        return _FLAG_NAMES.get(self.name, f"--{self.name.replace('_', '-')}")

    def parameter(
        self, flags: Mapping[str, str], panel: str, shows_default: bool, note: str | None
    ) -> inspect.Parameter:
        """Return the keyword of a command that becomes the field's flag.

        flags  flag of each field, for a help that names other fields
        note   sentence of its help before the default
        """
        annotation: Any = bool
        is_many = get_origin(self.kind) is tuple
        if get_origin(self.kind) is Literal:
            annotation = self.kind
        options: dict[str, Any] = {
            "help": self._help(flags, shows_default, note) + " May be repeated." * is_many,
            "show_default": False,
            "rich_help_panel": _PANELS.get(self.name, panel),
        }
        if annotation is bool and self.kind is not bool:
            metavar, read = self._reader()
            options |= {"parser": read, "metavar": _METAVARS.get(self.name, metavar)}
            annotation = list[str] if is_many else str
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[annotation | None, typer.Option(self.flag, **options)],
        )

    def _help(self, flags: Mapping[str, str], shows_default: bool, note: str | None) -> str:
        """Return the field's docstring in the words of the command line."""
        assert self.doc is not None, f"{self.name} has no docstring, the help of its flag"
        text = re.sub(r"\bNone\b", "none", self.doc)
        for name in sorted(flags, key=len, reverse=True):
            if "_" in name:
                text = re.sub(rf"\b{name}\b", flags[name], text)
        if self.name == "json_schema":
            text += " The schema itself, or a .json file that holds it."
        text += f" {note}" if note else ""
        if shows_default and self.default not in (None, ()) and self.default is not False:
            text += f" Default: {self._shown_default()}."
        return text

    def _shown_default(self) -> str:
        if self.is_size:
            return shown_bytes(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def is_size(self) -> bool:
        """True for a number of bytes, which is typed with a unit."""
        return self.name.endswith("_bytes")

    def _reader(self) -> tuple[str, Callable[[str], Any]]:
        """Return the name of the flag's value in help, and what reads it."""
        kinds = [kind for kind in get_args(self.kind) or (self.kind,) if kind is not Ellipsis]
        is_optional = type(None) in kinds
        if self.is_size:
            return "SIZE", _typed(parse_bytes, is_optional)
        if Path in kinds:
            return "FILE", _typed(Path, is_optional)
        if self.name in _TOKEN_COUNTS:
            return "TOKENS", _typed(parse_count, is_optional)
        if int in kinds:
            return "INTEGER", _typed(parse_whole, is_optional)
        if float in kinds:
            return "NUMBER", _typed(_parse_float, is_optional)
        return "TEXT", _typed(readable_argument, is_optional)


def _typed(read: Callable[[str], Any], is_optional: bool) -> Callable[[str], Any]:
    """Return a parser for typer that accepts `none` where it may, and shows errors as they are."""

    def parse(text: str) -> Any:
        if is_optional and text == "none":
            return NONE
        try:
            return read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser for a command's own option that takes `none` for its default."""
    parse = _typed(read, is_optional=True)

    def parse_or_none(text: str) -> Any:
        value = parse(text)
        return None if value is NONE else value

    return parse_or_none


def checked(read: Callable[[str], Any], *, or_none: bool = False) -> Callable[[str], Any]:
    """Return a parser for a command's own option that keeps what is typed, once it can be read.

    or_none  take `none` for the option's default
    """
    parse = _typed(read, is_optional=or_none)

    def keep(text: str) -> str | None:
        return None if parse(text) is NONE else text

    return keep


def in_seconds(value: str | float) -> float:
    """Read a number of seconds of a command's own option."""
    try:
        seconds = _parse_float(str(value))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not 0 < seconds < 1e9:
        raise typer.BadParameter(f"{value} is no number of seconds, it must lie between 0 and 1e9")
    return seconds


def parse_whole(text: str) -> int:
    """Read a whole number that fits in 64 bits."""
    if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text) is None or abs(int(text)) >= 2**63:
        raise ValueError(f"{text[:40]!r} is no whole number of at most 63 bits")
    return int(text)


def _parse_float(text: str) -> float:
    """Read a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]!r} is no finite number")
    return number


def shown_bytes(size: int) -> str:
    """Return a size as a flag takes it, in the largest unit that it is whole in."""
    power = max(power for power in range(5) if size % 1024**power == 0)
    return f"{size // 1024**power}{('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _source_file(module: str) -> Path:
    """Find the source file of a module of ours. importlib's find_spec would import the room it is
    in, and with it torch."""
    package, *rest = module.split(".")
    for folder in sys.modules[package].__path__:  # an editable install has two
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    raise AssertionError(f"{module} has no source file")


def _class_body(module: str, name: str) -> list[ast.stmt]:
    """Return the statements of a class, found in its source file or through its room's door."""
    tree = ast.parse(_source_file(module).read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node.body
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return _class_body(node.module or "", name)
    raise AssertionError(f"{module} has no class {name}")


@cache
def _fields(config: type | str) -> list[_Field]:
    if isinstance(config, str):
        module, _, name = config.rpartition(".")
    else:
        module, name = config.__module__, config.__name__
    body = _class_body(module, name)
    found = []
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            doc = None
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = " ".join(str(after.value.value).split())
            found.append(
                _Field(node.target.id, _value_of(node.annotation), _value_of(node.value), doc)
            )
    return found


def _value_of(expression: ast.expr | None) -> Any:
    """Evaluate a type or a default of our own source: `int | None`, `2 * 2**30`. A default that
    has a name of its own is None, help does not show it."""
    if expression is None:
        return None
    names = {"Literal": Literal, "Path": Path}
    try:
        return eval(compile(ast.Expression(expression), "<field>", "eval"), names)
    except NameError:
        return None


DtypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16, float16 or float64; none keeps the checkpoint's. Default: none.",
        autocompletion=completion.one_of("float32", "bfloat16", "float16", "float64", "none"),
        parser=or_none(str),
        rich_help_panel=ENGINE,
    ),
]


def load_llm(
    model: str,
    dtype: str | None,
    device: str,
    engine: Mapping[str, Any],
    ignored: Sequence[str] | None = None,
) -> "LLM":
    """Load a model; engine holds the fields of `EngineConfig` whose flags were given, ignored the
    fields of config.json that count as absent."""
    if re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device) is None:
        raise ValueError(f"--device is {device[:40]!r}, it must be cpu, cuda, or one as in cuda:1")

    from fulmen.cli.progress import load
    from fulmen.engine import EngineConfig

    return load(
        model,
        dtype=read_dtype(dtype),
        device=device,
        engine_config=EngineConfig(**engine),
        ignore_config_fields=ignored or (),
    )


def lasting_name(model: str) -> str:
    """Return a model's name as any working folder understands it."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def check_url_options(
    url: str | None, key: str | None, dialect: str, local: Mapping[str, object]
) -> None:
    """Raise ValueError for an option that has no effect with, or without, --url.

    local  options of a model on this machine, by their flags; what is not given is falsy
    """
    if url is None:
        for flag, is_given in (
            ("--url-key", key is not None),
            ("--url-dialect", dialect != "auto"),
        ):
            if is_given:
                raise ValueError(f"{flag} is given, it needs --url")
        return
    for flag, value in local.items():
        if value:
            raise ValueError(f"{flag} is for a model on this machine, --url asks another")


def engine_flags(
    engine: Mapping[str, object],
    dtype: str | None,
    device: str,
    ignored: Sequence[str] | None,
) -> dict[str, object]:
    """Return the options of a model on this machine by their flags, for `check_url_options`."""
    given = {
        _FLAG_NAMES.get(name, f"--{name.replace('_', '-')}"): value is not None
        for name, value in engine.items()
    }
    return {
        **given,
        "--dtype": dtype,
        "--device": device != "cpu",
        "--ignore-config-field": ignored,
    }


def read_stdin() -> str:
    """Read all that is piped in, as UTF-8."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"what was piped in is not UTF-8: {error}") from None


def read_piped(wait_seconds: float = 3.0) -> str:
    """Read what is piped in beside a question; empty if stdin is a terminal or stays silent.

    A program that runs this one may leave a pipe open that nobody writes to, so the first byte is
    waited for only so long.
    """
    if sys.stdin.isatty():
        return ""
    try:
        is_ready = bool(select.select([sys.stdin], [], [], wait_seconds)[0])
    except (OSError, ValueError):  # no file that can be waited for
        is_ready = True
    return read_stdin() if is_ready else ""


def read_dtype(name: str | None, known: Sequence[str] | None = None) -> Any:
    """Return the torch dtype of a name; None for None."""
    from fulmen.models import DTYPES

    known = known or tuple(DTYPES)
    if name is not None and name not in known:
        raise ValueError(f"--dtype is {name!r}, it must be one of {', '.join(known)}")
    return None if name is None else DTYPES[name]


def open_store(root: Path | None, max_bytes: str = "20GiB") -> "SessionStore":
    """Open the store of sessions that --store and --session-bytes name."""
    from fulmen.sessions import SessionStore, default_store

    return SessionStore(root or default_store(), max_bytes=parse_bytes(max_bytes))


def read_text_file(file: Path) -> str:
    """Read a whole text file in UTF-8."""
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from None
