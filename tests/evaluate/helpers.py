"""A tiny model and tasks that it solves by chance, the likelier the longer it thinks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, TemplateFormat
from fulmen.engine import EngineConfig
from fulmen.envs import Task
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from tests.tiny import write_checkpoint

PARAMS: Final = SamplingParams(temperature=1.2, top_k=None, top_p=1.0)


@dataclass(frozen=True)
class LuckyTask(Task):
    """Solved where a byte of the thought or of the answer is among a few: more bytes, more luck."""

    index: int

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("user", f"Be lucky {self.index} times."),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        reply = trajectory.reply
        assert reply is not None
        text = (reply.thinking or "") + reply.content
        return Score(float(any(char in "aeiou" for char in text)))

    def answer_of(self, trajectory: Trajectory) -> str | None:
        assert trajectory.reply is not None
        content = trajectory.reply.content
        digest = hashlib.sha256(content.encode()).digest()
        return str(digest[0] % 3) if content else None


class LuckyTasks:
    num_tasks = None

    def task(self, index: int) -> LuckyTask:
        return LuckyTask(index)


def load(folder: Path, kind: str) -> LLM:
    return LLM.load(
        str(write_checkpoint(folder, kind)), engine_config=EngineConfig(max_num_seqs=16)
    )


def plain(llm: LLM, template: str = "{{ messages[0].content }}") -> LLM:
    """Return the model with a format that has no thought."""
    format = TemplateFormat(template, {"eos_token": llm.format.end_of_turn})
    return LLM(llm.engine.model, llm.tokenizer, format, engine_config=llm.engine.config)
