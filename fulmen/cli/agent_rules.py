"""Rules that a person said to remember, and settings of folders that they approved."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fulmen.cli.help import Command, examples
from fulmen.cli.options import JsonOption
from fulmen.cli.output import print_json
from fulmen.files import printable, shorten

rules_app = typer.Typer()


@rules_app.command(
    "rules",
    cls=Command,
    epilog=examples(
        """
fulmen agent rules                           all that is remembered
fulmen agent rules --forget 'bash(npm *)'    ask again about them here
fulmen agent rules --revoke                  ask again about settings here
""",
        {"JSON": "rules: folder, allow (a list); approved: file, contents (a number)"},
    ),
)
def agent_rules(
    forget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Forget this rule of the folder. May be repeated.",
            show_default=False,
        ),
    ] = None,
    revoke: Annotated[
        bool,
        typer.Option("--revoke", help="Approve no longer what the folder's own settings say."),
    ] = False,
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder. Default: this one.", show_default=False)
    ] = Path("."),
    as_json: JsonOption = False,
) -> None:
    """List what you allowed for good, or take it back."""
    from fulmen.agent import Approvals, RememberedRules, Rules, agent_folder, project_file

    home, place = agent_folder(), folder.resolve()
    seen_as = _seen_as(place)
    approvals = Approvals(home)
    if forget:
        remembered = RememberedRules(home, seen_as)
        unknown = Rules.parse(forget).allow - remembered.read().allow
        if unknown:
            rule = shorten(min(map(str, unknown)), 200)
            raise ValueError(f"the rule {rule} is not remembered for {seen_as}")
        remembered.forget(Rules.parse(forget))
    if revoke and not approvals.revoke(project_file(place)):
        raise ValueError(f"settings of {place} are not approved")
    if forget or revoke:
        return
    rules = {name: sorted(map(str, one.allow)) for name, one in RememberedRules.all(home).items()}
    approved = approvals.paths()
    if as_json:
        shown: dict[str, Any] = {
            "rules": [{"folder": name, "allow": allow} for name, allow in rules.items()],
            "approved": [{"file": file, "contents": count} for file, count in approved.items()],
        }
        print_json(shown)
        return
    for name, allow in rules.items():
        print(printable(name))
        for rule in allow:
            print(f"    {printable(rule)}")
    for file in approved:
        print(f"{printable(file)} is approved as it was")


def _seen_as(place: Path) -> Path:
    """Return the folder whose rules hold in one: for a fork's, that of the run it comes from."""
    from fulmen.agent import Runs, default_runs

    runs = Runs(default_runs())
    for name in runs.names():
        try:
            facts = runs.facts(name)
        except ValueError:
            continue  # it cannot be read
        if facts.folder == str(place):
            return Path(facts.seen_as)
    return place


def read_rule(text: str) -> str:
    """Return a rule as it was typed. Raises ValueError for what is none."""
    from fulmen.agent import Rules

    Rules.parse([text])
    return text


def read_protected(text: str) -> str:
    """Return a name that is protected in a workspace. Raises ValueError for another."""
    from fulmen.agent import check_protected

    check_protected([text])
    return text
