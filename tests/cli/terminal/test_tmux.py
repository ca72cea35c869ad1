"""`fulmen agent` in a real terminal, that of tmux: what a person types, and the screen they see."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulmen.chat import ChatRequest, read_messages
from tests.agent.working import bash, m2_calls, says
from tests.cli.test_agent import _own_folders, folder, served_script

__all__ = ["_own_folders", "folder"]

WAIT_SECONDS = 120
ANSWER = """# The fault

It was **one** sign in `add.py`:

```python
def add(a, b):
    return a + b
```

| file | lines |
| --- | --- |
| add.py | 2 |"""


class Tmux:
    """A terminal in which a command runs."""

    def __init__(self, socket: Path, columns: int, command: list[str]) -> None:
        self._at = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        size = ["-x", str(columns), "-y", "24"]
        self._call("new-session", "-d", *size, *command)
        self._call("set-option", "-g", "remain-on-exit", "on")

    def _call(self, *arguments: str) -> str:
        run = subprocess.run([*self._at, *arguments], capture_output=True, text=True, timeout=30)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def press(self, *keys: str) -> None:
        """Press keys by their names of tmux."""
        self._call("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a text, and send it."""
        self._call("send-keys", "-l", text)
        time.sleep(0.1)
        self._call("send-keys", "Enter")

    def screen(self) -> str:
        """Return all that is seen, without spaces at the ends of lines."""
        lines = self._call("capture-pane", "-p").split("\n")
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def history(self) -> str:
        """Return all that is seen, and all that was scrolled away."""
        return self._call("capture-pane", "-p", "-J", "-S", "-10000")

    def see(self, text: str) -> str:
        """Wait until a text is on the screen; return the screen."""
        end = time.monotonic() + WAIT_SECONDS
        while text not in (shown := self.screen()):
            assert time.monotonic() < end, f"{text!r} is not seen:\n{self.history()}"
            time.sleep(0.1)
        return shown

    def rest(self) -> str:
        """Wait until nothing is under way and nothing is asked; return the screen."""
        end, before = time.monotonic() + WAIT_SECONDS, ""
        while True:
            shown = self.screen()
            is_quiet = not any(
                mark in shown for mark in ("Esc interrupts", "Esc goes back", "waits:")
            )
            if is_quiet and "/help" in shown and shown == before:
                return shown
            assert time.monotonic() < end, self.history()
            before = shown
            time.sleep(0.4)

    def close(self) -> None:
        """End it."""
        subprocess.run([*self._at, "kill-server"], capture_output=True, timeout=30)


@contextlib.contextmanager
def terminal(socket: Path, columns: int, *arguments: str | Path) -> Iterator[Tmux]:
    """Run fulmen agent in a terminal; skip the test where there is no tmux."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not here, `apt install tmux` brings it")
    command = [sys.executable, "-m", "fulmen.cli", "agent", *map(str, arguments)]
    tmux = Tmux(socket, columns, command)
    try:
        yield tmux
    finally:
        tmux.close()


def line(request: ChatRequest) -> str:
    """Return the answer to the last message."""
    last = read_messages(request.messages)[-1]
    if last.role == "tool":
        return says("m2", ANSWER)
    for word, answer in {
        "mend": m2_calls(("edit", {"path": "add.py", "old": "a - b", "new": "a + b"})),
        "long": bash("m2", "touch begun; for i in $(seq 600); do echo line $i; sleep 0.1; done"),
    }.items():
        if word in last.content:
            return answer
    return says("m2", f"You said: {last.content}")


@pytest.mark.parametrize("columns", [80, 200])
def test_type_queue_approve_interrupt_rewind_and_branch(
    folder: Path, tmp_path: Path, columns: int
) -> None:
    with (
        served_script([line] * 20) as url,
        terminal(tmp_path / "tmux", columns, "--folder", folder, "--url", url) as tmux,
    ):
        tmux.see("/help")
        tmux.type("mend it")
        shown = tmux.see("t  no, and say what to do instead")
        assert "+    return a + b" in shown
        time.sleep(0.6)  # a question takes no key at once
        tmux.press("y")
        tmux.see("allowed")
        tmux.rest()
        past = tmux.history()
        for text in ("● edit  add.py", "-    return a - b", "The fault", " add.py  2"):
            assert text in past
        assert past.count("+    return a + b") == 1  # nothing is printed twice
        assert "a + b" in (folder / "add.py").read_text()

        tmux.type("a long command")
        tmux.see("yes, and always")
        time.sleep(0.6)
        tmux.press("y")
        tmux.see("line 5")
        tmux.type("a word that waits")
        assert "waits: a word that waits" in tmux.see("waits:")
        tmux.press("Escape")
        tmux.see("You said: a word that waits")
        tmux.rest()
        assert (folder / "begun").exists()

        tmux.type("/rewind")
        shown = tmux.see("f forks from there")
        assert '"mend it" - edit add.py' in shown
        tmux.press("Home")
        tmux.see("> 0 before the first step")
        tmux.press("Down")
        tmux.see('> 1 "mend it"')
        tmux.press("f")
        tmux.see("forked after step 1")
        tmux.rest()
        assert (folder / "begun").exists()
        tmux.type("/branches")
        assert "(here) from step 1" in tmux.see("(here)")
        tmux.press("Up")
        time.sleep(0.3)
        tmux.press("Enter")
        tmux.see("step 4 of 200")
        tmux.rest()
        tmux.type("/rewind 0")
        tmux.see("is back at step 0")
        shown = tmux.see("> mend it")  # the words come back, to be changed
        assert "a - b" in (folder / "add.py").read_text()
        assert not (folder / "begun").exists()
        assert all(len(row) <= columns for row in shown.split("\n"))
        tmux.press("C-u")
        tmux.press("C-d")
        tmux.see("goes on here")
