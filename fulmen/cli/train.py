"""fulmen train: models learn, from a run file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from fulmen.cli.help import Command, Group, examples

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from collections.abc import Callable

train_app = typer.Typer(
    cls=Group,
    help="Train models on next tokens or by reinforcement learning; make tokenizers for new ones.",
    no_args_is_help=True,
    epilog=examples("""
fulmen train tokenizer OUT --kind characters
fulmen train lm runs/copy-add.toml          begin, or go on
fulmen train lm runs/copy-add.toml --set optimizer.learning_rate=1e-3
fulmen train rl runs/fork.toml              begin, or go on
fulmen train speedrun mini-m1 --hours 2     make mini-m1 anew
"""),
)

_STOPPED: Final = 130
"""Exit code of a run that was interrupted"""


@train_app.command(
    "lm",
    cls=Command,
    epilog=examples("""
fulmen train lm runs/copy-add.toml          begin, or go on
fulmen train lm runs/copy-add.toml --set seed=1 --set out=runs/out/1
fulmen train lm runs/copy-add.toml --show   print the whole config
"""),
)
def train_lm(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Run file, TOML.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Beat a key of the file, such as stages.0.tokens=2M. May be repeated.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the config with every default, and train nothing.")
    ] = False,
) -> None:
    """Train a model on next tokens: new, longer in context, or on conversations.

    A run whose folder has a state goes on from it. Ctrl-C saves a state after the step at hand.
    """
    from fulmen.cli.progress import stderr
    from fulmen.cli.train_view import TrainView
    from fulmen.train import LMConfig, LMTrainer, read_run_file, to_toml

    config = read_run_file(file, LMConfig, set_ or ())
    if show:
        print(to_toml(config), end="")
        return
    with stderr.status("loading"):  # nothing where stderr is no terminal; Ctrl-C ends it at once
        trainer = LMTrainer(config)
    try:
        with stopping() as should_stop, TrainView(config, trainer.num_tokens) as view:
            if trainer.num_steps:
                left = ", where nothing is left to do" if trainer.is_done else ""
                view.said(f"going on after step {trainer.num_steps} in {config.out}{left}")
                if trainer.changed:
                    view.said(f"with other values of {', '.join(trainer.changed)}")
            is_done = trainer.run(view, should_stop=should_stop)
    finally:
        trainer.close()
    if not is_done:
        print(
            f"stopped after step {trainer.num_steps}, all of it is saved; `fulmen train lm {file}` "
            "goes on",
            file=sys.stderr,
        )
        raise typer.Exit(_STOPPED)
    print(trainer.model_folder)


@train_app.command(
    "tokenizer",
    cls=Command,
    epilog=examples("""
fulmen train tokenizer OUT --kind characters --word add --word reverse
fulmen train tokenizer OUT --text corpus.txt --vocab-size 4096
fulmen train tokenizer OUT --kind words --environment basics:training
"""),
)
def train_tokenizer(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for tokenizer.json.")],
    kind: Annotated[
        Literal["bpe", "characters", "words"],
        typer.Option(
            help="bpe merges frequent bytes of a text; characters merges nothing, so that copying "
            "and spelling are learnt soon; words keeps frequent words whole and spells all else."
        ),
    ] = "bpe",
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text to learn from, for bpe and words. May be repeated.",
            show_default=False,
        ),
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Environment whose demonstrations are text to learn from, for bpe and words. May "
            "be repeated.",
            show_default=False,
        ),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option(metavar="INTEGER", help="Tokens in all, at most, for bpe and words.")
    ] = 4096,
    word: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Word that is one token. May be repeated.", show_default=False
        ),
    ] = None,
    format: Annotated[
        Literal["minimax_m1", "minimax_m2"],
        typer.Option(help="Chat format whose control tokens the vocabulary has."),
    ] = "minimax_m1",
) -> None:
    """Make the tokenizer of a new model, digits always apart."""
    from fulmen.train import make_tokenizer

    size = make_tokenizer(
        out,
        kind=kind,
        files=text or (),
        environments=environment or (),
        vocab_size=vocab_size,
        words=word or (),
        format=format,
    )
    print(f"{out}: {size} tokens", file=sys.stderr)


@contextmanager
def stopping() -> "Iterator[Callable[[], bool]]":
    """Yield a function that tells whether an interrupt came. The first one is only noted, so that a
    step ends and is saved; a second one interrupts."""
    import signal

    came: list[int] = []

    def note(number: int, _: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        print("stopping after this step, once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
