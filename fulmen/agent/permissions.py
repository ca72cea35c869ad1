"""Judge the tool calls of an agent: each is allowed, asked about, or denied.

    call -> what it does (paths; every command in a shell text) -> rules -> the mode -> Verdict

A deny rule beats an ask rule, an ask rule beats an allow rule, and where no rule speaks the mode
does: `plan` lets only reading through, `ask` asks for all else, `accept-edits` also lets files of
the workspace be changed, `auto` lets through what stays inside the sandbox. A call is allowed if
every part of it is.

This is about consent. Safety is the sandbox's: paths are judged as they are spelled, so that a
link which leads elsewhere, or what a program opens by itself, is for the sandbox to stop.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from fulmen.agent.commands import Script, read_script
from fulmen.agent.names import decides, may_hold_keys
from fulmen.agent.outside import FREE, MCP, SUBJECTS, is_private, names_of, subjects_of
from fulmen.agent.programs import files_named, files_read, prefix_of, runs_input
from fulmen.agent.rules import (
    ANY,
    BELOW,
    MARKS,
    MAX_PATTERN,
    NAME,
    PATTERNED,
    Decision,
    Rule,
    Rules,
    exact,
    tool_of,
)
from fulmen.agent.verdicts import Findings, Part, ToolCall, Verdict
from fulmen.agent.words import Access, Command, Verb, Word
from fulmen.files import shorten

Mode = Literal["plan", "ask", "accept-edits", "auto"]
MODES: Final = get_args(Mode)

_READING: Final = ("read", "grep", "glob")
_TEMPORARY: Final = "/tmp"
_SOCKET: Final = re.compile(r"/dev/(tcp|udp)/")
_DEVICES: Final = re.compile(r"/dev/(null|stdin|stdout|stderr|fd/\d)")


@dataclass(frozen=True, slots=True)
class _Place:
    """A path as rules see it: how it may be spelled, and whether it is in the workspace."""

    texts: tuple[str, ...]
    where: Literal["inside", "outside", "unknown"]


class Permissions:
    """The mode and the rules that hold for one workspace.

    workspace  its path as the sandbox shows it
    source     its path on this machine; workspace if omitted
    store      is given the rules that are to be remembered, to write them down
    """

    def __init__(
        self,
        mode: Mode,
        rules: Rules,
        *,
        workspace: Path,
        source: Path | None = None,
        home: Path | None = None,
        store: Callable[[frozenset[Rule]], None] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, it must be one of {', '.join(MODES)}")
        self.mode = mode
        self.rules = rules
        self.workspace = os.path.abspath(workspace)
        self._source = os.path.abspath(source or workspace)
        self._home = os.path.abspath(home or Path.home())
        self._store = store

    def judge(
        self, call: ToolCall, *, folder: Path | None = None, leaves: str | None = None
    ) -> Verdict:
        """Return what is to be done with a call.

        folder  where a command would begin; the workspace if omitted
        leaves  what a command has outside the sandbox, such as "the network", if anything
        """
        tool, found = tool_of(call.name), Findings(leaves)
        at = os.path.abspath(os.path.join(self.workspace, folder or "."))
        if tool == "bash":
            self._judge_shell(_text(call, "command"), at, found)
        elif tool in ("read", "edit"):
            self._judge_tool(call.name, found)
            self._judge_access(_access(tool, _text(call, "path"), at), call.name, found)
        elif tool in _READING:
            self._judge_tool(call.name, found)
            path = call.arguments.get("path")
            text = _text(call, "path") if path is not None else "."
            self._judge_access(_access("read", text, at), call.name, found)
            if tool == "glob":
                self._judge_glob(_text(call, "pattern"), text, at, found)
        elif tool in SUBJECTS or tool.startswith(MCP):
            self._judge_outside(call, found)
        else:
            self._judge_tool(call.name, found, is_free=tool in FREE)
        return found.verdict()

    def remember(self, verdict: Verdict) -> frozenset[Rule]:
        """Allow from now on what a verdict asks about; return the rules that say so.

        Raises ValueError if no rule can: an ask rule, or what a call would have outside the
        sandbox, is asked about each time.
        """
        rules = verdict.rules
        if verdict.decision != "ask" or not rules:
            raise ValueError("no rule can allow this call for good, it is asked about each time")
        self.rules = Rules(self.rules.allow | rules, self.rules.ask, self.rules.deny)
        if self._store is not None:
            self._store(rules)
        return rules

    def hides(self, path: Path) -> bool:
        """Return whether a file must not show in what `grep` and `glob` find."""
        place = self._place(_access("read", str(path), self.workspace))[0]
        narrowest = self.rules.narrowest("read", place.texts)
        is_secret = may_hold_keys(path.name) and not self._is_allowed("read", place)
        return narrowest is not None or is_secret

    # Tools

    def _judge_tool(self, name: str, found: Findings, *, is_free: bool | None = None) -> None:
        """Judge a call by rules that name the tool; `is_free` if nothing else is known of it."""
        tool = tool_of(name)
        rules = Rules(*(_bare(one) for one in (self.rules.allow, self.rules.ask, self.rules.deny)))
        narrowest = rules.narrowest(tool, ())
        if narrowest is not None:
            self._narrow(narrowest, name, found)
        if is_free is False and self.mode == "plan":
            found.deny.append(Part(name, "only what reads runs in plan mode"))
        elif is_free is False and not rules.allowing(tool) and narrowest is None:
            reason = "no rule allows it, and what it does is not known"
            found.ask.append(Part(name, reason, (Rule(tool),)))

    def _judge_outside(self, call: ToolCall, found: Findings) -> None:
        """Judge a call that a server, the web or another agent answers: no mode allows it but by a
        rule, for what it changes is not in the sandbox; an agent's is."""
        tool, subjects = call.name, subjects_of(call.name, call.arguments)
        text = f"{tool} {_shown(subjects[0])}" if subjects else tool
        against = [one for name in names_of(tool) if (one := self.rules.narrowest(name, subjects))]
        if against:
            self._narrow(min(against, key=lambda one: one[0] != "deny"), text, found)
            return
        if not subjects and self.mode == "plan":
            found.deny.append(Part(text, "only what reads runs in plan mode"))
            return
        allowing = [rule for name in names_of(tool) for rule in self.rules.allowing(name, subjects)]
        is_own = tool == "web_fetch" and is_private(subjects[0])
        if any(not is_own or rule.is_exact() for rule in allowing):
            return
        if tool == "task" and self.mode == "auto":
            return
        reason = "no rule allows it" + ("" if tool == "task" else ", and it leaves the sandbox")
        if is_own:
            reason = "it is this machine or its own network, which no rule names"
        rule = Rule(tool, exact(subjects[0])) if subjects else Rule(tool)
        found.ask.append(Part(text, reason, (rule,)))

    def _narrow(self, narrowest: tuple[Decision, Rule], text: str, found: Findings) -> None:
        decision, rule = narrowest
        if decision == "deny":
            found.deny.append(Part(text, f"the rule {rule} denies it"))
        else:
            is_ask = rule in self.rules.ask
            reason = f"the rule {rule} asks" if is_ask else f"the rule {rule} may deny it"
            found.ask.append(Part(text, reason, by="rule"))

    # Paths

    def _place(self, access: Access) -> list[_Place]:
        """Return each place that a word may lead to."""
        text = access.word.text
        if text == "~" or text.startswith("~/"):
            text = self._home + text[1:]
        elif text.startswith("~"):
            return [_Place((text,), "outside")]
        if not text.startswith("/") and (access.folders is None or text[:1] == ANY):
            return [_Place((ANY,), "unknown")]
        folders = access.folders if access.folders and text[:1] != "/" else frozenset(("/",))
        return [self._spelled(os.path.join(folder, text)) for folder in sorted(folders)]

    def _spelled(self, path: str) -> _Place:
        """Return how a path may be spelled, once it has no dots and double slashes."""
        known, mark, rest = path.partition(ANY)
        # Any text may climb, so that what stands before it says nothing.
        if mark and ("/" in rest or known.rpartition("/")[2] in ("", ".")):
            return _Place((ANY,), "unknown")
        if mark:
            path = known + ANY + rest
        if path.startswith("~"):
            return _Place((path,), "outside")
        whole = "/" + os.path.normpath(path).lstrip("/")
        texts = [whole]
        where: Literal["inside", "outside", "unknown"] = "outside"
        below = _relative(whole, self.workspace)
        if below is not None:
            where = "unknown" if mark else "inside"
            texts.insert(0, below)
        if (at_home := _relative(whole, self._home)) is not None:
            texts.append(f"~/{at_home}")
        return _Place(tuple(texts), where)

    def _judge_access(self, access: Access, shown: str, found: Findings) -> None:
        """Judge a file that is read or changed, by the rules and then by the mode."""
        for place in self._place(access):
            text = f"{access.verb} {_shown(access.word.text)}"
            narrowest = self.rules.narrowest(access.verb, place.texts)
            if narrowest is not None:
                self._narrow(narrowest, text, found)
                if self.mode != "plan":
                    continue
            if access.verb == "edit" and self.mode == "plan":
                found.deny.append(Part(text, "files are not changed in plan mode"))
                continue
            reason = self._special(access, place)
            if not self._is_allowed(access.verb, place, is_special=reason is not None):
                by: Literal["name", "mode"] = "mode" if reason is None else "name"
                reason = reason or self._by_mode(access.verb, place, found.leaves)
                if reason is not None:
                    found.ask.append(Part(text, reason, _proposal(access.verb, place), by))

    def _special(self, access: Access, place: _Place) -> str | None:
        """Return why a path is asked about in every mode, if it is."""
        names = place.texts[0].split("/")
        if access.verb == "read":
            spelled = access.word.text.rpartition("/")[2]  # also where its folder is not known
            return "it may hold keys" if any(map(may_hold_keys, (names[-1], spelled))) else None
        if any(map(decides, names)):
            return "it decides what runs later or what the agent may do"
        return None

    def _is_allowed(self, verb: Verb, place: _Place, *, is_special: bool = False) -> bool:
        for rule in self.rules.allowing(verb, place.texts):
            pattern = rule.pattern
            if pattern is None or (place.where != "inside" and pattern[:1] not in "/~"):
                # Relative patterns speak of the workspace; a bare tool's name of all files.
                if pattern is None and not is_special:
                    return True
                continue
            named = set(re.sub(r"\\(.)", r"\1", pattern).split("/"))
            special = [
                name for name in place.texts[0].split("/") if decides(name) or may_hold_keys(name)
            ]
            if not is_special or any(name in named for name in special):
                return True
        return False

    def _by_mode(self, verb: Verb, place: _Place, leaves: str | None) -> str | None:
        """Return why the mode asks about a path, or None if it lets it through."""
        if _DEVICES.fullmatch(place.texts[0]):
            return None
        if place.where == "inside":
            is_free = verb == "read" or self.mode in ("accept-edits", "auto")
            return None if is_free else "files are changed only if you say so in this mode"
        is_temporary = _relative(place.texts[0], _TEMPORARY) is not None
        if leaves is not None and (place.where == "unknown" or _SOCKET.match(place.texts[0])):
            return f"it may use {leaves}"
        if self.mode == "auto" and (verb == "read" or is_temporary or place.where == "unknown"):
            return None
        if place.where == "unknown":
            return "its path is known only when it runs"
        return "it is outside the workspace"

    def _judge_glob(self, pattern: str, root: str, at: str, found: Findings) -> None:
        """Judge the folder that a glob begins in, such as /etc in /etc/*."""
        fixed = re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]
        if ".." in pattern.split("/") or pattern.startswith(("/", "~")):
            text = os.path.join(root, fixed or "/")
            self._judge_access(_access("read", text, at), "glob", found)

    # The shell

    def _judge_shell(self, text: str, at: str, found: Findings) -> None:
        script = read_script(text, at)
        whole = self._exactly_allowed(text)
        mine = Findings(found.leaves)
        for access in script.accesses:
            self._judge_access(access, "bash", mine)
        writes = any(access.verb == "edit" for access in script.accesses)
        for command in script.commands:
            self._judge_command(command, text, mine, writes=writes)
        self._judge_unknown(script, text, mine)
        if self._allows_all():
            mine.ask = [part for part in mine.ask if part.by != "mode"]
        if whole:
            mine.ask = [part for part in mine.ask if part.by == "rule"]
        found.ask += mine.ask
        found.deny += mine.deny

    def _allows_all(self) -> bool:
        return any(rule.pattern in (None, "*") for rule in self.rules.allowing("bash", (ANY,)))

    def _exactly_allowed(self, text: str) -> bool:
        rules = self.rules.allowing("bash", (text.strip(),))
        return any(rule.is_exact() for rule in rules)

    def _judge_unknown(self, script: Script, text: str, found: Findings) -> None:
        whole = _whole(text)
        for phrase in script.unknown:
            if self.mode == "plan":
                reason = f"{phrase}, and only what is known to read runs in plan mode"
                found.deny.append(Part("bash", reason))
            elif self.mode != "auto" or found.leaves is not None:
                found.ask.append(Part("bash", phrase, whole))
        if script.unknown:  # any rule against a command or a file may be against what it does
            against = [
                rule
                for rule in sorted(self.rules.deny | self.rules.ask, key=str)
                if rule.tool in PATTERNED
            ]
            if against:
                reason = f"not all of it is known, and the rule {against[0]} may be against it"
                found.ask.append(Part("bash", reason, by="rule"))

    def _judge_command(
        self, command: Command, whole: str, found: Findings, *, writes: bool
    ) -> None:
        """Judge a command and all that it starts; by rules against them, then by those for them.

        writes  the text it stands in changes files
        """
        for inner in command.inner:
            self._judge_command(inner, whole, found, writes=writes)
        spellings = command.spellings()
        shown = _shown(" ".join(word.text for word in command.words))
        narrowest = self.rules.narrowest("bash", spellings)
        if narrowest is not None:
            self._narrow(narrowest, shown, found)
            if narrowest[0] == "deny":
                return
        reads = files_read(command)
        if command.name == "git" and self._may_bring_repository(command, writes=writes):
            reads = None
        allowed = command.wraps or self._allows(command)
        self._judge_files(command, reads, found, is_allowed=allowed)
        if allowed or reads is not None or not command.words[0].known:
            return  # a name that is not known is judged with the whole text
        if self.mode == "plan":
            reason = "it is not known to only read, and nothing else runs in plan mode"
            found.deny.append(Part(shown, reason))
        elif (self.mode != "auto" or found.leaves is not None) and narrowest is None:
            reason = "no rule allows it" if found.leaves is None else f"it may use {found.leaves}"
            found.ask.append(Part(shown, reason, _proposed(command, whole)))

    def _may_bring_repository(self, command: Command, *, writes: bool) -> bool:
        """Return whether git may find a repository among the workspace's own files, whose
        configuration starts programs: any folder with a file HEAD is one."""
        for folder in command.folders or ("/",):
            if folder == self.workspace:
                ways = [folder]
            elif _relative(folder, self.workspace) is None or writes:
                return True
            else:
                parents = [Path(folder), *Path(folder).parents]
                ways = [str(one) for one in parents if _relative(str(one), self.workspace)]
            for way in ways:
                here = os.path.join(self._source, os.path.relpath(way, self.workspace))
                own = os.path.join(here, ".git")
                has_own = os.path.isfile(own) or os.path.lexists(os.path.join(own, "HEAD"))
                if os.path.lexists(os.path.join(here, "HEAD")) and not has_own:
                    return True
        return False

    def _allows(self, command: Command) -> bool:
        """Return whether a rule allows a command; in plan mode none allows more than reading."""
        if self.mode == "plan":
            return False
        rules = self.rules.allowing("bash", command.spellings()[:1])
        return bool(rules)

    def _judge_files(
        self, command: Command, reads: list[Access] | None, found: Findings, *, is_allowed: bool
    ) -> None:
        """Judge the files that a command names: by all that holds for files if it only reads,
        else by the rules against them and what is asked about in every mode."""
        if reads is not None and not is_allowed:
            for access in reads:
                self._judge_access(access, "bash", found)
            return
        for access in files_named(command) if reads is None else reads:
            for place in self._place(access):
                text = f"{access.verb} {_shown(access.word.text)}"
                narrowest = self.rules.narrowest(access.verb, place.texts)
                special = self._special(access, place)
                if narrowest is not None:
                    self._narrow(narrowest, text, found)
                elif (
                    special is not None
                    and place.where != "outside"
                    and not self._is_allowed(access.verb, place, is_special=True)
                ):
                    found.ask.append(Part(text, special, _proposal(access.verb, place), "name"))


