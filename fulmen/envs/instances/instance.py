"""Instances: an issue of a repository, the patch that resolved it, and the tests that tell."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from fulmen.files import parse_json, shorten

_TEXTS: Final = ("instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch")
_NAME: Final = re.compile(r"[\w.-]{1,200}")
_REPO: Final = re.compile(r"[\w.-]{1,100}/[\w.-]{1,100}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MAX_TESTS: Final = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One line of a file of instances."""

    instance_id: str
    repo: str
    """Owner and name"""
    base_commit: str
    problem_statement: str
    patch: str = field(repr=False)
    """The patch that resolved the issue, without tests"""
    test_patch: str = field(repr=False)
    fail_to_pass: tuple[str, ...] = field(repr=False)
    """Tests that fail before the patch and must pass after it"""
    pass_to_pass: tuple[str, ...] = field(repr=False)

    @property
    def strange_test(self) -> str | None:
        """A test whose name is not one of pytest's; None if all are."""
        for name in (*self.fail_to_pass, *self.pass_to_pass):
            path, mark, _ = name.partition("::")
            place = PurePosixPath(path)
            if not mark or place.suffix != ".py" or place.is_absolute() or ".." in place.parts:
                return name
        return None


def read_instances(path: Path) -> list[Instance]:
    """Read a JSONL file of instances. Raises ValueError, which names the line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    found = [
        _instance(parse_json(line, where), where)
        for number, line in enumerate(lines, start=1)
        if line.strip() and (where := f"{path}, line {number}")
    ]
    if not found:
        raise ValueError(f"{path} is empty, it must have an instance a line")
    names = [one.instance_id for one in found]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"{path} has the instance {twice} twice")
    return found


def _instance(fields: Mapping[str, Any], where: str) -> Instance:
    texts = {}
    for name in _TEXTS:
        if not isinstance(fields.get(name), str):
            raise ValueError(f"{where} must have {name}, a text")
        texts[name] = fields[name]
    for name, pattern in (("instance_id", _NAME), ("repo", _REPO), ("base_commit", _COMMIT)):
        if not pattern.fullmatch(texts[name]) or ".." in texts[name]:
            raise ValueError(f"{where} has the {name} {shorten(texts[name], 60)}")
    instance = Instance(
        **texts,
        fail_to_pass=_tests(fields.get("FAIL_TO_PASS"), f"{where}: FAIL_TO_PASS"),
        pass_to_pass=_tests(fields.get("PASS_TO_PASS"), f"{where}: PASS_TO_PASS"),
    )
    if not instance.fail_to_pass:
        raise ValueError(f"{where} has no test in FAIL_TO_PASS, so nothing tells a right patch")
    return instance


def _tests(value: object, where: str) -> tuple[str, ...]:
    """Return names of tests: a list, or a text that holds one in JSON, as in the first files."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where} must be a list of names")
    if len(value) > _MAX_TESTS:
        raise ValueError(f"{where} has {len(value):,} names, at most {_MAX_TESTS:,} are read")
    return tuple(value)
