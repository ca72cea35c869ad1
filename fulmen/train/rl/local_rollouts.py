"""Rollouts on an engine in this process: the weights in training, copied in place.

    prompts x group_size -> add_request -> step, step, ... -> ids, log-probabilities, versions

Engine and trainer compute the same bits, so on-policy the importance ratio is exactly 1. Tasks of
ids and questions are one batch of the engine; tasks with tools are played one after the other's
turn on the same engine. Members of a group share their prompt: one shorter than a page costs less
to read than to wait for; of a longer one the first member reads it, and the others start where it
has been read to.
"""

import asyncio
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fulmen.agent import Answer, Sampled, Score
from fulmen.chat import ChatFormat, Message, Tokenizer
from fulmen.engine import Engine, EngineConfig, RequestFailed
from fulmen.envs import Environment, Task, answered
from fulmen.kernels import PAGE
from fulmen.llm import LLM, LocalModel
from fulmen.models import Model
from fulmen.sampling import FinishReason, SamplingParams
from fulmen.train.rl.curriculum import Draw
from fulmen.train.rl.playing import LimitsConfig, Play, Player, close_loop, gather_outcomes
from fulmen.train.rl.rollout import (
    Failure,
    Meter,
    Outcome,
    Progress,
    RolledOut,
    SamplingConfig,
    check_known,
    derive_seed,
    grouped,
)
from fulmen.train.rl.samples import Sample
from fulmen.train.rl.tasks import AnyEnvironment, TokenEnvironment, TokenTask


