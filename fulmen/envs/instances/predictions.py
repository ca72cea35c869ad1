"""Predictions: the patch of each instance, in the file that SWE-bench's own grader reads.

A line is written whole and synced before the next instance begins. A run that was killed leaves at
most a torn last line, which the next one cuts off; what stands there is not played again.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fulmen.chat import ChatModel
from fulmen.envs.instances.environment import Instances
from fulmen.envs.run import run_task
from fulmen.envs.task import GraderError
from fulmen.files import naming, parse_json


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's patch of an instance."""

    instance_id: str
    model_name_or_path: str
    model_patch: str


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Return the predictions of a JSONL file by instance, the last one of each; none if there is no
    file. A torn last line is passed over. Raises ValueError for any other line that is none."""
    if not path.exists():
        return {}
    found: dict[str, Prediction] = {}
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last], start=1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line, f"{path}, line {number}")
            values = [fields.get(name) for name in Prediction.__slots__]
            if not all(isinstance(value, str) for value in values):
                needed = ", ".join(Prediction.__slots__)
                raise ValueError(f"{path}, line {number} must have {needed}, all of them texts")
        except ValueError:
            if number > len(lines):
                break
            raise
        one = Prediction(*map(str, values))
        found[one.instance_id] = one
    return found


def append_prediction(path: Path, prediction: Prediction) -> None:
    """Add a line to a file: it is on disk when this returns. What is torn at its end is cut off."""
    line = json.dumps(asdict(prediction)).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a+b") as file:
            _mend(file.fileno(), path)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise naming(error, path) from error


def _mend(descriptor: int, path: Path) -> None:
    """Make a file end with a whole line."""
    content = path.read_bytes()
    if not content or content.endswith(b"\n"):
        return
    whole, _, last = content.rpartition(b"\n")
    try:
        parse_json(last, "the last line")
    except ValueError:
        os.ftruncate(descriptor, len(whole) + 1 if whole else 0)
    else:
        os.write(descriptor, b"\n")


async def predict(
    model: ChatModel,
    environment: Instances,
    path: Path,
    *,
    name: str,
    indices: Sequence[int] | None = None,
    **options: Any,
) -> int:
    """Play the instances that a file of predictions does not have yet, and add them to it; return
    how many were added.

    name     of the model, as the file tells it
    indices  of the instances; all if omitted
    options  of `run_task`

    Tests that cannot be run here are no hindrance: somebody else may grade the file.
    """
    known = read_predictions(path)
    num_added = 0
    for index in range(environment.num_tasks) if indices is None else indices:
        task = environment.task(index)
        if task.instance.instance_id in known:
            continue
        try:
            await run_task(model, task, **options)
        except GraderError:
            if task.model_patch is None:
                raise
        assert task.model_patch is not None
        append_prediction(path, Prediction(task.instance.instance_id, name, task.model_patch))
        num_added += 1
    return num_added
