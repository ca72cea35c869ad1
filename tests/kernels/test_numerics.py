"""The string that says when saved states may be used, and the record that keeps it honest."""

import subprocess
import sys

import pytest
import torch

from fulmen.kernels import REVISION, native, numerics
from tests.kernels.digests import digests, recorded
from tests.kernels.helpers import needs_native, with_threads


@needs_native
def test_bits_change_only_with_the_revision() -> None:
    extension = native()
    assert extension is not None
    known = recorded(extension.isa())
    if known is None:
        pytest.skip(
            f"revision {REVISION} has no record on {extension.isa()}: "
            "python -m tests.kernels.digests --record"
        )
    found = digests()
    changed = [name for name in {**known, **found} if known.get(name) != found.get(name)]
    assert not changed, (
        f"outputs differ from those recorded for revision {REVISION}: {changed}; raise REVISION in "
        "fulmen/kernels/numerics.py and run `python -m tests.kernels.digests --record`"
    )


@needs_native
def test_digests_do_not_depend_on_threads() -> None:
    extension = native()
    assert extension is not None
    before = extension.num_threads()
    try:
        with_threads(1)
        alone = digests()
        with_threads(3)
        assert digests() == alone
    finally:
        with_threads(before)


def test_numerics_name_what_bits_depend_on() -> None:
    extension = native()
    if extension is None:
        assert numerics() == f"torch-{torch.__version__}"
    else:
        kernels = f"kernels-{REVISION} {extension.isa()}"
        # A torch whose powers are not those of the revision is named as well.
        assert numerics() in (kernels, f"{kernels} torch-{torch.__version__}")


def test_numerics_are_the_same_in_another_process() -> None:
    program = "from fulmen.kernels import numerics; print(numerics())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == numerics()
