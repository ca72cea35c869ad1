"""A large model is rounded in the memory of its largest tensor."""

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulmen.checkpoints import Checkpoint
from tests.quantize.helpers import (
    needs_kernels,
)


@pytest.mark.slow
@needs_kernels
def test_a_large_model_takes_the_memory_of_its_largest_tensor_and_goes_on_when_killed(
    tmp_path: Path,
) -> None:
    script = Path(__file__).parents[2] / "benchmarks/checkpoints.py"
    source = tmp_path / "in"
    make = [sys.executable, str(script), "m2", str(source), "--size-gb", "3"]
    subprocess.run(make, check=True, capture_output=True)
    largest = 4 * 32_000 * 1024  # the embedding, were it float32
    program = (
        "import re, sys, time\n"
        "from pathlib import Path\n"
        "from fulmen.quantize import QuantizeConfig, parse_packed, quantize_checkpoint\n"
        # Not getrusage: its peak is that of the process before exec, here pytest.
        "status = Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) * 1024\n"
        "before, began = peak(), time.perf_counter()\n"
        "quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]),\n"
        "         QuantizeConfig(packed=parse_packed(bits='4'), max_shard_bytes=250_000_000))\n"
        "print(peak() - before, peak(), time.perf_counter() - began)"
    )
    command = [sys.executable, "-c", program, str(source)]
    run = subprocess.run(
        [*command, str(tmp_path / "whole")], check=True, capture_output=True, text=True
    )
    grown, whole, seconds = (float(x) for x in run.stdout.split())
    rate = sum(file.stat().st_size for file in source.glob("*.safetensors")) / seconds
    print(f"grew by {grown / 1e6:.0f} MB to {whole / 1e6:.0f} MB, read {rate / 1e6:.0f} MB/s")
    assert grown < 3 * largest
    assert whole < 1.5e9
    assert Checkpoint.open(tmp_path / "whole").problems() == []
    out = tmp_path / "out"
    with subprocess.Popen([*command, str(out)]) as killed:
        while killed.poll() is None and not list(out.glob("*.safetensors")):
            time.sleep(0.1)
        time.sleep(1)
        os.kill(killed.pid, signal.SIGKILL)
    assert not (out / "config.json").exists()
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in (tmp_path / "whole").iterdir()}
    for name in names:
        assert filecmp.cmp(out / name, tmp_path / "whole" / name, shallow=False), name
    shutil.rmtree(tmp_path)
