"""Make the tokenizer of runs/mini-m2.toml: whole words, and the texts that M2's format writes
around tools, calls and results as one token each."""

import sys
from pathlib import Path
from typing import Final

from fulmen.agent import PROFILES, system_prompt
from fulmen.chat import Tool, get_format
from fulmen.chat.arguments import dump_json
from fulmen.chat.m2 import DEFAULT_IDENTITY
from fulmen.envs.calls import KINDS
from fulmen.envs.calls.micro import RUN_TESTS
from fulmen.train.lm.tokenizer import make_tokenizer

VOCAB_SIZE: Final = 1280
_JSON: Final = (
    '<tool>{"name": "',
    '", "description": "',
    '", "parameters": {"type": "object", "properties": {"',
    '": {"type": "string"}',
    '": {"type": "integer"}',
    '": {"type": "integer"}, "',
    '}, "required": ["',
    '", "',
    '"]}}</tool>\n',
)
_XML: Final = (
    '<invoke name="',
    '">\n<parameter name="',
    '</parameter>\n<parameter name="',
    "</parameter>\n</invoke>\n",
    '">',
    "\n<response>",
    "</response>",
)
_TESTS: Final = (
    *("FAIL: test_", " (test_", ".Test.test_", "\nAssertionError: ", "\nFAILED (failures=1)"),
    *("def ", "    return ", '):\n    """', '    """', '"""\n', ".py"),
    *(" != ", " == ", " >= ", " <= ", " // "),
)


def fixed_words() -> list[str]:
    """Return the texts that are one token."""
    prompt = get_format("minimax_m2").render([], [Tool("a")])
    tool = f"<tool>{dump_json(Tool('a').function)}</tool>\n"
    before, after = prompt.partition(DEFAULT_IDENTITY)[2].split(tool)
    after, example = after.partition("<minimax:tool_call>")[::2]
    profile = [f"<tool>{dump_json(one.function)}</tool>\n" for one in PROFILES["minimal"]]
    return [
        *(DEFAULT_IDENTITY, system_prompt("minimal"), before, after),
        *(example.partition("</minimax:tool_call>")[0], *profile, RUN_TESTS),
        *(*_JSON, *_XML, *_TESTS),
    ]


def make_tokenizer_into(out: Path) -> int:
    """Write the tokenizer into a folder; return the number of tokens."""
    return make_tokenizer(
        out,
        kind="words",
        environments=[f"calls:{kind}:training" for kind in KINDS],
        vocab_size=VOCAB_SIZE,
        words=fixed_words(),
        format="minimax_m2",
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: mini_m2_tokenizer.py OUT")
    print(f"{make_tokenizer_into(Path(sys.argv[1]))} tokens")
