"""Device nodes of a sandbox whose caller is root.

Inside, root's user owns what root owns outside, though it has none of root's powers: an owner may
still change modes. What is mounted read-only is safe from that, but a device node cannot be (the
mount would lose the right to devices too). So root's sandboxes get nodes of their own.
"""

import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_NODES: Final = {
    **{"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)},
    "tty": (5, 0),
}
_PREFIX: Final = "fulmen-sandbox-"


class Devices:
    """Copies of /dev/null and its kind, which need a name only until they are mounted."""

    def __init__(self) -> None:
        """Make them where the caller is root. Raises OSError where even root may not."""
        self._folder: Path | None = None
        self.arguments: list[str] = []
        if os.geteuid() != 0:
            return
        for left in Path("/dev").glob(f"{_PREFIX}*"):  # by a process that was killed meanwhile
            with suppress(FileNotFoundError):  # another one is gone by now
                if left.stat().st_mtime < time.time() - 600:
                    shutil.rmtree(left, ignore_errors=True)
        # Elsewhere a file system may refuse devices.
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/dev"))
        try:
            for name, numbers in _NODES.items():
                path = self._folder / name
                os.mknod(path, stat.S_IFCHR, os.makedev(*numbers))
                path.chmod(0o666)
                self.arguments += ["--dev-bind", str(path), f"/dev/{name}"]
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the names away; a sandbox that has them mounted keeps them."""
        if self._folder is not None:
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()
            self._folder = None
