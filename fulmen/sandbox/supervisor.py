"""First process inside a sandbox: it starts commands, hears their output, and ends them.

It runs with nothing but the standard library and takes requests over one socket that no other
process inside can reach: the socket closes when anything is executed, and this process lets nobody
read its memory or descriptors. Being first in its pid namespace it cannot be killed from inside,
every orphan becomes its child, and one system call of it kills everything else.

One thread, one loop: wait for requests, output, dead children or the next look at the clock. File
work is done by a child (file_work.py), so nothing here waits for a file; nor does anything wait for
the host, which may be at something else while commands run into their limits.
"""

import errno
import json
import os
import resource
import select
import signal
import socket
import time
from typing import Any, Final

from fulmen.sandbox import file_work, kernel, processes
from fulmen.sandbox.output import Kept, Output, Pipe
from fulmen.sandbox.shell import SCRIPT, STATE_DESCRIPTOR, left_state
from fulmen.sandbox.wire import Unpacker, pack

TICK: Final = 0.05
"""Seconds between two looks at clock and processes, while there are any"""
FILE_SECONDS: Final = 60.0
MAX_JOBS: Final = 64
MAX_STATE_BYTES: Final = 128 * 2**10
MAX_OUTGOING_BYTES: Final = 16 * 2**20
"""Bytes that the host has not taken yet, above which it is given nothing more to wait for"""
MAX_DRAINED: Final = 64
"""Most pipes kept open for what finished commands left running"""


class Command:
    """A command in the foreground of a request."""

    def __init__(self, pid: int, output: Pipe, state: Pipe, seconds: float) -> None:
        self.pid, self.pipe, self.state = pid, output, state
        self.state_text = bytearray()
        self.output = Output(0)
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        self.ended_by = ""


class Job:
    """A command in the background, with the last bytes of its output."""

    def __init__(self, pid: int, output: Pipe, command: str, limit: int) -> None:
        self.pid, self.pipe, self.command = pid, output, command
        self.kept = Kept(limit)
        self.code: int | None = None
        self.ended_by = ""

    def status(self) -> tuple[int | None, str]:
        return (None, "") if self.code is None else _verdict(self.code, self.ended_by)

    def hear(self) -> None:
        for piece in self.pipe.pieces():
            self.kept.add(piece)


class Work:
    """File work in a child, whose answer comes through a pipe."""

    def __init__(self, number: int, answer: Pipe) -> None:
        self.number, self.pipe = number, answer
        self.answer = bytearray()
        self.deadline = time.monotonic() + FILE_SECONDS


def _check_held(path: str, device: int, inode: int) -> None:
    """Raise unless a path is what the host looked at, and read-only: whoever could change the
    folder meanwhile, another sandbox for example, may have put something else there."""
    status = os.lstat(path)
    is_it = (status.st_dev, status.st_ino) == (device, inode) and os.path.realpath(path) == path
    if not (is_it and os.statvfs(path).f_flag & os.ST_RDONLY):
        raise ValueError(f"{path} changed while the sandbox was made")


def _verdict(code: int, ended_by: str) -> tuple[int | None, str]:
    """Return the exit code, if there is one, and how a shell ended."""
    if ended_by:
        return None, ended_by
    return (code, "exit") if code >= 0 else (None, "signal")


