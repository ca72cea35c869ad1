"""Words of a shell command as far as they are known before it runs, and simple commands of them.

A word's text holds marks (`ANY`, `NAME`, `BELOW`) where only the run decides. So one text stands
for every value the word can have, and a rule can ask what holds for all of them.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fulmen.agent.rules import ANY, BELOW, MARKS, NAME, WORDS

Verb = Literal["read", "edit"]


@dataclass(frozen=True, slots=True)
class Word:
    """One word after quotes and expansions.

    text    its characters, with marks for those that are not known
    splits  an expansion without quotes: it may become several words, or none
    """

    text: str
    splits: bool = False

    @property
    def known(self) -> bool:
        return not self.splits and not MARKS & set(self.text)

    @property
    def may_be_option(self) -> bool:
        """A word that begins with a dash, or may."""
        return self.splits or self.text[:1] == "-" or self.text[:1] in MARKS


UNKNOWN: Final = Word(ANY, splits=True)


@dataclass(frozen=True, slots=True)
class Access:
    """A file that is read or changed: a word that names it, from one of some folders.

    folders  absolute; None if the folder is not known
    """

    verb: Verb
    word: Word
    folders: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command: its words, the variables set for it, and the commands it starts itself.

    source  the text it was read from
    inner   what a program like `xargs` or `bash -c` starts
    wraps   the program does nothing but start those
    """

    words: tuple[Word, ...]
    source: str
    folders: frozenset[str] | None
    variables: tuple[str, ...] = ()
    inner: tuple["Command", ...] = ()
    wraps: bool = False

    @property
    def name(self) -> str:
        """The program: without its folder where that is the system's, else as it was written."""
        return program(self.words[0].text)

    @property
    def arguments(self) -> tuple[Word, ...]:
        return self.words[1:]

    def spellings(self) -> tuple[str, ...]:
        """Return the texts that rules are matched with; the first is the one for allow rules.

        The others, by the program's bare name and without quotes, are for ask and deny rules.
        """
        spelled = _joined(self.words)
        bare = Word(os.path.basename(self.words[0].text) or self.words[0].text)
        plain = " ".join(word.text for word in self.words).replace(NAME, ANY)
        named: list[Sequence[Word]] = [self.words[1:]]
        if bare.text == "git":
            named = _subcommands(self.words[1:])
        return tuple(dict.fromkeys((spelled, *(_joined((bare, *one)) for one in named), plain)))

    def flattened(self) -> list["Command"]:
        """Return the command and all that it starts."""
        return [self, *(one for inner in self.inner for one in inner.flattened())]


def names(text: str) -> frozenset[str]:
    """Return the words of a text, as a set to look names up in."""
    return frozenset(text.split())


def program(name: str) -> str:
    """Return a program's name without the folders that every system has."""
    folder, _, bare = name.rpartition("/")
    return bare if folder in ("/bin", "/usr/bin") else name


_GIT_ALONE: Final = names(
    "-p --paginate -P --no-pager --bare --no-replace-objects --no-lazy-fetch --no-optional-locks "
    "--no-advice --literal-pathspecs --glob-pathspecs --noglob-pathspecs --icase-pathspecs"
)
_GIT_VALUED: Final = names(
    "-C -c --git-dir --work-tree --namespace --super-prefix --config-env --attr-source --list-cmds"
)


def _subcommands(words: Sequence[Word]) -> list[Sequence[Word]]:
    """Return the words of git from its subcommand on, without options before it; more than once
    where it is not known whether an option has a value."""
    found: list[Sequence[Word]] = []
    rest = list(words)
    while rest and rest[0].text.startswith("-"):
        option = rest.pop(0).text
        if option in _GIT_VALUED:
            del rest[:1]
        elif option not in _GIT_ALONE and "=" not in option:
            found.append(rest[1:])
    return [rest or words, *found]


def _joined(words: Sequence[Word]) -> str:
    text = ""
    for word in words:
        if word.splits and not word.text.strip(ANY):
            text += WORDS
        elif word.known:
            text += " " + shlex.quote(word.text)
        else:  # what a name's mark stands for may be several words here
            text += " " + word.text.replace(NAME, ANY).replace(BELOW, ANY)
    return text.removeprefix(" ")


def common(words: Sequence[Word]) -> Word:
    """Return one word that stands for any of several."""
    if not words or any(word.splits for word in words):
        return UNKNOWN if words else Word(ANY)
    texts = [word.text for word in words]
    if len(set(texts)) == 1:
        return Word(texts[0])
    prefix = _beginning(texts)
    rests = [text[len(prefix) :] for text in texts]
    suffix = _beginning([rest[::-1] for rest in rests])[::-1]
    middles = "".join(rest[: len(rest) - len(suffix)] for rest in rests)
    climbs = any(".." in text for text in texts)
    # As of a wildcard, nobody would think of a hidden file where a name's mark begins a name.
    hides = prefix[-1:] in ("", "/") and any(text[len(prefix) :][:1] == "." for text in texts)
    mark = ANY if climbs or hides or {"/", ANY, BELOW} & set(middles) else NAME
    return Word(prefix + mark + suffix)


def _beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all others do
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((place for place, (a, b) in pairs if a != b), len(first))]


NUMERIC_TESTS: Final = ("-eq", "-ne", "-lt", "-le", "-gt", "-ge")


def is_plain_test(operands: Sequence[Word]) -> bool:
    """Return whether `test` or `[` only compares: its -v and -R run what their operand holds."""
    operands = [word for word in operands if word.text != "!"]
    if any(word.splits or word.text in ("-v", "-R") for word in operands):
        return False
    if all(word.known for word in operands) or len(operands) == 1:
        return True
    operator = operands[-2]
    return len(operands) <= 3 and operator.known and is_operator(operator.text)


def is_operator(text: str) -> bool:
    """Return whether a word is an operator of `test`."""
    return text in ("=", "==", "!=", "<", ">") or (text[:1] == "-" and text[1:].isalpha())
