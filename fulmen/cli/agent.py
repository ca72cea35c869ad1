"""fulmen agent: a model that works in a folder by calling tools, and every state it went through.

fulmen agent TASK            begin a run; a person goes on with it word by word
fulmen agent -p TASK         one task, its answer on stdout; --json: lines for scripts
fulmen agent rewind, fork    go back to any step, or another way from there
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from fulmen.cli import completion
from fulmen.cli.agent_export import export_app
from fulmen.cli.agent_rules import read_protected, read_rule, rules_app
from fulmen.cli.agent_runs import RunArgument, RunsOption, open_archive, runs_app, store_of
from fulmen.cli.help import (
    AGENT,
    LIMITS,
    SESSION,
    Command,
    DefaultGroup,
    examples,
)
from fulmen.cli.options import (
    DEFAULT_AGENT_MODEL,
    ENGINE_CONFIG,
    MODEL_HELP,
    MODEL_OPTION,
    DeviceOption,
    DtypeOption,
    IgnoreOption,
    StoreOption,
    UrlDialectOption,
    UrlKeyOption,
    UrlOption,
    check_url_options,
    checked,
    engine_flags,
    in_seconds,
    lasting_name,
    load_llm,
    parse_whole,
    read_piped,
    read_stdin,
    with_flags_of,
)
from fulmen.cli.output import readable_argument
from fulmen.files import printable
from fulmen.sampling import SamplingParams
from fulmen.units import parse_bytes, parse_count

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.agent import Archive, Run
    from fulmen.cli.agent_run import Side
    from fulmen.cli.agent_view import View
    from fulmen.cli.agent_wanted import Wanted
    from fulmen.cli.terminal import Conversation
    from fulmen.cli.watching import Feed

_ENGINE_FLAGS: Final = ("max_model_len", "kv_cache_bytes", "kv_cache_dtype", "num_draft_tokens")
_NOT_SAMPLED: Final = (
    *("max_tokens", "logprobs", "prompt_logprobs", "json_schema", "regex", "choice"),
    *("tool_choice", "allowed_tools", "max_calls"),
)
"""Sampling fields that make no sense for a whole run, or that the agent sets itself"""


EXAMPLES: Final = examples(
    """
fulmen agent "make the failing test pass"    work here, asking about changes
fulmen agent --mode auto "..."               ask about nothing in the sandbox
fulmen agent -p "..." --json                 for scripts: JSON lines
fulmen agent --url http://127.0.0.1:8000     a model that a server has
fulmen agent --continue "now the docs"       go on with the last run here
fulmen agent --team team.toml "..."          a lead with agents of its own
fulmen agent rewind RUN --step 3             files and model as after step 3
fulmen agent fork RUN --step 3               another way from there
""",
    {
        "Exit codes": """
0 done; 1 an error; 2 a wrong flag; 3 done, but something that asks was refused since nobody could
be asked; 4 --max-turns; 5 --max-tokens, or a cut answer; 6 --max-seconds; 7 the same calls again
and again; 8 the context is full; 9 no sandbox; 129, 143 ended by SIGHUP, SIGTERM; 130 interrupted.
""",
        "JSON": """
