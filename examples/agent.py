"""An agent in ten lines: a model works in a folder, and what it changed can be taken back.

python examples/agent.py CHECKPOINT FOLDER "Make the failing test pass."
"""

import asyncio
import sys
from pathlib import Path

from fulmen.agent import Archive, Means, Permissions, Rules, Work, system_prompt
from fulmen.chat import ChatModel, Message
from fulmen.llm import LLM, LocalModel


async def work(model: ChatModel, folder: Path, task: str) -> Archive:
    """Let a model work on a task in a folder; return the archive that goes back to any step."""
    archive = Archive(folder.with_name(f"{folder.name}-runs"))
    system = (Message("system", system_prompt("coding")),)
    run = archive.begin(folder, model="a model", tools="coding", system=system)
    means = Means(permissions=Permissions("auto", Rules(), workspace=folder))
    async with Work(archive, run.name, model, means) as agent:
        print("it ended:", await agent.say(task))
        print(agent.trajectory.reply.content if agent.trajectory.reply else "")
        print(archive.diff(run.name, 0, len(agent.trajectory.steps)))
    return archive  # archive.rewind(NAME, 0) takes all of it back


async def main(checkpoint: str, folder: str, task: str) -> None:
    """Work with a model on this machine."""
    async with LocalModel(LLM.load(checkpoint)) as model:
        await work(model, Path(folder).resolve(), task)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
