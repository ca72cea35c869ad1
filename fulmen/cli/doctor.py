"""fulmen doctor: what this machine has, what is missing or slow, and what to do about it."""

import logging
import shutil
import textwrap
from typing import TYPE_CHECKING, Final

import typer

from fulmen.cli.help import examples
from fulmen.cli.options import JsonOption
from fulmen.cli.output import print_json

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.doctor import Finding

_NAME_COLUMNS = 13
_LINE_COLUMNS = 100


EXAMPLES: Final = examples(
    """
fulmen doctor
fulmen doctor --json
""",
    {
        "JSON": """
            can_run and findings; each has name, status (ok, advice, unknown or fault), found,
            advice and values."""
    },
)


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine and this installation.

    Prints what is there, and a line of advice for each thing that is missing or slow. The exit code
    is 1 if something keeps Fulmen from running, else 0. Nothing is changed or downloaded.
    """
    from fulmen.doctor import examine

    logging.getLogger("fulmen").setLevel(logging.ERROR)  # what it warns of is a finding here
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            print(_text(finding), flush=True)
    can_run = not any(finding.prevents_running for finding in findings)
    if as_json:
        print_json({"can_run": can_run, "findings": [each.to_dict() for each in findings]})
    else:
        print(_summary(findings))
    if not can_run:
        raise typer.Exit(1)


def _text(finding: "Finding") -> str:
    mark = {"ok": " ", "advice": "!", "fault": "X", "unknown": "?"}[finding.status]
    indent = " " * (2 + _NAME_COLUMNS)
    lines = _wrapped(finding.found, f"{mark} {finding.name:{_NAME_COLUMNS}}", indent)
    for advice in finding.advice:
        lines += _wrapped(advice, f"{indent}-> ", f"{indent}   ")
    return "\n".join(lines)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Return lines as wide as the terminal, up to a width that reads well."""
    columns = shutil.get_terminal_size((_LINE_COLUMNS, 24)).columns
    return textwrap.wrap(
        text,
        min(columns, _LINE_COLUMNS),
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _summary(findings: "list[Finding]") -> str:
    faults = [finding.name for finding in findings if finding.status == "fault"]
    advised = sum(finding.status == "advice" for finding in findings)
    if faults:
        return f"\nFulmen cannot run here, see X above: {', '.join(faults)}."
    if advised:
        things = "thing" if advised == 1 else "things"
        return f"\nFulmen can run here; {advised} {things} marked ! could be better."
    return "\nFulmen can run here."