class LocalRollouts:
    """A copy of the model in training, with an engine of its own."""

    def __init__(
        self,
        model: Model,
        environments: Mapping[str, AnyEnvironment],
        sampling: SamplingConfig | None = None,
        limits: LimitsConfig | None = None,
        *,
        engine_config: EngineConfig | None = None,
        tokenizer: Tokenizer | None = None,
        format: ChatFormat | None = None,
    ) -> None:
        """tokenizer and format: for environments that speak in messages; those of ids need none.

        Raises ValueError for an environment that this model cannot be asked about.
        """
        self._environments = dict(environments)
        self._sampling = sampling or SamplingConfig()
        self._limits = limits or LimitsConfig()
        self._tokenizer = tokenizer
        self._format = format
        policy = copy.deepcopy(model).eval().requires_grad_(False)
        policy.pack()
        config = engine_config or EngineConfig(
            max_num_seqs=256, max_num_batched_tokens=4096, max_token_gap_seconds=None
        )
        self._llm: LLM | None = None
        if tokenizer is not None and format is not None:
            self._llm = LLM(policy, tokenizer, format, engine_config=config)
            self.engine = self._llm.engine
        else:
            self.engine = Engine(policy, config)
        for name, environment in self._environments.items():
            if isinstance(environment, TokenEnvironment):
                vocab_size = model.config.vocab_size
                if environment.vocab_size > vocab_size:
                    raise ValueError(
                        f"{name} has {environment.vocab_size} ids, the model knows {vocab_size}"
                    )
            elif self._llm is None:
                raise ValueError(f"{name} speaks in messages, which needs a tokenizer and a format")
        self._version_before = 0
        """Number that makes policy versions of the engine's own count of its weights"""
        self._runner = asyncio.Runner()

    @property
    def policy_version(self) -> int:
        """Number of the weights that draw now."""
        return self._version_before + self.engine.policy_version

    def load_weights(self, model: Model, *, policy_version: int | None = None) -> int:
        """Draw from these weights from now on; return their policy_version, the next one unless it
        is given."""
        self.engine.load_weights(model)
        if policy_version is not None:
            self._version_before = policy_version - self.engine.policy_version
        return self.policy_version

    def roll_out(
        self,
        draws: Sequence[Draw],
        *,
        group_size: int,
        seed: int,
        max_tokens: int,
        on_progress: Progress | None = None,
    ) -> RolledOut:
        """Return groups of scored samples. Rollouts that fail are counted."""
        check_known(draws, self._environments)
        meter = Meter(
            len(draws) * group_size, lambda: self.engine.stats.num_new_tokens, on_progress
        )
        asked, plays = list[_Asked](), list[Play]()
        outcomes: list[list[Outcome]] = [[] for _ in draws]
        for place, draw in enumerate(draws):
            params = [
                self._sampling.params(seed=derive_seed(seed, place, member), max_tokens=max_tokens)
                for member in range(group_size)
            ]
            try:
                found = self._asked(place, draw, tuple(params))
            except Exception as error:  # one task, which never takes the others down
                outcomes[place] = [Failure(type(error).__name__, str(error))] * group_size
                meter.num_ended += group_size
                continue
            if found is not None:
                asked.append(found)
            else:
                plays += [Play(draw.environment, draw.task_index, one) for one in params]
        if asked:
            for one, row in zip(asked, self._drawn(asked, meter), strict=True):
                outcomes[one.place] = row
        if plays:
            played = iter(self._runner.run(self._played(plays, meter)))
            for row in outcomes:
                if not row:
                    row += [next(played) for _ in range(group_size)]
        return grouped(draws, outcomes, num_tokens=meter.num_tokens)

    def text(self, sample: Sample) -> str:
        """Return a sample as people read it."""
        environment = self._environments[sample.environment]
        ids = sample.ids.tolist()
        if isinstance(environment, TokenEnvironment):
            return environment.text(ids)
        assert self._tokenizer is not None
        return self._tokenizer.decode(ids)

    def close(self) -> None:
        """Let go of the event loop."""
        close_loop(self._runner)

    # ------------------------------------------------------------------------------------------

    def _asked(self, place: int, draw: Draw, params: tuple[SamplingParams, ...]) -> "_Asked | None":
        """Return a task that one answer is all there is to; None for one that is played."""
        environment = self._environments[draw.environment]
        if isinstance(environment, TokenEnvironment):
            task = environment.task(draw.task_index)
            stops = environment.end_ids
            params = tuple(_stopping(one, stops) for one in params)
            return _Asked(place, draw, tuple(task.prompt_ids), params, task)
        question = environment.task(draw.task_index)
        # A thought's budget steers each token, which the agent's side of the engine does.
        if not question.is_question or self._sampling.thinking_budget is not None:
            return None
        assert self._format is not None
        assert self._tokenizer is not None
        ids = self._format.encode(list(question.messages), tokenizer=self._tokenizer)
        return _Asked(place, draw, tuple(ids), params, question)

    def _seconds_left(self, meter: Meter) -> float:
        """Return what is left of a round, but no less than one task may take: scores of answers
        that were cut at the round's end come all the same."""
        limits = self._limits
        least = min(limits.trajectory_seconds, limits.batch_seconds)
        return max(limits.batch_seconds - meter.seconds, least)

    def _drawn(self, asked: "Sequence[_Asked]", meter: Meter) -> list[list[Outcome]]:
        """Return what the answers to these come to, scored."""
        rows = draw_groups(
            self.engine,
            [Prompted(one.prompt_ids, one.params) for one in asked],
            seconds=self._limits.batch_seconds,
            meter=meter,
        )
        works = [
            partial(self._outcome, one, drawn, params)
            for one, row in zip(asked, rows, strict=True)
            for drawn, params in zip(row, one.params, strict=True)
        ]
        seconds = self._seconds_left(meter)
        scored = iter(self._runner.run(gather_outcomes(works, self._limits, seconds=seconds)))
        return [[next(scored) for _ in one.params] for one in asked]

    async def _outcome(self, asked: "_Asked", drawn: "Drawn", params: SamplingParams) -> Outcome:
        """Return an answer with its score."""
        if drawn.finish_reason is None:
            return Failure(
                "out of time",
                f"it had not ended after {self._limits.batch_seconds:g} seconds, raise "
                "limits.batch_seconds or lower sampling.max_tokens",
            )
        if drawn.finish_reason == "error":
            return Failure("engine error", drawn.error)
        seconds = self._limits.trajectory_seconds
        try:
            score = await asyncio.wait_for(self._score(asked, drawn, params), seconds)
        except TimeoutError:
            return Failure(
                "out of time",
                f"there was no score after {seconds:g} seconds, see limits.trajectory_seconds",
            )
        num_given = len(asked.prompt_ids)
        return Sample.of(
            [*asked.prompt_ids, *drawn.ids],
            [*[None] * num_given, *drawn.logprobs],
            policy_versions=[
                *[0] * num_given,
                *(self._version_before + version for version in drawn.policy_versions),
            ],
            reward=score.value,
            reward_parts=score.parts,
            finish_reason=drawn.finish_reason,
            environment=asked.draw.environment,
            task_index=asked.draw.task_index,
        )

    async def _score(self, asked: "_Asked", drawn: "Drawn", params: SamplingParams) -> Score:
        if not isinstance(asked.task, Task):
            return asked.task.score(drawn.ids)
        assert self._format is not None
        assert self._tokenizer is not None
        is_ended = drawn.finish_reason == "stop"
        detokenizer = self._tokenizer.detokenizer()
        text = detokenizer.feed(drawn.ids[:-1] if is_ended else drawn.ids) + detokenizer.flush()
        assert drawn.finish_reason is not None
        answer = Answer(
            message=self._format.parse(text).message(),
            finish_reason=drawn.finish_reason,
            params=params,
            num_prompt_tokens=len(asked.prompt_ids),
            num_new_tokens=len(drawn.ids),
            sampled=Sampled(
                prompt_ids=asked.prompt_ids,
                answer_ids=tuple(drawn.ids),
                logprobs=tuple(drawn.logprobs),
            ),
        )
        messages: Sequence[Message] = asked.task.messages
        return await asked.task.score(answered(messages, answer))

    async def _played(self, plays: Sequence[Play], meter: Meter) -> list[Outcome]:
        """Return what plays come to. The engine has a thread of its own meanwhile, which ends with
        them: nobody draws behind the back of who trains."""
        assert self._llm is not None
        spoken: dict[str, Environment] = {
            name: one
            for name, one in self._environments.items()
            if not isinstance(one, TokenEnvironment)
        }
        async with LocalModel(self._llm) as local:
            return await Player(local, spoken, self._limits).play(
                plays,
                seconds=self._seconds_left(meter),
                policy_version=self.policy_version,
                version_before=self._version_before,
                on_end=meter.end_one,
            )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A task to which answers are drawn."""

    place: int
    """Number of its draw"""
    draw: Draw
    prompt_ids: tuple[int, ...]
    params: tuple[SamplingParams, ...]
    task: Task | TokenTask


def _stopping(params: SamplingParams, end_ids: Sequence[int]) -> SamplingParams:
    return replace(params, stop_token_ids=tuple(end_ids))


# ---- one batch of the engine ---------------------------------------------------------------------


@dataclass(slots=True)
class Drawn:
    """An answer as the engine drew it."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    policy_versions: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    """None for one that did not end in time"""
    error: str = ""
    """Failure that ended it"""


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt, and how each answer to it is drawn."""

    ids: tuple[int, ...]
    params: tuple[SamplingParams, ...]
    """One for each member of the group"""


