"""Programs by what they do to files: those that only read, those that change their operands.

A program is in the table of readers only if every option it may be given here reads. Options that
write or start programs are listed, in full and as the letters and beginnings that stand for them;
with one of them, or with a word that may become one, the program is no reader.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fulmen.agent.rules import ANY
from fulmen.agent.words import Access, Command, Verb, Word, is_plain_test, names


@dataclass(frozen=True, slots=True)
class _Reader:
    """A program that reads.

    letters    short options that do more
    options    long ones, and for find its actions
    texts      operands at the beginning that are no files, such as grep's pattern
    text_flags options whose presence means that all operands are files
    most       most operands; a further one would be written
    """

    letters: str = ""
    options: tuple[str, ...] = ()
    texts: int = 0
    text_flags: tuple[str, ...] = ()
    most: int | None = None

    @property
    def is_free(self) -> bool:
        """Every word reads, whatever it is."""
        return not (self.letters or self.options or self.most is not None)


_ANY_WORDS: Final = _Reader()
_PATTERN: Final = _Reader(texts=1, text_flags=("-e", "-f"))

_NO_FILES: Final = names(
    ": true false echo pwd basename dirname seq whoami id uname nproc arch sleep which type expr "
    "exit return break continue shift cd"
)
"""Programs that touch no file, whatever their words"""

_READERS: Final = {
    **dict.fromkeys(
        names(
            "cat head tail wc ls nl cut tr stat du df cmp comm md5sum sha1sum sha224sum sha256sum "
            "sha384sum sha512sum b2sum cksum strings od hexdump realpath readlink tac rev paste "
            "fold expand unexpand fmt column join"
        ),
        _ANY_WORDS,
    ),
    **dict.fromkeys(("grep", "egrep", "fgrep"), _PATTERN),
    "jq": _Reader(texts=1, text_flags=("-f",)),
    "file": _Reader("C", ("--compile",)),
    "diff": _Reader("l", ("--paginate",)),
    "sort": _Reader("oT", ("--output", "--compress-program", "--temporary-directory")),
    "uniq": _Reader(most=1),
    "tree": _Reader("oR"),
    "rg": _Reader("z", ("--pre", "--search-zip", "--hostname-bin"), 1, ("-e", "-f", "--files")),
    "fd": _Reader("xX", ("--exec", "--exec-batch"), 1),
}
_FIND_ACTIONS: Final = ("-delete", "-fprint", "-fprint0", "-fprintf", "-fls", "-ok", "-okdir")

_GIT_READERS: Final = names(
    "status diff log show ls-files ls-tree rev-parse rev-list blame describe shortlog grep "
    "merge-base name-rev cat-file"
)
_GIT_OPTIONS: Final = (
    *("--ext-diff", "--textconv", "--filters", "--output", "--open-files-in-pager"),
    *("--show-signature", "--exec", "--upload-pack", "--no-index", "--contents"),
)
_GIT_LISTS: Final = {
    "branch": r"-a|-r|-v|-vv|--all|--remotes|--list|--show-current|--verbose",
    "tag": r"-l|--list",
    "remote": r"-v|--verbose",
    "stash": r"list|show",
    "worktree": r"list",
}
"""Subcommands that only list, with words like these alone"""
_VERSIONS: Final = names("python python3 node npm pip git cargo rustc go gcc make cmake")

_ADDRESS = r"(?:\d+|\$|/(?:[^/\\\n]|\\.)*/)"
_SED = re.compile(
    rf"(?:\s*(?:{_ADDRESS}(?:,{_ADDRESS})?)?!?\s*"
    r"(?:[pdq=]|s([/|#,])(?:(?!\1)[^\\\n]|\\.)*\1(?:(?!\1)[^\\\n]|\\.)*\1[gpiI0-9]*)\s*(?:;|$))+"
)
_MAX_LETTERS: Final = 32
"""Letters of an option behind each of which a file may stand"""
_MAX_SED: Final = 1_000
"""Characters of a script of sed that is read: where it may end is tried at every space"""
_WRITERS: Final = names(
    "rm rmdir mv cp touch mkdir ln tee truncate chmod chown chgrp install unlink shred dd rsync "
    "sed perl patch"
)


def files_read(command: Command) -> list[Access] | None:
    """Return the files that a command reads; None unless it is known to do nothing else."""
    name, words = command.name, command.arguments
    if not command.words[0].known or "/" in name:
        return None
    special = _SPECIAL.get(name)
    if special is not None:
        return special(command)
    if len(words) == 1 and name in _VERSIONS and words[0].text == "--version":
        return []
    if name in _NO_FILES:
        return []
    reader = _READERS.get(name)
    if reader is None or not _only_reads(reader, words):
        return None
    return _accesses(command, _operands(reader, words))


def _only_reads(reader: _Reader, words: Sequence[Word]) -> bool:
    if reader.is_free:
        return True
    operands = 0
    after_dashes = False
    for word in words:
        if word.splits:
            return False
        if after_dashes or not word.may_be_option or word.text == "-":
            operands += 1
            if reader.most is not None and not word.known:
                return False  # it may become several
        elif not word.known and not word.text.startswith("-"):
            return False
        elif word.text == "--":
            after_dashes = True
        elif _does_more(word.text, reader.letters, reader.options):
            return False
    return reader.most is None or operands <= reader.most


def _does_more(text: str, letters: str, options: Sequence[str]) -> bool:
    """Return whether an option is one of those listed: a letter among others, or a beginning."""
    name = text.split("=")[0]
    if text.startswith("--"):
        return ANY in name or any(option.startswith(name) for option in options)
    return bool(set(letters) & set(text)) or (bool(letters) and ANY in text)


def _operands(reader: _Reader, words: Sequence[Word]) -> list[Word]:
    """Return the words that may be files: all but the options and a leading pattern."""
    given = [word.text for word in words]
    flagged = any(
        text == flag or (len(flag) == 2 and re.match(rf"-\w*{flag[1]}", text))
        for text in given
        for flag in reader.text_flags
    )
    texts = 0 if flagged else reader.texts
    found: list[Word] = []
    only_operands = False
    for word in words:
        if only_operands or not word.text.startswith("-"):
            if texts:
                texts -= 1
            else:
                found.append(word)
            if word.text.startswith("@"):  # a file of further words, to many programs
                found.append(Word(word.text[1:]))
        elif word.text == "--":
            only_operands = True
        else:
            found += _in_option(word, reader.text_flags)
    return found


def _in_option(word: Word, flags: Sequence[str] = ()) -> list[Word]:
    """Return the parts of an option that may be a file: behind its =, behind an f that takes one,
    from a first slash, or behind any of its letters, of which one may take a file."""
    if "-f" in flags and (match := re.match(r"-\w*?f(.+)", word.text, re.S)):
        return [Word(match[1])]
    if "=" in word.text:
        return [Word(word.text.split("=", 1)[1])]
    match = re.search(r"(?:~|\.\.)?/.*|\.\.$", word.text, re.S)
    found = [Word(match[0])] if match else []
    if word.text.startswith("--"):
        return found
    letters = re.match(r"-\w*", word.text)
    num_letters = len(letters[0]) - 1 if letters else 0
    if num_letters > _MAX_LETTERS:
        return [*found, Word(ANY)]
    ends = {word.text[1 + count :] for count in range(1, num_letters + 1)}
    return [*found, *(Word(text) for text in sorted(ends) if text)]


def _accesses(command: Command, words: Sequence[Word], verb: Verb = "read") -> list[Access]:
    return [Access(verb, word, command.folders) for word in words if word.text]


def _find(command: Command) -> list[Access] | None:
    words = command.arguments
    actions = (*_FIND_ACTIONS, "-files0-from")
    if any(word.splits or word.text in actions for word in words):
        return None
    roots = []
    for word in words:
        if word.text[:1] in ("-", "(", "!"):
            break
        if not word.known and word.may_be_option:
            return None
        roots.append(word)
    # A word that is not known may be an action wherever an expression may begin.
    if not all(word.known or not word.may_be_option for word in words[len(roots) :]):
        return None
    references = [
        words[place + 1]
        for place, word in enumerate(words[:-1])
        if word.text in ("-newer", "-anewer", "-cnewer", "-samefile")
    ]
    return _accesses(command, [*roots, *references])


def _git(command: Command) -> list[Access] | None:
    words = list(command.arguments)
    if words and words[0].text == "--no-pager":
        words.pop(0)
    if not words or not words[0].known:
        return None
    name, *rest = words
    if name.text in _GIT_LISTS:
        pattern = _GIT_LISTS[name.text]
        fits = all(word.known and re.fullmatch(pattern, word.text) for word in rest)
        is_list = bool(rest) or name.text not in ("stash", "worktree")
        return [] if fits and is_list else None
    if name.text == "--version" and not rest:
        return []
    reader = _Reader("O", _GIT_OPTIONS)
    if name.text not in _GIT_READERS or not _only_reads(reader, rest):
        return None
    paths = [word for word in rest if not word.text.startswith("-")]
    for word in rest:
        if re.match(r"-\w*[fX]|--exclude", word.text):  # of patterns
            paths += _in_option(word)
    # A file of a commit, as HEAD:path, or of an option: -L1,5:path
    paths += [Word(word.text.rpartition(":")[2]) for word in rest if ":" in word.text]
    return _accesses(command, paths)


def _sed(command: Command) -> list[Access] | None:
    scripts: list[Word] = []
    files: list[Word] = []
    words = iter(command.arguments)
    has_flag = False
    for word in words:
        if word.may_be_option and not word.known:
            return None
        if word.text in ("-e", "--expression"):
            has_flag = True
            scripts.append(next(words, Word("")))
        elif re.fullmatch(r"-[nErsz]+|--quiet|--silent|--regexp-extended", word.text):
            continue
        elif word.text.startswith("-"):
            return None
        else:
            files.append(word)
    if not has_flag and files:
        scripts.append(files.pop(0))
    if not scripts or not all(
        word.known and len(word.text) <= _MAX_SED and _SED.fullmatch(word.text) for word in scripts
    ):
        return None
    return _accesses(command, files)


def _test(command: Command) -> list[Access] | None:
    return [] if is_plain_test(command.arguments) else None


def _printf(command: Command) -> list[Access] | None:
    first = command.arguments[:1]
    return [] if first and not first[0].may_be_option else None


def _date(command: Command) -> list[Access] | None:
    plain = r"\+.*|-u|-R|-I\w*|--utc|--iso-8601(=\w+)?|--rfc-3339=\w+"
    fits = all(word.known and re.fullmatch(plain, word.text, re.S) for word in command.arguments)
    return [] if fits else None


def _set(command: Command) -> list[Access] | None:
    texts = [word.text for word in command.arguments]
    fits = texts and all(re.fullmatch(r"[-+][eux]*o?|pipefail", text) for text in texts)
    return [] if fits and all(word.known for word in command.arguments) else None


def _names(command: Command) -> list[Access] | None:
    """`read` and `local` with plain names; the reader of commands has looked at the names."""
    pattern = r"-r|[a-z_][a-z0-9_]*" if command.name == "read" else rf"[a-z_][a-z0-9_]*(={ANY})?"
    fits = all(re.fullmatch(pattern, word.text) for word in command.arguments)
    return [] if fits else None


def _lookup(command: Command) -> list[Access] | None:
    return [] if command.arguments[:1] and command.arguments[0].text in ("-v", "-V") else None


def _jobs(command: Command) -> list[Access] | None:
    """`jobs` and `wait` of plain words: -x starts a program, -p sets a variable."""
    options = "-[lnprs]+" if command.name == "jobs" else "-[nf]+"
    fits = all(
        word.known and re.fullmatch(rf"{options}|%[\w?+-]*|\d+", word.text)
        for word in command.arguments
    )
    return [] if fits else None


_SPECIAL: Final[dict[str, Callable[[Command], list[Access] | None]]] = {
    "find": _find,
    "git": _git,
    "sed": _sed,
    "test": _test,
    "printf": _printf,
    "date": _date,
    "set": _set,
    "read": _names,
    "local": _names,
    "command": _lookup,
    "jobs": _jobs,
    "wait": _jobs,
}


def files_named(command: Command) -> list[Access]:
    """Return the words of any command that may name files, with what it does to them.

    A program that is known to change its operands reads and changes them; any other is taken to
    read them. What a program opens by itself is not seen here, the sandbox bounds that.
    """
    words = _operands(_ANY_WORDS, command.arguments)
    words = [word for word in words if not word.splits and word.text.strip(ANY)]
    found = _accesses(command, words)
    if command.name in _WRITERS:
        found += _accesses(command, [_value(word) for word in words], "edit")
    return found


def _value(word: Word) -> Word:
    """Return the file in a word such as dd's of=file."""
    match = re.match(r"[a-z]+=(.*)", word.text, re.S)
    return Word(match[1]) if match else word