class Supervisor:
    """State of the loop."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.control.setblocking(False)
        self.outgoing = bytearray()
        self.unpacker = Unpacker()
        self.commands: dict[int, Command] = {}  # by number of the request
        self.jobs: dict[int, Job] = {}
        self.works: dict[int, Work] = {}  # by pid
        self.drained: list[Pipe] = []
        self.next_job = 1
        self.has_children = False
        self.next_look = 0.0
        self.available_before = processes.available_bytes()
        self.settings: dict[str, Any] = {}
        self.exported: dict[str, str] = {}
        self.wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until the host closes the socket."""
        while True:
            ready = self.wait()
            if self.control.fileno() in ready and not self.take_requests():
                return
            self.flush()
            if self.wake in ready:
                os.read(self.wake, 512)
            for number, command in self.commands.items():
                self.hear(number, command)
            for work in self.works.values():
                work.answer += b"".join(work.pipe.pieces())
            self.reap()
            if self.has_children and time.monotonic() >= self.next_look:
                self.look()

    def wait(self) -> set[int]:
        """Wait for anything to do, at most until the next look."""
        poll = select.poll()
        pipes = [work.pipe for work in self.works.values()]
        pipes += [
            one for command in self.commands.values() for one in (command.pipe, command.state)
        ]
        open_pipes = [pipe.descriptor for pipe in pipes if pipe.descriptor is not None]
        takes_more = len(self.outgoing) <= MAX_OUTGOING_BYTES
        events = select.POLLIN * takes_more | select.POLLOUT * bool(self.outgoing)
        poll.register(self.control.fileno(), events)  # that the host is gone is told anyway
        for descriptor in (self.wake, *open_pipes):
            poll.register(descriptor, select.POLLIN)
        patience = 1000 * max(self.next_look - time.monotonic(), 0) if self.has_children else None
        return {descriptor for descriptor, event in poll.poll(patience) if event != select.POLLOUT}

    def send(self, number: int, kind: str, body: bytes = b"", **header: object) -> None:
        self.put(pack({"id": number, "kind": kind, **header}, body))

    def put(self, message: bytes | bytearray) -> None:
        """Send a message as soon as the host takes it."""
        self.outgoing += message
        self.flush()

    def flush(self) -> None:
        """Send what the host takes now."""
        while self.outgoing:
            try:
                num_sent = self.control.send(self.outgoing[: 2**18])
            except BlockingIOError:
                return
            del self.outgoing[:num_sent]

    # Requests

    def take_requests(self) -> bool:
        """Do what the host asks; return whether it is still there."""
        try:
            piece = self.control.recv(2**18)
        except BlockingIOError:
            return True
        operations = {
            **{"begin": self.begin, "run": self.run, "cancel": self.cancel, "file": self.work},
            **{"start": self.start, "jobs": self.list_jobs, "job": self.read_job},
            "kill": self.kill_job,
        }
        for text, body in self.unpacker.feed(piece):
            request = json.loads(text)
            number = request["id"]
            try:
                operations[request["op"]](number, request, body)
            except (OSError, ValueError) as error:
                code = error.errno if isinstance(error, OSError) else 0
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self.send(number, "error", errno=code or 0, text=reason)
        return bool(piece)

    def begin(self, number: int, request: dict[str, Any], body: bytes) -> None:
        """Take the settings, and the limits that every process inherits."""
        self.settings = {**request, **json.loads(body)}
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.close(null)
        limits = {
            **{resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 4096},
            resource.RLIMIT_FSIZE: self.settings["file_bytes"],
            resource.RLIMIT_NPROC: self.settings["user_tasks"],
            resource.RLIMIT_DATA: self.settings["process_bytes"],
        }
        for kind, value in limits.items():
            if value is not None:
                hard = resource.getrlimit(kind)[1]
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (value, value))
        if self.settings["is_scoped"]:
            kernel.leave_abstract_sockets()
        for path, device, inode in self.settings["held"]:
            _check_held(path, device, inode)
        self.send(number, "done")

    def run(self, number: int, request: dict[str, Any], body: bytes) -> None:
        state, state_start = Pipe.pair()
        try:
            pid, output = self.start_shell(body, request["folder"], state_start)
        except OSError:
            state.close()
            raise
        finally:
            os.close(state_start)
        command = Command(pid, output, state, request["seconds"])
        command.output = Output(self.settings["output_bytes"])
        self.commands[number] = command

    def cancel(self, number: int, request: dict[str, Any], body: bytes) -> None:
        command = self.commands.get(request["command"])
        if command:
            self.end(command, "cancelled")

    def start(self, number: int, request: dict[str, Any], body: bytes) -> None:
        ended = [key for key, job in self.jobs.items() if job.code is not None]
        for key in ended[: max(len(self.jobs) - MAX_JOBS + 1, 0)]:
            del self.jobs[key]
        if len(self.jobs) >= MAX_JOBS:
            raise ValueError(f"{MAX_JOBS} jobs run already, end one of them first")
        pid, output = self.start_shell(body, request["folder"], None)
        key, self.next_job = self.next_job, self.next_job + 1
        shown = body[:200].decode(errors="replace")
        self.jobs[key] = Job(pid, output, shown, self.settings["job_bytes"])
        self.send(number, "done", job=key)

    def list_jobs(self, number: int, request: dict[str, Any], body: bytes) -> None:
        rows = [[key, job.command, *job.status()] for key, job in self.jobs.items()]
        self.send(number, "done", json.dumps({"rows": rows}).encode())

    def read_job(self, number: int, request: dict[str, Any], body: bytes) -> None:
        job = self.job(request)
        job.hear()
        begin, piece = job.kept.read(request["cursor"], self.settings["output_bytes"])
        exit_code, ended_by = job.status()
        self.send(number, "done", piece, begin=begin, exit_code=exit_code, ended_by=ended_by)

    def kill_job(self, number: int, request: dict[str, Any], body: bytes) -> None:
        job = self.job(request)
        if job.code is None:
            job.ended_by = job.ended_by or "cancelled"
            processes.kill_tree(job.pid)
        self.send(number, "done")

    def job(self, request: dict[str, Any]) -> Job:
        if request["job"] not in self.jobs:
            raise ValueError(f"there is no job {request['job']}")
        return self.jobs[request["job"]]

    def work(self, number: int, request: dict[str, Any], body: bytes) -> None:
        answer, start = Pipe.pair()
        pid = self.fork()
        if pid == 0:
            try:
                self.control.close()
                with open(start, "wb") as file:
                    file.write(self.answer_of_work(number, request, body))
            finally:
                os._exit(0)
        os.close(start)
        self.works[pid] = Work(number, answer)

    def answer_of_work(self, number: int, request: dict[str, Any], body: bytes) -> bytes:
        workspace, hidden = self.settings["workspace"], set(self.settings["hidden"])
        try:
            header, content = file_work.answer(request, body, workspace, hidden)
            return pack({**header, "id": number, "kind": "done"}, content)
        except OSError as error:
            code, text = error.errno or 0, error.strerror or str(error)
        except (ValueError, MemoryError, RecursionError) as error:
            code, text = 0, str(error) or "it needs more memory than the sandbox has"
        return pack({"id": number, "kind": "error", "errno": code, "text": text[:1000]})

    # Processes

    def fork(self) -> int:
        """Fork; where no process can be made any more, kill what runs and try once more."""
        try:
            pid = os.fork()
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            self.end_all("processes")
            pid = os.fork()
        if not self.has_children:
            self.has_children = True
            self.next_look = time.monotonic() + TICK
        return pid

    def start_shell(self, command: bytes, folder: str, state: int | None) -> tuple[int, Pipe]:
        """Start a shell in a folder; return its pid and its output. Raises OSError if the folder is
        gone, or a link leads to it by now: what runs there was judged for this one."""
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.readlink(f"/proc/self/fd/{place}") != folder:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return self.start_shell_in(command, place, state)
        finally:
            os.close(place)

    def start_shell_in(self, command: bytes, place: int, state: int | None) -> tuple[int, Pipe]:
        output, start = Pipe.pair()
        try:
            pid = self.fork()
            if pid == 0:
                try:
                    os.fchdir(place)
                    self.become_shell(command, start, state)
                except BaseException as error:
                    os.write(2, f"the shell cannot start: {error}\n".encode())
                finally:
                    os._exit(126)
        except OSError:
            output.close()
            raise
        finally:
            os.close(start)
        return pid, output

    def become_shell(self, command: bytes, output: int, state: int | None) -> None:
        self.control.close()
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # which Python changed
            signal.signal(number, signal.SIG_DFL)
        if state is not None:
            os.dup2(state, STATE_DESCRIPTOR)
        shell = self.settings["shell"]
        arguments = [shell, "--noprofile", "--norc", "-c", SCRIPT, "bash", command]
        os.execve(shell, arguments, {**self.exported, **self.settings["environment"]})

    def reap(self) -> None:
        """Take the exit codes of all that died, orphans included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.has_children = False
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            for number, command in list(self.commands.items()):
                if command.pid == pid:
                    self.finish(number, command, code)
            for job in self.jobs.values():
                if job.pid == pid and job.code is None:
                    job.hear()
                    job.code = code
                    self.drain(job.pipe)
            if pid in self.works:
                self.finish_work(self.works.pop(pid))

    def finish(self, number: int, command: Command, code: int) -> None:
        self.hear(number, command)
        command.state.close()
        self.drain(command.pipe)
        del self.commands[number]
        folder = None
        state = left_state(bytes(command.state_text))
        if state:
            folder, self.exported = state
        tail, num_dropped = command.output.tail()
        exit_code, ended_by = _verdict(code, command.ended_by)
        header = {"exit_code": exit_code, "ended_by": ended_by, "dropped": num_dropped}
        seconds = time.monotonic() - command.began
        self.send(number, "end", tail, seconds=seconds, folder=folder, **header)

    def drain(self, pipe: Pipe) -> None:
        """Keep a pipe for what a shell left running: it shall not die of writing to it."""
        self.drained = [one for one in (*self.drained, pipe) if one.descriptor is not None]
        if len(self.drained) > MAX_DRAINED:
            self.drained.pop(0).close()

    def finish_work(self, work: Work) -> None:
        work.answer += b"".join(work.pipe.pieces())
        work.pipe.close()
        if Unpacker().feed(bytes(work.answer)):
            self.put(work.answer)
        else:
            text = "it took too long or too much memory and was ended"
            self.send(work.number, "error", errno=errno.ETIMEDOUT, text=text)

    def hear(self, number: int, command: Command) -> None:
        """Send on what a command writes, as long as it goes to the first bytes of its output."""
        for piece in command.pipe.pieces():
            head = command.output.add(piece)
            if head:
                self.send(number, "output", head)
        if command.output.total > self.settings["total_output_bytes"]:
            self.end(command, "output")
        for piece in command.state.pieces():
            command.state_text += piece
            if len(command.state_text) > MAX_STATE_BYTES:
                command.state_text.clear()
                command.state.close()

    # Limits

    def look(self) -> None:
        """Look at the clock, at number and size of processes, and at output nobody waits for."""
        began = time.monotonic()
        for command in self.commands.values():
            if began >= command.deadline:
                self.end(command, "timeout")
        for pid, work in self.works.items():
            if began >= work.deadline:
                os.kill(pid, signal.SIGKILL)
        usage = processes.measure(self.settings["tmpfs"])
        most = self.settings["num_processes"]
        if usage.num_processes > most or usage.num_tasks > self.settings["num_tasks"]:
            self.end_all("processes")
        elif self.is_too_large(usage.memory_bytes):
            self.end_all("memory")
        for job in self.jobs.values():
            job.hear()
        for pipe in self.drained:
            list(pipe.pieces())
        now = time.monotonic()
        self.next_look = now + min(max(TICK, 10 * (now - began)), 10 * TICK)

    def is_too_large(self, memory_bytes: int) -> bool:
        """Return whether all processes together have too much memory."""
        limit: int = self.settings["memory_bytes"]
        if processes.is_machine_short(self.available_before, limit):
            return True
        return memory_bytes > limit and processes.memory_once(self.settings["tmpfs"]) > limit

    def end(self, command: Command, reason: str) -> None:
        if not command.ended_by:
            command.ended_by = reason
            processes.kill_tree(command.pid)

    def end_all(self, reason: str) -> None:
        """Kill everything that runs: nobody knows whose child a bomb's processes are."""
        running: list[Command | Job] = [*self.commands.values(), *self.jobs.values()]
        for one in running:
            one.ended_by = one.ended_by or reason
        processes.kill_all()
        self.reap()
        for _ in range(100):  # the next command shall find room
            if not self.has_children:
                return
            time.sleep(TICK / 5)
            self.reap()


def main(descriptor: int) -> None:
    """Serve on an inherited socket; when it closes, everything inside ends."""
    kernel.set_dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # thus a process inside cannot send it
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, 1024)
    try:
        Supervisor(control).serve()
    finally:
        processes.kill_all()
