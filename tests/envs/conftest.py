"""A machine that can have sandboxes."""

import pytest

from tests.sandbox.helpers import why_there_is_no_sandbox


@pytest.fixture
def has_sandbox() -> None:
    """Skip a test where there can be no sandbox."""
    if why_there_is_no_sandbox():
        pytest.skip(why_there_is_no_sandbox())
