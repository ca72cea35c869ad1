"""Answers to a question, scored."""

import asyncio

from fulmen.agent import Answer, Score
from fulmen.chat import Message
from fulmen.envs import Task, answered
from fulmen.sampling import SamplingParams


def scored(task: Task, content: str) -> Score:
    """Return the score of an answer."""
    message = Message("assistant", content)
    answer = Answer(message=message, finish_reason="stop", params=SamplingParams())
    return asyncio.run(task.score(answered(task.messages, answer)))
