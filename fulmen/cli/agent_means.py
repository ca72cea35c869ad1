"""Means of a run: what its folder's settings, the flags and the model's side come to together."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fulmen.agent import (
    Approve,
    Archive,
    Means,
    NoteHands,
    Notes,
    Permissions,
    Setup,
    Watcher,
)
from fulmen.chat import ChatModel
from fulmen.cli.agent_wanted import Wanted, budget_of
from fulmen.llm import LocalModel
from fulmen.sessions import Session

if TYPE_CHECKING:
    from fulmen.cli.agent_run import Side

R = TypeVar("R")


def means_of(
    setup: Setup,
    wanted: Wanted,
    side: "Side",
    permissions: Permissions,
    *,
    approve: Approve,
    watcher: Watcher,
    on_output: Callable[[str], None],
    runs: Path,
) -> Means:
    """Return the means of a run; a flag beats the folder's settings. runs: folder of all runs"""
    config, llm = setup.config, side.llm
    notes = Notes(runs, setup.workspace)
    note_hands = ((lambda consent: NoteHands(notes, consent)),) if config.has_notes else ()
    limits: dict[str, Any] = {**config.limits, **wanted.limits}
    if llm is None and "thinking_tokens" not in wanted.limits:
        limits.pop("thinking_tokens", None)  # a server has no such limit
    context = limits.get("context")
    if context is None and llm is not None:
        context = llm.engine.max_model_len
    has_network = config.has_network if wanted.has_network is None else wanted.has_network
    return Means(
        permissions=permissions,
        budget=budget_of(limits),
        params=side.params(wanted.sampling),
        context=context,
        has_network=bool(has_network),
        writable=wanted.writable,
        environment=config.environment,
        readable=setup.readable,
        approve=approve,
        watcher=watcher,
        on_output=on_output,
        more_hands=(*setup.more_hands(), *note_hands),
        hooks=config.hooks,
    )


def session_opener(
    side: "Side",
    archive: Archive,
    model: ChatModel,
    loop: asyncio.AbstractEventLoop,
    *,
    keep_thoughts: bool = True,
) -> Callable[[str], Session]:
    """Return what opens the session of a model on this machine, in any thread.

    loop           the event loop that the model is used in
    keep_thoughts  as in `Transcript`
    """

    def between(work: Callable[[], R], /) -> R:
        assert isinstance(model, LocalModel)
        call = asyncio.run_coroutine_threadsafe(model.call(work), loop)
        result: R = call.result()
        return result

    def opened(name: str) -> Session:
        assert side.llm is not None
        assert archive.sessions is not None
        return Session(
            side.llm,
            archive.sessions,
            name,
            model=side.name,
            keep_thoughts=keep_thoughts,
            between=between,
        )

    return opened
