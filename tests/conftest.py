"""Settings of the whole suite."""

import os
import signal

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among pytest-xdist's processes: threads that wait for a core spin.

    A shell's background job ignores Ctrl-C, and one of `nohup` a terminal's end; so would the
    commands that tests interrupt.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if num_processes > 1:
        num_threads = max((os.cpu_count() or 1) // num_processes, 1)
        torch.set_num_threads(num_threads)
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # of the commands that tests start