def draw_groups(
    engine: Engine, prompts: Sequence[Prompted], *, seconds: float, meter: Meter
) -> list[list[Drawn]]:
    """Return the answers to prompts, a row for each; the meter tells how far they are.

    Those that have not ended after these seconds are given up.
    """
    deadline = time.monotonic() + seconds
    rows = [[Drawn() for _ in one.params] for one in prompts]
    running: dict[int, Drawn] = {}
    readers: dict[int, int] = {}
    """Prompts whose other members wait for the first, by the id of its request"""

    def add(number: int, members: range) -> int | None:
        request_id = None
        for member in members:
            one, drawn = prompts[number], rows[number][member]
            try:
                request_id = engine.add_request(one.ids, one.params[member])
            except ValueError as error:  # such as a prompt that leaves no room
                drawn.finish_reason, drawn.error = "error", str(error)
                meter.num_ended += 1
            else:
                running[request_id] = drawn
        return request_id

    try:
        for number, one in enumerate(prompts):
            has_reader = len(one.ids) > PAGE
            first = add(number, range(1)) if has_reader else None
            if first is not None:
                readers[first] = number
            else:
                add(number, range(int(has_reader), len(one.params)))
        while running and time.monotonic() < deadline:
            for output in engine.step():
                drawn = running.get(output.request_id)
                if drawn is None:
                    continue
                if (read := readers.pop(output.request_id, None)) is not None:
                    add(read, range(1, len(prompts[read].params)))
                if isinstance(output, RequestFailed):
                    drawn.finish_reason, drawn.error = "error", str(output.error)
                else:
                    drawn.ids.append(output.token_id)
                    drawn.logprobs.append(output.logprob)
                    assert output.policy_version is not None  # an engine always tells it
                    drawn.policy_versions.append(output.policy_version)
                    drawn.finish_reason = output.finish_reason
                if drawn.finish_reason is not None:
                    del running[output.request_id]
                    meter.num_ended += 1
            meter.tell()
    finally:
        for request_id in running:
            engine.abort(request_id)
    return rows
