"""scripts/compare_wheels.py: a file too few or too many in an archive or a wheel is named."""

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/compare_wheels.py"
TREE = {
    *("LICENSE", "pyproject.toml", "fulmen/__init__.py", "fulmen/py.typed"),
    *("fulmen/minis/mini-m1/config.json", "fulmen/minis/mini-m1/model.safetensors"),
    *("fulmen/kernels/cpu/_native.pyi", "fulmen/kernels/cpu/csrc/cpu.cpp", "tests/test_x.py"),
}
PACKAGE = {
    *("fulmen/__init__.py", "fulmen/py.typed", "fulmen/kernels/cpu/_native.pyi"),
    *("fulmen/minis/mini-m1/config.json", "fulmen/minis/mini-m1/model.safetensors"),
}
WEIGHTS = {"fulmen/minis/mini-m1/model.safetensors"}
METADATA = {
    f"fulmen-0.1.0.dist-info/{name}"
    for name in ("METADATA", "RECORD", "licenses/LICENSE", "licenses/NOTICE")
}
EXTENSION = "fulmen/kernels/cpu/_native.abi3.so"


def compare(
    folder: Path,
    *,
    archived: set[str] = TREE,
    plain: set[str] = PACKAGE | METADATA,
    native: set[str] = PACKAGE | METADATA | {EXTENSION},
) -> subprocess.CompletedProcess[str]:
    (folder / "tracked").write_text("\n".join(sorted(TREE)))
    archive = folder / "fulmen-0.1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*archived, "PKG-INFO"]:
            tar.addfile(tarfile.TarInfo(f"fulmen-0.1.0/{name}"), io.BytesIO())
    wheels = {
        folder / "fulmen-0.1.0-py3-none-any.whl": plain,
        folder / "fulmen-0.1.0-cp312-abi3-linux_x86_64.whl": native,
    }
    for wheel, names in wheels.items():
        with zipfile.ZipFile(wheel, "w") as file:
            for name in names:
                file.writestr(name, "")
    return subprocess.run(
        [sys.executable, SCRIPT, folder / "tracked", archive, *wheels],
        capture_output=True,
        text=True,
    )


def test_whole_archives_are_let_through(tmp_path: Path) -> None:
    run = compare(tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "fulmen-0.1.0.tar.gz: 9 files, all as in the tree",
        "fulmen-0.1.0-py3-none-any.whl: 5 files, all as in the tree",
        "fulmen-0.1.0-cp312-abi3-linux_x86_64.whl: 5 files, all as in the tree",
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"archived": TREE - {"LICENSE"}}, "lacks LICENSE"),
        ({"archived": TREE - {"fulmen/kernels/cpu/csrc/cpu.cpp"}}, "lacks fulmen/kernels/cpu/csrc"),
        ({"archived": TREE | {"secret.txt"}}, "has secret.txt besides"),
        ({"plain": (PACKAGE | METADATA) - {"fulmen/py.typed"}}, "lacks fulmen/py.typed"),
        ({"plain": (PACKAGE | METADATA) - WEIGHTS}, "lacks fulmen/minis/mini-m1/model.safetensors"),
        ({"plain": PACKAGE | METADATA | {"tests/test_x.py"}}, "has tests/test_x.py besides"),
        ({"plain": PACKAGE | METADATA | {EXTENSION}}, "holds 1 extensions, needed is 0"),
        ({"native": PACKAGE | METADATA}, "holds 0 extensions, needed is 1"),
        ({"native": PACKAGE | {EXTENSION}}, "lacks LICENSE, METADATA, NOTICE, RECORD"),
    ],
)
def test_a_file_too_few_or_too_many_is_named(
    tmp_path: Path, change: dict[str, set[str]], problem: str
) -> None:
    run = compare(tmp_path, **change)
    assert run.returncode == 1
    assert problem in run.stderr
