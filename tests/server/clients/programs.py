"""Coding clients as a user starts them: where they are, their settings for a server, one question.

The settings are those of docs/serving.md. Each client runs in an empty home and reaches nothing but
this machine: all else goes to a proxy that is not there. Nothing of a client is changed.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
CLIENTS: Final = Path(os.environ.get("FULMEN_CLIENTS") or ROOT / ".clients")
"""Folder of scripts/install_clients"""
TIMEOUT_SECONDS: Final = 120
NO_NETWORK: Final = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}


def program(name: str) -> Path:
    """Return the program of a client; skip the test without it."""
    patterns = {
        "claude-code": "node_modules/@anthropic-ai/claude-code-*/claude",
        "opencode": "node_modules/opencode-*/bin/opencode",
        "mini-swe-agent": "mini/bin/mini",
        "lm-eval": "lm-eval/bin/lm_eval",
    }
    found = sorted(path for path in CLIENTS.glob(patterns[name]) if "baseline" not in str(path))
    if not found:
        pytest.skip(f"{name} is not in {CLIENTS}, `scripts/install_clients` brings it")
    return found[0]


@dataclass(frozen=True, slots=True)
class Finished:
    """A client that ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def story(self) -> str:
        """Output of a client, to look at when something is wrong."""
        return f"exit {self.returncode}\n{self.stdout[-3000:]}\n{self.stderr[-3000:]}"


class Running:
    """A client in a process group of its own, whose output goes to files."""

    def __init__(
        self, command: Sequence[str | Path], *, home: Path, work: Path, settings: Mapping[str, str]
    ) -> None:
        self._out, self._err = home / "stdout", home / "stderr"
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=work,
                env=environment | NO_NETWORK | dict(settings),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the client and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> Finished:
        """Wait until the client ends, for a while, and end what it left running."""
        try:
            self.process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"the client ran for {TIMEOUT_SECONDS} s", file=sys.stderr)
        finally:
            self.kill()
        out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
        return Finished(self.process.returncode, out, err)


@dataclass(frozen=True, slots=True)
class Place:
    """A client's empty home, and the folder it works in."""

    home: Path
    work: Path

    @classmethod
    def new(cls, folder: Path) -> "Place":
        """Make both in a folder."""
        place = cls(folder / "home", folder / "work")
        place.home.mkdir()
        place.work.mkdir()
        return place


def _block(name: str, url: str, key: str) -> str:
    """Return the settings of a client in docs/serving.md, with another address and key."""
    page = (ROOT / "docs" / "serving.md").read_text()
    found = re.search(rf"^{name}[:,].*?^```\w+\n(.*?)^```", page, re.M | re.S)
    assert found is not None, name
    return re.sub(r"\bany\b", key, found[1].replace("http://127.0.0.1:8000", url))


def lm_eval(place: Place, url: str, tasks: Path, task: str, *, is_chat: bool = False) -> Running:
    """Have lm-eval measure a task of a folder, as docs/serving.md says; results and samples are
    in the folder `out` of its work."""
    page = (ROOT / "docs" / "serving.md").read_text().replace("\\\n", " ")
    kind = "local-chat-completions" if is_chat else "local-completions"
    found = re.search(rf"^lm_eval --model {kind} (.*)$", page, re.M)
    assert found is not None, kind
    words = found[1].replace("http://127.0.0.1:8000", url).split()
    words[words.index("--tasks") + 1] = task
    command: list[str | Path] = [
        *(program("lm-eval"), "--model", kind, *words),
        *("--include_path", tasks, "--output_path", place.work / "out", "--log_samples"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return Running(command, home=place.home, work=place.work, settings=offline)


def _settings(name: str, url: str, key: str) -> dict[str, str]:
    """Return the variables that docs/serving.md exports for a client."""
    return dict(re.findall(r"^export (\w+)=(\S+)$", _block(name, url, key), re.M))


def claude_code(
    place: Place,
    url: str,
    question: str,
    *,
    key: str = "any",
    hides: bool = False,
    goes_on: bool = False,
) -> Running:
    """Ask Claude Code.

    hides    print plain text, for which it wants no text of thoughts, and use a name that it knows,
             for which it tells how many tokens are left
    goes_on  continue the last conversation
    """
    command: list[str | Path] = [
        *(program("claude-code"), "-p", question),
        *(["--model", "haiku"] if hides else []),
        *([] if hides else ["--output-format", "stream-json", "--verbose"]),
        *(["--continue"] if goes_on else []),
        *("--allowedTools", "Bash", "Read", "Write", "Edit"),
    ]
    settings = _settings("Claude Code", url, key)
    return Running(command, home=place.home, work=place.work, settings=settings)


def opencode(
    place: Place,
    url: str,
    question: str,
    *,
    key: str = "any",
    hides: bool = False,
    goes_on: bool = False,
) -> Running:
    """Ask opencode, over Chat Completions.

    hides    ask the server to keep thoughts to itself
    goes_on  continue the last conversation
    """
    config = json.loads(_block("opencode", url, key)) | {"autoupdate": False}
    if hides:
        (model,) = config["provider"]["local"]["models"].values()
        model["options"] = {"include_reasoning": False}
    folder = place.home / ".config" / "opencode"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "opencode.json").write_text(json.dumps(config))
    command: list[str | Path] = [
        *(program("opencode"), "run", "--format", "json"),
        *(["--continue"] if goes_on else []),
        question,
    ]
    return Running(command, home=place.home, work=place.work, settings={})


def mini_swe_agent(
    place: Place,
    url: str,
    question: str,
    *,
    key: str = "any",
    hides: bool = False,
) -> Running:
    """Ask mini-swe-agent.

    hides  ask the server to keep thoughts to itself
    """
    command: list[str | Path] = [
        *(program("mini-swe-agent"), "-y", "--exit-immediately"),
        *("-o", place.home / "trajectory.json", "-t", question, "-c", "mini.yaml"),
        *(["-c", "model.model_kwargs.extra_body.include_reasoning=false"] if hides else []),
    ]
    settings = _settings("mini-swe-agent", url, key)
    return Running(command, home=place.home, work=place.work, settings=settings)
