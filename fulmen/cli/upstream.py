"""A model whose weights another server holds, from the flags of fulmen serve."""

import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.llm import UpstreamModel

_SAY_AGAIN_SECONDS: Final = 30
_WAIT_SECONDS: Final = 600.0
"""Time in which an upstream has to answer at the start, and longest silence, where none is given"""


def upstream_model(
    name: str,
    url: str,
    sampling: Mapping[str, Any],
    *,
    answer_seconds: float,
    timeout_seconds: float | None = None,
    wait_seconds: float | None = None,
    key_file: Path | None = None,
    **options: Any,
) -> "Callable[[], Awaitable[UpstreamModel]]":
    """Return what makes a model of weights at a URL, and says so on stderr.

    sampling         fields of its recommended sampling that are changed
    answer_seconds   longest answer
    timeout_seconds  longest silence
    wait_seconds     time in which the server has to answer at the start
    options          of `UpstreamModel.connect`
    """
    key = None if key_file is None else _one_key(key_file)
    silence = _WAIT_SECONDS if timeout_seconds is None else timeout_seconds
    wait = _WAIT_SECONDS if wait_seconds is None else wait_seconds

    async def open_model() -> "UpstreamModel":
        from fulmen.chat import ModelError
        from fulmen.llm import PeerConfig, UpstreamModel

        waits = PeerConfig(
            first_byte_seconds=silence, idle_seconds=silence, answer_seconds=answer_seconds
        )
        try:
            model = await UpstreamModel.connect(
                name,
                url,
                key=key,
                config=waits,
                wait_seconds=wait,
                on_wait=_Waiting(),
                **options,
            )
        except ModelError as error:
            raise ValueError(str(error)) from error
        model.defaults = replace(model.defaults, **sampling)
        print(
            f"{name} is at {model.url}, a {model.name_of_server} server: "
            f"{model.max_model_len:,} tokens a sequence",
            file=sys.stderr,
        )
        return model

    return open_model


class _Waiting:
    """Says on stderr what is waited for, each time it changes and every half minute."""

    def __init__(self) -> None:
        self._said, self._said_at = "", 0.0

    def __call__(self, sentence: str) -> None:
        if sentence != self._said or time.monotonic() - self._said_at >= _SAY_AGAIN_SECONDS:
            self._said, self._said_at = sentence, time.monotonic()
            print(f"waiting: {sentence}", file=sys.stderr, flush=True)


def refuse_upstream_flags(**flags: object) -> None:
    """Refuse flags, by their names in Python, that say how an upstream is asked."""
    for name, value in flags.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is given without --upstream, it has no effect")


def refuse_engine_flags(engine: Mapping[str, Any], dtype: str | None, device: str) -> None:
    """Refuse settings of an engine that is not here. max_num_seqs is kept: it says how many
    answers are asked for at once."""
    others = [name for name in engine if name != "max_num_seqs"]
    others += ["--dtype"] * (dtype is not None) + ["--device"] * (device != "cpu")
    if others:
        raise ValueError(
            f"{others[0]} is given with --upstream, it cannot be set from here: give it to that "
            "server"
        )


def _one_key(file: Path) -> str:
    from fulmen.server import read_key_file

    keys = read_key_file(file)
    if len(keys) != 1:
        raise ValueError(f"{file} has {len(keys)} keys, an upstream has one")
    return keys[0]
