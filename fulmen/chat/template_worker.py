"""The process that renders chat templates: `rendering.py` starts it and may end it at any time.

A template is a stranger's program. It runs in jinja2's immutable sandbox, in this process, which
has little memory, may write no file and start no process, ends itself when a render takes too long,
and knows nothing of the model. This file is run as a script and imports jinja2 alone.

Jobs and answers come and go through one socket, each with its length before it in 8 bytes. The
first answer, "ready", comes before any job.

    job     JSON: template, variables, seconds, memory_bytes, max_chars
    answer  one word, a line end, and in UTF-8 the prompt or a reason:
            ready | text | refused | failed
"""

import json
import resource
import signal
import struct
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, Final, NoReturn

import jinja2
import jinja2.debug  # else imported at the first error, when there may be no memory left
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_OWN_BYTES: Final = 256 * 2**20
"""Memory of Python and jinja2 themselves, generously"""
_MAX_REASON_CHARS: Final = 500


class RefusedError(Exception):
    """Raised for a template that calls raise_exception."""


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks the assistant's text for training masks; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it as an instance variable

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    """Compile a template with the few names that chat templates use."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, >, & and ' for HTML, which a prompt must not have.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise RefusedError(str(message).rstrip(".! "))


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def render(template: str, variables: dict[str, Any], max_chars: int) -> tuple[str, str]:
    """Render a template; return "text" and the prompt, or another word and why there is none."""
    pieces, num_chars = [], 0
    try:
        for piece in compiled(template).generate(variables):
            num_chars += len(piece)
            if num_chars > max_chars:
                return "failed", f"it wrote more than {max_chars} characters"
            pieces.append(piece)
        return "text", "".join(pieces)
    except RefusedError as error:
        return "refused", _one_line(error)
    except MemoryError:
        return "failed", "it needs more memory than a template may have"
    except RecursionError:
        return "failed", "it is nested too deeply"
    except Exception as error:  # a stranger's program may raise anything
        return "failed", _one_line(error) or type(error).__name__


def _one_line(error: Exception) -> str:
    return " ".join(str(error)[:_MAX_REASON_CHARS].split())


def main() -> None:
    """Render what comes on standard input until it ends."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    with open(0, "rb") as jobs, open(0, "wb", closefd=False) as answers:
        _write(answers, "ready", "")
        while len(header := jobs.read(8)) == 8:
            job = json.loads(jobs.read(struct.unpack("<Q", header)[0]))
            _limit_memory(_OWN_BYTES + job["memory_bytes"])
            # The default action ends this process, whatever it does and whoever else has ended.
            signal.setitimer(signal.ITIMER_REAL, job["seconds"])
            word, text = render(job["template"], job["variables"], job["max_chars"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            _limit_memory(resource.RLIM_INFINITY)
            _write(answers, word, text)


def _write(answers: BinaryIO, word: str, text: str) -> None:
    answer = f"{word}\n{text}".encode("utf-8", "surrogatepass")
    answers.write(struct.pack("<Q", len(answer)) + answer)
    answers.flush()


def _limit_memory(num_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        num_bytes = hard if num_bytes == resource.RLIM_INFINITY else min(num_bytes, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))
    except (OSError, ValueError):
        if sys.platform == "linux":  # macOS has no such limit: time is the only one there
            raise


if __name__ == "__main__":
    main()
