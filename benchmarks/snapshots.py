"""Seconds of a snapshot of a folder, beside `git add --all` and `git write-tree` of the same one.

    python benchmarks/snapshots.py
    python benchmarks/snapshots.py --files 100000 --rounds 3

A folder of small text files is made, twice. Ours takes a snapshot of one of them; git adds the
other to the index of a repository of its own. Then one file is changed, again and again, and both
do it again, in turns. The answer is checked first: what a snapshot gives back is the folder, and
git's tree has as many files. A last row goes back from a change of every tenth file.
"""

import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from measure import console, print_json, print_wide, run
from rich.table import Table

from fulmen.agent import Snapshots

WORDS = ["def", "return", "self", "value", "for", "in", "if", "None", "=", "(", ")", ":", "."]


def make(folder: Path, num_files: int) -> list[Path]:
    """Write text files, a hundred in each folder, of about 4 kB."""
    choice = random.Random(1)
    paths = []
    for number in range(num_files):
        path = folder / f"room{number // 1000}" / f"part{number // 100 % 10}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(" ".join(choice.choices(WORDS, k=10)) for _ in range(140)))
        paths.append(path)
    return paths


class Git:
    """A repository of git's own, made anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        self._run("init", "-q", "--object-format=sha256")

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(f"git {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def take(self) -> None:
        self._run("add", "--all")
        self._run("write-tree")

    def num_files(self) -> int:
        return self._run("ls-files").count("\n")


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*.py")
        if path.is_file()
    }


def main(
    files: Annotated[int, typer.Option(help="Files in the folder.", min=100)] = 10_000,
    rounds: Annotated[int, typer.Option(help="Changes of one file.", min=1)] = 15,
) -> None:
    """Measures snapshots beside git."""
    with (
        TemporaryDirectory(prefix="fulmen-snapshots-", dir="/var/tmp") as place,
        console.status("writing") as status,
    ):
        ours, theirs = Path(place) / "ours", Path(place) / "theirs"
        paths = make(ours, files)
        make(theirs, files)
        time.sleep(3)  # so that the times of no file are those of now
        snapshots, git = Snapshots(ours, Path(place) / "repository"), Git(theirs)
        status.update("the first snapshot")
        first = {
            "git": seconds(git.take),
            "fulmen": seconds(lambda: snapshots.take("first")),
        }
        taken = snapshots.take("checked")
        snapshots.export(taken.id, Path(place) / "copy")
        if contents(Path(place) / "copy") != contents(ours) or git.num_files() != files:
            raise ValueError("what a snapshot gives back is not the folder")
        status.update("one change")
        times: dict[str, list[float]] = {"git": [], "fulmen": [], "fulmen, new process": []}
        for number in range(rounds):
            changed = paths[number * 37 % files]
            for folder in (ours, theirs):
                (folder / changed.relative_to(ours)).write_text(f"change {number}\n")
            time.sleep(0.2)
            times["git"].append(seconds(git.take))
            times["fulmen"].append(seconds(lambda: snapshots.take("change")))
            times["fulmen, new process"].append(
                seconds(lambda: Snapshots(ours, Path(place) / "repository").take("change"))
            )
        one = {name: statistics.median(found) for name, found in times.items()}
        worst = {name: max(found) for name, found in times.items()}
        status.update("back")
        for path in paths[::10]:
            path.write_text("other\n")
        back = seconds(lambda: snapshots.restore(taken.id, expected=None))
        if contents(ours) != contents(Path(place) / "copy"):
            raise ValueError("the restored folder is not what it was")
        prune = seconds(lambda: snapshots.prune(older_than_seconds=0))
    table = Table(title=f"{files:,} files of 4 kB; milliseconds")
    for column in ("", "first", "after one change", "the slowest"):
        table.add_column(column, justify="left" if not column else "right")
    for name in one:
        begun = f"{first[name] * 1e3:,.0f}" if name in first else ""
        table.add_row(name, begun, f"{one[name] * 1e3:,.1f}", f"{worst[name] * 1e3:,.1f}")
    print_wide(table)
    console.print(f"back from {len(paths[::10]):,} changes: {back * 1e3:,.0f} ms")
    console.print(f"packed: {prune * 1e3:,.0f} ms")
    values: dict[str, object] = {"files": files, "rounds": rounds, "first": first, "one": one}
    print_json("snapshots", {**values, "worst": worst, "back": back, "prune": prune})


if __name__ == "__main__":
    run(main)
