"""The `fulmen` command: data goes to stdout, everything else to stderr.

A user's mistake is one sentence on stderr and a non-zero exit, never a traceback.
"""

import logging
import sys
from typing import Annotated

import typer

from fulmen import __version__
from fulmen.cli.bench import bench
from fulmen.cli.chat import chat, generate
from fulmen.cli.doctor import doctor
from fulmen.cli.evaluate import scale
from fulmen.cli.models import models_app
from fulmen.cli.plan import plan
from fulmen.cli.quantize import quantize
from fulmen.cli.sessions import sessions_app
from fulmen.files import explain

_EXAMPLES = """\b
Examples:
  fulmen chat "What is the capital of France?"
  fulmen chat --model minimax-m2 --session trip
  fulmen plan minimax-m2 --ram 24GiB --disk 3GB/s
"""

app = typer.Typer(
    name="fulmen",
    help="MiniMax-M1 and MiniMax-M2 in Python: chat, plan, quantize, measure.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _command in (chat, generate, quantize, plan, bench, scale, doctor):
    app.command()(_command)
app.add_typer(models_app, name="models")
app.add_typer(sessions_app, name="sessions")


def main() -> None:
    """Run the `fulmen` command."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our stdout has gone, as in `fulmen ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        print(f"fulmen: {explain(error)}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:
        print(f"fulmen: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"fulmen {__version__}")
        raise typer.Exit