a line each: run.started, user, answer, call, refused, result, compacted, note, run.ended; see
docs/agents.md
""",
    },
)
agent_app = typer.Typer(
    cls=DefaultGroup,
    help="Let a model work in a folder by calling tools, go back to any step, fork it.",
    epilog=EXAMPLES,
)

TaskArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TASK",
        help="Work to do. What is piped in comes before it. Without it, a person is asked.",
    ),
]


def _limit(read: Callable[[str], Any]) -> Callable[[str], str | None]:
    """Return a parser for a limit that keeps what is typed: a value, or `none`, which lifts that of
    a run that is gone on with."""
    keep = checked(read)
    return lambda text: text if text == "none" else keep(text)


@with_flags_of(ENGINE_CONFIG, into="engine", only=_ENGINE_FLAGS, shows_defaults=True)
@with_flags_of(SamplingParams, without=_NOT_SAMPLED)
def run(
    task: TaskArgument = None,
    print_answer: Annotated[
        bool,
        typer.Option(
            "--print",
            "-p",
            help="Do one task, print its answer on stdout and leave.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Do one task and print all that happens as JSON lines."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"{MODEL_HELP} With --url, its name there. Default: the run's, else "
            f"{DEFAULT_AGENT_MODEL}.",
            **MODEL_OPTION,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder to work in. Default: this one.", show_default=False
        ),
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last run in the folder.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with this run.", autocompletion=completion.runs),
    ] = None,
    tools: Annotated[
        Literal["coding", "minimal"] | None,
        typer.Option(
            help="Tools that the model has: minimal are three, for small models. Default: those "
            "that the model's card names, else coding.",
            show_default=False,
            rich_help_panel=AGENT,
        ),
    ] = None,
    team: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lead a team of agents, which this TOML file describes: docs/teams.md.",
            show_default=False,
            rich_help_panel=AGENT,
        ),
    ] = None,
    mode: Annotated[
        Literal["plan", "ask", "accept-edits", "auto"] | None,
        typer.Option(
            help="What needs consent: plan only reads, ask asks about all else, accept-edits "
            "changes files unasked, auto does all that stays in the sandbox. Default: ask.",
            show_default=False,
            rich_help_panel=AGENT,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Allow such calls, as in 'bash(pytest *)'. May be repeated.",
            show_default=False,
            parser=checked(read_rule),
            rich_help_panel=AGENT,
        ),
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Ask about such calls. May be repeated.",
            show_default=False,
            parser=checked(read_rule),
            rich_help_panel=AGENT,
        ),
    ] = None,
    deny: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Refuse such calls, as in 'edit(tests/**)'. May be repeated.",
            show_default=False,
            parser=checked(read_rule),
            rich_help_panel=AGENT,
        ),
    ] = None,
    network: Annotated[
        bool | None,
        typer.Option(
            "--network/--no-network",
            help="Let commands use this machine's network. Default: no.",
            show_default=False,
            rich_help_panel=AGENT,
        ),
    ] = None,
    writable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Let commands change .git, AGENTS.md or another protected name. May be repeated.",
            show_default=False,
            parser=checked(read_protected),
            rich_help_panel=AGENT,
        ),
    ] = None,
    max_turns: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER",
            help="Answers of the model in the whole run; none for no limit. Default: 200.",
            parser=_limit(parse_whole),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="New tokens of all answers together.",
            parser=_limit(parse_count),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    thinking_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens of thought of all answers together.",
            parser=_limit(parse_count),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_seconds: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS",
            help="Time of work, from the start of the command.",
            parser=_limit(in_seconds),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens that the model's context holds: near them a summary takes the place of "
            "earlier steps. Default: as the engine has; with --url there is no summary.",
            parser=_limit(parse_count),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="Show the work on a page for a browser of this machine, which can answer what "
            "is asked.",
            rich_help_panel=AGENT,
        ),
    ] = False,
    page_port: Annotated[
        int,
        typer.Option(help="Port of --page; 0 for any.", rich_help_panel=AGENT),
    ] = 0,
    acp: Annotated[
        bool,
        typer.Option(
            "--acp", help="Serve an editor on stdin and stdout, by the Agent Client Protocol."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="After a crash, take calls that were under way back also where that overwrites "
            "files that you changed since.",
        ),
    ] = False,
    hide_thinking: Annotated[
        bool,
        typer.Option("--hide-thinking", help="Do not show thoughts.", rich_help_panel="Thinking"),
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print answers as they come, do not render Markdown.")
    ] = False,
    runs: RunsOption = None,
    store: StoreOption = None,
    session_bytes: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            parser=checked(parse_bytes),
            help="Disk for saved model states; beyond it the oldest are deleted, and read again "
            "when needed.",
            rich_help_panel=SESSION,
        ),
    ] = "20GiB",
    url: UrlOption = None,
    url_key: UrlKeyOption = None,
    url_dialect: UrlDialectOption = "auto",
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    ignore_config_field: IgnoreOption = None,
    *,
    given: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Let a model work on a task in a folder, by calling tools in a sandbox.

    Every step is kept: what was said and done, the files, and the model's states. The answer goes
    to stdout, everything else to stderr.
    """
    from fulmen.cli.agent_wanted import team_text

    flags = {
        **{"tools": tools, "mode": mode, "allow": allow, "ask": ask, "deny": deny},
        **{"network": network, "writable": writable, "context": context},
        **{"max_turns": max_turns, "max_tokens": max_tokens, "max_seconds": max_seconds},
        **{"thinking_tokens": thinking_tokens, "sampling": given, "model": model, "url": url},
        **{"url_dialect": None if url_dialect == "auto" else url_dialect, "engine": engine},
        **{"dtype": dtype, "device": None if device == "cpu" else device},
        **{"team": None if team is None else team_text(team)},
        **{"ignored": ignore_config_field, "store": store and str(store.resolve())},
    }
    local = engine_flags(engine, dtype, device, ignore_config_field)
    local |= {"--thinking-tokens": thinking_tokens, "--store": store}
    if resume is None and not go_on:
        check_url_options(url, url_key, url_dialect, local)
    elif resume is not None and go_on:
        raise ValueError("--continue is given with --resume, which names another run")
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if acp:
        given = {
            "TASK": task,
            "--print": print_answer,
            "--json": as_json,
            "--continue": go_on,
            "--page": page,
        }
        _refuse_words(given | {"--resume": resume, "--folder": folder, "--force": force})
        _serve_editor(flags, open_archive(runs, store, session_bytes), url_key)
        return
    words, is_one_shot = _words(task, is_one_shot=print_answer or as_json)
    from fulmen.cli.agent_run import Talk, last_run
    from fulmen.cli.agent_view import JsonView, TerminalView, View
    from fulmen.cli.agent_wanted import check_same, merged, read_wanted

    archive = open_archive(runs, store, session_bytes)
    place = folder or Path(".")
    name = last_run(archive, place) if go_on else resume
    earlier = None if name is None else archive.runs.open(name)
    settings = merged(flags, {} if earlier is None else earlier.facts.settings)
    if earlier is not None:
        check_same(earlier, flags, folder)
        archive = open_archive(runs, store_of(settings.get("store")), session_bytes)
    elif words is None and is_one_shot:
        raise ValueError("the task is empty, there is nothing to do")
    view: View = JsonView()
    conversation = None
    if is_terminal and not is_one_shot:
        conversation = _conversation(show_thinking=not hide_thinking, plain=plain)
    if conversation is not None:
        view = conversation.view
    elif not as_json:
        view = TerminalView(
            is_answer_last=is_one_shot, show_thinking=not hide_thinking, plain=plain
        )
    asks = is_terminal and not as_json
    wanted = read_wanted(settings, place)
    side = _model_side(settings, earlier, url_key)
    declined: set[bytes] = set()
    chosen = earlier or _begin(archive, wanted, side, settings, view, asks=asks, declined=declined)
    if earlier is None:  # its folders may have brought sub-agents
        wanted = read_wanted({**settings, "team": chosen.facts.settings.get("team")}, place)
    with _told(), _page_of(page_port, view, conversation) if page else nullcontext() as feed:
        is_new = earlier is None
        talk = Talk(
            *(archive, chosen, side, wanted, view),
            asks=asks,
            is_new=is_new,
            overwrite=force,
            declined=declined,
            asker=None if conversation is None else conversation.asker,
            inbox=None if conversation is None else conversation.waiting,
            team_watcher=None if conversation is None else conversation.team,
            feed=feed,
        )
        with talk.opened():
            if is_one_shot:
                code = talk.say(words and talk.folders.expanded(words))
            elif conversation is not None:
                code = conversation.converse(talk, words)
            else:
                from fulmen.cli.lines import new_line_reader

                reader = new_line_reader(("/diff", "/exit", "/help", "/rewind"))
                code = talk.converse(words, reader)
    if code:
        raise typer.Exit(code)


