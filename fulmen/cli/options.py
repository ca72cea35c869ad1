"""What commands share: their common flags, and how they load, read and print.

Flags are made from the fields of dataclasses, in one place.
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from fulmen.units import parse_count

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.llm import LLM
    from fulmen.sessions import SessionStore

DEFAULT_MODEL = "smollm2"

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A folder, a catalog name or a hub id.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or float64; the checkpoint's if absent."),
]


StoreOption = Annotated[
    Path | None, typer.Option(help="Where sessions live; ~/.local/share/fulmen/sessions if absent.")
]
DeviceOption = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1.")]
ContextOption = Annotated[
    int | None,
    typer.Option("--max-model-len", help="Prompt and answer together; the model's if absent."),
]
CacheOption = Annotated[str, typer.Option("--kv-cache", help="Memory for keys and values.")]
CacheDtypeOption = Annotated[
    str, typer.Option("--kv-cache-dtype", help="auto, or int8: twice the tokens, less exact.")
]
DraftOption = Annotated[
    int,
    typer.Option("--draft-tokens", help="Guesses checked at once: repetitive text comes faster."),
]


def _field_docs(config: type) -> dict[str, str]:
    """The line under each field of a dataclass."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, doc in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs


_TOKEN_COUNTS = ("max_tokens", "thinking_budget")
"""Flags that may be written as 40k"""


def with_flags_of(
    config: type, only: Sequence[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a flag for every field of a dataclass, or for `only` some; the command gets those that
    were given as `given`."""
    docs, hints = _field_docs(config), get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config)] if only is None else only

    def option(name: str) -> inspect.Parameter:
        kinds = [kind for kind in get_args(hints[name]) or (hints[name],) if kind is not type(None)]
        kind: Any = kinds[0]
        if kinds[-1] is Ellipsis:  # a tuple of any length is a flag that may be repeated
            kind = list[kinds[0]]  # type: ignore[valid-type]
        options: dict[str, Any] = {"help": docs.get(name), "show_default": False}
        if name in _TOKEN_COUNTS:
            options |= {"parser": parse_count, "metavar": "TOKENS"}
        annotation = Annotated[kind | None, typer.Option(**options)]
        kind_of_parameter = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, kind_of_parameter, default=None, annotation=annotation)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name != "given"]

        @wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            given = {name: value for name, value in given.items() if value not in (None, [])}
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            if str(given.get("json_schema")).endswith(".json"):  # a file, no JSON ends so
                given["json_schema"] = read_text_file(Path(given["json_schema"]))
            command(**arguments, given=given)

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *(option(name) for name in names)]
        )
        return run

    return decorate


def load_llm(
    model: str,
    dtype: str | None,
    device: str,
    max_model_len: int | None,
    kv_cache: str,
    kv_cache_dtype: str,
    draft_tokens: int,
) -> "LLM":
    """The model with what the flags say about the engine."""
    from fulmen.cli.progress import load
    from fulmen.engine import EngineConfig
    from fulmen.units import parse_bytes

    config = EngineConfig(
        max_model_len=max_model_len,
        kv_cache_bytes=parse_bytes(kv_cache),
        kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]  # which refuses other words
        num_draft_tokens=draft_tokens,
    )
    return load(model, dtype=read_dtype(dtype), device=device, engine_config=config)


def read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"what was piped in is not UTF-8: {error}") from None


def read_dtype(name: str | None, known: Sequence[str] | None = None) -> Any:
    from fulmen.models import DTYPES

    known = known or tuple(DTYPES)
    if name is not None and name not in known:
        raise ValueError(f"--dtype is {name!r}, it must be one of {', '.join(known)}")
    return None if name is None else DTYPES[name]


def open_store(root: Path | None, max_bytes: str = "20GiB") -> "SessionStore":
    from fulmen.sessions import SessionStore, default_store
    from fulmen.units import parse_bytes

    return SessionStore(root or default_store(), max_bytes=parse_bytes(max_bytes))


def read_text_file(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from None


def print_table(renderable: object) -> None:
    """A table on stdout: as wide as the terminal, or as it needs to be when it goes to a file."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=160, no_color=True)
    console.print(renderable)
