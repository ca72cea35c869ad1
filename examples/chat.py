"""A conversation in ten lines: mini-m1 thinks, and answers as it goes.

python examples/chat.py "What is 4711 + 1293?" "Sort 43, 7, 11, 74, 40."
"""

import sys
from typing import Any

from fulmen import LLM, SamplingParams


def talk(llm: LLM, questions: list[str]) -> list[Any]:
    """Ask one question after the other; return the conversation."""
    messages: list[Any] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        answer = llm.chat(messages, params=SamplingParams(temperature=0, thinking_budget=200))
        print(f"({answer.reply.thinking})\n{answer.reply.content}")
        messages.append(answer.message)  # its ids too, so the next prompt has the same ones
    return messages


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    talk(LLM.load("mini-m1"), sys.argv[1:])