@contextmanager
def _page_of(port: int, view: "View", conversation: "Conversation | None") -> Iterator["Feed"]:
    """Serve the page on which a browser watches, and tell its address."""
    from fulmen.cli.progress import stderr
    from fulmen.cli.watching import AgentPage, Feed

    page = AgentPage(Feed(), port)
    page.open()
    told = f"watch at {page.url}"
    if conversation is None:
        stderr.print(told, markup=False, soft_wrap=True, style="dim")
    else:
        view.note(told)
    try:
        yield page.feed
    finally:
        page.close()


def _refuse_words(given: Mapping[str, object]) -> None:
    """Raise ValueError for what says what to do, where an editor does."""
    for flag, value in given.items():
        if value:
            raise ValueError(f"{flag} is given with --acp, where the editor says what to do")


def _serve_editor(flags: Mapping[str, Any], archive: "Archive", key: str | None) -> None:
    from fulmen.cli.acp import serve
    from fulmen.cli.agent_wanted import merged, read_wanted

    settings = merged(flags, {})
    side = _model_side(settings, None, key)
    serve(archive, side, read_wanted(settings, Path(".")), settings)


def _words(task: str | None, *, is_one_shot: bool) -> tuple[str | None, bool]:
    """Return what the user says, None for nothing, and whether no more can come."""
    is_typed = sys.stdin.isatty()
    if task is not None:
        piped = "" if is_typed else read_piped().rstrip("\n")
        words = "\n\n".join(part for part in (piped, readable_argument(task)) if part)
    else:
        words = "" if is_typed else read_stdin()
    return words.strip() or None, is_one_shot or not is_typed


