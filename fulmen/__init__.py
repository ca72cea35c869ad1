"""Fulmen: MiniMax-M1 and MiniMax-M2 in Python.

    from fulmen import LLM

    print(LLM.load("smollm2").chat([{"role": "user", "content": "Hello"}]).reply.content)

The names of `__all__` are imported when they are first used, so that `import fulmen` and the help
of the command load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fulmen import moved

if TYPE_CHECKING:
    from fulmen.chat import Message, Tool
    from fulmen.llm import LLM
    from fulmen.sampling import SamplingParams

__all__ = ["LLM", "Message", "SamplingParams", "Tool", "__version__"]
__version__ = "0.1.0"

moved.install()

_ROOMS = {
    "LLM": "fulmen.llm",
    "Message": "fulmen.chat",
    "SamplingParams": "fulmen.sampling",
    "Tool": "fulmen.chat",
}


def __getattr__(name: str) -> object:
    """Import a name of `__all__` from its room (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
