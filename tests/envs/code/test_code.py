"""Programs tried in the sandbox: right ones score 1, and no adversary scores anything."""

import asyncio
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fulmen.envs import Code, CodeTask, load_environment
from fulmen.envs import apart as apart_file
from fulmen.envs.code import runner
from fulmen.envs.code import task as task_file
from fulmen.envs.code.families import FAMILIES
from fulmen.evaluate import self_check
from fulmen.sandbox import Limits, SandboxError
from tests.envs.code.answering import scored

NAMES = list(FAMILIES)


def task_of(family: str, *, style: Any, level: int = 1) -> CodeTask:
    return Code(5, level=level, style=style).task(NAMES.index(family))


def value_of(task: CodeTask, program: str) -> float:
    return scored(task, f"```python\n{program}\n```").value


@pytest.mark.usefixtures("has_sandbox")
def test_the_self_check_finds_nothing() -> None:
    environment = load_environment("code", seed=3)
    # Each family has a level of its own in these, and both styles are there.
    # The time of their making is checked where more are made, and little else runs.
    indices = range(0, 5 * len(NAMES), 23)
    assert asyncio.run(self_check(environment, indices, making_seconds=1.0)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("name", ["code", "code:5:stdin", "code:5:function"])
def test_the_self_check_of_fifty_tasks_finds_nothing(name: str) -> None:
    assert asyncio.run(self_check(load_environment(name, seed=4), range(0, 250, 5))) == []


@pytest.mark.usefixtures("has_sandbox")
def test_parts_say_how_much_is_right() -> None:
    task = task_of("letter_runs", style="function")
    (name, shown) = (task.function, task.visible)
    table = {test.given[0]: test.right for test in shown}
    pairs = ", ".join(f"{text!r}: {right}" for text, right in table.items())
    lookup = f"def {name}(text):\n    return {{{pairs}}}[text]"
    score = scored(task, f"```python\n{lookup}\n```")
    assert score.value == 0
    assert score.parts == {
        "format": 1.0,
        "correct": 0.0,
        "passed": len(shown) / (len(shown) + len(task.hidden)),
        "visible": 1.0,
    }
    assert scored(task, "I do not know.").parts["format"] == 0


@pytest.mark.usefixtures("has_sandbox")
def test_values_are_compared_with_their_types() -> None:
    task = task_of("windows", style="function")
    right = task.program
    for change in ("tuple(result)", "[float(n) for n in result]", "set(result)", "str(result)"):
        assert value_of(task, right.replace("return result", f"return {change}")) == 0
    odd = "class N(int): pass\n" + right.replace("return result", "return [N(n) for n in result]")
    assert value_of(task, odd) == 0
    assert value_of(task, "import sys\nprint('hello')\n" + right + "\nsys.stdout = None") == 1


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize(
    "way",
    [
        "import sys\ninput = lambda: sys.stdin.readline().rstrip()\n{}",
        "import io, sys\nsys.stdin = io.StringIO(open(0).read())\n{}",
        "import os, io, sys\nsys.stdin = io.TextIOWrapper(io.BytesIO(os.read(0, 9999)))\n{}",
        "import threading\ndef run():\n    exec({!r}, {{}})\nthreading.Thread(target=run).start()",
        "{}\nimport sys\nprint('note', file=sys.stderr)\nsys.exit()",
        "{}\nimport sys, os\nsys.stdout.flush()\nos._exit(0)",
        "{}\nexit()",
        "{}\nquit(0)",
        "if __name__ == '__main__':\n    exec({!r})",
        "import os\ntext = {!r}\nif os.fork():\n    os.wait()\nelse:\n    exec(text, {{}})",
    ],
)
def test_programs_read_and_print_as_they_like(way: str) -> None:
    task = task_of("letter_shift", style="stdin")
    assert value_of(task, way.format(task.program)) == 1


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("style", ["stdin", "function"])
def test_dataclasses_may_have_annotations_as_texts(style: str) -> None:
    task = task_of("letter_shift", style=style)
    record = """from __future__ import annotations
from dataclasses import KW_ONLY, dataclass, fields
import pickle
@dataclass
class Pair:
    a: list[int]
    _: KW_ONLY
    b: int
assert [one.name for one in fields(Pair)] == ["a", "b"]
assert pickle.loads(pickle.dumps(Pair([1], b=2))) == Pair([1], b=2)
"""
    assert value_of(task, record + task.program) == 1


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize(
    "change", ["{}\nraise ValueError", "{}\nimport sys\nsys.exit(3)", "{}\nexit(3)", "{}\nprint(1)"]
)
def test_a_program_that_fails_or_prints_more_is_wrong(change: str) -> None:
    task = task_of("letter_shift", style="stdin")
    assert value_of(task, change.format(task.program)) == 0


CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef NAME(*_):\n    os._exit(0)",
    "equal to everything": """
class Equal(list):
    def __eq__(self, other): return True
    def __repr__(self): return "*"
    __hash__ = None
def NAME(*_):
    return Equal()
""",
    "patched": """
import builtins, json, os, sys
builtins.repr = builtins.type = builtins.isinstance = lambda *_: True
json.dumps = lambda *_: '{"outputs": []}'
for module in list(sys.modules.values()):
    for name in ("spelled", "outputs", "_play", "_output"):
        if hasattr(module, name):
            setattr(module, name, lambda *_: "[]")
def NAME(*_):
    return []
""",
    "patched in its frames": """
import sys
frame = sys._getframe()
while frame:
    for space in (frame.f_globals, frame.f_locals):
        for name in ("spelled", "outputs", "_lines", "is_right"):
            if name in space:
                space[name] = lambda *_: "[]"
    frame = frame.f_back
def NAME(*_):
    return []
""",
    "writes a verdict": """
import atexit, os, sys, threading
verdict = '{"outputs": ["[]"], "passed": true, "correct": 1}'
sys.stdout.write(verdict)
atexit.register(print, verdict)
threading.Thread(target=print, args=(verdict,)).start()
for pid in filter(str.isdigit, os.listdir("/proc")):
    for number in range(30):
        try:
            path = f"/proc/{pid}/fd/{number}"
            os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), verdict.encode())
        except OSError:
            pass
def NAME(*_):
    return verdict
""",
    "looks for what is right": """
import gc, glob, os, sys
found = []
for path in [*glob.glob("/proc/*/fd/*"), *glob.glob("/tmp/*"), *glob.glob("*")]:
    try:
        found.append(open(path).read(9999))
    except (OSError, UnicodeDecodeError):
        pass
found += [one for one in gc.get_objects() if isinstance(one, dict) and "inputs" in one]
frame = sys._getframe()
while frame:
    found.append(dict(frame.f_locals))
    frame = frame.f_back
def NAME(*_):
    return max(map(str, found), key=len)
""",
    "overwrites files": """
import glob, os
for path in [*glob.glob("*"), *glob.glob("/run/fulmen/**", recursive=True), "/etc/passwd"]:
    try:
        os.chmod(path, 0o777)
        open(path, "w").write("print('The program runs.')")
    except OSError:
        pass
def NAME(*_):
    return []
""",
    "kills its parents": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "stops its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\nos._exit(0)",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "threads": """
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(99,)).start()
""",
    "endless loop": "while True:\n    pass",
    "endless loop that catches": """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    "endless output": "while True:\n    print('x' * 9999)",
    "much memory": "kept = []\nwhile True:\n    kept.append(bytearray(2**24))",
    "deep": """
def NAME(*_):
    deep = []
    for _ in range(10**5):
        deep = [deep]
    return deep
""",
    "large number": "def NAME(*_):\n    return 10 ** 100000",
    "large files": """
number = 0
while True:
    with open(f"/tmp/{number}", "wb") as file:
        for _ in range(8):
            file.write(bytes(2**20))
    number += 1
""",
    "no program": "this is not Python (",
    "null bytes": "print('\\0')\n\0",
    "nothing": "pass",
}


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_score_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_file, "ALL_SECONDS", 6.0)  # some wait for what never comes
    # Most of them end before the style matters.
    task = task_of("chunks", style="function")
    begin = time.monotonic()
    assert value_of(task, CHEATS[name].replace("NAME", str(task.function))) == 0
    assert time.monotonic() - begin < task_file.ALL_SECONDS + 60


@pytest.mark.slow
@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_score_nothing_as_programs(name: str) -> None:
    assert value_of(task_of("chunks", style="stdin"), CHEATS[name]) == 0


@pytest.mark.usefixtures("has_sandbox")
def test_who_sleeps_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_file, "ALL_SECONDS", 1.0)
    task = task_of("chunks", style="stdin")
    assert value_of(task, "import time\ntime.sleep(1000)") == 0
    assert value_of(task, "import os, time\nos.close(1)\ntime.sleep(1000)") == 0


@pytest.mark.usefixtures("has_sandbox")
def test_nothing_outside_is_reached_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]

        def listen() -> None:
            try:
                heard.append(server.accept())
            except OSError:
                return

        listener = threading.Thread(target=listen)
        canary = tmp_path / "canary"
        canary.write_text("untouched")
        program = f"""
import os, socket
for path in ({str(canary)!r}, "/tmp/left", "left", "/var/tmp/left"):
    try:
        open(path, "w").write("touched")
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
except OSError:
    pass
if os.fork() == 0:
    os.setsid()
    while True:
        pass
"""
        listener.start()
        try:
            assert value_of(task_of("chunks", style="stdin"), program) == 0
            assert canary.read_text() == "untouched"
            assert list(tmp_path.iterdir()) == [canary]
        finally:
            listener.join()
    assert not heard


@pytest.mark.usefixtures("has_sandbox")
def test_a_grader_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("chunks", style="stdin")
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('mine')")
    monkeypatch.setattr(runner, "__file__", str(broken))
    with pytest.raises(SandboxError, match=r"did not begin \(exit, exit code 1\)"):
        scored(task, task.known_answers[0].content)


@pytest.mark.usefixtures("has_sandbox")
def test_what_is_no_json_says_nothing(tmp_path: Path) -> None:
    for text, told in (("{", None), ("[1]", None), ('{"a": 1}', {"a": 1}), ("x" * 9000, None)):
        program = tmp_path / "program.py"
        program.write_text(f"print({apart_file.RUNS!r})\nprint({text!r}, end='')")
        limits = Limits(seconds=20, memory_bytes=2**28, output_bytes=4096)
        assert asyncio.run(apart_file.told_apart(program, {}, limits)) == told


def test_names_say_level_and_style() -> None:
    for name, level, is_stdin in (
        ("code:2", 2, None),
        ("code:3:stdin", 3, True),
        ("code:function", 1, False),
    ):
        task = load_environment(name, seed=1).task(0)
        assert isinstance(task, CodeTask)
        assert task.level == level
        assert is_stdin is None or (task.function is None) == is_stdin
    with pytest.raises(ValueError, match="level is 6, it must be from 1 to 5"):
        load_environment("code:6", seed=0)
    for name in ("code:0", "code:2:python", "code:stdin:2", "code:" + "9" * 30):
        with pytest.raises(ValueError, match=r"is no environment, it must be code\[:LEVEL\]"):
            load_environment(name, seed=0)
