"""The package's door: names on first use, nothing heavy before, old paths that say where they
went."""

import importlib
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fulmen
from fulmen.kernels import shadowed_install
from fulmen.moved import MOVED


def modules_after(program: str) -> set[str]:
    """Return the modules that a fresh process has loaded after a program."""
    run = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "program",
    [
        "import fulmen",
        "import fulmen.cli",
        "import fulmen.doctor",
        "from fulmen import SamplingParams; SamplingParams()",
        "import sys\nfrom typer.main import get_command\nfrom fulmen.cli import app\n"
        "sys.stdout, out = sys.stderr, sys.stdout\n"
        "for command in ('chat', 'generate', 'bench', 'plan', 'quantize', 'scale', 'doctor'):\n"
        "    get_command(app)([command, '--help'], standalone_mode=False)\n"
        "sys.stdout = out",
    ],
    ids=["the package", "the command", "the examination", "sampling", "help"],
)
def test_torch_is_loaded_by_none_of(program: str) -> None:
    loaded = modules_after(program)
    assert "fulmen" in loaded
    assert not loaded & {"torch", "numpy", "tokenizers", "gguf", "huggingface_hub", "jinja2"}


@pytest.mark.parametrize("name", fulmen.__all__)
def test_every_name_of_the_package_is_there(name: str) -> None:
    assert name in dir(fulmen)
    assert getattr(fulmen, name) is not None


def test_a_name_of_the_package_is_the_one_of_its_room() -> None:
    from fulmen.chat import Message
    from fulmen.llm import LLM

    assert fulmen.LLM is LLM
    assert fulmen.Message is Message


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fulmen' has no attribute 'Trainer'"):
        _ = fulmen.Trainer


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_path_works_or_names_the_new_one(old: str) -> None:
    package, _, name = old.rpartition(".")
    program: dict[str, object] = {}
    try:
        exec(f"from {package} import {name}", program)
    except ImportError as error:
        message = str(error)
    else:
        return
    assert message == f"{old} has moved, it is now {MOVED[old]}"
    new = MOVED[old]
    room, _, name = new.rpartition(".")
    assert hasattr(importlib.import_module(room), name) or importlib.util.find_spec(new)


def test_a_path_that_never_was_is_an_ordinary_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'fulmen\.trainer'"):
        importlib.import_module("fulmen.trainer")
    with pytest.raises(ImportError, match=r"cannot import name 'Trainer' from 'fulmen\.models'"):
        exec("from fulmen.models import Trainer")


def test_the_version_is_the_same_in_the_package_and_in_its_metadata() -> None:
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == fulmen.__version__


def test_every_library_of_the_page_comes_with_its_licence() -> None:
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {path for pattern in project["license-files"] for path in root.glob(pattern)}
    vendor = root / "fulmen/server/page/vendor"
    assert {path.with_suffix(".LICENSE") for path in vendor.glob("*.mjs")} <= named
    assert root / "LICENSE" in named
    assert root / "NOTICE" in named


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(fulmen.__file__).parent / "py.typed").is_file()


def test_python_m_fulmen_is_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fulmen", "--help"], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split()[:6] == ["Usage:", "python", "-m", "fulmen", "[OPTIONS]", "COMMAND"]
    for command in ("chat", "plan", "sessions"):
        assert f"\n  {command} " in run.stdout


def test_a_source_folder_that_hides_an_installed_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(fulmen.__file__).parent
    monkeypatch.setattr(sys, "path", [str(source.parent), str(tmp_path)])
    assert shadowed_install() is None  # the source itself, and a folder without the package
    kernels = tmp_path / "fulmen/kernels/cpu"
    kernels.mkdir(parents=True)
    assert shadowed_install() is None  # a package without kernels is no better
    (kernels / "_native.abi3.so").touch()
    assert shadowed_install() == (
        f"you are importing the source folder {source}, which has no C++ kernels, and not the "
        f"installed {tmp_path / 'fulmen'}; leave {source.parent}, or `pip install -e .` there"
    )
