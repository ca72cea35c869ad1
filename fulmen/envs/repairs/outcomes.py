"""Answers of programs to probes, as texts.

This file also runs as a program where nothing else of ours is, in the sandbox: it gets probes and
tells answers, and never sees the right ones. So the code under test, whatever it does to this
process, can pass only by answers that are right.
"""

import json
import os
import sys

MAX_TEXT = 4000
"""Longest answer that is kept; the rest of it does not count"""


def outcome(lines: "list[str]", expression: str, names: "dict[str, object]") -> str:
    """Return the value of an expression after some statements, or the kind of error there is."""
    space = dict(names)
    try:
        for line in lines:
            exec(line, space)
        return repr(eval(expression, space))[:MAX_TEXT]
    except Exception as error:  # that is an answer too
        return f"raises {type(error).__name__}"


def main(path: str) -> None:
    """Take a job with probes of the modules in the folder `solution`, and write the answers.

    {"groups": [{"modules": ["bank.money", ...], "probes": [[["a = 1"], "a + 1"], ...]}]}
    """
    with open(path, "rb") as job:
        groups = json.load(job)["groups"]
    os.unlink(path)
    os.write(1, b"The program runs.\n")
    file = os.fdopen(os.dup(1), "w", encoding="utf-8")  # the code below may interfere with stdout
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.path.insert(0, os.path.abspath("solution"))
    answers = []
    for group in groups:
        names: dict[str, object] = {}
        for module in group["modules"]:
            try:
                names.update(vars(__import__(module, fromlist=["*"])))
            except Exception:  # every probe of it will say that its names are missing
                continue
        answers.append([outcome(lines, text, names) for lines, text in group["probes"]])
    with file:
        json.dump({"answers": answers}, file)


if __name__ == "__main__":
    main(sys.argv[1])
