"""The process that renders chat templates: `rendering.py` starts it and may end it at any time.

A template is a stranger's program. It runs in jinja2's immutable sandbox, in this process, which
has little memory, ends itself when a render takes too long, and knows nothing of the model. This
file is run as a script and imports jinja2 alone.

    stdin   8 bytes of length, then JSON: template, variables, seconds, memory_bytes, max_chars
    stdout  8 bytes of length, then JSON: text, or refused, or failed
"""

import json
import signal
import struct
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

try:
    import resource
except ImportError:  # no POSIX system: the parent's clock remains
    resource = None  # type: ignore[assignment]

_OWN_BYTES = 256 * 2**20
"""Memory of Python and jinja2 themselves, generously"""


class RefusedError(Exception):
    """What a template says through raise_exception."""


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks what the assistant wrote, for training masks; here for nothing."""

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


def render(template: str, variables: dict[str, Any], max_chars: int) -> dict[str, str]:
    """Render a template; return its text, or why there is none."""
    pieces, num_chars = [], 0
    try:
        for piece in compiled(template).generate(**variables):
            num_chars += len(piece)
            if num_chars > max_chars:
                return {"failed": f"it wrote more than {max_chars} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except RefusedError as error:
        return {"refused": str(error)[:2000]}
    except MemoryError:
        return {"failed": "it needs more memory than a template may have"}
    except RecursionError:
        return {"failed": "it is nested too deeply"}
    except Exception as error:  # a stranger's program may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        return {"failed": text[:500]}


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(8)
    if len(header) < 8:
        return None
    return stream.read(struct.unpack("<Q", header)[0])


def main() -> None:
    """Render what comes on stdin until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (request := _read(sys.stdin.buffer)) is not None:
        job = json.loads(request)
        if resource is not None:
            limit = _OWN_BYTES + job["memory_bytes"]
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            # The default action ends the process whatever it does, and its parent's end too.
            signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        found = render(job["template"], job["variables"], job["max_chars"])
        if resource is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        reply = json.dumps(found).encode()
        sys.stdout.buffer.write(struct.pack("<Q", len(reply)) + reply)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
