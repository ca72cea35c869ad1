"""The adversary again, as an ordinary user where the suite runs as root: other limits hold then."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.sandbox.helpers import skip_if_missing, skip_without_sandbox

ROOT = Path(__file__).parent.parent.parent
USER = 65534


def as_user(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    packages = [path for path in sys.path if path.endswith("-packages")]
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join([str(folder), *packages]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HOME": str(folder),
        "FULMEN_EXAMPLES": "0.01",
        "FULMEN_NEEDS_SANDBOX": "1",
    }
    drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    # setpriv has root's powers until it executes something, and would find what the user cannot.
    shell = ["sh", "-c", 'exec "$@"', "sh"]
    return subprocess.run(
        [*drop, *shell, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_everything_holds_for_an_ordinary_user_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("the suite runs as an ordinary user already")
    skip_without_sandbox()
    folder = Path(tempfile.mkdtemp(prefix="fulmen-user-"))
    try:
        folder.chmod(0o755)
        no_binaries = shutil.ignore_patterns("__pycache__", "*.so", "csrc", "page", "cards")
        shutil.copytree(ROOT / "fulmen", folder / "fulmen", ignore=no_binaries)
        shutil.copytree(ROOT / "tests/sandbox", folder / "tests/sandbox", ignore=no_binaries)
        for name in ("__init__.py", "examples.py", "bounds.py"):
            shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
        shutil.copy(ROOT / "pyproject.toml", folder)
        os.chown(folder, USER, USER)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        candidates = [sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"]
        able = [
            python
            for python in candidates
            if os.access(python, os.X_OK)
            and as_user(folder, python, "-c", "import pytest, hypothesis, fulmen").returncode == 0
        ]
        none = f"no Python {version} here that user {USER} can run, with the packages of the tests"
        skip_if_missing("" if able else none)
        ask = "from tests.sandbox.helpers import *; print(why_there_is_no_sandbox(), end='')"
        told = as_user(folder, able[0], "-c", ask)
        skip_if_missing(told.stdout or told.stderr)
        ignored = folder / "tests/sandbox" / Path(__file__).name
        words = ["-q", "-p", "no:cacheprovider", "-rs", f"--ignore={ignored}", "tests/sandbox"]
        done = as_user(folder, able[0], "-m", "pytest", *words)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
        assert " passed" in done.stdout
        print(done.stdout)
    finally:
        shutil.rmtree(folder)
