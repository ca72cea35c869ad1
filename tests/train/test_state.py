"""States: what goes out comes in, and what fails leaves the state before it."""

import errno
import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from fulmen.checkpoints import load_model
from fulmen.models import Model
from fulmen.train import Optimizer, latest_state, load_state, run_lock, save_state
from fulmen.train.state import list_states, model_folder, read_values, step_of
from tests.models.helpers import tiny_m1, tiny_m2
from tests.train.test_optimizer import backward, plain
from tests.warm import python

PROGRAM = """
import signal, sys
from pathlib import Path
from tests.train.test_optimizer import plain
from fulmen.train import Optimizer, save_state
model = plain()
optimizer = Optimizer(model)
print("ready", flush=True)
for step in range(1, 10_000):
    save_state(Path(sys.argv[1]), step, model=model, optimizer=optimizer, values={"at": step})
"""
FULL = """
import resource, signal, sys
from pathlib import Path
from tests.train.test_optimizer import plain
from fulmen.train import Optimizer, save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = plain()
optimizer = Optimizer(model)
run = Path(sys.argv[1])
save_state(run, 1, model=model, optimizer=optimizer, values={})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    save_state(run, 2, model=model, optimizer=optimizer, values={})
except OSError as error:
    print(error.filename, error.strerror.lower())
"""


def trained(dtype: torch.dtype = torch.float32) -> tuple[Model, Optimizer]:
    model = plain(dtype=dtype)
    optimizer = Optimizer(model)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_state_that_is_saved_comes_back_with_the_same_bits(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model, optimizer = trained(dtype)
    values = {"cursor": {"add": 12}, "tokens": 4096}
    state = save_state(tmp_path, 7, model=model, optimizer=optimizer, values=values)
    assert (state.name, step_of(state), latest_state(tmp_path)) == ("step-00000007", 7, state)
    other = plain(dtype=dtype)
    fresh = Optimizer(other)
    assert load_state(state, model=other, optimizer=fresh) == {"step": 7, **values}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, fresh.state()[name]), name
    served = load_model(model_folder(state), trainable=True)
    assert torch.equal(served.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"])


def test_the_newest_states_stay_and_strays_go(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in (1, 2, 10):
        beside = {"tokenizer.json": b"{}"}
        state = save_state(
            tmp_path, step, model=model, optimizer=optimizer, values={}, beside=beside
        )
        (state.parent / ".step-00000099.part").mkdir()
    assert [step_of(each) for each in list_states(tmp_path)] == [2, 10]
    assert (model_folder(state) / "tokenizer.json").read_text() == "{}"
    save_state(tmp_path, 10, model=model, optimizer=optimizer, values={"again": True}, keep=None)
    assert sorted(os.listdir(tmp_path / "states")) == ["step-00000002", "step-00000010"]
    assert read_values(tmp_path / "states/step-00000010") == {"step": 10, "again": True}


def test_a_state_that_was_to_be_replaced_when_a_save_was_killed_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = save_state(tmp_path, 3, model=model, optimizer=optimizer, values={"first": True})
    state.rename(state.with_name(".step-00000003.replaced"))
    assert latest_state(tmp_path) is None  # its process may still be at it
    with run_lock(tmp_path):
        assert latest_state(tmp_path) == state
    assert read_values(state)["first"]
    state.rename(state.with_name(".step-00000003.replaced"))
    save_state(tmp_path, 3, model=model, optimizer=optimizer, values={"first": False})
    assert os.listdir(tmp_path / "states") == ["step-00000003"]
    assert not read_values(state)["first"]


def test_a_save_that_is_killed_leaves_a_whole_state(tmp_path: Path) -> None:
    for delay in (0.01, 0.05, 0.12):
        child = subprocess.Popen(python("-c", PROGRAM, tmp_path), stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        before = latest_state(tmp_path)
        while latest_state(tmp_path) == before:
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        state = latest_state(tmp_path)
        assert state is not None
        model = plain()
        values = load_state(state, model=model, optimizer=Optimizer(model))
        assert values["at"] == values["step"] == step_of(state)


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_leaves_the_state_before_and_names_the_new_one(
    tmp_path: Path, limit: int
) -> None:
    done = subprocess.run(
        python("-c", FULL, tmp_path, str(limit)), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}/states/step-00000002 file too large\n"
    assert os.listdir(tmp_path / "states") == ["step-00000001"]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (tiny_m2(), "is a minimax_m1 checkpoint, the run's model is minimax_m2"),
        (tiny_m1(intermediate_size=32), "its intermediate_size is 16, the run's model has 32"),
        (tiny_m1(attn_type_list=[0, 1, 1]), r"its attn_type_list is \(0, 0, 1\), the run's model"),
    ],
)
def test_a_state_of_another_shape_is_refused_and_changes_nothing(
    tmp_path: Path, other: object, sentence: str
) -> None:
    model, optimizer = trained()
    state = save_state(tmp_path, 1, model=model, optimizer=optimizer, values={})
    wrong = plain(other)
    before = {name: each.clone() for name, each in wrong.state_dict().items()}
    with pytest.raises(ValueError, match=sentence):
        load_state(state, model=wrong, optimizer=Optimizer(wrong))
    assert all(torch.equal(before[name], each) for name, each in wrong.state_dict().items())


def test_a_run_in_use_is_refused_and_a_lock_leaves_no_empty_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs/a"
    with run_lock(run):
        with (
            pytest.raises(ValueError, match=r"runs/a is in use by another process, "),
            run_lock(run),
        ):
            pass
        (run / "file").touch()
    with run_lock(run):
        pass
    assert run.exists()
    with run_lock(tmp_path / "b/c/d"):
        pass
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_deleted_while_it_is_locked_is_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    real, calls = fcntl.flock, list[int]()

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            run.rmdir()  # as another process does that held it and wrote nothing
        calls.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr("fulmen.train.state.fcntl.flock", flock)
    with run_lock(run):
        assert run.is_dir()
        with pytest.raises(ValueError, match="is in use by another process"), run_lock(run):
            pass
    assert len(calls) == 3


def test_a_rename_that_fails_leaves_the_state_that_was_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained()
    save_state(tmp_path, 3, model=model, optimizer=optimizer, values={"first": True})
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, "input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    for _ in range(2):
        with pytest.raises(OSError, match="input/output"):
            save_state(tmp_path, 3, model=model, optimizer=optimizer, values={"first": False})
        state = latest_state(tmp_path)
        assert state is not None
        assert read_values(state)["first"]


def test_a_state_without_its_optimizer_is_not_whole(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = save_state(tmp_path, 1, model=model, optimizer=optimizer, values={})
    (state / "optimizer.safetensors").unlink()
    with pytest.raises(ValueError, match=r"optimizer\.safetensors is missing, the state is not"):
        load_state(state, model=model, optimizer=optimizer)