def _bare(rules: Iterable[Rule]) -> frozenset[Rule]:
    return frozenset(rule for rule in rules if rule.pattern is None)


def _text(call: ToolCall, name: str) -> str:
    value = call.arguments.get(name)
    if not isinstance(value, str) or not value.strip() or "\0" in value or MARKS & set(value):
        raise ValueError(f"{call.name} needs {name}, a text")
    return value


def _access(verb: str, text: str, folder: str) -> Access:
    return Access("edit" if verb == "edit" else "read", Word(text), frozenset((folder,)))


def _relative(path: str, folder: str) -> str | None:
    """Return a path relative to a folder above it, or None."""
    if path == folder:
        return "."
    prefix = folder.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _proposal(verb: Verb, place: _Place) -> tuple[Rule, ...]:
    text = place.texts[0]
    if MARKS & set(text) or len(text) > MAX_PATTERN // 2:
        return ()
    pattern = re.sub(r"([\\*?\[\]{}!])", r"\\\1", text)
    if place.where == "inside":
        pattern = f"./{pattern}"
    return (Rule(verb, pattern),)


def _proposed(command: Command, whole: str) -> tuple[Rule, ...]:
    """Return the narrowest useful rule for a command: a prefix that is safe with any arguments,
    else the command word for word, else the whole text that it stands in."""
    prefix = prefix_of(command)
    if prefix is not None:
        return (Rule("bash", f"{exact(prefix)} *"),)
    spelled = command.spellings()[0]
    if all(word.known for word in command.words) and not runs_input(command):
        return _whole(spelled)
    return _whole(whole) if whole.strip() != spelled else ()


def _whole(text: str) -> tuple[Rule, ...]:
    pattern = exact(text.strip())
    return (Rule("bash", pattern),) if len(pattern) <= MAX_PATTERN and pattern else ()


def _shown(text: str) -> str:
    for mark in (ANY, NAME, BELOW):
        text = text.replace(mark, "...")
    return shorten(text, 120)
