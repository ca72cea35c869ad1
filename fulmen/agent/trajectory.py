"""An agent's work on a task, step by step: what it was asked, said, did and saw.

    said -> Step(answer with its ids -> results of its calls, each with a snapshot) -> said ...

Every step keeps the ids that its answer was sampled as, with their log-probabilities, so training
never tokenises anything again. `run.py` writes the same records to disk as they come, and reads a
trajectory back from them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, Protocol, get_args

from fulmen.agent.cutting import cut_results, cut_said
from fulmen.agent.tools import read_tools, tools_record
from fulmen.chat import Completion, Message, Tool, read_messages
from fulmen.sampling import FinishReason, SamplingParams

EndReason = Literal["done", "turns", "tokens", "seconds", "loop", "context", "interrupted", "error"]
"""Reason why an agent stopped: it had no more calls to make, a limit, the same calls again and
again, a full context, a person, or a model that failed"""
USAGE: Final = ("prompt_tokens", "cached_tokens", "new_tokens", "thinking_tokens")
"""Kinds of tokens that are counted"""


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one call."""

    call: int
    """Index of the call in its answer"""
    text: str
    """Text that the model reads"""
    is_error: bool = False
    seconds: float = 0.0
    snapshot: str | None = None
    """The workspace after the call; None where there is none, or nothing can have changed"""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Account for people, such as a diff; the model does not see it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """An answer as token ids."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    """Natural logarithms, one for each id of the answer; None where it is not known"""
    forced: tuple[int, ...] = ()
    """Indices of the answer's ids that were given, not drawn"""
    policy_versions: tuple[int | None, ...] = ()
    """Versions of the weights that gave each id of the answer, see `Token`; None where it is not
    known, and empty where none is"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the model."""

    message: Message
    finish_reason: FinishReason
    params: SamplingParams
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    num_thinking_tokens: int = 0
    seconds: float = 0.0
    sampled: Sampled | None = None
    """None for a model that tells no ids"""

    @classmethod
    def of(cls, completion: Completion, *, seconds: float) -> "Answer":
        """Return what a completion came to; seconds is the time that it took."""
        usage = completion.usage
        sampled = None
        if completion.tokens or completion.prefix_ids:
            num_prefix = len(completion.prefix_ids)
            known = completion.prefix_logprobs[:num_prefix]
            logprobs = [*known, *[math.nan] * (num_prefix - len(known))]
            logprobs += [token.logprob for token in completion.tokens]
            sampled = Sampled(
                prompt_ids=completion.prompt_ids,
                answer_ids=completion.answer_ids,
                logprobs=tuple(value if math.isfinite(value) else None for value in logprobs),
                forced=(
                    *range(len(known), num_prefix),
                    *(num_prefix + i for i, one in enumerate(completion.tokens) if one.is_forced),
                ),
                policy_versions=_versions(completion),
            )
        return cls(
            message=completion.message,
            finish_reason=completion.finish_reason,
            params=completion.params,
            num_prompt_tokens=usage.num_prompt_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_new_tokens=usage.num_new_tokens,
            num_thinking_tokens=usage.num_thinking_tokens,
            seconds=seconds,
            sampled=sampled,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One answer, and what its calls came to."""

    said: tuple[Message, ...]
    """Messages of people before the answer: the task, or a word in between"""
    answer: Answer
    results: tuple[Result, ...] = ()

    @property
    def is_whole(self) -> bool:
        """True if every call has its result."""
        return len(self.results) == len(self.answer.message.tool_calls)

    @property
    def messages(self) -> list[Message]:
        """The step as it stands in the conversation."""
        calls = self.answer.message.tool_calls
        results = [
            Message("tool", one.text, tool_call_id=calls[one.call].id, name=calls[one.call].name)
            for one in sorted(self.results, key=lambda one: one.call)
        ]
        return [*self.said, self.answer.message, *results]

    @property
    def snapshot(self) -> str | None:
        """The workspace after the step, if a call of it may have changed something."""
        taken = [result.snapshot for result in self.results if result.snapshot is not None]
        return taken[-1] if taken else None


@dataclass(frozen=True, slots=True)
class Score:
    """Judgement of a trajectory, with its parts apart."""

    value: float
    """From 0 to 1"""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named parts, such as correctness and format"""


@dataclass(frozen=True, slots=True)
class Compaction:
    """A summary that stands in the conversation for earlier steps."""

    num_steps: int
    """Steps that it stands for, from the first; what people said in them stays"""
    num_seen: int
    """Steps that there were when it was made: going back to before those takes it away"""
    text: str
    """Empty where nothing but long results gave way"""
    num_tokens_before: int
    num_tokens_after: int
    max_said: int | None = None
    """Characters of people's words that stand before it; None: all of them"""
    num_cut: int = 0
    """Steps up to which results stand cut, where they are long"""
    max_result: int = 0
    """Characters of each of those results"""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    num_thinking_tokens: int = 0


@dataclass(slots=True)
class Trajectory:
    """Everything that an agent did on one task."""

    system: tuple[Message, ...] = ()
    """Messages before all steps: who the agent is, and the project's instructions"""
    steps: list[Step] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    """Messages after the last step, yet to be answered"""
    compactions: list[Compaction] = field(default_factory=list)
    """Summaries, each in place of all before it"""
    start: str | None = None
    """The workspace before the first step"""
    found: dict[int, str] = field(default_factory=dict)
    """The workspace as it was found after so many steps, where somebody else had changed it"""
    tools: tuple[Tool, ...] | None = None
    """Tools as the model was told of them; None: those of the run's profile"""
    heard: set[str] = field(default_factory=set)
    """Messages of other agents that were ever given to this one, by their ids"""
    is_rewound: bool = False
    """True once it was taken back: words that come now take the place of those in `said`"""
    end: EndReason | None = None
    score: Score | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation as the model reads it."""
        if self.compactions:
            messages = self.messages_after(self.compactions[-1])
        else:
            messages = [*self.system, *(one for step in self.steps for one in step.messages)]
        return [*messages, *self.said]

    def messages_after(self, made: Compaction) -> list[Message]:
        """Return system messages and steps as they stand with a summary."""
        said = [message for step in self.steps[: made.num_steps] for message in step.said]
        messages = [*self.system, *cut_said(said, made.max_said)]
        if made.text:
            messages.append(Message("user", made.text))
        for place, step in enumerate(self.steps[made.num_steps :], made.num_steps):
            is_cut = place < made.num_cut
            messages += cut_results(step.messages, made.max_result) if is_cut else step.messages
        return messages

    @property
    def reply(self) -> Message | None:
        """The last answer; None before there is one."""
        return self.steps[-1].answer.message if self.steps else None

    @property
    def num_new_tokens(self) -> int:
        """Tokens of all answers and summaries."""
        return self.usage["new_tokens"]

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of all answers and summaries, by kind: prompt, cached, new, thinking."""
        paid = [*(step.answer for step in self.steps), *self.compactions]
        return {name: sum(getattr(one, f"num_{name}") for one in paid) for name in USAGE}

    def snapshot(self, num_steps: int) -> str | None:
        """Return the workspace after the first steps; None where none was taken."""
        return self.found.get(num_steps) or self.taken(num_steps)

    def taken(self, num_steps: int) -> str | None:
        """Return the workspace as the last of the first steps left it, before somebody else changed
        it; None where no snapshot was taken."""
        if num_steps == 0:
            return self.start
        if (own := self.steps[num_steps - 1].snapshot) is not None:
            return own
        for place in range(num_steps - 1, 0, -1):
            known = self.found.get(place) or self.steps[place - 1].snapshot
            if known is not None:
                return known
        return self.found.get(0, self.start)

    def copy(self) -> "Trajectory":
        """Return one that may be changed apart from this one; what it holds never changes."""
        return replace(
            self,
            steps=list(self.steps),
            said=list(self.said),
            compactions=list(self.compactions),
            found=dict(self.found),
            heard=set(self.heard),
        )


# ---- records: one JSON object for everything that happens ---------------------------------------


RecordType = Literal[
    "tools",
    "said",
    "answer",
    "result",
    "found",
    "compacted",
    "expanded",
    "rewound",
    "ended",
    "scored",
    "note",
]
_TYPES: Final = get_args(RecordType)
_NUMS: Final = ("num_steps", "num_seen", "num_cut", *(f"num_{one}" for one in USAGE))
"""Fields of a summary that are whole numbers"""


def said_record(messages: Sequence[Message], **sender: str) -> dict[str, Any]:
    """Return the record of a person's words, or of those of another agent: sender is then its name
    as `agent`, and an id of the `message`."""
    of = {"sender": sender} if sender else {}
    return {"type": "said", "messages": list(map(_message_dict, messages)), **of}


def answer_record(answer: Answer, before: Sequence[Step] = ()) -> dict[str, Any]:
    """Return the record of an answer. before: the steps before it, whose last ids are told by
    their number where the prompt begins with them."""
    record = asdict(replace(answer, message=Message("assistant"), sampled=None))
    record["message"] = answer.message.to_dict()
    if (sampled := answer.sampled) is not None:
        known = _last_ids(before)
        count = _num_common(known, sampled.prompt_ids)
        prompt = {"num_known": count, "ids": sampled.prompt_ids[count:]}
        record["sampled"] = {**asdict(sampled), "prompt_ids": prompt}
    return {"type": "answer", **record}


def result_record(result: Result) -> dict[str, Any]:
    """Return the record of a call's outcome."""
    return {"type": "result", **asdict(result)}


def records_of(trajectory: Trajectory, num_steps: int) -> Iterator[dict[str, Any]]:
    """Yield records that lead to the first steps of a trajectory."""
    if trajectory.tools is not None:
        yield tools_record(trajectory.tools)
    for place, step in enumerate(trajectory.steps[:num_steps]):
        yield from _between(trajectory, place)
        if step.said:
            yield said_record(step.said)
        yield answer_record(step.answer, trajectory.steps[:place])
        yield from map(result_record, step.results)
    yield from _between(trajectory, num_steps)
    said = (
        trajectory.steps[num_steps].said if num_steps < len(trajectory.steps) else trajectory.said
    )
    if said:
        yield said_record(said)


def _between(trajectory: Trajectory, num_steps: int) -> Iterator[dict[str, Any]]:
    """Yield what happened after so many steps, before the next one."""
    if num_steps in trajectory.found:
        yield {"type": "found", "snapshot": trajectory.found[num_steps]}
    for one in trajectory.compactions:
        if one.num_seen == num_steps:
            yield {"type": "compacted", **asdict(one)}


def apply(trajectory: Trajectory, record: Mapping[str, Any]) -> None:
    """Let one more record happen to a trajectory.

    Raises ValueError, and changes nothing, for a record that cannot follow.
    """
    kind = record.get("type")
    try:
        match kind:
            case "tools":
                _check(not trajectory.steps, "the model was told of other tools")
                trajectory.tools = read_tools(record["tools"])
            case "said":
                messages, sender = read_messages(record["messages"]), record.get("sender")
                is_instead = trajectory.is_rewound and sender is None
                trajectory.said = [*([] if is_instead else trajectory.said), *messages]
                trajectory.heard |= set() if sender is None else {str(sender["message"])}
            case "answer":
                _check(all(step.is_whole for step in trajectory.steps[-1:]), "calls are open")
                step = Step(tuple(trajectory.said), _read_answer(record, trajectory.steps))
                trajectory.steps.append(step)
                trajectory.said = []
            case "result":
                step = trajectory.steps[-1]
                result = Result(**{key: record[key] for key in record if key != "type"})
                num_calls = len(step.answer.message.tool_calls)
                known = {one.call for one in step.results}
                _check(0 <= result.call < num_calls and result.call not in known, "no such call")
                trajectory.steps[-1] = replace(step, results=(*step.results, result))
            case "found":
                _check(isinstance(record["snapshot"], str), "there is no snapshot")
                trajectory.found[len(trajectory.steps)] = record["snapshot"]
            case "compacted":
                trajectory.compactions.append(_read_compaction(record, len(trajectory.steps)))
            case "expanded":
                trajectory.compactions.pop()
            case "rewound":
                _rewind(trajectory, record["num_steps"])
            case "ended":
                _check(record["reason"] in get_args(EndReason), "no such reason")
                trajectory.end = record["reason"]
            case "scored":
                trajectory.score = Score(float(record["value"]), dict(record["parts"]))
            case "note":
                pass
            case _:
                raise ValueError(f"its type is {kind!r}, known are {', '.join(_TYPES)}")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"a record of type {kind!r} cannot follow: {error}") from None
    if kind in ("said", "answer", "rewound"):
        trajectory.end = None
        trajectory.is_rewound = kind == "rewound"


