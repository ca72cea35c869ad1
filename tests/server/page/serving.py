"""The page's server: a tiny model that is made to say what a test wants."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fulmen.chat import ChatRequest
from fulmen.llm import LLM, ForcedModel, LocalModel, ServedStream
from tests.server.helpers import last_message, served
from tests.tiny import write_checkpoint

MAX_MODEL_LEN = 2**16
LONG = "one more word " * 500
"""An answer that takes some seconds: a test can act while it runs"""


class Speaking(ForcedModel):
    """A model with an engine, and so with sessions, that says what a function answers."""

    def __init__(self, model: LocalModel, answer: Callable[[ChatRequest], str]) -> None:
        super().__init__(model, repeat(answer))
        self.llm = model.llm

    def stream(self, request: ChatRequest) -> ServedStream:
        """Return an answer; one that is computed again for its log-probabilities as it was."""
        return self._model.stream(request) if request.forced_ids else super().stream(request)


def echo(request: ChatRequest) -> str:
    """Return the answer that most tests want: a thought, and what was asked. The text of a message
    after "say:" is said as it is."""
    if request.prefix_ids:
        return " and so on."
    content = last_message(request).content
    if content.startswith("say:"):
        return content.removeprefix("say:")
    content = content[-60:]
    number = sum(1 for message in request.messages if _role(message) == "assistant")
    return f"They said {content}.</think>\n\nAnswer {number + 1} to **{content}**."


def _role(message: Any) -> Any:
    return message["role"] if isinstance(message, dict) else message.role


@contextmanager
def served_page(
    sessions: Path, answer: Callable[[ChatRequest], str] | None = echo, **settings: Any
) -> Iterator[str]:
    """Serve the page with sessions; without a function the model speaks for itself."""
    with TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), "m2", max_position_embeddings=MAX_MODEL_LEN)
        model = LocalModel(LLM.load(str(checkpoint)))
        speaking = model if answer is None else Speaking(model, answer)
        try:
            with served(speaking, sessions=sessions, **settings) as url:
                yield url
        finally:
            asyncio.run(model.close())
