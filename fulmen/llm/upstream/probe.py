"""Questions to the server that holds the weights: which it is, and whether it holds these.

GET /v1/models                     it answers, and how long a sequence may be
GET /model_info, /get_model_info   SGLang
GET /version                       vLLM
POST /tokenize                     the vocabulary is the one that is here
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fulmen.chat import Tokenizer
from fulmen.files import shorten
from fulmen.llm.http import Peer, PeerError
from fulmen.llm.upstream.sglang import SGLangWire
from fulmen.llm.upstream.vllm import VllmWire
from fulmen.llm.upstream.wire import Wire, mapping

UpstreamKind = Literal["sglang", "vllm"]
"""Servers that can hold the weights."""

_POLL_SECONDS: Final = 1.0
_NOT_THERE: Final = frozenset({404, 405, 501})
"""Statuses of a path that a server does not have"""
_SAMPLE: Final = 'Wie schön: 你好, 3.14 — {"a": [1, 2]}\n\n\tdef f(x):'
"""Text on which two vocabularies differ if anywhere"""


@dataclass(frozen=True, slots=True)
class Found:
    """A server that holds the weights, as it told of itself."""

    wire: Wire
    max_model_len: int | None
    """Tokens of a sequence; None if it does not tell"""


async def find(
    peer: Peer,
    tokenizer: Tokenizer,
    vocab_size: int,
    *,
    kind: UpstreamKind | None,
    wait_seconds: float,
    on_wait: Callable[[str], None] | None,
) -> Found:
    """Return what serves at a URL, as soon as it answers.

    peer     asks once and does not wait long, whatever it asks
    kind     which server it is; asked if omitted
    on_wait  called with a sentence each time that it does not answer yet

    Raises PeerError if it does not answer in time or refuses, ValueError if it is no such server or
    holds another model.
    """
    models = await _first_answer(peer, wait_seconds, on_wait)
    card = _served_model(peer, models)
    max_model_len = card.get("max_model_len")
    if not isinstance(max_model_len, int) or isinstance(max_model_len, bool) or max_model_len < 2:
        max_model_len = None
    info = None if kind == "vllm" else await _sglang_info(peer)
    if info is None and kind != "vllm" and (kind or not await _is_vllm(peer)):
        what = "no SGLang" if kind else "neither SGLang nor vLLM, as far as it tells"
        raise ValueError(
            f"{peer.shown_url} is {what}: an upstream serves /model_info or /version; give "
            "--upstream-kind if it is one of them"
        )
    await _check_vocabulary(peer, tokenizer, str(card.get("id")))
    if info is None:
        return Found(VllmWire(vocab_size, model=str(card.get("id"))), max_model_len)
    if info.get("is_generation") is False:
        raise ValueError(f"the model at {peer.shown_url} generates no text")
    return Found(SGLangWire(vocab_size, is_incremental=await _is_incremental(peer)), max_model_len)


async def _first_answer(
    peer: Peer, wait_seconds: float, on_wait: Callable[[str], None] | None
) -> Mapping[str, Any]:
    """Return the list of models, as soon as the server gives it."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_seconds
    while True:
        try:
            return await peer.get("/v1/models")
        except PeerError as error:
            if error.peer_status in (401, 403):
                raise PeerError(f"{error}; give --upstream-key-file", status=502) from None
            is_starting = error.peer_status in (None, 502, 503, 504)
            if not is_starting or loop.time() >= until:
                raise
            if on_wait is not None:
                on_wait(str(error))
        await asyncio.sleep(min(_POLL_SECONDS, max(until - loop.time(), 0.05)))


def _served_model(peer: Peer, models: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the model that is served; adapters besides it name it as their parent."""
    listed = models.get("data")
    cards = [mapping(card) for card in listed] if isinstance(listed, list) else []
    own = [card for card in cards if isinstance(card.get("id"), str) and not card.get("parent")]
    if not own:
        raise ValueError(f"{peer.shown_url}/v1/models lists no model: {shorten(str(models), 100)}")
    return own[0]


async def _sglang_info(peer: Peer) -> Mapping[str, Any] | None:
    """Return what SGLang tells of its model; None from another server."""
    for path in ("/model_info", "/get_model_info"):
        info = await _get(peer, path)
        if info is not None and "model_path" in info:
            return info
    return None


async def _is_vllm(peer: Peer) -> bool:
    info = await _get(peer, "/version")
    return info is not None and isinstance(info.get("version"), str)


async def _is_incremental(peer: Peer) -> bool:
    """Return whether SGLang was started with --incremental-streaming-output."""
    for path in ("/server_info", "/get_server_info"):
        info = await _get(peer, path)
        if info is not None:
            return info.get("incremental_streaming_output") is True
    return False


async def _check_vocabulary(peer: Peer, tokenizer: Tokenizer, model: str) -> None:
    """Raise ValueError if the server encodes a text otherwise than the tokenizer here."""
    body = {"model": model, "prompt": _SAMPLE, "add_special_tokens": False}
    try:
        answer = await peer.post("/tokenize", body)
    except PeerError as error:
        if error.peer_status is not None:  # it has no such path, or was started without tokenizer
            return
        raise
    found, ours = answer.get("tokens"), tokenizer.encode(_SAMPLE)
    if isinstance(found, list) and found != ours:
        raise ValueError(
            f"{peer.shown_url} serves {shorten(model, 80)}, which has another vocabulary than "
            f"MODEL: it encodes {_SAMPLE[:11]!r}... as {found[:6]}, MODEL as {ours[:6]}"
        )


async def _get(peer: Peer, path: str) -> Mapping[str, Any] | None:
    """Return what is at a path; None if nothing is."""
    try:
        return await peer.get(path)
    except PeerError as error:
        if error.peer_status in _NOT_THERE:
            return None
        raise
