"""Programs that start other programs: which words of theirs are the other's command.

Only options listed here are understood. With any other, what is started counts as unknown.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from fulmen.agent.rules import ANY, BELOW
from fulmen.agent.words import UNKNOWN, Command, Word, names

_READS: Final = "runs what it reads"
_NOT_READ: Final = "has options that are not read here, it may start any program"


@dataclass(frozen=True, slots=True)
class Started:
    """Commands that a program starts.

    commands   their words
    texts      shell texts that it runs
    variables  set for them
    wraps      the program has no other effect
    unknown    why what it starts is not known; nothing if it is
    """

    commands: tuple[tuple[Word, ...], ...] = ()
    texts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    wraps: bool = True
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class _Options:
    """Options before a started command: those alone, and those with a value in the next word."""

    alone: str = ""
    valued: str = ""
    long_alone: tuple[str, ...] = ()
    long_valued: tuple[str, ...] = ()
    operands: int = 0
    assigns: bool = False
    wraps: bool = True


_WRAPPERS: Final = {
    "env": _Options("i0", "u", ("--ignore-environment",), ("--unset",), assigns=True),
    "command": _Options("p"),
    "builtin": _Options(),
    "exec": _Options("cl", "a"),
    "nohup": _Options(),
    "time": _Options("p", assigns=True),
    "nice": _Options("", "n", (), ("--adjustment",)),
    "ionice": _Options("t", "cn", (), ("--class", "--classdata")),
    "setsid": _Options("cfw", "", ("--fork", "--wait", "--ctty")),
    "stdbuf": _Options("", "ioe", (), ("--input", "--output", "--error")),
    "timeout": _Options(
        "v",
        "sk",
        ("--foreground", "--preserve-status", "--verbose"),
        ("--signal", "--kill-after"),
        operands=1,
    ),
    "sudo": _Options("AbEHnPS", "ugp", ("--preserve-env",), ("--user", "--group"), wraps=False),
    "doas": _Options("n", "u", wraps=False),
    "xargs": _Options(
        "0rtx",
        "nPLdIasE",
        ("--null", "--no-run-if-empty", "--verbose", "--exit"),
        ("--max-args", "--max-procs", "--max-lines", "--delimiter", "--replace", "--arg-file"),
    ),
}
_SHELLS: Final = ("sh", "bash", "dash")
_SHELL_LETTERS: Final = "abefhilmnprtuvxBCE"
_SHELL_NAMES: Final = names("--norc --noprofile --login --posix --verbose --restricted --noediting")
_SHELL_OPTIONS: Final = names(
    "allexport errexit errtrace noclobber noexec noglob nounset pipefail posix privileged verbose "
    "xtrace"
)
_NOT_WRAPPED: Final = names(
    "flock watch parallel taskset chrt numactl setarch linux32 linux64 strace ltrace script "
    "unshare nsenter chroot busybox toybox entr su runuser start-stop-daemon systemd-run screen "
    "tmux at batch ssh gdb valgrind perf pkexec fakeroot unbuffer expect rlwrap prlimit capsh "
    "setpriv daemonize proot bwrap hyperfine zsh ksh mksh ash rbash fish csh tcsh pwsh"
)
"""Programs that start others, and shells, whose words are not read here"""
_FIND_EXEC: Final = ("-exec", "-execdir", "-ok", "-okdir")


def started_by(command: Command, piped: Word | None) -> Started | None:
    """Return what a command starts; None if it is no program that starts others.

    piped  stands for each line that it reads from a pipe, if these are names of files
    """
    name, arguments = command.name, list(command.arguments)
    if name in _WRAPPERS:
        return _wrapped(name, arguments, piped)
    if name in _SHELLS:
        return _shell(arguments)
    if name in _NOT_WRAPPED:
        return Started(unknown="may start any program", wraps=False)
    if name == "git" and any("alias." in word.text for word in _before_subcommand(arguments)):
        return Started(unknown="gives a command another name", wraps=False)
    operands = arguments[1:] if arguments[:1] == [Word("--")] else arguments
    if name == "eval":
        return _text(operands)
    if name == "trap" and operands and operands[0].text not in ("-p", "-l", "-P", "-"):
        text = _text(operands[:1])
        return text and replace(text, wraps=False)
    if name in ("source", ".") and operands and _is_stream(operands[0]):
        return Started(unknown=_READS, wraps=False)
    if name == "jobs" and any(word.may_be_option and "x" in _letters(word) for word in arguments):
        is_read = arguments[0].text == "-x" and len(arguments) > 1
        words = (tuple(arguments[1:]),) if is_read else ()
        return Started(words, wraps=False, unknown="" if is_read else _NOT_READ)
    if name == "find":
        return _find(arguments)
    return None


def _letters(word: Word) -> str:
    """Return the letters of an option, all that count where it is not known."""
    return word.text if word.known else "x"


def _text(words: list[Word]) -> Started | None:
    if not words:
        return None
    if not all(word.known for word in words):
        return Started(unknown="runs a text that is known only when it runs")
    return Started(texts=(" ".join(word.text for word in words),))


def _before_subcommand(arguments: list[Word]) -> Iterator[Word]:
    """Give the options of git before its subcommand, with the words that may be their values."""
    previous = Word("-")
    for word in arguments:
        if not word.may_be_option and not previous.may_be_option:
            return
        previous = word
        yield word


def _is_stream(word: Word) -> bool:
    """Return whether a file of commands may be a pipe, or one that is known only when it runs."""
    return not word.known or word.text.startswith("/dev/")


def _shell(arguments: list[Word]) -> Started | None:
    """Read the words of a shell: its options, then a text, a file, or none of them."""
    has_text = reads = False
    words = iter(arguments)
    operand: Word | None = None
    for word in words:
        if not word.known:
            return Started(unknown="runs what is known only when it runs", wraps=False)
        if word.text in ("-", "--"):
            operand = next(words, None)
            break
        if word.text in _SHELL_NAMES:
            continue
        if not word.text.startswith(("-", "+")):
            operand = word
            break
        for letter in word.text[1:]:
            if letter == "o":
                option = next(words, Word(""))
                if not option.known or option.text not in _SHELL_OPTIONS:
                    return Started(unknown=_NOT_READ, wraps=False)
            elif letter not in _SHELL_LETTERS + "cs":
                return Started(unknown=_NOT_READ, wraps=False)
        has_text = has_text or "c" in word.text
        reads = reads or "s" in word.text
    if has_text:
        found = _text([operand]) if operand is not None else None
        return found or Started(unknown="has no text behind -c", wraps=False)
    if reads or operand is None or _is_stream(operand):
        return Started(unknown=_READS, wraps=False)
    return None  # a file of commands is a program like any other


def _wrapped(name: str, arguments: list[Word], piped: Word | None) -> Started | None:
    options = _WRAPPERS[name]
    values: dict[str, Word] = {}
    rest = iter(arguments)
    word = _skip_options(options, rest, values)
    for _ in range(options.operands):
        if word is None or word.splits:
            return Started(unknown=_NOT_READ, wraps=False)
        word = next(rest, None)
    variables = []
    while options.assigns and word is not None and re.match(r"[A-Za-z_]\w*\+?=", word.text):
        variables.append(re.split(r"\+?=", word.text)[0])
        word = next(rest, None)
    if name == "command" and arguments and arguments[0].text in ("-v", "-V"):
        return None
    if word is None:
        return None  # nothing is started: xargs, env or exec alone is a command of its own
    if not word.known and name != "xargs":
        return Started(((word, *rest),), variables=tuple(variables), wraps=options.wraps)
    if word.may_be_option:
        return Started(unknown=_NOT_READ, wraps=False)
    words = [word, *rest]
    if name == "xargs":
        line = piped or Word(ANY)
        replaced = values.get("I") or values.get("--replace")
        if replaced is not None and replaced.known and replaced.text:
            words = [_put(one, replaced.text, line) for one in words]
        else:
            words.append(line if piped is not None else UNKNOWN)
    return Started((tuple(words),), variables=tuple(variables), wraps=options.wraps)


def file_of_lines(command: Command) -> Word | None:
    """Return the file of which xargs reads its lines; None for another command, or the pipe."""
    values: dict[str, Word] = {}
    if command.name != "xargs":
        return None
    _skip_options(_WRAPPERS["xargs"], iter(command.arguments), values)
    return values.get("a") or values.get("--arg-file")


def _put(word: Word, mark: str, line: Word) -> Word:
    """Return a word in which a line stands for each mark."""
    if mark not in word.text:
        return word
    return Word(word.text.replace(mark, line.text), word.splits)


def _skip_options(options: _Options, rest: Iterator[Word], values: dict[str, Word]) -> Word | None:
    """Take options from an iterator; return the first word that is none, or one not understood."""
    for word in rest:
        text = word.text
        if word.splits or not text.startswith("-") or (text == "-" and not options.assigns):
            return word
        if text == "--":
            return next(rest, None)
        if text == "-":
            continue
        if text.startswith("--"):
            name, equals, value = text.partition("=")
            if name in options.long_alone and not equals:
                continue
            if name not in options.long_valued:
                return word
            values[name] = Word(value) if equals else next(rest, Word(""))
            continue
        if options.alone == "" and re.fullmatch(r"-\d+", text) and "n" in options.valued:
            continue
        letters = text[1:]
        while letters and letters[0] in options.alone:
            letters = letters[1:]
        if not letters:
            continue
        if letters[0] not in options.valued:
            return word
        values[letters[0]] = Word(letters[1:]) if letters[1:] else next(rest, Word(""))
    return None


def _find(arguments: list[Word]) -> Started | None:
    commands = []
    rest = iter(arguments)
    below = _below(arguments)
    for word in rest:
        if word.text not in _FIND_EXEC:
            continue
        words: list[Word] = []
        for part in rest:
            if part.text == ";" or (part.text == "+" and words and words[-1] == below):
                break
            words.append(_put(part, "{}", below))
        else:
            return Started(unknown="does not end the command that it starts", wraps=False)
        if not words:
            return Started(unknown="starts an empty command", wraps=False)
        commands.append(tuple(words))
    return Started(tuple(commands), wraps=False) if commands else None


def _below(arguments: list[Word]) -> Word:
    """Return a word for any file that find comes upon."""
    roots = []
    for word in arguments:
        if word.may_be_option or word.text[:1] in ("(", "!"):
            break
        roots.append(word)
    if len(roots) > 1 or (roots and not roots[0].known):
        return Word("./" + BELOW) if all(_stays(root) for root in roots) else UNKNOWN
    root = roots[0].text.rstrip("/") if roots else "."
    return Word(f"{root}/{BELOW}" if root else ANY)


def _stays(word: Word) -> bool:
    """Return whether a path leads to no folder above or elsewhere, as it is spelled."""
    return word.known and not word.text.startswith(("/", "~")) and ".." not in word.text.split("/")


_LISTS: Final[dict[str, Callable[[Command], Word | None]]] = {
    "find": lambda command: _below(list(command.arguments)),
    "git": lambda command: (
        Word(BELOW) if [word.text for word in command.arguments[:1]] == ["ls-files"] else None
    ),
    "rg": lambda command: _listed(command, r"-\w*l\w*|--files(-with-matches)?"),
    "grep": lambda command: _listed(command, r"-\w*l\w*|--files-with-matches"),
}
_FILTERS: Final = ("grep", "sort", "head", "tail", "uniq")


def lists_names(command: Command, before: Word | None) -> Word | None:
    """Return a word for each line that a command prints, if these are names of files; else None.

    before  such a word for the lines that it reads
    """
    if before is not None and command.name in _FILTERS:
        is_own = any(not word.known or word.text.startswith("-o") for word in command.arguments)
        files = [word for word in command.arguments if not word.may_be_option]
        most = 1 if command.name == "grep" else 0
        is_number = all(re.fullmatch(r"\d+", word.text) for word in files)
        return None if is_own or (len(files) > most and not is_number) else before
    lists = _LISTS.get(command.name)
    return None if lists is None else lists(command)


def _listed(command: Command, flag: str) -> Word | None:
    paths = [word for word in command.arguments if not word.may_be_option]
    has_flag = any(re.fullmatch(flag, word.text) for word in command.arguments)
    return Word(BELOW) if has_flag and all(_stays(path) for path in paths) else None
