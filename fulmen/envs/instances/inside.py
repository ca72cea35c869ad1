"""Tests run by pytest, and what came of each of them, as a file.

This file also runs as a program where nothing else of ours is, in the sandbox, beside code that a
model wrote. So what it tells is taken for a stranger's word, see testing.py.
"""

import json
import os
import sys


class Outcomes:
    """A plugin of pytest that notes the outcome of every test."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: object) -> None:
        """Take the report of a test's beginning, body or end."""
        name, outcome = str(getattr(report, "nodeid", "")), str(getattr(report, "outcome", ""))
        if outcome == "failed":
            self.found[name] = "failed"
        elif getattr(report, "when", "") == "call" or outcome == "skipped":
            is_marked = "xfail" in getattr(report, "keywords", ())  # pytest.xfail() alone is a skip
            is_expected = outcome == "skipped" and is_marked and hasattr(report, "wasxfail")
            self.found.setdefault(name, "passed" if is_expected else outcome)


def main(place: str, *files: str) -> None:
    """Run the tests of files in this folder and write their outcomes to a place."""
    file = open(place, "w", encoding="utf-8")  # noqa: SIM115  the tests may interfere
    here = os.getcwd()
    sys.path[:0] = [here, *(os.path.join(here, name) for name in ("src", "lib"))]
    import pytest

    outcomes = Outcomes()
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", f"--rootdir={here}"]
    options.append("--continue-on-collection-errors")  # one file that fails would stop all others
    pytest.main([*options, *files], plugins=[outcomes])
    with file:
        json.dump({"outcomes": outcomes.found}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
