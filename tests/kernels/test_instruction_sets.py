"""Every instruction set, and plain torch, keeps what the tests ask of the one this machine would
choose: the kernel tests, the golden sets and, but for plain torch, the bits of whole models.

AMX runs emulated where the machine lacks it: the same kernels, the tile instructions written out.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fulmen.kernels import native
from tests.kernels.helpers import needs_native

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
SETS = ("amx", "avx512_bf16", "avx512", "avx2", "amx_emulated", "none")


def chosen(name: str | None) -> subprocess.CompletedProcess[str]:
    """Ask a fresh process for its set, with FULMEN_ISA set to this or not set."""
    environment = {key: value for key, value in os.environ.items() if key != "FULMEN_ISA"}
    if name is not None:
        environment["FULMEN_ISA"] = name
    program = "from fulmen.kernels.cpu import _native; print(_native.isa())"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


@needs_native
@pytest.mark.parametrize("name", SETS)
def test_the_kernels_hold_on_every_set(name: str) -> None:
    run = chosen(name)
    if run.returncode:
        assert "which this machine does not have" in run.stderr
        pytest.skip(run.stderr.strip().splitlines()[-1])
    assert run.stdout.strip() == (name if name != "none" else "")
    extension = native()
    assert extension is not None
    if name == extension.isa():
        pytest.skip("the rest of the tests run on it")
    files = [HERE, MODELS / "test_golden.py"]
    # Plain torch goes token by token; the search for codebooks knows no set.
    some = ["-k", "not 300- and not search"] if name == "none" else [MODELS / "test_exact.py"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--ignore", __file__, *files, *some],
        env={**os.environ, "FULMEN_ISA": name, "PYTEST_ADDOPTS": ""},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 0, tests.stdout[-4000:]


@needs_native
def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    run = chosen("sse2")
    assert run.returncode != 0
    assert "FULMEN_ISA is sse2, known are amx, avx512_bf16, avx512, avx2" in run.stderr
