"""SGLang and vLLM as far as an upstream is asked: their routes, fields and events, before a tiny
model that is driven by ids."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from fulmen.chat import ChatRequest, Completion, Token
from fulmen.engine import Choice
from fulmen.llm import LLM, LocalModel, LocalStream
from fulmen.llm.answer import Answer
from fulmen.sampling import Mask, SamplingParams


@dataclass
class Fake:
    """A server of one kind, and what it was asked."""

    llm: LLM
    kind: str
    is_incremental: bool = False
    """SGLang with --incremental-streaming-output"""
    shows_cached: bool = True
    max_model_len: int = 10_000
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Every request for tokens"""
    num_closed: int = 0
    """Requests whose client went away"""
    model: LocalModel | None = None

    def app(self) -> FastAPI:
        """Return the application, whose engine runs as long as it does."""

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with LocalModel(self.llm) as model:
                self.model = model
                yield

        app = FastAPI(lifespan=lifespan)
        name = "the model"

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            card = {"id": name, "object": "model", "max_model_len": self.max_model_len}
            return {"object": "list", "data": [card]}

        @app.post("/tokenize")
        async def tokenize(request: Request) -> dict[str, Any]:
            body = await request.json()
            return {"tokens": self.llm.tokenizer.encode(body["prompt"])}

        if self.kind == "sglang":

            @app.get("/model_info")
            async def info() -> dict[str, Any]:
                return {"model_path": name, "is_generation": True}

            @app.get("/server_info")
            async def server_info() -> dict[str, Any]:
                return {"incremental_streaming_output": self.is_incremental}

            app.post("/generate", response_model=None)(self._generate)
        else:

            @app.get("/version")
            async def version() -> dict[str, Any]:
                return {"version": "0.33.0"}

            app.post("/v1/completions", response_model=None)(self._complete)
        return app

    # ---- SGLang ------------------------------------------------------------------------------

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        sampling, num_top = body["sampling_params"], body.get("top_logprobs_num", 0)
        assert set(body) <= SGLANG_FIELDS, set(body) - SGLANG_FIELDS
        assert set(sampling) <= SGLANG_SAMPLING, set(sampling) - SGLANG_SAMPLING
        start = body.get("logprob_start_len", -1)
        params = _params(sampling, sampling["max_new_tokens"], num_top)
        if not body.get("stream"):
            completion = await self._whole(body["input_ids"], params, num_top)
            known: list[list[Any]] = [[None, body["input_ids"][0], None]]
            known += map(_sglang_pair, completion.prompt_tokens)
            tops: list[Any] = [None]
            tops += [_sglang_top(token) for token in completion.prompt_tokens]
            meta = {"input_token_logprobs": [[None, *known[start][1:]], *known[start + 1 :]]}
            return JSONResponse(
                {"output_ids": [], "meta_info": {**meta, "input_top_logprobs": tops[start:]}}
            )

        async def events() -> AsyncIterator[bytes]:
            seen: list[Token] = []
            async for tokens, end in self._tokens(request, body["input_ids"], params, sampling):
                seen += tokens
                shown = tokens if self.is_incremental else seen
                reason = end and {
                    "stop": {"type": "stop", "matched": seen[-1].token_id},
                    "length": {"type": "length", "length": len(seen)},
                }.get(end.finish_reason)
                meta = {
                    "finish_reason": reason,
                    "prompt_tokens": len(body["input_ids"]),
                    "completion_tokens": len(seen),
                    "cached_tokens": 0,
                    "output_token_logprobs": [_sglang_pair(token) for token in shown],
                }
                if num_top:
                    meta["output_top_logprobs"] = [_sglang_top(token) for token in shown]
                event = {"text": "...", "output_ids": [t.token_id for t in shown]}
                yield _sse({**event, "meta_info": meta})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    # ---- vLLM --------------------------------------------------------------------------------

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        assert set(body) <= VLLM_FIELDS, set(body) - VLLM_FIELDS
        ids, num_top = body["prompt"], body.get("logprobs") or 0
        params = _params(body, body["max_tokens"], num_top)
        if not body.get("stream"):
            num_top = body["prompt_logprobs"]
            completion = await self._whole(ids, params, num_top)
            known: list[Any] = [None]
            known += [_vllm_scores(token) for token in completion.prompt_tokens]
            return JSONResponse({"choices": [{"text": ".", "prompt_logprobs": known}]})

        async def events() -> AsyncIterator[bytes]:
            num_tokens = 0
            async for tokens, end in self._tokens(request, ids, params, body):
                choice: dict[str, Any] = {
                    "index": 0,
                    "text": "...",
                    "token_ids": [token.token_id for token in tokens],
                    "logprobs": {
                        "tokens": [f"token_id:{token.token_id}" for token in tokens],
                        "token_logprobs": [token.logprob for token in tokens],
                        "top_logprobs": [_vllm_top(token) for token in tokens],
                    },
                    "finish_reason": end and end.finish_reason,
                }
                if not num_tokens:
                    choice["prompt_token_ids"] = ids
                num_tokens += len(tokens)
                yield _sse({"id": "cmpl-1", "object": "text_completion", "choices": [choice]})
            usage: dict[str, Any] = {"prompt_tokens": len(ids), "completion_tokens": num_tokens}
            if self.shows_cached:
                usage["prompt_tokens_details"] = {"cached_tokens": 3}
            yield _sse({"id": "cmpl-1", "choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    # ---- the engine --------------------------------------------------------------------------

    async def _whole(self, ids: Sequence[int], params: SamplingParams, num_top: int) -> Completion:
        assert self.model is not None
        scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=num_top)
        async with self.model.stream_text(ids, params=scored) as stream:
            async for _ in stream:
                pass
            return await stream.finish()

    async def _tokens(
        self,
        request: Request,
        ids: Sequence[int],
        params: SamplingParams,
        body: Mapping[str, Any],
    ) -> AsyncIterator[tuple[list[Token], Completion | None]]:
        """Yield the new tokens, and with the last of them how the answer ended."""
        assert self.model is not None
        bias = {int(key): value for key, value in body.get("logit_bias", {}).items()}

        def prepare() -> Answer:
            answer = self.llm.prepare(ChatRequest(text=list(ids), params=params))
            if bias:
                choice = _choice(bias, self.llm.engine.model.config.vocab_size)
                answer.ask = lambda draft_ids: [choice]  # type: ignore[method-assign]
            return answer

        num_sent, is_over = 0, False
        async with LocalStream(self.model, prepare) as stream:
            try:
                async for _ in stream:  # the last token is held back: the reason goes with it
                    new = list(stream.tokens[num_sent:-1])
                    num_sent += len(new)
                    if new:
                        yield new, None
                end = await stream.finish()
                is_over = True
                yield list(end.tokens[num_sent:]), end
            finally:
                self.num_closed += not is_over


def _params(body: Mapping[str, Any], max_tokens: int, num_top: int) -> SamplingParams:
    top_k = body.get("top_k", 0)
    return SamplingParams(
        temperature=body["temperature"],
        top_p=body.get("top_p", 1.0),
        top_k=None if top_k in (0, -1) else top_k,
        min_p=body.get("min_p", 0.0),
        seed=body.get("seed", body.get("sampling_seed")),
        max_tokens=max_tokens,
        stop_token_ids=tuple(body.get("stop_token_ids", ())),
        ignore_eos=body.get("ignore_eos", False),
        logprobs=num_top,
    )


def _choice(bias: Mapping[int, float], vocab_size: int) -> Choice:
    """Return what a bias comes to: biases of 100 decide."""
    values = set(bias.values())
    if len(bias) == 1 and values not in ({100.0}, {-100.0}):
        return Choice(logit_bias=next(iter(bias.items())))
    allowed = np.full(vocab_size, values == {-100.0})
    allowed[list(bias)] = values == {100.0}
    return Choice(Mask(allowed))


def _sse(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _sglang_pair(token: Token) -> list[Any]:
    return [token.logprob, token.token_id, None]


def _sglang_top(token: Token) -> list[list[Any]]:
    return [[logprob, token_id, None] for token_id, logprob in token.top_logprobs]


def _vllm_top(token: Token) -> dict[str, float]:
    known = {f"token_id:{token_id}": logprob for token_id, logprob in token.top_logprobs}
    return {f"token_id:{token.token_id}": token.logprob, **known}


def _vllm_scores(token: Token) -> dict[str, Any]:
    known = dict([(token.token_id, token.logprob), *token.top_logprobs])
    return {str(key): {"logprob": value, "rank": 1} for key, value in known.items()}


SGLANG_FIELDS = {
    *("input_ids", "sampling_params", "stream", "return_logprob", "logprob_start_len"),
    "top_logprobs_num",
}
SGLANG_SAMPLING = {
    *("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "stop_token_ids", "ignore_eos"),
    *("sampling_seed", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"),
    "logit_bias",
}
VLLM_FIELDS = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "stop_token_ids", "ignore_eos", "logprobs", "prompt_logprobs"),
    *("return_token_ids", "return_tokens_as_token_ids", "skip_special_tokens", "logit_bias"),
    *("spaces_between_special_tokens", "stream", "stream_options"),
}
"""Fields of the two servers' requests that are used here (SGLang 0.5.23, vLLM 0.32.0)"""


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Run an application on a free port, in a thread; give its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
