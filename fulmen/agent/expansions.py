"""Words of shell text: quotes, expansions, arithmetic and tests, from the parser's nodes.

What bash computes when it runs is a mark in the word. Text of which it is not sure that bash reads
it as the parser did is `Unreadable`; so is arithmetic on a variable, since bash runs the commands
in a variable's text where it expects a number.
"""

import re
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fulmen.agent.rules import ANY, NAME
from fulmen.agent.words import NUMERIC_TESTS, UNKNOWN, Word, is_plain_test, names

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_DEPTH: Final = 120
"""Deepest nesting of nodes"""


_WORDS: Final = names(
    "word number string raw_string ansi_c_string translated_string concatenation simple_expansion "
    "expansion command_substitution process_substitution arithmetic_expansion brace_expression "
    "command_name variable_assignment variable_name regex extglob_pattern $"
)
_JOINED: Final = ("concatenation", "simple_expansion", "expansion", "subscript")
"""Nodes whose parts make one word"""
_ON_A_LINE: Final = names(
    "command file_redirect herestring_redirect variable_assignment declaration_command "
    "unset_command redirected_statement variable_assignments"
)
"""Nodes that end with a line"""


class Unreadable(Exception):
    """A text that cannot be read, or not as bash surely does; the message says why."""


_WORD = re.compile(r"""(?:[^\s;|&<>()'"`$\\#]|(?<!^)\#|\\[^\n])+\$?|\$""")
_QUOTED = re.compile(r"""(?:[^"`$\\]|\\.|\$(?![\w({?@*#!\[\-$'"]))*""", re.S)
_HEREDOC = re.compile(r"(?:[^`$\\]|\\[^\n]|\$(?![\w({?@*#!\[\-$]))*")
_DELIMITER = re.compile(r"""(\w+)|'(\w+)'|"(\w+)\"""")
_BRACES = re.compile(r"\{[^}]*(?:,|\.\.)")
NUMBER = re.compile(r"-?\d+")
_HARMLESS_NAME = re.compile(
    r"[a-z_][a-z0-9_]*|LC_[A-Z]+|LANG|TZ|COLUMNS|NO_COLOR|FORCE_COLOR|CI|DEBUG|N|I|"
    r"DIR|FILE|FILES|NAME|COUNT|ROOT|OUT|PYTHONDONTWRITEBYTECODE|PYTHONUNBUFFERED|PYTHONHASHSEED"
)
_HARMFUL_NAME = re.compile(r".*_proxy|npm_.*|histchars|auto_resume|_")

_PLAIN_OPERATORS: Final = names(":- - := = :? ? :+ + # ## % %% / // /# /% , ,, ^ ^^")


def is_harmless_variable(name: str) -> bool:
    """Return whether no program is known to be led elsewhere by a variable of this name."""
    return bool(_HARMLESS_NAME.fullmatch(name)) and not _HARMFUL_NAME.fullmatch(name)