def _conversation(*, show_thinking: bool, plain: bool) -> "Conversation | None":
    """Return a conversation at a terminal that can be drawn on; None for one that cannot."""
    from fulmen.cli.lines import can_draw

    if not can_draw():
        return None
    from fulmen.cli.terminal import Conversation

    return Conversation(show_thinking=show_thinking, plain=plain)


def _model_side(settings: Mapping[str, Any], earlier: "Run | None", key: str | None) -> "Side":
    """Load the model, or find out what is at the URL."""
    from fulmen.cli.agent_run import Side

    url, model = settings.get("url"), settings.get("model")
    if url is not None:
        from fulmen.cli.remote import new_remote

        remote = new_remote(url, model, settings.get("url_dialect") or "auto", key)
        return Side(f"{model} at {url}" if model else url, remote=remote)
    if earlier is not None and model is None:
        model = earlier.facts.model
    name = model or DEFAULT_AGENT_MODEL
    llm = load_llm(
        name,
        settings.get("dtype"),
        settings.get("device") or "cpu",
        settings["engine"],
        settings.get("ignored"),
    )
    return Side(lasting_name(name), llm=llm)


def _begin(
    archive: "Archive",
    wanted: "Wanted",
    side: "Side",
    settings: Any,
    view: Any,
    *,
    asks: bool,
    declined: set[bytes],
) -> "Run":
    from fulmen.agent import parse_team, team_of
    from fulmen.cli.agent_asking import SAVING, read_setup, told_if_slow
    from fulmen.cli.agent_run import begin, tools_of

    place = wanted.folder.resolve()
    setup = read_setup(place, seen_as=place, asks=asks, view=view, declined=declined)
    notes = list(setup.notes)
    if wanted.team is None and tools_of(wanted, side, setup) == "coding":
        text, left_out = team_of(setup.folders.agents)
        notes += left_out
        if text:
            wanted = replace(wanted, team=parse_team(text, "the sub-agents"))
            settings = {**settings, "team": text}
    for note in notes:
        view.note(note)
    with told_if_slow(view, SAVING):
        chosen = begin(archive, wanted, side, setup, settings)
    if side.llm is not None and side.llm.format.calls is None:
        view.note(f"{side.name} has a chat format without tools: it can only answer in words")
    assert chosen.facts.start is not None
    for path, reason in archive.files(chosen.facts).read(chosen.facts.start).skipped[:10]:
        view.note(f"{printable(path)} is in no snapshot: {reason}")
    return chosen


def _resume_command() -> Any:
    """Return the command `resume`, which is `run` for a run that is named first."""

    def resume(**arguments: Any) -> None:
        """Go on with a run: where it was ended, or with other words."""
        name = arguments.pop("name")
        run(**arguments, resume=name, go_on=False)

    signature = inspect.signature(run)
    own = [one for one in signature.parameters.values() if one.name not in ("resume", "go_on")]
    place = next(at for at, one in enumerate(own) if one.name == "task")
    keyword = inspect.Parameter.KEYWORD_ONLY
    named = inspect.Parameter("name", keyword, annotation=RunArgument)
    resume.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own[:place], named, *own[place:]]
    )
    return resume


@contextmanager
def _told() -> Iterator[None]:
    """Make one sentence of a sandbox that cannot be had or that fails, and an exit code."""
    from fulmen.cli.agent_view import EXIT_CODES
    from fulmen.sandbox import SandboxError

    try:
        yield
    except SandboxError as error:
        print(f"fulmen: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_CODES["sandbox"]) from None


agent_app.command("run", cls=Command, epilog=EXAMPLES)(run)
agent_app.command(
    "resume",
    cls=Command,
    epilog=examples("""
fulmen agent resume RUN                      after a crash, or a limit
fulmen agent resume RUN "try it otherwise"   with other words
"""),
)(_resume_command())
for app in (runs_app, export_app, rules_app):
    agent_app.add_typer(app)
