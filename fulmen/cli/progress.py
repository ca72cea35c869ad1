"""Progress on stderr while something is fetched, loaded or computed: bars and status lines."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.llm import LLM

stderr = Console(stderr=True, highlight=False, emoji=False)


def _progress(*columns: ProgressColumn) -> Progress:
    """Return a bar that vanishes when it is done; none is drawn where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


@contextmanager
def byte_progress(verb: str, name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a callback(num_bytes, total_bytes) that draws a progress bar from its first call on."""
    with _progress(DownloadColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(f"{verb} {name}", total=None, visible=False)

        def report(num_bytes: int, total_bytes: int | None) -> None:
            if progress.disable and not progress.tasks[0].visible:
                stderr.print(f"{verb} {name}", markup=False)  # once, where no bar can be drawn
            progress.update(task, completed=num_bytes, total=total_bytes, visible=True)

        yield report


@contextmanager
def count_progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback(done, total) that draws a progress bar."""
    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task(verb, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report


@contextmanager
def step_progress() -> Iterator[Callable[[str], None]]:
    """Yield a callback(sentence) that shows what is being done: in place, or a line each."""
    if not stderr.is_terminal:
        yield lambda sentence: stderr.print(sentence, markup=False, soft_wrap=True)
        return
    with stderr.status("") as status:
        yield lambda sentence: status.update(escape(sentence))


def check_fits(name: str) -> None:
    """Raise ValueError for a model of the catalog that is not here yet and could not run in this
    machine's memory: nobody wants to fetch hundreds of gigabytes to learn that."""
    from fulmen.catalog import find_card, has_begun, local_path
    from fulmen.plan import make_plan, this_machine

    card = None if local_path(name) is not None else find_card(name)
    if card is None or card.hub is None or card.source is not None or has_begun(card.hub):
        return
    here = this_machine()
    plan = make_plan(card.name, ram=here.ram)
    needed = min(way.needed_bytes for way in plan.ways if way.is_published)
    if needed > here.memory_bytes:
        raise ValueError(
            f"{card.title} needs {needed / 2**30:,.0f} GiB of memory, this machine has "
            f"{here.memory_bytes / 2**30:,.0f} GiB, so it is not fetched; "
            f"`fulmen plan {card.name}` shows what fits, `fulmen models pull {card.name}` fetches "
            "it all the same"
        )


def load(name: str, **options: Any) -> "LLM":
    """Load a model as `LLM.load` does, and show on stderr what takes time."""
    from fulmen.catalog import resolve
    from fulmen.llm import LLM

    if str(options.get("device", "cpu")) == "cpu":
        check_fits(name)
    with byte_progress("fetching", name) as report:
        resolve(name, on_progress=report)
    with stderr.status(f"loading {escape(name)}"):  # nothing where stderr is no terminal
        return LLM.load(name, **options)