class WordReader:
    """Words of one text. The reader of its commands, `commands.py`, builds on this and is told of
    each substitution that stands in a word.

    bound    variables whose value is known where they stand now
    numeric  variables that were set to a number
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.source = text.encode()
        self.bound: dict[str, Word] = {}
        self.numeric: set[str] = set()

    @abstractmethod
    def add_unknown(self, phrase: str) -> None:
        """Note what is known only when it runs."""

    @abstractmethod
    def visit_substitution(self, node: "Node", level: int) -> None:
        """Read the commands of a substitution."""

    def mentions(self, name: str) -> int:
        """Return how often a name stands where something could set it."""
        return len(re.findall(rf"(?<![\w$])(?<!\${{){re.escape(name)}\b", self.text))

    def check_gaps(self, node: "Node") -> int:
        """Raise unless all text of a node belongs to a child or is white space.

        Returns how many words that are only a dash, for which there are no nodes, a command has.
        """
        dashes = 0
        if not node.children or node.type in ("string", "heredoc_body"):
            return dashes  # the text of these is checked where it is read
        end, before = node.start_byte, ""
        for child in node.children:
            if child.type == "$" and node.type not in ("command", *_JOINED):
                raise Unreadable("a lone $ may begin something else")
            if (
                child.start_byte == end
                and {before, child.type} <= _WORDS
                and node.type not in _JOINED
            ):
                raise Unreadable("two words stand together without a space")
            if node.type in _ON_A_LINE and b"\n" in self.source[end : child.start_byte].replace(
                b"\\\n", b""
            ):
                raise Unreadable("a command goes on behind the end of its line")
            before = child.type
            gap = self.source[end : child.start_byte].replace(b"\\\n", b" ")
            if gap.strip(b" \t\n"):
                found = re.findall(rb"(?<=[ \t])-(?=[ \t]|$)", gap)
                is_command = node.type in ("command", "redirected_statement")
                if not is_command or gap.replace(b"-", b"", len(found)).strip(b" \t"):
                    raise Unreadable("the command has text that belongs to none of its parts")
                dashes += len(found)
            end = max(end, child.end_byte)
        if self.source[end : node.end_byte].strip(b" \t\n"):
            raise Unreadable("the command has text that belongs to none of its parts")
        return dashes

    def text_of(self, node: "Node") -> str:
        return self.source[node.start_byte : node.end_byte].decode()

    # Words

    def check_heredoc(self, node: "Node", level: int) -> None:
        """Raise unless a here-document is surely all that bash takes for one."""
        parts = {child.type: child for child in node.named_children}
        start, body, end = (parts.get(f"heredoc_{name}") for name in ("start", "body", "end"))
        if start is None or body is None or end is None:
            raise Unreadable("a here-document does not end")
        delimiter = _DELIMITER.fullmatch(self.text_of(start))
        if delimiter is None:
            raise Unreadable("a here-document ends with an unusual word")
        word = delimiter[1] or delimiter[2] or delimiter[3]
        lines = self.source[body.start_byte : end.start_byte].decode().split("\n")
        tabs = "\t" if node.children[0].type == "<<-" else ""
        line = self.source[start.end_byte : body.start_byte]
        if line.find(b"\n") != len(line) - 1 or b"<<" in line.replace(b"<<<", b""):
            raise Unreadable("the line of a here-document does not end with it")
        after = self.source[end.end_byte : end.end_byte + 1]
        if (
            self.source[body.start_byte - 1 : body.start_byte] != b"\n"
            or lines.pop().strip(tabs)
            or self.text_of(end).lstrip(tabs) != word
            or after not in (b"", b"\n")
            or any(line.lstrip(tabs) == word for line in lines)
        ):
            raise Unreadable("a here-document may end elsewhere")
        if delimiter[1]:
            self._heredoc_text(body, level)

    def _heredoc_text(self, body: "Node", level: int) -> None:
        end = body.start_byte
        children: list[Node | None] = [*body.named_children, None]
        for child in children:
            stop = body.end_byte if child is None else child.start_byte
            if child is not None and child.type == "heredoc_content":
                continue
            if not _HEREDOC.fullmatch(self.source[end:stop].decode()):
                raise Unreadable("a here-document holds something that is not read here")
            if child is not None:
                self.word(child, level)
                end = child.end_byte

    def word(self, node: "Node", level: int) -> Word:
        if level > MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        self.check_gaps(node)
        kind, text = node.type, self.text_of(node)
        if kind in ("word", "number", "variable_name", "test_operator"):
            return self._plain(text)
        if kind == "raw_string":
            return Word(text[1:-1])
        if kind == "ansi_c_string":
            return Word(_ansi_c(text[2:-1]))
        if kind in ("string", "translated_string"):
            return self._string(node, level)
        if kind == "concatenation":
            last = node.children[-1]
            if any(not child.is_named and child != last for child in node.children):
                raise Unreadable("a word holds a lone $")
            parts = [self.word(child, level + 1) for child in node.named_children]
            parts += [] if last.is_named else [Word(self.text_of(last))]
            if node.named_children and any(
                a.end_byte != b.start_byte
                for a, b in zip(node.named_children, node.named_children[1:], strict=False)
            ):
                raise Unreadable("a word has gaps")
            if text == "{}":
                return Word(text)
            if all(child.type in ("word", "number") for child in node.children):
                return self._plain(text)
            whole = "".join(part.text for part in parts)
            bare = [self.text_of(child) for child in node.children if child.type == "word"]
            if re.search(r"\{|\[", "".join(bare).replace("{}", "")):
                return UNKNOWN  # braces or brackets over several parts
            return Word(whole, any(part.splits for part in parts))
        if kind == "brace_expression":
            return UNKNOWN
        if kind == "simple_expansion":
            return self._variable(text[1:], is_quoted=False)
        if kind == "expansion":
            return replace(self._expansion(node, level), splits=True)
        if kind == "arithmetic_expansion":
            self.arithmetic(node, level)
            return Word(NAME)
        if kind == "command_substitution":
            self.visit_substitution(node, level)
            return UNKNOWN
        if kind == "process_substitution":
            self.visit_substitution(node, level)
            return Word("/dev/fd/0")
        raise Unreadable(f"the command has a word that is not read here ({kind})")

    def _plain(self, text: str) -> Word:
        self.check_word(text)
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

    def check_word(self, text: str) -> None:
        if not _WORD.fullmatch(text):
            raise Unreadable(f"the word {shown(text)} may not be what it seems")

    def _string(self, node: "Node", level: int) -> Word:
        if node.type == "translated_string":
            node = node.named_children[0]
        text, end = "", node.start_byte + 1
        children: list[Node | None] = [*node.named_children, None]
        for child in children:
            if child is not None and child.type == "string_content":
                continue
            stop = node.end_byte - 1 if child is None else child.start_byte
            between = self.source[end:stop].decode()
            if not _QUOTED.fullmatch(between):
                raise Unreadable("a quoted text holds something that is not read here")
            text += re.sub(r"\\([\"`$\\])", r"\1", between.replace("\\\n", ""))
            if child is not None:
                part = (
                    self._variable(self.text_of(child)[1:], is_quoted=True)
                    if child.type == "simple_expansion"
                    else self.word(child, level + 1)
                )
                text += part.text
                end = child.end_byte
        is_list = (
            "$@" in self.text_of(node) or "[@]" in self.text_of(node) or "${@" in self.text_of(node)
        )
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
        if self.text_of(node).startswith("${#") and len(node.named_children) == 1:
            self._name_in(node.named_children[0], level)
            return Word(NAME)
        operators = [c.type for c in node.children if not c.is_named and c.type not in "${}"]
        for operator in operators:
            if operator not in _PLAIN_OPERATORS and operator not in (":", '"'):
                raise Unreadable(f"the expansion {shown(self.text_of(node))} is not read here")
        if not node.named_children:
            raise Unreadable("an expansion has no name")
        first, *rest = node.named_children
        name = self._name_in(first, level)
        for child in rest:
            for part in (child, *child.named_children):
                # Between double quotes a single quote quotes nothing here.
                if part.type.endswith(("raw_string", "ansi_c_string")) and set(
                    self.text_of(part)
                ) & set('`$\\"{}'):
                    raise Unreadable("a quoted text in an expansion may not be one")
            if ":" in operators and not NUMBER.fullmatch(self.text_of(child).strip()):
                raise Unreadable("an expansion computes a place")
            if child.type == "regex":
                self.check_word(self.text_of(child))
            else:
                self.word(child, level + 1)
        if {":=", "="} & set(operators) and not is_harmless_variable(name):
            self.add_unknown(f"{name} may lead later commands elsewhere")
        bound = self.bound.get(name)
        return Word(ANY) if operators or bound is None else bound

    def _name_in(self, node: "Node", level: int) -> str:
        if node.type == "subscript":
            self._visit_subscript(node, level)
            node = node.named_children[0]
        if node.type not in ("variable_name", "special_variable_name"):
            raise Unreadable("an expansion has an unusual name")
        return self.text_of(node)

    def _visit_subscript(self, node: "Node", level: int) -> None:
        """Read a subscript, which bash computes, running what a variable in it holds."""
        index = node.child_by_field_name("index")
        if index is None or not re.fullmatch(r"\d+|@|\*", self.text_of(index)):
            raise Unreadable("a subscript is computed")

    def arithmetic(self, node: "Node", level: int) -> None:
        """Read arithmetic: bash runs commands in the text of a variable that is no number."""
        self.check_gaps(node)
        if level > MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        for child in node.named_children or [node]:
            if child.type == "command_substitution":
                self.visit_substitution(child, level)
            elif child != node and child.named_children:
                self.arithmetic(child, level + 1)
                continue
            text = self.text_of(child)
            name = text.removeprefix("$")
            is_name = re.fullmatch(r"[A-Za-z_]\w*", name) is not None
            if is_name and name in self.numeric and self._stays_numeric(name):
                continue
            if child.type == "number" or text in ("$#", "$?") or NUMBER.fullmatch(text):
                continue
            if child.type == "comment" or (child == node and not node.is_named):
                continue
            self.add_unknown(f"`{shown(self.text_of(node))}` may run what its variables hold")

    def _stays_numeric(self, name: str) -> bool:
        """Return whether a text sets a variable nowhere but to numbers, or in arithmetic."""
        text = re.sub(r"\(\([^()]*\)\)", "", self.text)
        text = re.sub(rf"(?<![\w$]){name}=(?:-?\d+|\$)(?=[\s;&|)]|$)", "", text)
        return not re.search(rf"(?<![\w$])(?<!\${{){name}\b", text)

    def _visit_test_command(self, node: "Node", level: int) -> None:
        is_keyword = self.source[node.start_byte : node.start_byte + 2] == b"[["
        if self.source[node.start_byte : node.start_byte + 2] == b"((":
            self.arithmetic(node, level)
            return
        words = self.operands(node, level)
        if not (is_plain_keyword(words) if is_keyword else is_plain_test(words)):
            self.add_unknown(f"`{shown(self.text_of(node))}` may run what its operands hold")

    def _visit_comment(self, node: "Node", level: int) -> None:
        before = self.source[: node.start_byte]
        if before and before[-1:] not in b" \t\n;|&()":
            raise Unreadable("a # stands in the middle of a word")

    def operands(self, node: "Node", level: int) -> list[Word]:
        if level > MAX_DEPTH:
            raise Unreadable("the command is nested too deeply")
        words: list[Word] = []
        self.check_gaps(node)
        for child in node.children:
            if child.type.endswith("_expression"):
                words += self.operands(child, level + 1)
            elif not child.is_named or child.type == "test_operator":
                words.append(Word(self.text_of(child)))
            elif child.type in ("regex", "extglob_pattern"):
                self.check_word(
                    self.text_of(child).replace("(", "").replace(")", "").replace("|", "")
                )
                words.append(Word(ANY))
            else:
                words.append(self.word(child, level))
        return [word for word in words if word.text not in ("[", "]", "[[", "]]", "(", ")")]


def _glob(match: "re.Match[str]") -> str:
    piece = match[0]
    if piece.startswith("\\"):
        return piece[1:]
    return ANY if piece == "**" or (piece[0] == "[" and piece[-1] != "]") else NAME


def shown(text: str) -> str:
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


def is_plain_keyword(words: list[Word]) -> bool:
    """Return whether [[ ]] only compares: no -v, and no arithmetic on what is no number."""
    texts = [word.text for word in words]
    if "-v" in texts or "-R" in texts:
        return False
    return all(
        text not in NUMERIC_TESTS
        or all(NUMBER.fullmatch(one) or one == NAME for one in texts[place - 1 : place + 2 : 2])
        for place, text in enumerate(texts)
    )
