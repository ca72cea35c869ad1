"""`fulmen agent` at a terminal: a region that is drawn below a scrollback that is never touched."""

from fulmen.cli.terminal.conversation import Conversation

__all__ = ["Conversation"]
