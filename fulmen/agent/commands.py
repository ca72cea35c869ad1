"""Shell text to the simple commands in it, the files it redirects, and what cannot be known.

tree-sitter reads the text, which is not how bash itself does. So nothing is taken on trust: a
node of a kind that is not listed here, a gap between nodes that is not white space, a word with a
character that ends words, or a comment where bash may see none makes the whole text unreadable.
What is read is walked in the order it stands in, with the folders that `cd` may have led to.

Commands in loops, branches, functions, substitutions and the texts of `bash -c` and `eval` are
all found, whether they would run or not.
"""

import os.path
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from time import thread_time
from typing import TYPE_CHECKING, Any, Final

from fulmen.agent.expansions import (
    MAX_DEPTH,
    NUMBER,
    Unreadable,
    WordReader,
    is_harmless_variable,
    shown,
)
from fulmen.agent.rules import ANY, MARKS
from fulmen.agent.starters import file_of_lines, lists_names, started_by
from fulmen.agent.words import Access, Command, Verb, Word, common, names

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_BYTES: Final = 64 * 2**10
"""Longest text that is read"""
MAX_COMMANDS: Final = 2_000
_MAX_TEXTS: Final = 4
"""Deepest nesting of texts within texts, such as bash -c 'eval "ls"'"""
_MAX_SECONDS: Final = 2.0
"""Longest reading, in this thread's own time: a busy machine makes no other verdict"""
_MAX_FOLDERS: Final = 8


@dataclass(slots=True)
class Script:
    """All that a text does as far as it shows.

    commands  the simple commands, and below each those it starts
    accesses  files of redirections, and of the lines that xargs reads
    unknown   what is known only when it runs, a phrase each
    """

    commands: list[Command] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def flattened(self) -> list[Command]:
        return [one for command in self.commands for one in command.flattened()]


def read_script(text: str, folder: str) -> Script:
    """Read a command of the shell that begins in a folder.

    Raises ValueError if the parser is not installed. A text that cannot be read is a Script with
    nothing but the reason, in `unknown`.
    """
    try:
        return _Reader(text, frozenset((folder,)), deadline=thread_time() + _MAX_SECONDS).read()
    except Unreadable as error:
        return Script(unknown=[str(error)])


def _parser() -> Any:
    try:
        import tree_sitter
        import tree_sitter_bash
    except ImportError:
        raise ValueError(
            "tree-sitter and tree-sitter-bash, which read shell commands, are not installed; "
            "pip install 'fulmen[agent]'"
        ) from None
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


# Characters

_FORBIDDEN = re.compile(
    r"[^\S \t\n]|[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060\ufeff]"
)
_JOINED = re.compile(r"[^ \t]\\\n|^\\\n")
"""A continued line that does not part words by a blank"""
_RESERVED: Final = names(
    "if then elif else fi for in do done while until case esac select function coproc { } [[ ]] !"
)
_INSIDE: Final = names(
    "program pipeline subshell if_statement elif_clause else_clause while_statement do_group "
    "negated_command command_substitution process_substitution variable_assignments"
)
"""Nodes that only hold others"""
_LITERAL: Final = ("word", "number", "raw_string")
_MEANT: Final = names("cd read eval command builtin exec env xargs bash sh find git test [ set")
"""Programs whose effect is followed here, so that nothing may stand for them"""
_AGAIN: Final = names("while_statement for_statement c_style_for_statement function_definition")
"""Nodes whose commands may run more than once, or later"""
_NO_FILES: Final = ("/dev/null", "/dev/stdout", "/dev/stderr", "/dev/stdin")


def _anywhere(command: Command) -> Command:
    """Return a command, and all that it starts, without the folders it may run in."""
    return replace(command, folders=None, inner=tuple(map(_anywhere, command.inner)))


