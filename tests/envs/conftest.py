"""A machine that can have sandboxes."""

import pytest

from tests.sandbox.helpers import skip_without_sandbox


@pytest.fixture
def has_sandbox() -> None:
    """Skip a test where there can be no sandbox."""
    skip_without_sandbox()