# Proposals

_PREFIXED: Final = names(
    "pytest ruff mypy pyright flake8 black isort eslint prettier tsc jest vitest"
)
_SUBCOMMANDS: Final = {
    "git": names("add commit checkout switch restore stash branch tag mv"),
    "cargo": names("build check test clippy fmt"),
    "npm": frozenset(["test"]),
    "pnpm": frozenset(["test"]),
    "yarn": frozenset(["test"]),
}


_INTERPRETERS: Final = re.compile(
    r"(?:ba|da|z|k|c|fi)?sh|python[\d.]*|pypy\d?|node|deno|bun|perl|ruby|php|lua|Rscript|psql|"
    r"sqlite3|mysql|ssh|xargs|parallel|bc|gdb|awk|gawk|make|ed|ex|source|\."
)


def runs_input(command: Command) -> bool:
    """Return whether a program may run what it reads from its standard input."""
    is_named = bool(_INTERPRETERS.fullmatch(command.name.rpartition("/")[2]))
    return is_named and not any(word.text[:1] not in ("-", "") for word in command.arguments)


def prefix_of(command: Command) -> str | None:
    """Return the beginning of a command that may be allowed with any arguments, or None.

    It is never that of an interpreter, of a program that starts others, or of one that removes
    or sends: those are remembered word for word.
    """
    name, second, third, *_ = *command.words, Word(""), Word("")
    if not (name.known and second.known):
        return name.text if name.known and name.text in _PREFIXED else None
    if name.text in _PREFIXED:
        return name.text
    if second.text in _SUBCOMMANDS.get(name.text, ()):
        return f"{name.text} {second.text}"
    is_script = name.text in ("npm", "pnpm", "yarn") and second.text == "run" and third.known
    if is_script and re.fullmatch(r"[\w.:-]+", third.text):
        return f"{name.text} run {third.text}"
    return None