class _Reader(WordReader):
    """One text on its way to a Script."""

    def __init__(
        self, text: str, folders: frozenset[str] | None, *, deadline: float, depth: int = 0
    ) -> None:
        try:
            super().__init__(text)
        except UnicodeEncodeError:
            raise Unreadable("the command is not Unicode text") from None
        if len(self.source) > MAX_BYTES:
            raise Unreadable(f"the command is longer than {MAX_BYTES // 1024} KiB")
        if depth > _MAX_TEXTS:
            raise Unreadable("commands are nested too deeply in texts of other commands")
        if _FORBIDDEN.search(text) or MARKS & set(text):
            raise Unreadable("the command holds a control character or an unusual space")
        if _JOINED.search(text):
            raise Unreadable("a line is continued in the middle of a word")
        self.folders, self.deadline, self.depth = folders, deadline, depth
        self.script = Script()
        self.piped: Word | None = None
        self.moves = self.repeats = False
        self.reached: frozenset[str] | None = None

    def read(self) -> Script:
        tree = _parser().parse(self.source)
        if tree.root_node.has_error:
            raise Unreadable("the command is not shell text that can be read")
        self._visit(tree.root_node, 0)
        if self.moves and self.repeats:  # the same words may run in more than one folder
            self.folders = None
            script = self.script
            script.commands = [_anywhere(command) for command in script.commands]
            script.accesses = [replace(access, folders=None) for access in script.accesses]
        return self.script

    # Nodes

    def _visit(self, node: "Node", level: int) -> None:
        if level > MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        if thread_time() > self.deadline or len(self.script.commands) > MAX_COMMANDS:
            raise Unreadable("the command is too long to be read in time")
        self.check_gaps(node)
        kind = node.type
        self.repeats = self.repeats or kind in _AGAIN
        visit = getattr(self, f"_visit_{kind}", None)
        if visit is not None:
            visit(node, level + 1)
        elif kind in _INSIDE:
            self._visit_children(node, level + 1)
        elif node.is_named:
            raise Unreadable(f"the command has a part that is not read here ({kind})")

    def _visit_children(self, node: "Node", level: int) -> None:
        for child in node.children:
            if child.is_named:
                self._visit(child, level)

    # Commands

    def _visit_list(self, node: "Node", level: int) -> None:
        """Read commands joined by && and ||: what follows `cd x &&` runs in x only."""
        links: list[Node] = [node]
        while links[0].type == "list":
            self.check_gaps(links[0])
            links[:1] = links[0].children
        any_of: frozenset[str] | None = frozenset()
        for place in range(0, len(links), 2):
            self.reached = None
            self._visit(links[place], level)
            known = any_of is not None and self.folders is not None
            any_of = (any_of or frozenset()) | (self.folders or frozenset()) if known else None
            is_sure = all(link.type == "&&" for link in links[1 : place + 2 : 2])
            if is_sure and self.reached is not None and links[place].type == "command":
                self.folders = self.reached
            elif not is_sure:
                self.folders = any_of
        self.folders = any_of

    def _visit_pipeline(self, node: "Node", level: int) -> None:
        outer = self.piped
        for child in node.named_children:
            first = len(self.script.commands)
            self._visit(child, level)
            stage = self.script.commands[first:]
            self.piped = lists_names(stage[0], self.piped) if len(stage) == 1 else None
        self.piped = outer

    def _visit_command(
        self, node: "Node", level: int, more: Iterable["Node"] = (), dashes: int = 0
    ) -> None:
        words: list[Word] = []
        variables: list[str] = []
        for child in [*node.children, *more]:
            if child.type == "$":
                words.append(Word("$"))
            elif not child.is_named:
                raise Unreadable(f"a command holds {shown(child.type)}")
            elif child.type == "variable_assignment":
                variables.append(self._assignment(child, level))
            elif child.type.endswith("_redirect"):
                self._visit(child, level)
            elif child.type == "command_name":
                words.append(self.word(child.named_children[0], level))
            else:
                words.append(self.word(child, level))
        words += [Word("-")] * (dashes + self.check_gaps(node))
        self._add(words, node, variables)

    def _visit_redirected_statement(self, node: "Node", level: int) -> None:
        body = node.child_by_field_name("body")
        redirects = node.children_by_field_name("redirect")
        extra: list[Node] = []
        for redirect in redirects:
            # What follows a redirection is read as a part of it, bash gives it to the command.
            if redirect.type == "file_redirect":
                extra += redirect.children_by_field_name("destination")[1:]
            elif redirect.type == "heredoc_redirect":
                extra += redirect.children_by_field_name("argument")
            elif redirect.type == "herestring_redirect":
                extra += redirect.named_children[1:]
        if body is not None and body.type == "command":
            self._visit_command(body, level, extra, self.check_gaps(node))
        elif extra:
            raise Unreadable("words stand behind a redirection")
        elif body is not None:
            self._visit(body, level)
        for redirect in redirects:
            self._visit(redirect, level)

    def _visit_declaration_command(self, node: "Node", level: int) -> None:
        words = [Word(self.text_of(node.children[0]))]
        for child in node.children[1:]:
            if child.type == "variable_assignment":
                self._assignment(child, level)
                words.append(Word(self.text_of(child).split("=")[0] + "=" + ANY))
            elif child.type == "variable_name":
                words.append(Word(self.text_of(child)))
            else:
                words.append(self.word(child, level))
        self._add(words, node)

    def _visit_unset_command(self, node: "Node", level: int) -> None:
        names = [self.text_of(one) for one in node.children if one.type == "variable_name"]
        rest = [one for one in node.children[1:] if one.type != "variable_name"]
        words = [Word(self.text_of(node.children[0])), *map(Word, names)]
        self._add([*words, *(self.word(one, level) for one in rest)], node)

    def _visit_variable_assignment(self, node: "Node", level: int) -> None:
        name = self._assignment(node, level)
        if not is_harmless_variable(name):
            self.add_unknown(f"{name}= may lead later commands elsewhere")
        self._bind(name, node)

    def _assignment(self, node: "Node", level: int) -> str:
        """Read an assignment for the commands in its value; return the variable's name."""
        self.check_gaps(node)
        name = node.child_by_field_name("name")
        value = node.child_by_field_name("value")
        assert name is not None
        if name.type == "subscript":
            self._visit(name, level)
            name = name.named_children[0]
        for place, child in enumerate(node.named_children):
            if value is not None and child.type == "array":
                self.check_gaps(child)
                for item in child.named_children:
                    if self.text_of(item).startswith("["):
                        raise Unreadable("an array has subscripts")
                    self.word(item, level)
            elif place > 0:
                self.word(child, level)
        return self.text_of(name)

    def _bind(self, name: str, node: "Node") -> None:
        """Remember the value of a variable that is set once, to known text, before all else."""
        parent = node.parent
        value = node.child_by_field_name("value")
        is_plain = parent is not None and parent.type == "program" and self.piped is None
        if value is None or not is_plain or self.text_of(node)[len(name)] != "=":
            return
        if NUMBER.fullmatch(self.text_of(value)):
            self.numeric.add(name)
        if self.mentions(name) == 1 and value.type in _LITERAL:
            word = self.word(value, 0)
            if word.known:
                self.bound[name] = word

    def _visit_function_definition(self, node: "Node", level: int) -> None:
        name = node.child_by_field_name("name")
        assert name is not None
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", self.text_of(name)):
            raise Unreadable("a function has an unusual name")
        if self.text_of(name) in _MEANT:
            self.add_unknown(f"a function takes the place of {self.text_of(name)}")
        for child in node.named_children:
            if child != name:
                self._visit(child, level)

    # Loops and branches

    def _visit_for_statement(self, node: "Node", level: int) -> None:
        variable, body = node.child_by_field_name("variable"), node.child_by_field_name("body")
        assert variable is not None
        assert body is not None
        name = self.text_of(variable)
        if not is_harmless_variable(name):
            self.add_unknown(f"{name} may lead later commands elsewhere")
        values = [self.word(one, level) for one in node.children_by_field_name("value")]
        before = self.bound.pop(name, None)
        if values and self.mentions(name) == 1:
            self.bound[name] = common(values)
        self._visit(body, level)
        self.bound.pop(name, None)
        if before is not None:
            self.bound[name] = before

    def _visit_c_style_for_statement(self, node: "Node", level: int) -> None:
        body = node.child_by_field_name("body")
        initializer = node.child_by_field_name("initializer")
        if initializer is not None and initializer.type == "variable_assignment":
            name, _, value = self.text_of(initializer).partition("=")
            if NUMBER.fullmatch(value.strip()):
                self.numeric.add(name.strip())
        for child in node.named_children:
            if child == body:
                self._visit(child, level)
            elif child.type != "comment":
                self.arithmetic(child, level)

    def _visit_case_statement(self, node: "Node", level: int) -> None:
        for child in node.named_children:
            if child.type == "case_item":
                self.check_gaps(child)
                values = child.children_by_field_name("value")
                for value in values:
                    if value.type == "extglob_pattern":
                        self.check_word(self.text_of(value))
                    else:
                        self.word(value, level)
                for part in child.named_children:
                    if part not in values:
                        self._visit(part, level)
            elif child.type == "comment":
                self._visit(child, level)
            else:
                self.word(child, level)

    def _visit_compound_statement(self, node: "Node", level: int) -> None:
        if self.source[node.start_byte : node.start_byte + 2] == b"((":
            self.arithmetic(node, level)
        else:
            self._visit_children(node, level)

    # Redirections

    def _visit_file_redirect(self, node: "Node", level: int) -> None:
        operator = next(child.type for child in node.children if not child.is_named)
        targets = node.children_by_field_name("destination")
        parent = node.parent
        if len(targets) != 1 and (parent is None or parent.type != "redirected_statement"):
            raise Unreadable("words stand behind a redirection")
        if operator in (">&-", "<&-"):
            return
        if operator not in (">", ">>", ">|", "&>", "&>>", "<", ">&", "<&") or not targets:
            raise Unreadable(f"the redirection {operator} is not read here")
        word = self.word(targets[0], level)
        if operator in (">&", "<&") and re.fullmatch(r"\d+-?|-", word.text):
            return
        if operator == "<&":
            raise Unreadable("a descriptor is copied from one that is not known")
        self._access("read" if operator == "<" else "edit", word)

    def _visit_herestring_redirect(self, node: "Node", level: int) -> None:
        self.word(node.named_children[0], level)

    def _visit_heredoc_redirect(self, node: "Node", level: int) -> None:
        self.check_heredoc(node, level)
        for child in node.named_children:
            if child.type in ("heredoc_start", "heredoc_body", "heredoc_end"):
                continue
            if child not in node.children_by_field_name("argument"):
                self._visit(child, level)

    def visit_substitution(self, node: "Node", level: int) -> None:
        if "\\" in self.text_of(node) and self.text_of(node).startswith("`"):
            raise Unreadable("backquotes hold a backslash")
        folders, piped = self.folders, self.piped
        self.piped = None
        self._visit(node, level + 1)
        self.folders, self.piped = folders, piped

    # Results

    def _add(self, words: list[Word], node: "Node", variables: Iterable[str] = ()) -> None:
        """Add a command, and those it starts."""
        source = self.text_of(node)
        if not words:
            return
        first = words[0]
        if not first.known or not first.text:
            self.add_unknown(f"the program of `{shown(source)}` is known only when it runs")
            words = [Word(ANY), *words[1:]] if first.splits else words
        if first.text in _RESERVED and source.startswith(first.text):
            raise Unreadable(f"{first.text} stands where a command is expected")
        command = Command(tuple(words), source, self.folders, tuple(variables))
        command = self._with_inner(command, 0)
        if command.name == "read":
            self._check_names(command)
        self.script.commands.append(command)
        for one in command.flattened():
            for name in one.variables:
                if not is_harmless_variable(name) and (name, one.name) != ("IFS", "read"):
                    self.add_unknown(f"{name}= may lead {one.name} elsewhere")
        for one in command.flattened():
            if one.name in ("cd", "pushd", "popd"):
                self._change_folder(one)

    def _with_inner(self, command: Command, depth: int) -> Command:
        if (lines := file_of_lines(command)) is not None:
            self._access("read", lines)
        started = started_by(command, self.piped)
        if started is None:
            return command
        if depth > 8 or thread_time() > self.deadline:
            raise Unreadable("programs start each other too deeply")
        inner: list[Command] = []
        for words in started.commands:
            if not words[0].known:
                self.add_unknown(
                    f"the program of `{shown(command.source)}` is known only when it runs"
                )
            one = Command(words, command.source, self.folders, started.variables)
            inner.append(self._with_inner(one, depth + 1))
        for text in started.texts:
            inner += self._nested(text, is_later=command.name == "trap")
        if started.unknown:
            self.add_unknown(f"`{shown(command.source)}` {started.unknown}")
        return replace(command, inner=tuple(inner), wraps=started.wraps)

    def _nested(self, text: str, *, is_later: bool) -> list[Command]:
        reader = _Reader(text, self.folders, deadline=self.deadline, depth=self.depth + 1)
        script = reader.read()
        self.moves = self.moves or reader.moves
        self.repeats = self.repeats or reader.repeats or is_later
        self.folders = None if reader.folders != self.folders else self.folders
        self.script.accesses += script.accesses
        self.script.unknown += script.unknown
        return script.commands

    def _check_names(self, command: Command) -> None:
        for word in command.arguments:
            if not re.fullmatch(r"-r|[a-z_]\w*", word.text) or not is_harmless_variable(
                word.text.replace("-r", "r")
            ):
                self.add_unknown(f"`{shown(command.source)}` may set any variable")

    def _change_folder(self, command: Command) -> None:
        words = [word for word in command.arguments if word.text not in ("--", "-P", "-L")]
        self.moves = True
        if self.folders is None:
            return
        if not words:
            words = [Word("~")]
        if (
            command.name != "cd"
            or len(words) > 1
            or not words[0].known
            or words[0].text in ("-", "")
        ):
            self.folders = None
            return
        target = words[0].text
        reached = {os.path.normpath(os.path.join(folder, target)) for folder in self.folders}
        self.reached = frozenset((target,) if target.startswith("~") else reached)
        self.folders = self.folders | self.reached
        if len(self.folders) > _MAX_FOLDERS:
            self.folders = None

    def _access(self, verb: Verb, word: Word) -> None:
        if word.text not in _NO_FILES and not re.fullmatch(r"/dev/fd/\d", word.text):
            self.script.accesses.append(Access(verb, word, self.folders))

    def add_unknown(self, phrase: str) -> None:
        if phrase not in self.script.unknown:
            self.script.unknown.append(phrase)
