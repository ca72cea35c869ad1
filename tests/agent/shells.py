"""Random shell texts, and the programs that a real bash starts for one.

The names in these texts are those of no program, and bash looks them up on an empty path: it hands
each to a function that notes it down. So a text may be run whatever it means.
"""

import os
import random
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

NAMES = ("aa", "bb", "cc", "dd")
"""Programs in random texts, of which none exists"""

_NOTE = 'command_not_found_handle() { builtin printf "%s\\0" "$1" >> "$NOTED"; }\n'
_PIECES = (
    *(" ", "\n", ";", " && ", " || ", " | ", " & ", "(", ")", "{ ", "; }", "'", '"', "$(", "`"),
    *("\\", "#", " #", "<<E\n", "\nE\n", "<<< ", ">f ", ">>g ", "2>&1 ", "$x", "${x:-", "}", "$(("),
    *("))", "[[ ", " ]]", "[ ", " ]", "if ", "; then ", "; else ", "; fi", "for i in ", "; do "),
    *(
        "; done",
        "case a in ",
        "a) ",
        ";; esac",
        "x=",
        "! ",
        "time ",
        "eval ",
        "$'",
        "h() ",
        "{a,b}",
    ),
    *(
        "<(",
        ">(",
        "coproc ",
        "function g ",
        "- ",
        "=",
        "\t",
        "\\\n",
        " \\\n",
        "&>f ",
        "<&",
        "~",
        "*",
    ),
    *("<<'E'\n", "<<-E\n", "\n\tE\n", "|& ", "$", "\\'", '\\"', "1", "-v ", "echo ", "${#", "${x%"),
    *(
        ";;",
        "a",
        "E",
        "in ",
        "do ",
        "fi ",
        "then ",
        "esac ",
        "}",
        "{",
        "]]",
        "$[",
        "]",
        "<",
        ">",
        "&",
    ),
    *NAMES,
)


def random_text(source: random.Random) -> str:
    """Return a text of the shell with a few faults in it, or none."""
    text = _statements(source, 3)
    for _ in range(source.choice((0, 0, 1, 1, 2, 4))):
        place = source.randrange(len(text) + 1)
        text = text[:place] + source.choice(_PIECES) + text[place + source.choice((0, 0, 1, 3)) :]
    return text


def _statements(source: random.Random, depth: int) -> str:
    ends = (";", "\n", " && ", " || ", " | ", " & ", " # aa\n", "; ")
    text = "".join(
        _statement(source, depth) + source.choice(ends) for _ in range(source.randrange(3))
    )
    return text + _statement(source, depth)


def _statement(source: random.Random, depth: int) -> str:
    def more() -> str:
        return _statements(source, depth - 1)

    if depth == 0 or source.random() < 0.5:
        words = [source.choice(NAMES), *(_word(source, depth) for _ in range(source.randrange(3)))]
        return " ".join(words) + source.choice(
            ("", "", "", " >f", " 2>&1", " <<< aa", "<<E\naa\nE")
        )
    return source.choice(
        (
            lambda: f"({more()})",
            lambda: f"{{ {more()}\n}}",
            lambda: f"if {more()}\nthen {more()}\nfi",
            lambda: f"if {more()}\nthen {more()}\nelse {more()}\nfi >f",
            lambda: f"for i in {_word(source, depth)}; do {more()}\ndone",
            lambda: f"case {_word(source, depth)} in x) {more()}\n;; *) {more()}\n;; esac",
            lambda: f"! {_statement(source, depth - 1)}",
            lambda: f"h() {{ {more()}\n}}; h",
            lambda: f"eval '{_word(source, 0)}'",
            lambda: f"[[ {_word(source, depth)} == {_word(source, depth)} ]] && {more()}",
            lambda: f"x={_word(source, depth)} {more()}",
            lambda: f"cat <<E\n{_word(source, depth)}\nE\n{more()}",
            lambda: f"cat <<'E' | {more()}\nE\n",
        )
    )()


def _word(source: random.Random, depth: int) -> str:
    if depth == 0:
        return source.choice((*NAMES, "x", "'a b'", '"a b"', "$x", "\\a", "a#", "-x", "1"))

    def more() -> str:
        return _statements(source, depth - 1)

    return source.choice(
        (
            lambda: source.choice(NAMES),
            lambda: f"$({more()})",
            lambda: f'"$({more()})"',
            lambda: f"`{source.choice(NAMES)}`",
            lambda: f"<({more()})",
            lambda: f"${{x:-{_word(source, depth - 1)}}}",
            lambda: f'"a${{x:-{_word(source, depth - 1)}}}b"',
            lambda: f"'{_word(source, depth - 1)}'".replace("''", "'"),
            lambda: "$((1+2))",
            lambda: "$'a\\'b'",
        )
    )()


def programs_started(text: str, folder: Path) -> tuple[set[str], set[str]]:
    """Run a text in bash; return the names that it looked up as programs, and files it made."""
    with TemporaryDirectory(dir=folder) as fresh:
        note, start, work = (Path(fresh) / name for name in ("noted", "start", "work"))
        start.write_text(_NOTE)
        note.touch()
        work.mkdir()
        end, held = os.pipe()  # closed at both sides once all processes have ended
        process = subprocess.Popen(
            ["/bin/bash", "-c", f"ulimit -t 1 -f 100 -v 1000000\n{text}"],
            cwd=work,
            env={"PATH": "/nonexistent", "BASH_ENV": str(start), "NOTED": str(note)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[held],
            start_new_session=True,
        )
        os.close(held)
        select.select([end], [], [], 3)
        os.close(end)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        noted = note.read_text(errors="replace").split("\0")
        return set(noted) - {""}, {file.name for file in work.iterdir()}
