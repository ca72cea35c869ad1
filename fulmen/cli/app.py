"""The `fulmen` command: data goes to stdout, everything else to stderr.

A user's mistake is one sentence on stderr and a non-zero exit, never a traceback.
"""

import logging
import signal
import sys
from typing import Annotated, Any

import typer

from fulmen import __version__
from fulmen.cli import batch as _batch
from fulmen.cli import bench as _bench
from fulmen.cli import chat as _chat
from fulmen.cli import completion, evaluate
from fulmen.cli import doctor as _doctor
from fulmen.cli import mcp as _mcp
from fulmen.cli import plan as _plan
from fulmen.cli import quantize as _quantize
from fulmen.cli import serve as _serve
from fulmen.cli.agent import agent_app
from fulmen.cli.evals import eval_app
from fulmen.cli.help import Command, Group, examples, usage_errors
from fulmen.cli.models import models_app
from fulmen.cli.output import drop_output, write_anything
from fulmen.cli.sessions import sessions_app
from fulmen.cli.settings import ConfiguredCommand
from fulmen.cli.train import train_app
from fulmen.cli.train_rl import RL_EXAMPLES, rl
from fulmen.cli.train_speedrun import SPEEDRUN_EXAMPLES, speedrun
from fulmen.files import explain

_EXAMPLES = examples("""
fulmen chat                                  talk to a small model
fulmen chat "What is 4711 + 1293?"           one answer
fulmen chat --session trip                   begin, or go on with yesterday's
fulmen chat "..." --thinking-budget 2000     at most 2,000 tokens of thought
fulmen chat "..." --json-schema schema.json  answer in JSON of this shape
fulmen agent "make the failing test pass"    a model works in this folder
fulmen serve                                 for clients of OpenAI, Anthropic
fulmen plan minimax-m2 --ram 128GiB          does it fit? how fast?
fulmen chat --help                           options of a command
""")


class _Root(Group):
    """The command itself: --show-completion and --install-completion may name a shell."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; whatever it prints can be written."""
        write_anything()
        return super().main(*args, **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read arguments as typer does, and a shell after the options of completion."""
        with usage_errors(ctx):
            match args:
                case ["--show-completion", shell]:
                    print(completion.script(shell))
                    raise typer.Exit
                case ["--install-completion", shell]:
                    path = completion.install_for(shell)
                    said = f"completion for {shell} is in {path}, a new shell reads it"
                    print(said, file=sys.stderr)
                    raise typer.Exit
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="fulmen",
    cls=_Root,
    help="MiniMax-M1 and MiniMax-M2 in Python: chat, agents, serve, train, plan, quantize, bench.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _command, _epilog in (
    (_chat.chat, _chat.CHAT_EXAMPLES),
    (_chat.generate, _chat.GENERATE_EXAMPLES),
    (_serve.serve, _serve.EXAMPLES),
    (_batch.batch, _batch.EXAMPLES),
    (_mcp.mcp, _mcp.EXAMPLES),
    (_plan.plan, _plan.PLAN_EXAMPLES),
    (_quantize.quantize, _quantize.EXAMPLES),
    (_bench.bench, _bench.EXAMPLES),
    (evaluate.scale, evaluate.EXAMPLES),
    (_doctor.doctor, _doctor.EXAMPLES),
    (_plan.figure1, _plan.FIGURE1_EXAMPLES),
):
    _kind = ConfiguredCommand if _command is _serve.serve else Command
    app.command(cls=_kind, epilog=_epilog)(_command)
app.add_typer(agent_app, name="agent")
app.add_typer(eval_app, name="eval")
app.add_typer(models_app, name="models")
app.add_typer(sessions_app, name="sessions")
train_app.command("rl", cls=Command, epilog=RL_EXAMPLES)(rl)
train_app.command("speedrun", cls=Command, epilog=SPEEDRUN_EXAMPLES)(speedrun)
app.add_typer(train_app, name="train")


def main() -> None:
    """Be the `fulmen` command, until the process ends."""
    try:
        dispatch()
    finally:  # Ctrl-C while Python puts things away ends it at once, with nothing to say
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def dispatch() -> None:
    """Run the command that `sys.argv` asks for."""
    write_anything()
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our stdout has gone, as in `fulmen ... | head`
        drop_output()
        sys.exit(1)
    except OSError as error:
        print(f"fulmen: {explain(error)}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:
        print(f"fulmen: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        from fulmen.chat import ModelError  # help comes without it

        if not isinstance(error, ModelError):
            raise
        print(f"fulmen: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"fulmen {__version__}")
        raise typer.Exit
