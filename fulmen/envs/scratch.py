"""A temporary folder in which a stranger's code ran: taken away whatever is in there."""

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a folder and remove it in the end. What cannot be removed stays, and is logged: it says
    nothing about the work that was done."""
    folder = Path(mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        # Python's own way needs a level of recursion and an open file for each level of folders.
        if not _is_removed(folder):
            subprocess.run(["chmod", "-R", "u+rwX", "--", folder], capture_output=True)
            if not _is_removed(folder):
                logging.getLogger(__name__).warning("%s could not be removed", folder)


def _is_removed(folder: Path) -> bool:
    subprocess.run(["rm", "-rf", "--", folder], capture_output=True)
    return not folder.exists()
