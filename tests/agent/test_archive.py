"""Going back, and on after a crash, where a person worked in the same folder meanwhile."""

import os
import time
from pathlib import Path

import pytest

from fulmen.agent import Answer, Archive, ChangedSince, Limits, NotSaved, Result, Run
from fulmen.agent.trajectory import answer_record, result_record, said_record
from fulmen.chat import Message, ToolCall
from fulmen.sampling import SamplingParams

COUNT = 20
"""Files of a folder that a small archive does not save"""


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "runs", limits=Limits(max_files=COUNT - 1))


@pytest.fixture
def run(archive: Archive, folder: Path) -> Run:
    """Return a run in a folder with one file."""
    (folder / "a").write_text("begin\n")
    return archive.begin(folder, model="m", tools="coding", system=(), name="run")


def said(run: Run, text: str = "Do it.") -> None:
    """Let a person say something."""
    run.append(said_record([Message("user", text)]))


def begun(run: Run, num_calls: int = 1) -> None:
    """Let the model answer with calls."""
    calls = tuple(ToolCall("bash", {"command": f"c{number}"}) for number in range(num_calls))
    message = Message("assistant", "", tool_calls=calls)
    run.append(
        answer_record(Answer(message=message, finish_reason="stop", params=SamplingParams()))
    )


def done(archive: Archive, run: Run, number: int = 0) -> None:
    """Give a call its result, with the folder as it is."""
    taken = archive.snapshots(run.facts).take("x")
    archive.snapshots(run.facts).keep(f"run/{len(run.trajectory.steps)}", taken.id)
    run.append(result_record(Result(number, "out", snapshot=taken.id)))


def crashed(run: Run, seconds_ago: float) -> None:
    """Set the last sign of life of the process that had the run."""
    then = time.time() - seconds_ago
    os.utime(run.path / "lock", (then, then))


def test_after_a_crash_only_what_the_call_did_is_taken_back_unasked(
    archive: Archive, run: Run, folder: Path
) -> None:
    with run:
        said(run)
        begun(run)
        (folder / "a").write_text("half")
        (folder / "new").write_text("half")
        run.beat()
    with archive.runs.open("run") as again:
        note = archive.settle(again)
    assert note is not None
    assert "kept aside as 1" in note
    assert (folder / "a").read_text() == "begin\n"
    assert not (folder / "new").exists()
    archive.export_aside("run", folder.with_name("aside"), 1)
    assert (folder.with_name("aside") / "a").read_text() == "half"


def test_after_a_crash_what_a_person_did_is_asked_about(
    archive: Archive, run: Run, folder: Path
) -> None:
    with run:
        said(run)
        begun(run)
        crashed(run, 100)
    (folder / "a").write_text("a day of work")
    (folder / "mine").write_text("mine")
    with archive.runs.open("run") as again, pytest.raises(ChangedSince, match="a, mine"):
        archive.settle(again)
    assert (folder / "a").read_text() == "a day of work"
    with archive.runs.open("run") as again:
        archive.settle(again, overwrite=True)
    assert (folder / "a").read_text() == "begin\n"
    archive.export_aside("run", folder.with_name("aside"), 1)
    assert (folder.with_name("aside") / "a").read_text() == "a day of work"
    assert (folder.with_name("aside") / "mine").read_text() == "mine"


def test_what_a_person_changed_between_two_steps_is_not_taken_back_unasked(
    archive: Archive, run: Run, folder: Path
) -> None:
    with run:
        said(run)
        for number in range(4):
            if number == 2:
                (folder / "a").write_text("a person's")
                (folder / "gone").write_text("a person's")
                archive.found(run)
                assert sorted(run.trajectory.found) == [2]
            begun(run)
            (folder / f"f{number}").write_text("x")
            done(archive, run)
            if number == 2:
                (folder / "gone").unlink()
    archive.rewind("run", 2)  # as the person left it
    assert (folder / "a").read_text() == "a person's"
    assert (folder / "gone").read_text() == "a person's"
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ChangedSince, match="a, gone"):
        archive.rewind("run", 1)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert len(archive.runs.open("run").trajectory.steps) == 2
    archive.rewind("run", 1, overwrite=True)
    assert (folder / "a").read_text() == "begin\n"
    assert not (folder / "gone").exists()


def test_a_person_that_changed_what_the_step_had_already_is_not_asked(
    archive: Archive, run: Run, folder: Path
) -> None:
    with run:
        said(run)
        begun(run)
        done(archive, run)
        (folder / "a").write_text("other")
        archive.found(run)
        begun(run)
        (folder / "a").write_text("begin\n")  # the agent takes it back itself
        done(archive, run)
    archive.rewind("run", 0)
    assert (folder / "a").read_text() == "begin\n"


def fill(folder: Path) -> None:
    """Make a folder too large for a snapshot."""
    for number in range(COUNT):
        (folder / f"many{number}").write_text("x")


def test_a_folder_that_cannot_be_saved_is_taken_as_it_is_and_gone_back_behind(
    archive: Archive, run: Run, folder: Path
) -> None:
    with run:
        said(run)
        begun(run)
        fill(folder)
        run.append(result_record(Result(0, "out", details={"not_saved": ["too many"]})))
    with archive.runs.open("run") as again:
        note = archive.settle(again)
    assert note is not None
    assert "cannot be saved" in note
    assert "too many for a snapshot" in note
    with pytest.raises(NotSaved, match="nothing was restored"):
        archive.rewind("run", 0)
    assert len(list(folder.iterdir())) == COUNT + 1
    restored = archive.rewind("run", 1, overwrite=True)
    assert restored.left == ((".", "step 1 could not be saved, files are those before it"),)
    assert [path.name for path in folder.iterdir()] == ["a"]
    fill(folder)
    restored = archive.rewind("run", 0, overwrite=True)
    assert restored.before is None
    assert restored.left == ()
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert archive.asides(run.facts) == []


def test_a_call_that_was_under_way_is_made_again_also_in_a_folder_that_cannot_be_saved(
    archive: Archive, run: Run, folder: Path
) -> None:
    with run:
        said(run)
        begun(run)
        fill(folder)
    with archive.runs.open("run") as again:
        note = archive.settle(again)
    assert note is not None
    assert "made again from files as they are" in note
    assert len(list(folder.iterdir())) == COUNT + 1


def test_forks_of_forks_keep_names_that_runs_may_have(archive: Archive, run: Run) -> None:
    names = {name := "run"}
    for _ in range(12):
        made = archive.fork(name, 0, archive.runs.root.parent / f"fork-{len(names)}")
        names.add(name := made.name)
    assert names == {"run", *(f"run-{number}" for number in range(2, 14))}
    assert len(archive.free_name("a" * 80)) == 80
    assert archive.free_name("-2") == "-2-2"
