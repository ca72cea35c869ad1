"""Trajectories as files: JSON lines, which are read back equal, and ATIF, which other tools read.

    Trajectory <-> a line, {"format": 1, "system": [...], "start": ..., "records": [...]}
    Trajectory <-  a run, {"type": "run", "format": 1, ...}, and its records, a line each
    Trajectory  -> ATIF, the format of the Harbor project, version 1.8

Records are those of a run's log (`trajectory.py`): what was said, answers with their token ids,
log-probabilities and which ids were forced, results, the end, the score.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from fulmen.agent.trajectory import (
    Compaction,
    Sampled,
    Step,
    Trajectory,
    apply,
    records_of,
    said_record,
)
from fulmen.chat import Message, Tool, read_messages
from fulmen.files import replacing

_FORMAT: Final = 1
_MAX_LINE_BYTES: Final = 256 * 2**20
ATIF_VERSION: Final = "ATIF-v1.8"


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write trajectories as JSON lines, a line each; return how many. The old file stays if
    anything fails."""
    count = 0
    with replacing(path) as file:
        for trajectory in trajectories:
            text = json.dumps(trajectory_record(trajectory), allow_nan=False)
            file.write(text.encode() + b"\n")
            count += 1
    return count


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Yield the trajectories of a file, one at a time: lines of `write_trajectories`, or a run and
    its records, a line each, as `fulmen agent export` prints them. Raises ValueError, which names
    the line, for what is no trajectory."""
    run: Trajectory | None = None
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise ValueError(f"{path}, line {number} has more than {_MAX_LINE_BYTES:,} bytes")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if run is not None and isinstance(record, dict) and "format" not in record:
                    apply(run, record)
                    continue
                begun = read_trajectory(record)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} cannot be read: {error}") from None
            if run is not None:
                yield run
            run = begun if record.get("type") == "run" else None
            if run is None:
                yield begun
    if run is not None:
        yield run


def trajectory_record(trajectory: Trajectory) -> dict[str, Any]:
    """Return a trajectory as a value for JSON, the line of it that `write_trajectories` writes."""
    records = list(records_of(trajectory, len(trajectory.steps)))
    if trajectory.end is not None:
        records.append({"type": "ended", "reason": trajectory.end})
    if (score := trajectory.score) is not None:
        records.append({"type": "scored", "value": score.value, "parts": dict(score.parts)})
    return {
        "format": _FORMAT,
        "system": said_record(trajectory.system)["messages"],
        "start": trajectory.start,
        "records": records,
    }


def read_trajectory(line: object) -> Trajectory:
    """Return the trajectory of a value of `trajectory_record`. Raises ValueError for any other."""
    if not isinstance(line, dict) or line.get("format") != _FORMAT:
        raise ValueError(f"it is no object of format {_FORMAT}")
    system, start = line.get("system"), line.get("start")
    records = [] if line.get("type") == "run" else line.get("records")
    if not isinstance(system, list) or not isinstance(records, list):
        raise ValueError("it must have lists of system and records")
    if not isinstance(start, str | None):
        raise ValueError("start must be the name of a snapshot, or null")
    trajectory = Trajectory(tuple(read_messages(system)), start=start)
    for record in records:
        if not isinstance(record, dict):
            raise ValueError("a record is no object")
        apply(trajectory, record)
    return trajectory


def to_atif(
    trajectory: Trajectory,
    *,
    model: str | None = None,
    tools: Sequence[Tool] = (),
    session: str | None = None,
) -> dict[str, Any]:
    """Return a trajectory as an ATIF document, to be written as JSON.

    model    name of the model
    tools    tools that the agent had
    session  name of the run

    Raises ValueError for a trajectory in which nothing was said: ATIF has none such.
    """
    from fulmen import __version__

    steps: list[dict[str, Any]] = []
    for message in trajectory.system:
        steps.append({"source": "system", "message": message.content})
    for place, step in enumerate(trajectory.steps):
        steps += _compactions(trajectory.compactions, place)
        steps += map(_said, step.said)
        steps.append(_agent_step(step, place))
    steps += _compactions(trajectory.compactions, len(trajectory.steps))
    steps += map(_said, trajectory.said)
    if not steps:
        raise ValueError("the trajectory is empty, an ATIF document has at least one step")
    agent: dict[str, Any] = {"name": "fulmen", "version": __version__, "model_name": model}
    if tools:
        agent["tool_definitions"] = [
            {"type": "function", "function": dict(tool.function)} for tool in tools
        ]
    usage, score = trajectory.usage, trajectory.score
    extra = {
        "end": trajectory.end,
        "start": trajectory.start,
        "score": None if score is None else {"value": score.value, "parts": dict(score.parts)},
    }
    return {
        "schema_version": ATIF_VERSION,
        **_known({"session_id": session, "trajectory_id": session}),
        "agent": _known(agent),
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, 1)],
        "final_metrics": {
            "total_prompt_tokens": usage["prompt_tokens"],
            "total_completion_tokens": usage["new_tokens"],
            "total_cached_tokens": usage["cached_tokens"],
            "total_steps": len(steps),
        },
        "extra": _known(extra),
    }


def _said(message: Message) -> dict[str, Any]:
    source = "system" if message.role == "system" else "user"
    return {"source": source, "message": message.content}


def _compactions(compactions: Sequence[Compaction], place: int) -> list[dict[str, Any]]:
    """Return steps for the summaries that were made before the step at a place."""
    return [
        {
            "source": "system",
            "message": one.text,
            "extra": {
                "summary_of_agent_steps": one.num_steps,
                "num_tokens_before": one.num_tokens_before,
                "num_tokens_after": one.num_tokens_after,
            },
        }
        for one in compactions
        if one.num_steps == place and one.text
    ]


def _agent_step(step: Step, place: int) -> dict[str, Any]:
    answer, message = step.answer, step.answer.message
    ids = [call.id or f"call_{place + 1}_{i}" for i, call in enumerate(message.tool_calls, 1)]
    metrics = {
        "prompt_tokens": answer.num_prompt_tokens,
        "completion_tokens": answer.num_new_tokens,
        "cached_tokens": answer.num_cached_tokens,
        **_metrics(answer.sampled),
    }
    metrics["extra"] = {
        "thinking_tokens": answer.num_thinking_tokens,
        **metrics.get("extra", {}),
    }
    found = {
        "source": "agent",
        "message": message.content,
        "reasoning_content": message.thinking or None,
        "tool_calls": [
            {"tool_call_id": id, "function_name": call.name, "arguments": call.arguments}
            for id, call in zip(ids, message.tool_calls, strict=True)
        ]
        or None,
        "observation": {
            "results": [
                {
                    "source_call_id": ids[result.call],
                    "content": result.text,
                    "extra": _known(
                        {
                            "is_error": result.is_error,
                            "seconds": result.seconds,
                            "snapshot": result.snapshot,
                            "details": dict(result.details) or None,
                        }
                    ),
                }
                for result in sorted(step.results, key=lambda one: one.call)
            ]
        }
        if step.results
        else None,
        "metrics": metrics,
        "llm_call_count": 1,
        "extra": {"finish_reason": answer.finish_reason, "seconds": answer.seconds},
    }
    return _known(found)


def _metrics(sampled: Sampled | None) -> dict[str, Any]:
    """Return the ids of an answer. ATIF's log-probabilities are numbers, so where some are not
    known all stand in `extra`."""
    if sampled is None:
        return {}
    is_known = all(value is not None for value in sampled.logprobs)
    extra: dict[str, Any] = {"forced": list(sampled.forced)}
    if sampled.policy_versions:
        extra["policy_versions"] = list(sampled.policy_versions)
    found: dict[str, Any] = {
        "prompt_token_ids": list(sampled.prompt_ids),
        "completion_token_ids": list(sampled.answer_ids),
        "extra": extra,
    }
    (found if is_known else extra)["logprobs"] = list(sampled.logprobs)
    return found


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
