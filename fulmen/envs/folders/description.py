"""A task's folder in Harbor's format, read: nothing in it is run here.

    instruction.md        what the model is told
    task.toml             limits and variables (TOML 1.0)
    environment/          Dockerfile and its context (dockerfile.py)
    tests/test.sh         writes the reward
    solution/solve.sh     the known answer, if there is one

A part of the format that cannot be kept here is refused, never passed over: a task that only seems
to run would give scores that mean nothing.
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from fulmen.envs.folders.dockerfile import Recipe, read_dockerfile
from fulmen.envs.left import left_file, left_files
from fulmen.files import shorten
from fulmen.sandbox import Access, Limits, check_access

TESTS: Final = Path("/tests")
"""Path of the tests where they run"""
LOGS: Final = Path("/logs")
"""Path of the folder that has `verifier`, with the reward"""
SOLUTION: Final = PurePosixPath("/solution")
_NETWORK: Final = re.compile(
    r"\s*(?:sudo\s+|exec\s+|if\s+|!\s*)*(?:"
    r"apt(?:-get)?\s+(?:-\S+\s+)*(?:update|install|upgrade)|apk\s+add|yum\s+install|"
    r"(?:python3?\s+-m\s+)?pip3?\s+(?:install|download)|uv\s+(?:pip\s+install|add|sync|run)|uvx|"
    r"npm\s+(?:install|ci)|npx|curl|wget|git\s+(?:clone|fetch|pull)|conda\s+install"
    r")(?=\s|$)"
)
"""Beginning of a line of a script that needs the network"""
_UNKEPT: Final = {
    "steps": "several steps",
    "multi_step_reward_strategy": "several steps",
    "environment.docker_image": "an image that is fetched",
    "environment.mcp_servers": "servers of tools",
    "environment.healthcheck": "a service",
    "environment.gpu_types": "a GPU",
    "environment.tpu": "a TPU",
    "verifier.environment": "a second image for the tests",
    "verifier.collect": "collected files",
}
"""Settings that nothing here can keep, with the words for it"""
_MOST_SECONDS: Final = 3600.0
"""Longest time of the tests"""
_LONGEST_SECONDS: Final = 1e9
_LEAST_MEMORY: Final = 2**27
_MOST_MEMORY: Final = 2**36
_MEMORY: Final = 2**31
_NUM_PROCESSES: Final = 128
_MAX_INSTRUCTION: Final = 2**18
_MAX_FILES: Final = 10_000
_MAX_BYTES: Final = 2**28
"""Size of a context"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """Everything that a task's folder says."""

    path: Path
    instruction: str
    recipe: Recipe
    solution: Mapping[str, bytes]
    """Files of the solution by path; empty if there is none"""
    agent_seconds: float | None
    """Longest work of an agent that the task allows; None where it does not say"""
    limits: Limits
    """Limits of the tests"""
    test_variables: Mapping[str, str]


def read_description(path: Path) -> Description:
    """Read a task's folder. Raises ValueError, one sentence, for what cannot be played here."""
    settings = _settings(path / "task.toml")
    instruction = _text(path / "instruction.md", _MAX_INSTRUCTION)
    for place in (path / "environment", path / "tests" / "test.sh"):
        if not place.exists():
            raise ValueError(f"{place} is missing")
    if found := sorted((path / "environment").glob("docker-compose*.y*ml")):
        raise ValueError(f"{found[0]} asks for several containers, and there are none here")
    if (ignored := path / "environment" / ".dockerignore").exists():
        raise ValueError(f"{ignored} leaves files out, which is not read")
    _check_context(path / "environment")
    workdir = _value(settings, "environment.workdir", str)
    recipe = read_dockerfile(path / "environment" / "Dockerfile", workdir=workdir)
    own = _variables(settings, "environment.env", path)
    recipe = Recipe(recipe.workdir, recipe.variables | own, recipe.copies, recipe.folders)
    test_variables = recipe.variables | _variables(settings, "verifier.env", path)
    try:
        for variables in (recipe.variables, test_variables):
            check_access(Access(folder=path, seen_as=Path(recipe.workdir), environment=variables))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if Path(recipe.workdir).is_relative_to(TESTS) or Path(recipe.workdir).is_relative_to(LOGS):
        raise ValueError(f"{path} works in {recipe.workdir}, which the tests need")
    _check_script(path / "tests" / "test.sh")
    solution = {}
    if (path / "solution" / "solve.sh").exists():
        _check_script(path / "solution" / "solve.sh")
        solution = dict(left_files(path / "solution"))
    seconds = _seconds(settings, "verifier.timeout_sec")
    memory = _value(settings, "environment.memory_mb", int)
    num_bytes = _MEMORY if memory is None else memory * 2**20
    return Description(
        path=path,
        instruction=instruction,
        recipe=recipe,
        solution=solution,
        agent_seconds=_seconds(settings, "agent.timeout_sec"),
        limits=Limits(
            seconds=600.0 if seconds is None else min(max(seconds, 1.0), _MOST_SECONDS),
            memory_bytes=min(max(num_bytes, _LEAST_MEMORY), _MOST_MEMORY),
            num_processes=_NUM_PROCESSES,
            file_bytes=2**28,
        ),
        test_variables=test_variables,
    )


