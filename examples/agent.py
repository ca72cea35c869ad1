"""An agent in ten lines: mini-m2 works in a folder, and what it changed can be taken back.

cp -r examples/broken /tmp/broken
python examples/agent.py /tmp/broken "Make the failing test pass."
"""

import asyncio
import sys
from pathlib import Path

from fulmen.agent import Archive, Means, Permissions, Rules, Work, system_prompt
from fulmen.chat import ChatModel, Message
from fulmen.llm import LLM, LocalModel


async def work(model: ChatModel, folder: Path, task: str, tools: str = "minimal") -> Archive:
    """Let a model work on a task in a folder; return the archive that goes back to any step.

    tools  minimal for mini-m2, coding for models that know more
    """
    archive = Archive(folder.with_name(f"{folder.name}-runs"))
    system = (Message("system", system_prompt(tools)),)
    run = archive.begin(folder, model="a model", tools=tools, system=system)
    means = Means(permissions=Permissions("auto", Rules(), workspace=folder))
    async with Work(archive, run.name, model, means) as agent:
        print("it ended:", await agent.say(task))
        print(agent.trajectory.reply.content if agent.trajectory.reply else "")
        print(archive.diff(run.name, 0, len(agent.trajectory.steps)))
    return archive  # archive.rewind(NAME, 0) takes all of it back


async def main(folder: str, task: str) -> None:
    """Work with the model that comes with the package."""
    async with LocalModel(LLM.load("mini-m2")) as model:
        await work(model, Path(folder).resolve(), task)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
