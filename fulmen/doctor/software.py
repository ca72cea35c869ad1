"""Python, Fulmen, the packages it stands on, its C++ kernels, and the GPUs that torch sees."""

import platform
import shutil
import struct
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from fulmen import __version__
from fulmen.doctor.finding import Finding

KERNEL_MACHINES: Final = ("x86_64", "AMD64")
"""Processors that the C++ kernels are written for."""


def find_fulmen() -> Finding:
    """Tell which Fulmen runs, and from where."""
    folder = Path(__file__).parent.parent
    values: dict[str, object] = {"version": __version__, "folder": str(folder)}
    try:
        installed = metadata.version("fulmen")
    except metadata.PackageNotFoundError:
        return Finding(
            name="fulmen",
            found=f"{__version__} in {folder}, not installed",
            advice=("install it, `pip install .` in its folder, for the command and the kernels",),
            values=values | {"installed": None},
        )
    advice = []
    if installed != __version__:
        advice.append(f"{installed} is what pip installed, install this one again")
    return Finding(
        name="fulmen",
        found=f"{__version__} in {folder}",
        advice=tuple(advice),
        values=values | {"installed": installed},
    )


def find_python() -> Finding:
    """Tell which Python runs."""
    bits = struct.calcsize("P") * 8
    name = f"{platform.python_implementation()} {platform.python_version()}"
    return Finding(
        name="python",
        found=f"{name}, {bits} bit, {sys.executable}",
        advice=("Fulmen needs a Python of 64 bit",) if bits < 64 else (),
        prevents_running=bits < 64,
        values={
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
            "bits": bits,
            "executable": sys.executable,
            "platform": platform.platform(),
        },
    )


def find_packages() -> Finding:
    """Compare the packages that Fulmen needs with those that are installed."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires("fulmen") or []
    except metadata.PackageNotFoundError:
        return Finding(name="packages", found="unknown, for Fulmen is not installed")
    versions: dict[str, object] = {}
    missing, unfit = [], []
    for requirement in map(Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            versions[requirement.name] = None
            missing.append(f"{requirement.name}{requirement.specifier}")
            continue
        versions[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} {version} (needed: {requirement.specifier})")
    advice = [f"`pip install {text!r}`" for text in missing]
    advice += [f"{text} is another version than Fulmen was tried with" for text in unfit]
    found = f"all {len(versions)} are there"
    if missing:
        found = f"missing: {', '.join(missing)}"
    elif unfit:
        found = f"{len(versions)} are there, {len(unfit)} in another version"
    return Finding(
        name="packages",
        found=found,
        advice=tuple(advice),
        prevents_running=bool(missing),
        values=versions,
    )


def find_torch() -> Finding:
    """Load torch and name its build."""
    try:
        import torch
    except Exception as error:  # a broken library raises what it likes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return Finding(
            name="torch",
            found=f"cannot be loaded: {reason}",
            advice=("Fulmen runs on torch: `pip install --force-reinstall torch`",),
            prevents_running=True,
            values={"version": None},
        )
    build = torch_build(torch.version.cuda, torch.version.hip)
    capability = torch.backends.cpu.get_cpu_capability()
    return Finding(
        name="torch",
        found=f"{torch.__version__}, {build} build, {capability} on the CPU",
        values={
            "version": str(torch.__version__),
            "build": build,
            "cpu_capability": capability,
        },
    )


def torch_build(cuda: str | None, hip: str | None) -> str:
    """Return the kind of build from torch's version of CUDA or ROCm."""
    return f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"


