"""`fulmen doctor`: a page for people, JSON for programs, exit code 1 where Fulmen cannot run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fulmen
from fulmen.doctor import PROBES

PACKAGE = Path(fulmen.__file__).parent


def doctor(
    *flags: str, path: Path = PACKAGE.parent, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fulmen.cli", "doctor", *flags],
        env=os.environ | {"PYTHONPATH": str(path)} | environment,
        cwd=path,
        capture_output=True,
        text=True,
    )


def findings_of(run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert "Traceback" not in run.stderr
    (line,) = run.stdout.splitlines()
    return {finding["name"]: finding for finding in json.loads(line)["findings"]}


def test_a_machine_that_can_run_fulmen_gets_0_and_a_line_for_each_probe() -> None:
    run = doctor(PYTHONIOENCODING="ascii:strict")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    for name in PROBES:
        assert [line for line in lines if line[2:].startswith(name)], name
    assert lines[-1].startswith("Fulmen can run here")


def test_json_is_one_line_with_all_findings() -> None:
    run = doctor("--json")
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["can_run"] is True
    found = findings_of(run)
    assert list(found) == list(PROBES)
    for finding in found.values():
        assert set(finding) == {"name", "status", "found", "advice", "values"}
        assert finding["status"] in ("ok", "advice")
    assert found["torch"]["values"]["version"]
    assert found["cores"]["values"]["usable"] >= 1


def test_an_unknown_instruction_set_keeps_fulmen_from_running() -> None:
    run = doctor("--json", FULMEN_ISA="pentium")
    found = findings_of(run)
    if found["kernels"]["values"]["built"] is None:
        pytest.skip("the C++ kernels are not installed")
    assert run.returncode == 1
    assert found["kernels"]["status"] == "fault"
    assert found["kernels"]["found"].startswith("FULMEN_ISA is pentium, known are amx")
    assert found["sandbox"]["status"] in ("ok", "advice")


def test_without_the_kernels_fulmen_runs_and_is_told_how_to_get_them(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fulmen", ignore=shutil.ignore_patterns("_native*", "*.so"))
    # The finder of an editable install would bring its extension into this copy.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]\n"
    )
    run = doctor("--json", path=tmp_path)
    assert run.returncode == 0
    found = findings_of(run)
    assert found["kernels"]["found"] == "no C++ kernels, plain torch is used"
    assert found["kernels"]["status"] == "advice"
    assert found["memory rate"]["values"]["gb_per_s"]


def test_a_torch_that_cannot_be_loaded_is_a_fault_in_one_sentence(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fulmen")
    (tmp_path / "torch").mkdir()
    text = 'raise OSError("libtorch_cpu.so: cannot open\\nshared object file")\n'
    (tmp_path / "torch/__init__.py").write_text(text)
    run = doctor("--json", path=tmp_path)
    assert run.returncode == 1
    found = findings_of(run)
    assert found["torch"]["status"] == "fault"
    assert found["torch"]["found"] == (
        "cannot be loaded: libtorch_cpu.so: cannot open shared object file"
    )
    assert found["kernels"]["status"] == "unknown"
    page = doctor(path=tmp_path)
    assert page.returncode == 1
    assert page.stdout.splitlines()[-1] == "Fulmen cannot run here, see X above: torch."


def test_variables_that_slow_or_restrict_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = doctor(
        "--json",
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        PYTHONIOENCODING="ascii",
        XDG_CACHE_HOME=str(tmp_path / "models"),
        XDG_DATA_HOME=str(tmp_path / "file"),
        PATH=str(tmp_path),
    )
    assert run.returncode == 0
    found = findings_of(run)
    assert "HF_HUB_OFFLINE is set" in found["hub"]["advice"][0]
    assert found["terminal"]["values"]["encoding"] == "ascii"
    assert found["models"]["values"]["folder"] == str(tmp_path / "models/fulmen")
    assert not (tmp_path / "models").exists()  # looked at, not made
    assert "is a file" in found["sessions"]["advice"][0]
    assert found["sandbox"]["values"] == {"path": None, "usable": False}
    if found["threads"]["values"]["cores"] > 1:
        assert "OMP_NUM_THREADS=1 limits torch" in found["threads"]["advice"][0]
