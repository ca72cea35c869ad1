"""Workers: a call that hangs, crashes or fills the memory is an error, and another takes over."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulmen.envs.workers import WorkerError, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(size=2, memory_bytes=2**29, patience=20)
    yield pool
    pool.close()
    assert pool.num_processes == 0


def test_a_call_that_hangs_is_ended_and_the_next_is_answered(workers: Workers) -> None:
    assert workers.call("matches", "a+", "aaa") is True
    assert workers.call("matches", "a+", "b") is False
    with pytest.raises(WorkerError, match="needed too much time"):
        workers.call("matches", "(a+)+b", "a" * 40, seconds=0.2)
    assert workers.num_processes == 0
    assert workers.call("matches", "a+", "aaa") is True


def test_a_call_that_sleeps_is_ended_by_the_clock() -> None:
    workers = Workers(size=1, patience=1)
    workers.call("matches", "a", "a", seconds=60)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match="did not answer in time"):
        workers.call("call", "time:sleep", [100], seconds=0.5)
    assert time.monotonic() - begin < 30
    workers.close()
    with pytest.raises(WorkerError, match="closed"):
        workers.call("matches", "a", "a")


@pytest.mark.parametrize(
    ("function", "arguments", "sentence", "num_left"),
    [
        ("os:abort", [], "a worker ended with code -6", 0),
        ("builtins:bytearray", [2**33], "memory is full", 0),
        ("os:_exit", [0], "a worker ended with code 0", 0),
        ("builtins:int", ["x"], "ValueError: invalid literal", 1),
        ("sys:exit", [], "SystemExit", 1),
        ("builtins:float", ["nan"], "ValueError: Out of range", 1),
        ("builtins:object", [], "TypeError", 1),
        ("no_such_module:f", [], "ModuleNotFoundError", 1),
        ("time:asctime", [1, 2, 3], "TypeError", 1),
    ],
)
def test_a_failure_is_an_error(
    workers: Workers, function: str, arguments: list[object], sentence: str, num_left: int
) -> None:
    with pytest.raises(WorkerError, match=sentence):
        workers.call("call", function, arguments)
    assert workers.num_processes == num_left
    assert workers.call("matches", "a", "a") is True


def test_a_file_is_a_module_that_prepares_itself(workers: Workers, tmp_path: Path) -> None:
    file = tmp_path / "half.py"
    file.write_text(
        "known = []\n"
        "def prepare(): known.append(1)\n"
        "def half(number): return [number // 2, len(known)]\n"
    )
    for number in (8, 6):
        found = workers.call("call", f"{file}:half", [number], module=str(file))
        assert found == [number // 2, 1]


def test_printing_and_long_texts_do_no_harm(workers: Workers) -> None:
    assert workers.call("call", "builtins:print", ["x" * 10**6]) is None
    assert workers.call("call", "builtins:len", ["x" * 10**6]) == 10**6
    with pytest.raises(WorkerError, match=r"more than 4,194,304"):
        workers.call("call", "operator:mul", ["x", 5 * 10**6])


def test_many_calls_share_few_processes_and_draw_the_same(workers: Workers) -> None:
    async def go() -> list[float]:
        calls = (workers.acall("call", "random:random", []) for _ in range(20))
        return list(await asyncio.gather(*calls))

    drawn = asyncio.run(go())
    assert len(set(drawn)) == 1
    assert 1 <= workers.num_processes <= 2
    pids = {workers.call("call", "os:getpid", []) for _ in range(5)}
    assert os.getpid() not in pids
    assert len(pids) == 1