def find_kernels() -> Finding:
    """Tell whether the C++ kernels are there, for which instruction sets, and which is in use."""
    from fulmen.kernels import built_sets, native, shadowed_install

    built = built_sets()
    values: dict[str, object] = {"built": None, "here": None, "in_use": None}
    if built is None:
        machine, system = platform.machine(), platform.system()
        advice = shadowed_install() or missing_kernels_advice(system, machine, shutil.which("c++"))
        return Finding(
            name="kernels",
            found="no C++ kernels, plain torch is used",
            advice=(advice,),
            values=values,
        )
    names = [name for name, _ in built]
    here = [name for name, is_here in built if is_here]
    values |= {"built": names, "here": here}
    try:
        extension = native()
    except ValueError as error:  # FULMEN_ISA, which no run survives either
        return Finding(
            name="kernels",
            found=str(error),
            advice=("unset FULMEN_ISA",),
            prevents_running=True,
            values=values,
        )
    if extension is None:
        reason = "FULMEN_ISA is none" if here else "the processor has no AVX2"
        return Finding(
            name="kernels",
            found=f"built for {', '.join(names)}; not in use, plain torch is: {reason}",
            advice=("unset FULMEN_ISA: plain torch is slower",) if here else (),
            values=values,
        )
    in_use = extension.isa()
    is_chosen = here and in_use != here[0]
    said = f"FULMEN_ISA chose {in_use}, without it {here[0]} would be used" if is_chosen else ""
    return Finding(
        name="kernels",
        found=f"{in_use} in use; built for {', '.join(names)}",
        advice=(said,) if said else (),
        values=values | {"in_use": in_use},
    )


def missing_kernels_advice(system: str, machine: str, compiler: str | None) -> str:
    """Return how to get the C++ kernels on a machine that lacks them."""
    if system != "Linux" or machine not in KERNEL_MACHINES:
        return (
            f"the C++ kernels are for Linux on x86-64, this is {system} on {machine}; Fulmen runs "
            "on plain torch, slower and exact only to rounding"
        )
    if compiler is None:
        return (
            "install a wheel that brings them, or a compiler (`apt install g++`) and then Fulmen "
            "again: `pip install --force-reinstall --no-deps .`"
        )
    return (
        f"{compiler} is there, so build them: `pip install --force-reinstall --no-deps .`; with -v "
        "it shows why a build failed"
    )


def find_gpus() -> Finding:
    """List the GPUs that torch can use, or tell why it uses none."""
    import torch

    build = torch_build(torch.version.cuda, torch.version.hip)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gpus = _torch_gpus(torch) if torch.cuda.is_available() else []
    values: dict[str, object] = {"gpus": gpus, "build": build}
    if gpus:
        listed = ", ".join(f"{gpu['name']} ({gpu['memory_bytes'] / 1e9:.0f} GB)" for gpu in gpus)
        return Finding(
            name="gpu", found=f"{listed}; used with --device cuda, on plain torch", values=values
        )
    reason = " ".join(str(caught[0].message).split())[:300] if caught else ""
    found, advice = explain_no_gpu(build, has_nvidia=has_nvidia_gpu(), reason=reason)
    return Finding(name="gpu", found=found, advice=advice, values=values)


def _torch_gpus(torch: Any) -> list[dict[str, Any]]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "memory_bytes": properties.total_memory})
    return gpus


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Return whether an NVIDIA driver runs here."""
    return (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists()


def explain_no_gpu(build: str, *, has_nvidia: bool, reason: str) -> tuple[str, tuple[str, ...]]:
    """Return why torch uses no GPU, and the advice.

    build    "CPU", or CUDA or ROCm with a version
    reason   torch's own warning, empty if it gave none
    """
    if build == "CPU":
        if has_nvidia:
            advice = "an NVIDIA driver is here: torch's CUDA build would use it with --device cuda"
            return "none that this CPU build of torch can use", (advice,)
        return "none", ()
    if has_nvidia or reason:
        said = f": {reason}" if reason else ""
        advice = f"update the driver, or install a torch for its version of {build.split()[0]}"
        return f"none that torch can use{said}", (advice,)
    advice = (
        f"the {build.split()[0]} build of torch takes gigabytes of disk that its CPU build does not"
    )
    return "none", (advice,)