class Journal(Protocol):
    """A trajectory that grows."""

    @property
    def trajectory(self) -> Trajectory:
        """Everything that has happened so far."""

    def append(self, record: Mapping[str, Any]) -> None:
        """Let a record happen, see `apply`."""


class Notebook:
    """A journal in memory, for runs that nobody goes back to."""

    def __init__(self, trajectory: Trajectory | None = None) -> None:
        self.trajectory = Trajectory() if trajectory is None else trajectory

    def append(self, record: Mapping[str, Any]) -> None:
        """Let a record happen."""
        apply(self.trajectory, record)


def _rewind(trajectory: Trajectory, num_steps: int) -> None:
    _check(0 <= num_steps <= len(trajectory.steps), "there are fewer steps")
    dropped = trajectory.steps[num_steps:]
    del trajectory.steps[num_steps:]
    trajectory.said = list(dropped[0].said) if dropped else trajectory.said
    kept = [one for one in trajectory.compactions if one.num_seen <= num_steps]
    trajectory.compactions = kept
    trajectory.found = {at: id for at, id in trajectory.found.items() if at <= num_steps}
    trajectory.score = None


def _message_dict(message: Message) -> dict[str, Any]:
    """Return a message as it is read back, its parts apart if it came in parts."""
    record = message.to_dict()
    if message.parts is not None:
        record["content"] = [
            {"type": "text", "text": part.text} | ({} if part.name is None else {"name": part.name})
            for part in message.parts
        ]
    return record


