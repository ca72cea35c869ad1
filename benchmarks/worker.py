"""A process with one model that times what it is asked: a JSON line in, a JSON line out.

    python benchmarks/worker.py fulmen CHECKPOINT --dtype bfloat16 --threads 2

Each engine lives in a process of its own, so that none shares memory, threads or libraries with
another, and stays loaded while the engines take turns. Engines are imported when they are chosen:
this file also runs under a Python that has one of them alone. What came before a decoded token is
noise written into the cache: its values do not change the work, and no engine waits for a prompt.
"""

import argparse
import importlib.util
import json
import os
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

BESIDE = Path(__file__).resolve().parent
BENCH = BESIDE.parent / "fulmen/bench"


def load_file(name: str) -> ModuleType:
    """A file of this checkout's fulmen/bench, alone: the same code times another engine, and every
    revision of Fulmen that has a Runner with next_tokens."""
    spec = importlib.util.spec_from_file_location(f"checkout_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


workload_file = load_file("workload")
Workload = workload_file.Workload
WARMUP_PROMPT = 64
WARMUP_NEW = 8
"""Tokens of requests that only warm an engine up."""


class TimedModel(ABC):
    """One engine with one model loaded."""

    @abstractmethod
    def measure(self, case: Any) -> dict[str, Any]:
        """`seconds` of a Workload, and whatever else is worth telling."""

    def touch(self) -> None:
        """Reads every weight once: a prompt long enough that each expert is chosen."""
        self.measure(Workload(kind="prefill", num_tokens=workload_file.TOUCH_TOKENS))

    def warm_up(self, case: Any) -> None:
        """Runs until two stretches of the case take the same time.

        Before every measurement: memory that lay idle while others ran may have to be fetched
        again.
        """
        self.touch()
        stretch = case.shortened()
        workload_file.until_steady(lambda: self.measure(stretch)["seconds"])

    def logits(self, input_ids: list[int]) -> Any:
        """(T, V) float32 tensor of one sequence from position 0."""
        raise ValueError("this engine gives no logits")

    def begin(self, max_num_seqs: int, max_model_len: int) -> None:
        """Prepares for requests, of which none is known."""
        raise ValueError("this engine takes no requests")

    def add(self, index: int, input_ids: list[int], num_tokens: int) -> None:
        """Queues request `index`: num_tokens greedy tokens, whatever they are."""
        raise ValueError("this engine takes no requests")

    def step(self) -> Iterable[tuple[int, int, float | None]]:
        """One pass; new tokens as (request, token id, log-probability)."""
        raise ValueError("this engine takes no requests")

    longest_decode_seconds: float | None = None
    """Longest step of the requests so far that read no prompt; None if the engine does not tell"""

    def costs(self) -> dict[str, float]:
        """Seconds of the engine's own parts since it began."""
        return {}

    def serve_requests(
        self, prompts: Sequence[list[int]], arrivals: Sequence[float], num_tokens: int
    ) -> dict[str, Any]:
        """Steps as a server would, while requests come: when each token was there, in seconds
        after the first arrival, what was said, and how long the steps took."""
        times: list[list[float]] = [[] for _ in prompts]
        token_ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float | None]] = [[] for _ in prompts]
        costs = self.costs()
        self.longest_decode_seconds = None
        num_added = num_done = num_steps = 0
        step_seconds = 0.0
        start = time.perf_counter()
        while num_done < len(prompts):
            now = time.perf_counter() - start
            while num_added < len(prompts) and arrivals[num_added] <= now:
                self.add(num_added, prompts[num_added], num_tokens)
                num_added += 1
            if num_added == num_done:
                time.sleep(max(0.0, arrivals[num_added] - now))
                continue
            before = time.perf_counter()
            for index, token_id, logprob in self.step():
                token_ids[index].append(token_id)
                logprobs[index].append(logprob)
                times[index].append(time.perf_counter() - start)
                num_done += len(times[index]) == num_tokens
            step_seconds += time.perf_counter() - before
            num_steps += 1
        return {
            "times": times,
            "token_ids": token_ids,
            "logprobs": logprobs,
            "num_steps": num_steps,
            "step_seconds": step_seconds,
            "longest_decode_seconds": self.longest_decode_seconds,
            "costs": {name: value - costs[name] for name, value in self.costs().items()},
        }


