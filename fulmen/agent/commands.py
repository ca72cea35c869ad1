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
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from fulmen.agent.rules import ANY, BELOW, MARKS, NAME
from fulmen.agent.starters import Started, lists_names, started_by
from fulmen.agent.words import (
    NUMERIC_TESTS,
    UNKNOWN,
    Access,
    Command,
    Verb,
    Word,
    common,
    is_plain_test,
)

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_BYTES: Final = 64 * 2**10
"""Longest text that is read"""
MAX_COMMANDS: Final = 2_000
_MAX_DEPTH: Final = 120
_MAX_TEXTS: Final = 4
"""Deepest nesting of texts within texts, such as bash -c 'eval "ls"'"""
_MAX_SECONDS: Final = 2.0
_MAX_FOLDERS: Final = 8


class Unreadable(Exception):
    """A text that cannot be read, or not as bash surely does; the message says why."""


@dataclass(slots=True)
class Script:
    """All that a text does as far as it shows.

    commands  the simple commands, and below each those it starts
    accesses  files of redirections
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
        return _Reader(text, frozenset((folder,)), deadline=monotonic() + _MAX_SECONDS).read()
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
_WORD = re.compile(r"""(?:[^\s;|&<>()'"`$\\#]|(?<!^)\#|\\[^\n])+\$?|\$""")
_QUOTED = re.compile(r"""(?:[^"`$\\]|\\.|\$(?![\w({?@*#!\[\-$'"]))*""", re.S)
_HEREDOC = re.compile(r"(?:[^`$\\]|\\[^\n]|\$(?![\w({?@*#!\[\-$]))*")
_BRACES = re.compile(r"\{[^}]*(?:,|\.\.)")
_DELIMITER = re.compile(r"""(\w+)|'(\w+)'|"(\w+)\"""")
_NUMBER = re.compile(r"-?\d+")
_HARMLESS_NAME = re.compile(
    r"[a-z_][a-z0-9_]*|LC_[A-Z]+|LANG|TZ|COLUMNS|NO_COLOR|FORCE_COLOR|CI|DEBUG|N|I|"
    r"DIR|FILE|FILES|NAME|COUNT|ROOT|OUT|PYTHONDONTWRITEBYTECODE|PYTHONUNBUFFERED|PYTHONHASHSEED"
)
_HARMFUL_NAME = re.compile(r".*_proxy|npm_.*|histchars|auto_resume|_")

_RESERVED: Final = frozenset(
    "if then elif else fi for in do done while until case esac select function coproc { } [[ ]] !"
    " time ((".split()
)
_INSIDE: Final = frozenset(
    "program list pipeline subshell compound_statement if_statement elif_clause else_clause "
    "while_statement do_group case_item negated_command command_substitution "
    "process_substitution variable_assignments".split()
)
"""Nodes that only hold others"""
_REPEATED: Final = ("while_statement", "for_statement", "c_style_for_statement")
_PLAIN_OPERATORS: Final = frozenset(":- - := = :? ? :+ + # ## % %% / // /# /% , ,, ^ ^^".split())
_NO_FILES: Final = ("/dev/null", "/dev/stdout", "/dev/stderr", "/dev/stdin")


def is_harmless_variable(name: str) -> bool:
    """Return whether no program is known to be led elsewhere by a variable of this name."""
    return bool(_HARMLESS_NAME.fullmatch(name)) and not _HARMFUL_NAME.fullmatch(name)


class _Reader:
    """One text on its way to a Script."""

    def __init__(
        self, text: str, folders: frozenset[str] | None, *, deadline: float, depth: int = 0
    ) -> None:
        try:
            self.source = text.encode()
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
        self.text, self.folders, self.deadline, self.depth = text, folders, deadline, depth
        self.script = Script()
        self.bound: dict[str, Word] = {}
        self.numeric: set[str] = set()
        self.piped: Word | None = None
        self.loops = 0

    def read(self) -> Script:
        tree = _parser().parse(self.source)
        if tree.root_node.has_error:
            raise Unreadable("the command is not shell text that can be read")
        if re.search(r"\b(?:cd|pushd|popd)\b", self.text) and re.search(
            r"\b(?:for|while|until|select|function|eval|trap|pushd|popd|CDPATH)\b|\(\s*\)",
            self.text,
        ):
            self.folders = None  # a folder may change between two runs of the same words
        self._visit(tree.root_node, 0)
        return self.script

    # Nodes

    def _visit(self, node: "Node", level: int) -> None:
        if level > _MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        if monotonic() > self.deadline or len(self.script.commands) > MAX_COMMANDS:
            raise Unreadable("the command is too long to be read in time")
        self._check_gaps(node)
        kind = node.type
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

    def _check_gaps(self, node: "Node") -> int:
        """Raise unless all text of a node belongs to a child or is white space.

        Returns how many words that are only a dash, for which there are no nodes, a command has.
        """
        dashes = 0
        if not node.children or node.type in ("string", "heredoc_body"):
            return dashes  # the text of these is checked where it is read
        end = node.start_byte
        for child in node.children:
            gap = self.source[end : child.start_byte].replace(b"\\\n", b" ")
            if gap.strip(b" \t\n"):
                found = re.findall(rb"(?<=[ \t])-(?=[ \t]|$)", gap)
                is_command = node.type in ("command", "redirected_statement")
                if not is_command or gap.replace(b"-", b"", len(found)).strip(b" \t"):
                    raise Unreadable("the command has text that belongs to none of its parts")
                dashes += len(found)
            end = max(end, child.end_byte)
        return dashes

    def _of(self, node: "Node") -> str:
        return self.source[node.start_byte : node.end_byte].decode()

    def _visit_comment(self, node: "Node", level: int) -> None:
        before = self.source[: node.start_byte]
        if before and before[-1:] not in b" \t\n;|&()":
            raise Unreadable("a # stands in the middle of a word")

    # Commands

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
        for child in [*node.named_children, *more]:
            if child.type == "variable_assignment":
                variables.append(self._assignment(child, level))
            elif child.type.endswith("_redirect"):
                self._visit(child, level)
            elif child.type == "command_name":
                words.append(self._word(child.named_children[0], level))
            else:
                words.append(self._word(child, level))
        words += [Word("-")] * (dashes + self._check_gaps(node))
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
            self._visit_command(body, level, extra, self._check_gaps(node))
        elif extra:
            raise Unreadable("words stand behind a redirection")
        elif body is not None:
            self._visit(body, level)
        for redirect in redirects:
            self._visit(redirect, level)

    def _visit_declaration_command(self, node: "Node", level: int) -> None:
        words = [Word(self._of(node.children[0]))]
        for child in node.children[1:]:
            if child.type == "variable_assignment":
                self._assignment(child, level)
                words.append(Word(self._of(child).split("=")[0] + "=" + ANY))
            elif child.type == "variable_name":
                words.append(Word(self._of(child)))
            else:
                words.append(self._word(child, level))
        self._add(words, node)

    def _visit_unset_command(self, node: "Node", level: int) -> None:
        names = [self._of(one) for one in node.children if one.type == "variable_name"]
        rest = [one for one in node.children[1:] if one.type != "variable_name"]
        words = [Word(self._of(node.children[0])), *map(Word, names)]
        self._add([*words, *(self._word(one, level) for one in rest)], node)

    def _visit_variable_assignment(self, node: "Node", level: int) -> None:
        name = self._assignment(node, level)
        if not is_harmless_variable(name):
            self._unknown(f"{name}= may lead later commands elsewhere")
        self._bind(name, node)

    def _assignment(self, node: "Node", level: int) -> str:
        """Read an assignment for the commands in its value; return the variable's name."""
        self._check_gaps(node)
        name = node.child_by_field_name("name")
        value = node.child_by_field_name("value")
        assert name is not None
        if name.type == "subscript":
            self._visit(name, level)
            name = name.named_children[0]
        for place, child in enumerate(node.named_children):
            if value is not None and child.type == "array":
                self._check_gaps(child)
                for item in child.named_children:
                    if self._of(item).startswith("["):
                        raise Unreadable("an array has subscripts")
                    self._word(item, level)
            elif place > 0:
                self._word(child, level)
        return self._of(name)

    def _bind(self, name: str, node: "Node") -> None:
        """Remember the value of a variable that is set once, to known text, before all else."""
        parent = node.parent
        value = node.child_by_field_name("value")
        is_plain = parent is not None and parent.type == "program" and self.piped is None
        if value is None or not is_plain or self._of(node)[len(name)] != "=":
            return
        if _NUMBER.fullmatch(self._of(value)):
            self.numeric.add(name)
        if self._mentions(name) == 1 and value.type != "array":
            word = self._word(value, 0)
            if word.known:
                self.bound[name] = word

    def _mentions(self, name: str) -> int:
        """Return how often a name stands where something could set it."""
        return len(re.findall(rf"(?<![\w$])(?<!\${{){re.escape(name)}\b", self.text))

    def _visit_function_definition(self, node: "Node", level: int) -> None:
        name = node.child_by_field_name("name")
        assert name is not None
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", self._of(name)):
            raise Unreadable("a function has an unusual name")
        for child in node.named_children:
            if child != name:
                self._visit(child, level)

    def _visit_test_command(self, node: "Node", level: int) -> None:
        is_keyword = self.source[node.start_byte : node.start_byte + 2] == b"[["
        if self.source[node.start_byte : node.start_byte + 2] == b"((":
            self._arithmetic(node, level)
            return
        words = self._operands(node, level)
        if not (_is_plain_keyword(words) if is_keyword else is_plain_test(words)):
            self._unknown(f"`{_shown(self._of(node))}` may run what its operands hold")

    def _operands(self, node: "Node", level: int) -> list[Word]:
        if level > _MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        words: list[Word] = []
        self._check_gaps(node)
        for child in node.children:
            if child.type.endswith("_expression"):
                words += self._operands(child, level + 1)
            elif not child.is_named or child.type == "test_operator":
                words.append(Word(self._of(child)))
            elif child.type in ("regex", "extglob_pattern"):
                self._check_word(self._of(child).replace("(", "").replace(")", "").replace("|", ""))
                words.append(Word(ANY))
            else:
                words.append(self._word(child, level))
        return [word for word in words if word.text not in ("[", "]", "[[", "]]", "(", ")")]

    # Loops and branches

    def _visit_for_statement(self, node: "Node", level: int) -> None:
        variable, body = node.child_by_field_name("variable"), node.child_by_field_name("body")
        assert variable is not None and body is not None
        name = self._of(variable)
        if not is_harmless_variable(name):
            self._unknown(f"{name} may lead later commands elsewhere")
        values = [self._word(one, level) for one in node.children_by_field_name("value")]
        before = self.bound.pop(name, None)
        if values and self._mentions(name) == 1:
            self.bound[name] = common(values)
        self._visit(body, level)
        self.bound.pop(name, None)
        if before is not None:
            self.bound[name] = before

    def _visit_c_style_for_statement(self, node: "Node", level: int) -> None:
        body = node.child_by_field_name("body")
        initializer = node.child_by_field_name("initializer")
        if initializer is not None and initializer.type == "variable_assignment":
            name, _, value = self._of(initializer).partition("=")
            if _NUMBER.fullmatch(value.strip()):
                self.numeric.add(name.strip())
        for child in node.named_children:
            if child == body:
                self._visit(child, level)
            elif child.type != "comment":
                self._arithmetic(child, level)

    def _visit_case_statement(self, node: "Node", level: int) -> None:
        for child in node.named_children:
            if child.type == "case_item":
                self._check_gaps(child)
                values = child.children_by_field_name("value")
                for value in values:
                    if value.type == "extglob_pattern":
                        self._check_word(self._of(value))
                    else:
                        self._word(value, level)
                for part in child.named_children:
                    if part not in values:
                        self._visit(part, level)
            elif child.type == "comment":
                self._visit(child, level)
            else:
                self._word(child, level)

    def _visit_compound_statement(self, node: "Node", level: int) -> None:
        if self.source[node.start_byte : node.start_byte + 2] == b"((":
            self._arithmetic(node, level)
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
        word = self._word(targets[0], level)
        if operator in (">&", "<&") and re.fullmatch(r"\d+-?|-", word.text):
            return
        if operator == "<&":
            raise Unreadable("a descriptor is copied from one that is not known")
        self._access("read" if operator == "<" else "edit", word)

    def _visit_herestring_redirect(self, node: "Node", level: int) -> None:
        self._word(node.named_children[0], level)

    def _visit_heredoc_redirect(self, node: "Node", level: int) -> None:
        parts = {child.type: child for child in node.named_children}
        start, body, end = (parts.get(f"heredoc_{name}") for name in ("start", "body", "end"))
        if start is None or body is None or end is None:
            raise Unreadable("a here-document does not end")
        delimiter = _DELIMITER.fullmatch(self._of(start))
        if delimiter is None:
            raise Unreadable("a here-document ends with an unusual word")
        word = delimiter[1] or delimiter[2] or delimiter[3]
        lines = self.source[body.start_byte : end.start_byte].decode().split("\n")
        tabs = "\t" if node.children[0].type == "<<-" else ""
        after = self.source[end.end_byte : end.end_byte + 1]
        if (
            self.source[body.start_byte - 1 : body.start_byte] != b"\n"
            or lines.pop().strip(tabs)
            or self._of(end).lstrip(tabs) != word
            or after not in (b"", b"\n")
            or any(line.lstrip(tabs) == word for line in lines)
        ):
            raise Unreadable("a here-document may end elsewhere")
        if delimiter[1]:
            self._heredoc_text(body, level)
        for child in node.named_children:
            if child.type in ("heredoc_start", "heredoc_body", "heredoc_end"):
                continue
            if child not in node.children_by_field_name("argument"):
                self._visit(child, level)

    def _heredoc_text(self, body: "Node", level: int) -> None:
        end = body.start_byte
        for child in [*body.named_children, None]:
            stop = body.end_byte if child is None else child.start_byte
            if child is not None and child.type == "heredoc_content":
                continue
            if not _HEREDOC.fullmatch(self.source[end:stop].decode()):
                raise Unreadable("a here-document holds something that is not read here")
            if child is not None:
                self._word(child, level)
                end = child.end_byte

    # Words

    def _word(self, node: "Node", level: int) -> Word:
        if level > _MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        self._check_gaps(node)
        kind, text = node.type, self._of(node)
        if kind in ("word", "number", "variable_name", "test_operator"):
            return self._plain(text)
        if kind == "raw_string":
            return Word(text[1:-1])
        if kind == "ansi_c_string":
            return Word(_ansi_c(text[2:-1]))
        if kind in ("string", "translated_string"):
            return self._string(node, level)
        if kind == "concatenation":
            parts = [self._word(child, level + 1) for child in node.named_children]
            if node.named_children and any(
                a.end_byte != b.start_byte
                for a, b in zip(node.named_children, node.named_children[1:], strict=False)
            ):
                raise Unreadable("a word has gaps")
            if text == "{}":
                return Word(text)
            whole = "".join(part.text for part in parts)
            if re.search(r"\{|\[", text.replace("${", "")):
                return UNKNOWN  # braces or brackets over several parts
            return Word(whole, any(part.splits for part in parts))
        if kind == "brace_expression":
            return UNKNOWN
        if kind == "simple_expansion":
            return self._variable(text[1:], is_quoted=False)
        if kind == "expansion":
            return replace(self._expansion(node, level), splits=True)
        if kind == "arithmetic_expansion":
            self._arithmetic(node, level)
            return Word(NAME)
        if kind == "command_substitution":
            self._substitution(node, level)
            return UNKNOWN
        if kind == "process_substitution":
            self._substitution(node, level)
            return Word("/dev/fd/0")
        raise Unreadable(f"the command has a word that is not read here ({kind})")

    def _substitution(self, node: "Node", level: int) -> None:
        if "\\" in self._of(node) and self._of(node).startswith("`"):
            raise Unreadable("backquotes hold a backslash")
        folders, piped = self.folders, self.piped
        self.piped = None
        self._visit(node, level + 1)
        self.folders, self.piped = folders, piped

    def _plain(self, text: str) -> Word:
        self._check_word(text)
        if text == "{}":
            return Word(text)
        bare = re.sub(r"\\.", "", text)
        if _BRACES.search(bare):
            return UNKNOWN
        if bare.startswith(("~+", "~-")):
            return Word(ANY)
        marked = re.sub(r"\\.|\*\*|\*|\?|\[[^\]/]*\]|\[.*", _glob, text)
        if marked.startswith("." + NAME) or f"/.{NAME}" in marked:
            marked = marked.replace(NAME, ANY)
        return Word(marked)

    def _check_word(self, text: str) -> None:
        if not _WORD.fullmatch(text):
            raise Unreadable(f"the word {_shown(text)} may not be what it seems")

    def _string(self, node: "Node", level: int) -> Word:
        if node.type == "translated_string":
            node = node.named_children[0]
        text, end = "", node.start_byte + 1
        for child in [*node.named_children, None]:
            if child is not None and child.type == "string_content":
                continue
            stop = node.end_byte - 1 if child is None else child.start_byte
            between = self.source[end:stop].decode()
            if not _QUOTED.fullmatch(between):
                raise Unreadable("a quoted text holds something that is not read here")
            text += re.sub(r"\\([\"`$\\])", r"\1", between)
            if child is not None:
                part = (
                    self._variable(self._of(child)[1:], is_quoted=True)
                    if child.type == "simple_expansion"
                    else self._word(child, level + 1)
                )
                text += part.text
                end = child.end_byte
        is_list = "$@" in self._of(node) or "[@]" in self._of(node) or "${@" in self._of(node)
        return Word(text, splits=is_list)

    def _variable(self, name: str, *, is_quoted: bool) -> Word:
        if name in ("#", "?", "$"):
            return Word(NAME)
        bound = self.bound.get(name)
        if bound is None:
            return Word(ANY, splits=not is_quoted or name == "@")
        # Without quotes a blank parts words, and a star becomes names.
        if not is_quoted and re.search(r"[\s*?\[]", bound.text):
            return UNKNOWN
        return Word(bound.text)

    def _expansion(self, node: "Node", level: int) -> Word:
        if self._of(node).startswith("${#") and len(node.named_children) == 1:
            self._name_in(node.named_children[0], level)
            return Word(NAME)
        operators = [c.type for c in node.children if not c.is_named and c.type not in "${}"]
        for operator in operators:
            if operator not in _PLAIN_OPERATORS and operator not in (":", '"'):
                raise Unreadable(f"the expansion {_shown(self._of(node))} is not read here")
        first, *rest = node.named_children or [None]
        if first is None:
            raise Unreadable("an expansion has no name")
        name = self._name_in(first, level)
        for child in rest:
            if ":" in operators and not _NUMBER.fullmatch(self._of(child).strip()):
                raise Unreadable("an expansion computes a place")
            if child.type == "regex":
                self._check_word(self._of(child))
            else:
                self._word(child, level + 1)
        if {":=", "="} & set(operators) and not is_harmless_variable(name):
            self._unknown(f"{name} may lead later commands elsewhere")
        bound = self.bound.get(name)
        return Word(ANY) if operators or bound is None else bound

    def _name_in(self, node: "Node", level: int) -> str:
        if node.type == "subscript":
            self._visit(node, level)
            node = node.named_children[0]
        if node.type not in ("variable_name", "special_variable_name"):
            raise Unreadable("an expansion has an unusual name")
        return self._of(node)

    def _visit_subscript(self, node: "Node", level: int) -> None:
        """Read a subscript, which bash computes, running what a variable in it holds."""
        index = node.child_by_field_name("index")
        if index is None or not re.fullmatch(r"\d+|@|\*", self._of(index)):
            raise Unreadable("a subscript is computed")

    def _arithmetic(self, node: "Node", level: int) -> None:
        """Read arithmetic: bash runs commands in the text of a variable that is no number."""
        self._check_gaps(node)
        if level > _MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        for child in node.named_children or [node]:
            if child.type == "command_substitution":
                self._substitution(child, level)
            elif child != node and child.named_children:
                self._arithmetic(child, level + 1)
                continue
            text = self._of(child)
            name = text.removeprefix("$")
            is_name = re.fullmatch(r"[A-Za-z_]\w*", name) is not None
            if is_name and name in self.numeric and self._stays_numeric(name):
                continue
            if child.type == "number" or text in ("$#", "$?") or _NUMBER.fullmatch(text):
                continue
            if child.type == "comment" or (child == node and not node.is_named):
                continue
            self._unknown(f"`{_shown(self._of(node))}` may run what its variables hold")

    def _stays_numeric(self, name: str) -> bool:
        """Return whether a text sets a variable nowhere but to numbers, or in arithmetic."""
        text = re.sub(r"\(\([^()]*\)\)", "", self.text)
        text = re.sub(rf"(?<![\w$]){name}=(?:-?\d+|\$)(?=[\s;&|)]|$)", "", text)
        return not re.search(rf"(?<![\w$])(?<!\${{){name}\b", text)

    # Results

    def _add(self, words: list[Word], node: "Node", variables: Iterable[str] = ()) -> None:
        """Add a command, and those it starts."""
        source = self._of(node)
        if not words:
            return
        first = words[0]
        if not first.known or not first.text:
            self._unknown(f"the program of `{_shown(source)}` is known only when it runs")
            words = [Word(ANY), *words[1:]] if first.splits else words
        if first.text in _RESERVED - {"time"} and source.startswith(first.text):
            raise Unreadable(f"{first.text} stands where a command is expected")
        command = Command(tuple(words), source, self.folders, tuple(variables))
        command = self._with_inner(command, 0)
        if command.name == "read":
            self._check_names(command)
        self.script.commands.append(command)
        for one in command.flattened():
            for name in one.variables:
                if not is_harmless_variable(name) and (name, one.name) != ("IFS", "read"):
                    self._unknown(f"{name}= may lead {one.name} elsewhere", one)
        if command.name == "cd":
            self._change_folder(command)

    def _with_inner(self, command: Command, depth: int) -> Command:
        started = started_by(command, self.piped)
        if started is None:
            return command
        if depth > 8 or monotonic() > self.deadline:
            raise Unreadable("programs start each other too deeply")
        inner: list[Command] = []
        for words in started.commands:
            if not words[0].known:
                self._unknown(
                    f"the program of `{_shown(command.source)}` is known only when it runs"
                )
            one = Command(words, command.source, self.folders, started.variables)
            inner.append(self._with_inner(one, depth + 1))
        for text in started.texts:
            inner += self._nested(text)
        if started.unknown:
            self._unknown(f"`{_shown(command.source)}` {started.unknown}")
        return replace(command, inner=tuple(inner), wraps=started.wraps)

    def _nested(self, text: str) -> list[Command]:
        reader = _Reader(text, self.folders, deadline=self.deadline, depth=self.depth + 1)
        script = reader.read()
        self.folders = None if reader.folders != self.folders else self.folders
        self.script.accesses += script.accesses
        self.script.unknown += script.unknown
        return script.commands

    def _check_names(self, command: Command) -> None:
        for word in command.arguments:
            if not re.fullmatch(r"-r|[a-z_]\w*", word.text) or not is_harmless_variable(
                word.text.replace("-r", "r")
            ):
                self._unknown(f"`{_shown(command.source)}` may set any variable")

    def _change_folder(self, command: Command) -> None:
        words = [word for word in command.arguments if word.text not in ("--", "-P", "-L")]
        if self.folders is None:
            return
        if not words:
            words = [Word("~")]
        if len(words) > 1 or not words[0].known or words[0].text in ("-", ""):
            self.folders = None
            return
        target = words[0].text
        reached = {os.path.normpath(os.path.join(folder, target)) for folder in self.folders}
        if target.startswith("~"):
            reached = {target}
        self.folders = self.folders | reached
        if len(self.folders) > _MAX_FOLDERS:
            self.folders = None

    def _access(self, verb: Verb, word: Word) -> None:
        if word.text not in _NO_FILES and not re.fullmatch(r"/dev/fd/\d", word.text):
            self.script.accesses.append(Access(verb, word, self.folders))

    def _unknown(self, phrase: str, command: Command | None = None) -> None:
        if phrase not in self.script.unknown:
            self.script.unknown.append(phrase)


def _glob(match: "re.Match[str]") -> str:
    piece = match[0]
    if piece.startswith("\\"):
        return piece[1:]
    return ANY if piece == "**" or (piece[0] == "[" and piece[-1] != "]") else NAME


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."


def _ansi_c(text: str) -> str:
    """Return the characters of $'...'."""
    names = dict(zip("abeEfnrtv\\'\"?", "\a\b\x1b\x1b\f\n\r\t\v\\'\"?", strict=True))

    def char(match: "re.Match[str]") -> str:
        octal, code, name = match[1], match[2], match[3]
        if octal:
            return chr(int(octal, 8) & 255)
        if code:
            number = int(code[1:], 16)
            return chr(number) if 0 < number < 0x110000 else ANY
        return names.get(name, ANY)

    return re.sub(
        r"\\(?:([0-7]{1,3})|(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|U[0-9a-fA-F]{1,8})|(.))",
        char,
        text,
        flags=re.S,
    )


def _is_plain_keyword(words: list[Word]) -> bool:
    """Return whether [[ ]] only compares: no -v, and no arithmetic on what is no number."""
    texts = [word.text for word in words]
    if "-v" in texts or "-R" in texts:
        return False
    return all(
        text not in NUMERIC_TESTS
        or all(_NUMBER.fullmatch(one) or one == NAME for one in texts[place - 1 : place + 2 : 2])
        for place, text in enumerate(texts)
    )