def _settings(path: Path) -> dict[str, Any]:
    """Read task.toml and refuse what it asks for in vain."""
    try:
        settings = tomllib.loads(_text(path, _MAX_INSTRUCTION))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    for name in ("task", "agent", "verifier", "environment", "solution"):
        if not isinstance(settings.get(name, {}), dict):
            raise ValueError(f"{path}: {name} must be a table")
    for name, words in _UNKEPT.items():
        if _found(settings, name):
            raise ValueError(f"{path}: {name} asks for {words}, which cannot be had here")
    if _found(settings, "environment.gpus"):
        raise ValueError(f"{path}: environment.gpus asks for a GPU, which cannot be had here")
    for name, allowed in (
        ("environment.os", (None, "linux")),
        ("verifier.environment_mode", (None, "shared")),
        ("schema_version", (None, "1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6")),
    ):
        if _found(settings, name) not in allowed:
            found = shorten(_found(settings, name), 60)
            raise ValueError(f"{path}: {name} is {found}, which cannot be kept here")
    return settings


def _found(settings: Mapping[str, Any], name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _value(settings: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = _found(settings, name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"task.toml: {name} is {shorten(value, 60)}, see Harbor's task format")
    return value


def _seconds(settings: Mapping[str, Any], name: str) -> float | None:
    value = _value(settings, name, float | int)
    if value is not None and not 0 < value <= _LONGEST_SECONDS:
        most = f"{_LONGEST_SECONDS:,.0f}"
        raise ValueError(
            f"task.toml: {name} is {shorten(value, 60)}, it must be above 0 and at most {most}"
        )
    return None if value is None else float(value)


def _variables(settings: Mapping[str, Any], name: str, path: Path) -> dict[str, str]:
    found = _found(settings, name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{path / 'task.toml'}: {name} must be a table")
    for key, value in found.items():
        if not isinstance(value, str) or "${" in value:
            raise ValueError(
                f"{path / 'task.toml'}: {name}.{shorten(key, 40)} is a variable of the host's, "
                "which is not given"
            )
    return found


def _text(path: Path, most: int) -> str:
    content = left_file(path)
    if content is None or len(content) > most:
        raise ValueError(f"{path} is missing or too large")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def _check_context(folder: Path) -> None:
    """Raise for a context that is too large, or has links: a copy could write where they lead."""
    num_files, num_bytes = 0, 0
    for name, folders, files in os.walk(folder):
        num_files += len(folders) + len(files)
        for path in (Path(name, one) for one in (*folders, *files)):
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(f"{path} is no file and no folder, it is not copied")
            num_bytes += path.lstat().st_size if stat.S_ISREG(mode) else 0
        if num_files > _MAX_FILES or num_bytes > _MAX_BYTES:
            raise ValueError(
                f"{folder} has more than {_MAX_FILES:,} files or {_MAX_BYTES >> 20} MiB"
            )


def _check_script(path: Path) -> None:
    """Raise for a script that needs the network: there is none."""
    for number, line in enumerate(_text(path, _MAX_INSTRUCTION).split("\n"), start=1):
        if _NETWORK.match(line):
            raise ValueError(f"{path}, line {number} needs the network: {shorten(line.strip())}")