class FulmenModel(TimedModel):
    """The model through the engine's own Runner: decode steps are recorded and replayed."""

    def __init__(self, checkpoint: Path, dtype: str | None, chunk: int) -> None:
        import torch

        from fulmen.checkpoints import load_model
        from fulmen.models import DTYPES

        self.torch = torch
        self.model = load_model(checkpoint, dtype=None if dtype is None else DTYPES[dtype])
        self.timer = load_file("timer").ModelTimer(self.model, chunk=chunk)
        self.chunk = chunk

    def warm_up(self, case: Any) -> None:
        """Warm up on the cache that the whole case needs."""
        self.timer.reserve(case.batch, case.depth + case.num_tokens)
        super().warm_up(case)

    def measure(self, case: Any) -> dict[str, Any]:
        """Seconds; and those of M1's softmax attention."""
        if case.kind == "prefill":
            timing = self.timer.prefill(case.num_tokens)
        else:
            timing = self.timer.decode(case.num_tokens, batch=case.batch, depth=case.depth)
        answer = {"seconds": timing.seconds}
        if timing.softmax_seconds is not None:
            answer["softmax_seconds"] = timing.softmax_seconds
        return answer

    def logits(self, input_ids: list[int]) -> Any:
        """(T, V) float32 in one pass without a cache; a ValueError if steps as they are timed give
        other best logits than that, to the bit."""
        torch = self.torch
        with torch.inference_mode():
            logits = self.model(torch.tensor([input_ids]))[0].float()
        best, sums = self.timer.best_logits(input_ids)
        if not (torch.equal(best, logits.amax(-1)) and torch.allclose(sums, logits.logsumexp(-1))):
            most = float((best - logits.amax(-1)).abs().max())
            raise ValueError(f"steps and one pass give best logits that differ by up to {most:.2g}")
        return logits

    def begin(self, max_num_seqs: int, max_model_len: int) -> None:
        """An engine of its own; the one before is freed first."""
        from fulmen.engine import Engine, EngineConfig

        self.engine: Any = None
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=self.chunk,
            max_model_len=max_model_len,
        )
        self.engine = Engine(self.model, config)
        self.indices: dict[int, int] = {}

    def add(self, index: int, input_ids: list[int], num_tokens: int) -> None:
        """Queues a request."""
        from fulmen.sampling import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        self.indices[self.engine.add_request(input_ids, params)] = index

    def step(self) -> Iterable[tuple[int, int, float | None]]:
        """One step of the engine."""
        num_fed = self.engine.stats.num_fed_tokens
        start = time.perf_counter()
        outputs = self.engine.step()
        seconds = time.perf_counter() - start
        if self.engine.stats.num_fed_tokens - num_fed == len(outputs):  # one each: no prompt
            self.longest_decode_seconds = max(self.longest_decode_seconds or 0.0, seconds)
        for output in outputs:
            yield self.indices[output.request_id], output.token_id, output.logprob

    def costs(self) -> dict[str, float]:
        """Seconds of the scheduler, and of the forward passes."""
        stats = self.engine.stats
        return {"schedule": stats.schedule_seconds, "run": stats.run_seconds}