def _read_compaction(record: Mapping[str, Any], num_steps: int) -> Compaction:
    made = Compaction(**{key: record[key] for key in record if key != "type"})
    counts = [*(getattr(made, name) for name in _NUMS), made.max_result]
    counts += [] if made.max_said is None else [made.max_said]
    _check(all(type(one) is int and one >= 0 for one in counts), "a count is no whole number")
    _check(isinstance(made.text, str), "it has no text")
    _check(made.num_steps <= made.num_seen == num_steps >= made.num_cut, "no such step")
    return made


def _versions(completion: Completion) -> tuple[int | None, ...]:
    versions = [token.policy_version for token in completion.tokens]
    if all(version is None for version in versions):
        return ()
    return (*[None] * len(completion.prefix_ids), *versions)


def _last_ids(steps: Sequence[Step]) -> tuple[int, ...]:
    """Return prompt and answer of the last step as ids."""
    sampled = steps[-1].answer.sampled if steps else None
    return () if sampled is None else (*sampled.prompt_ids, *sampled.answer_ids)


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(place for place in range(shorter) if first[place] != second[place])


def _read_prompt(written: Any, before: Sequence[Step]) -> tuple[int, ...]:
    """Read ids of a prompt: those that the last step ended with, as far as they are known from
    there, and the others."""
    if not isinstance(written, dict):
        return tuple(written)
    known, count = _last_ids(before), written["num_known"]
    _check(type(count) is int and 0 <= count <= len(known), "ids of a step that is not before it")
    return (*known[:count], *written["ids"])


