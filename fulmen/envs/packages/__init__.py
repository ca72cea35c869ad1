"""Packages: real packages of the package index with one fault each, repaired against their tests.

The packages are not shipped. `manifest.json` says which they are, by version and checksum, and what
was changed where; `scripts/make_package_tasks.py` makes it.
"""

from fulmen.envs.packages.environment import Packages, PackageTask

__all__ = ["PackageTask", "Packages"]
