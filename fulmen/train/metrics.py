"""Metrics of a run: one line of JSON a record in metrics.jsonl, and TensorBoard where it is.

A line is written and flushed at once. A run that was killed may leave half a line, and lines of
steps after its last state; both are cut when it resumes, so each step is in the file once.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fulmen.files import naming, replacing

METRICS: Final = "metrics.jsonl"
BOARD: Final = "tensorboard"
"""Folder of a run that TensorBoard reads"""


class Metrics:
    """Writer of one run's metrics, from a step on."""

    def __init__(self, run: Path, *, after: int = 0, has_board: bool | None = None) -> None:
        """run        folder of the run
        after      step whose state the run resumes from; later lines are cut
        has_board  write for TensorBoard too; None does if it is installed

        Raises ValueError if it is asked for and not installed.
        """
        self.path = run / METRICS
        self._board: Any = None
        is_there = find_spec("tensorboard") is not None
        if has_board and not is_there:
            raise ValueError(
                "tensorboard is not installed, `pip install 'fulmen[train]'` brings it"
            )
        run.mkdir(parents=True, exist_ok=True)
        _cut(self.path, after)
        if is_there and has_board is not False:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / BOARD), purge_step=after + 1)

    def write(self, kind: str, step: int, values: Mapping[str, object]) -> None:
        """Write one record; numbers of it go to TensorBoard too, as `kind/name`.

        kind  step, probe, sample and the like
        """
        record = {"kind": kind, "step": step, **values}
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                _write_all(file.fileno(), line.encode())
        except OSError as error:
            raise naming(error, self.path) from error
        if self._board is None:
            return
        for name, value in _flat(values):
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{name}", value, step)
            elif isinstance(value, str):
                self._board.add_text(f"{kind}/{name}", f"```\n{value}\n```", step)
        self._board.flush()

    def close(self) -> None:
        """Close the board's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Read the records of a run, or those of one kind, without a last line that is torn."""
    path = run / METRICS
    records = [record for _, record in _records(path)] if path.exists() else []
    return [record for record in records if kind is None or record["kind"] == kind]


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each whole line with its record; ValueError for one that is not ours."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # torn by a kill or a full disk
            try:
                record = json.loads(line)
            except ValueError:
                raise ValueError(f"{path}, line {number} is not JSON") from None
            if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
                raise ValueError(f"{path}, line {number} is no record of a run")
            yield line, record


def _cut(path: Path, after: int) -> None:
    if not path.exists():
        return
    kept = b"".join(line for line, record in _records(path) if record["step"] <= after)
    if len(kept) != path.stat().st_size:
        with replacing(path) as file:
            file.write(kept)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it: null for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
