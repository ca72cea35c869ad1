"""Device nodes of root's sandboxes."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from fulmen.sandbox.devices import Devices

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has nodes of its own")


def make_and_remove(times: int) -> int:
    for _ in range(times):
        devices = Devices()
        assert len(devices.arguments) == 18
        devices.remove()
    return times


def test_many_sandboxes_may_begin_and_end_at_once() -> None:
    try:
        make_and_remove(1)
    except PermissionError:
        pytest.skip("no device node can be made here")
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(make_and_remove, [50] * 8)) == 400
