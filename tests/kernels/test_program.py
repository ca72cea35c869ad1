"""The cost of recording; that a replay gives the same bits is in tests/models/test_exact.py."""

import subprocess
import sys

from tests.kernels.helpers import needs_native


@needs_native
def test_recording_does_not_load_torchs_compiler() -> None:
    # Two seconds, in the middle of a process's first answer.
    lines = (
        "import sys, torch",
        "from fulmen.kernels import Program",
        "Program(lambda: torch.empty(2))",
        "assert 'torch._dynamo' not in sys.modules",
    )
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