class TransformersModel(TimedModel):
    """transformers with whichever of its implementations of the experts is fastest for a case."""

    def __init__(self, checkpoint: Path, dtype: str | None, implementation: str) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch = torch
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype or "auto")
        self.model: Any = model.eval()
        self.implementation = implementation
        self.chosen: dict[Any, str] = {}
        self.current = "grouped_mm"

    def warm_up(self, case: Any) -> None:
        """Warm up in the implementation that takes the least time for the case."""
        self.current = self._choose(case)
        super().warm_up(case)

    def measure(self, case: Any) -> dict[str, Any]:
        """Seconds, and the implementation that was chosen."""
        self.model.set_experts_implementation(self.current)
        return {"seconds": self._seconds(case), "note": self.current}

    def touch(self) -> None:
        """Decode in the implementation that copies no experts."""
        self.model.set_experts_implementation("grouped_mm")
        self._seconds(Workload(kind="prefill", num_tokens=workload_file.TOUCH_TOKENS))

    def _choose(self, case: Any) -> str:
        if self.implementation != "best":
            return self.implementation
        if case not in self.chosen:
            # batched_mm copies the experts of every token: gigabytes for a prompt.
            names = ["grouped_mm", "eager", *(["batched_mm"] if case.kind == "decode" else [])]
            seconds = {}
            for name in names:
                self.model.set_experts_implementation(name)
                self._seconds(case.shortened())
                seconds[name] = self._seconds(case)
            self.chosen[case] = min(seconds, key=lambda name: seconds[name])
        return self.chosen[case]

    def _seconds(self, case: Any) -> float:
        torch = self.torch
        with torch.inference_mode():
            if case.kind == "prefill":
                steps = [torch.randint(self.model.config.vocab_size, (1, case.num_tokens))]
            else:
                shape = (case.num_tokens, case.batch, 1)
                steps = list(torch.randint(self.model.config.vocab_size, shape))
            cache = self._cache(case)
            context = case.depth
            start = time.perf_counter()
            for ids in steps:
                # MiniMax's own count of cached tokens asks a lightning layer, which has none.
                positions = torch.arange(context, context + ids.shape[1])[None]
                self.model(
                    input_ids=ids,
                    position_ids=positions.expand(len(ids), -1),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                context += ids.shape[1]
            return time.perf_counter() - start

    def _cache(self, case: Any) -> Any:
        """An empty cache, or one that holds noise for `depth` tokens."""
        config = self.model.config
        kinds = (
            getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        )
        if "linear_attention" in kinds:
            from transformers.models.minimax.modeling_minimax import MiniMaxCache

            cache: Any = MiniMaxCache()
        else:
            from transformers import DynamicCache

            cache = DynamicCache(config=config)
        if not case.depth:
            return cache
        dtype, dim = self.model.dtype, config.head_dim
        for index, kind in enumerate(kinds):
            if kind == "linear_attention":
                state = (case.batch, config.num_attention_heads, dim, dim)
                cache.set_linear_cache(index, self.torch.zeros(state, dtype=dtype))
            else:
                past = (2, case.batch, config.num_key_value_heads, case.depth, dim)
                cache.update(*self.torch.randn(past, dtype=dtype), index)
        return cache

    def logits(self, input_ids: list[int]) -> Any:
        """(T, V) float32 in one pass; the plain implementation of the experts."""
        self.model.set_experts_implementation("eager")
        with self.torch.inference_mode():
            ids = self.torch.tensor([input_ids])
            return self.model(input_ids=ids, use_cache=False).logits[0].float()


class VllmModel(TimedModel):
    """vLLM's own offline engine; decode is what more tokens take beyond the first."""

    def __init__(self, checkpoint: Path, dtype: str | None, max_model_len: int) -> None:
        import vllm  # type: ignore[import-not-found]

        self.vllm = vllm
        self.num_added = 0
        self.model: Any = vllm.LLM(
            str(checkpoint),
            dtype=dtype or "auto",
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            max_model_len=max_model_len,
        )

    def measure(self, case: Any) -> dict[str, Any]:
        """Seconds."""
        if case.kind == "prefill":
            return {"seconds": self._seconds([random.choices(range(1000), k=case.num_tokens)], 1)}
        draw = random.Random(0)  # the same each time, so that a deep past is read once
        prompts = [draw.choices(range(1000), k=max(case.depth, 1)) for _ in range(case.batch)]
        first = self._seconds(prompts, 1)  # reads the prompts; what follows finds them cached
        first = min(first, self._seconds(prompts, 1))
        return {"seconds": self._seconds(prompts, 1 + case.num_tokens) - first}

    def _seconds(self, prompts: Iterable[list[int]], num_tokens: int) -> float:
        params = self.vllm.SamplingParams(
            max_tokens=num_tokens, temperature=0, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        self.model.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return time.perf_counter() - start

    def begin(self, max_num_seqs: int, max_model_len: int) -> None:
        """Its engine stays as it is: it takes more requests than anyone asks."""

    def add(self, index: int, input_ids: list[int], num_tokens: int) -> None:
        """Queues a request."""
        params = self.vllm.SamplingParams(
            max_tokens=num_tokens,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.DELTA,
        )
        # Names are not used twice: an engine may still remember the one before.
        self.num_added += 1
        name = f"{index}-{self.num_added}"
        self.model.llm_engine.add_request(name, {"prompt_token_ids": input_ids}, params)

    def step(self) -> Iterable[tuple[int, int, float | None]]:
        """One step of its engine."""
        for output in self.model.llm_engine.step():
            index = int(output.request_id.partition("-")[0])
            for token_id in output.outputs[0].token_ids:
                yield index, token_id, None


def measure_requests(
    model: TimedModel,
    *,
    prompts: Sequence[list[int]],
    arrivals: Sequence[float],
    num_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
    warms_up: bool,
) -> dict[str, Any]:
    """Serve requests, once short ones, all at a time, take the same time twice."""
    model.begin(max_num_seqs, max(max_model_len, WARMUP_PROMPT + WARMUP_NEW))
    if warms_up:
        model.touch()

        def stretch() -> float:
            short = [random.choices(range(1000), k=WARMUP_PROMPT) for _ in range(max_num_seqs)]
            times = model.serve_requests(short, [0.0] * max_num_seqs, WARMUP_NEW)["times"]
            return float(max(map(max, times)))

        workload_file.until_steady(stretch)
    return model.serve_requests(prompts, arrivals, num_tokens)


def serve(model: TimedModel, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answers the questions on stdin until it ends; a failure is an answer too."""
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "logits_of" in question:
                import torch

                torch.save(model.logits(question["logits_of"]), question["file"])
                answer({})
                continue
            if "requests" in question:
                answer(measure_requests(model, **question["requests"]))
                continue
            case = Workload(**question)
            model.warm_up(case)
            answer(model.measure(case))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Loads the model, says so with an empty answer, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("fulmen", "transformers", "vllm"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--chunk", type=int, default=1024, help="Fulmen: tokens of a forward pass")
    parser.add_argument("--experts", default="best", help="transformers: implementation of experts")
    parser.add_argument("--max-model-len", type=int, default=16_640, help="vLLM: context")
    options = parser.parse_args()
    # transformers and vLLM look for a library called kernels; the script beside this one is not it.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != BESIDE]
    # Libraries print to stdout; the answers keep it for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    import torch

    torch.set_num_threads(options.threads)
    if options.engine == "fulmen":
        import fulmen.kernels

        if hasattr(fulmen.kernels, "set_num_threads"):
            fulmen.kernels.set_num_threads(options.threads)
    torch.manual_seed(0)
    model: TimedModel
    if options.engine == "fulmen":
        model = FulmenModel(options.checkpoint, options.dtype, options.chunk)
    elif options.engine == "transformers":
        model = TransformersModel(options.checkpoint, options.dtype, options.experts)
    else:
        model = VllmModel(options.checkpoint, options.dtype, options.max_model_len)
    answers.write("{}\n")
    serve(model, lambda values: print(json.dumps(values), file=answers, flush=True))


if __name__ == "__main__":
    main()
