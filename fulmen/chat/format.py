"""What a format is: how one model's prompts are written and its completions read."""

from abc import ABC, abstractmethod

from fulmen.chat.events import Reply
from fulmen.chat.messages import CallIds, Messages, Tool, Tools, random_call_id
from fulmen.chat.parsing import Parser
from fulmen.chat.tokenizer import Segment, Tokenizer, join_segments


class ChatFormat(ABC):
    """Messages to a prompt, a completion to a Reply; `get_format` and `load_format` give one."""

    name: str
    """The name that `get_format` knows it by."""
    thinking_open_in_prompt: bool
    """Whether the generation prompt ends inside the thought."""
    end_of_turn: str
    """The text of the token that ends a turn."""
    thinking_end: str | None
    """The tag that closes a thought; None when the format has no thought."""
    thinking_forced_start: str | None
    """What opens a thought as the model would, where the prompt did not: may be empty; None when
    the format has no thought."""
    thinking_forced_end: str | None
    """What a thinking budget writes to end the thought as the model would."""
    thinking_last_phrase: str = "I have thought enough, it is time to answer.\n"
    """What it writes before, where there is room for it."""
    thinking_start: str | None = None
    """The tag by which a completion opens a thought; None where only the prompt can."""
    tool_block: str | None = None
    """The tag that opens a block of calls; None where calls are not told from text."""
    may_call_while_thinking: bool = False
    """Whether a block of calls inside the thought ends it, or is part of it."""
    tags: tuple[str, ...] = ()
    """Texts that content cannot hold: a parser takes them for structure."""
    call_tags: tuple[str, ...] = ()
    """Texts that the JSON of an argument cannot hold: a parser takes them for the call's own."""

    @abstractmethod
    def segments(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = True
    ) -> list[Segment]:
        """The prompt as plain texts and control tokens."""

    @abstractmethod
    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        """A parser for one completion that comes in pieces.

        thinking_open says that the completion may begin inside the thought: see each format.
        """

    def call_grammar(self, tools: tuple[Tool, ...], tokenizer: Tokenizer) -> str:
        """What may follow `tool_block`, to the end of the block, as a grammar in llguidance's Lark:
        calls of these tools, with arguments of their types."""
        raise ValueError(
            f"strict_tools is on, the format {self.name} does not tell tool calls from text"
        )

    def render(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = True
    ) -> str:
        """The prompt as text."""
        return join_segments(self.segments(messages, tools, add_generation_prompt))

    def encode(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        tokenizer: Tokenizer,
    ) -> list[int]:
        """The prompt as ids; in native formats no message text becomes a special token."""
        return tokenizer.encode_segments(self.segments(messages, tools, add_generation_prompt))

    def parse(
        self,
        text: str,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Reply:
        """The reply in a whole completion."""
        parser = self.parser(tools, thinking_open, new_call_id=new_call_id)
        parser.feed(text)
        return parser.finish()