def _read_answer(record: Mapping[str, Any], before: Sequence[Step]) -> Answer:
    fields = {key: value for key, value in record.items() if key != "type"}
    (fields["message"],) = read_messages([record["message"]])
    params: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record["params"].items()
    }
    fields["params"] = SamplingParams(**params)
    if record["sampled"] is not None:
        prompt = _read_prompt(record["sampled"]["prompt_ids"], before)
        others = {name: tuple(value) for name, value in record["sampled"].items()}
        fields["sampled"] = Sampled(**{**others, "prompt_ids": prompt})
        _check_sampled(fields["sampled"])
    return Answer(**fields)


def _check_sampled(sampled: Sampled) -> None:
    ids = (*sampled.prompt_ids, *sampled.answer_ids)
    _check(all(type(one) is int and one >= 0 for one in ids), "an id is no whole number")
    is_known = all(one is None or isinstance(one, float | int) for one in sampled.logprobs)
    _check(is_known and len(sampled.logprobs) == len(sampled.answer_ids), "ids without logprobs")
    versions = sampled.policy_versions
    is_known = all(one is None or (type(one) is int and one >= 0) for one in versions)
    _check(is_known and len(versions) in (0, len(sampled.answer_ids)), "ids without versions")
    places = range(len(sampled.answer_ids))
    _check(all(one in places for one in sampled.forced), "a forced id that there is not")


def _check(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(f"the record cannot follow: {reason}")
