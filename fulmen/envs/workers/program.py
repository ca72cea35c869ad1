"""Program of a worker process: it makes one call after the other for `pool.py`.

    [function, arguments] on stdin -> {"value": ..., "seconds": ...} or {"error": ...} on stdout

Lengths stand before both, and before a call its limit in seconds of the processor: the process that
goes over it is ended by the system, whatever it does and whoever still waits for it.

It is started as a file and imports nothing of this package, so a worker is small and quick to
start. Everything that draws by itself draws from a seed that the call makes, whoever made a call
before it.
"""

import copy
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, BinaryIO

_NUM_ITEMS = 2**20
"""Items that a data set is told to have; those that depend on it are not on the list"""


def prepare(module: str) -> str:
    """Import a module, which may take long; return its version, if it tells one. Of a file, its
    own function `prepare` is called too."""
    found = _module(module)
    if module.endswith(".py"):
        found.prepare()
    return str(getattr(found, "__version__", ""))


def names() -> list[str]:
    """Return the data sets of reasoning-gym."""
    return sorted(importlib.import_module("reasoning_gym.factory").DATASETS)


def make(name: str, seed: int, index: int) -> dict[str, Any]:
    """Return question and answer of an item of reasoning-gym."""
    item = _item(name, seed, index)
    question, answer = item["question"], item["answer"]
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TypeError(f"the answer is a {type(answer).__name__}, not a text")
    return {"question": question, "answer": answer}


def scores(name: str, seed: int, index: int, answers: list[str]) -> list[float]:
    """Return the scores that reasoning-gym gives answers to an item."""
    item, dataset = _item(name, seed, index), _dataset(name, seed)
    return [float(dataset.score_answer(answer, copy.deepcopy(item))) for answer in answers]


@lru_cache(maxsize=8)
def _dataset(name: str, seed: int) -> Any:
    factory = importlib.import_module("reasoning_gym.factory")
    return factory.create_dataset(name, seed=seed, size=_NUM_ITEMS)


@lru_cache(maxsize=256)
def _item(name: str, seed: int, index: int) -> dict[str, Any]:
    dataset = _dataset(name, seed)
    _draw_from(f"{name} {seed} {index}")
    return dict(dataset[index])


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern matches all of a text."""
    return re.fullmatch(pattern, text) is not None


def call(path: str, arguments: list[Any]) -> Any:
    """Return what a function of a module, `module:function` or `file.py:function`, returns."""
    return _function(path)(*arguments)


@cache
def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(":")
    found = _module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    return found


@cache
def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location("file", name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_CALLS: dict[str, Callable[..., Any]] = {
    one.__name__: one for one in (prepare, names, make, scores, matches, call)
}


def _draw_from(text: str) -> None:
    random.seed(text)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(random.getrandbits(32))


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    while header := requests.read(12):
        length, seconds = struct.unpack(">Id", header)
        function, arguments = json.loads(requests.read(length))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        is_full, begin = False, time.process_time()
        try:
            _draw_from(f"{function} {arguments}")
            value = _CALLS[function](*arguments)
            answer = {"value": value, "seconds": time.process_time() - begin}
            data = json.dumps(answer, allow_nan=False).encode()
        except BaseException as error:
            is_full = isinstance(error, MemoryError)
            data = json.dumps({"error": f"{type(error).__name__}: {error}"[:1000]}).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(struct.pack(">I", len(data)) + data)
        answers.flush()
        if is_full:
            return


def main() -> None:
    """Serve calls until stdin ends. Arguments: bytes of memory, then the folders to import from."""
    num_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, 2**26))
    sys.path[:] = sys.argv[2:]
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # A library may print and ask; neither reaches us.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    _serve(requests, answers)


if __name__ == "__main__":
    main()
