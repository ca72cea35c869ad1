"""Recipe of a small model: a folder with all that `fulmen train speedrun` makes it from.

    recipe.toml    tokenizer, shares of the time, environments that are scored
    learn.toml     run file of `fulmen train lm`
    practice.toml  run file of `fulmen train rl`

Recipes that come along are folders of fulmen/minis; the weights that were made lie there too. The
folders and models that the two run files name are for runs by hand: a speedrun has its own.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.agent import PROFILES, system_prompt
from fulmen.chat import Tool, dump_json, get_format
from fulmen.files import shorten
from fulmen.sampling import check_whole
from fulmen.train.lm.config import LMConfig
from fulmen.train.lm.tokenizer import TokenizerKind, make_tokenizer
from fulmen.train.rl.run import RLRun
from fulmen.train.run_file import read_run_file

MINIS: Final = Path(__file__).parents[2] / "minis"
"""Folder of the recipes that come along"""
_RECIPE: Final = "recipe.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRecipe:
    """Tokenizer of a new model, see `make_tokenizer`."""

    kind: TokenizerKind
    format: str = "minimax_m1"
    """Name of the chat format"""
    vocab_size: int = 4096
    environments: tuple[str, ...] = ()
    """Environments whose demonstrations are learnt from"""
    profile: str | None = None
    """Profile of an agent's tools: all that a prompt with them always says is one token a text"""
    words: tuple[str, ...] = ()
    """Other texts that are one token each"""

    def make(self, out: Path) -> int:
        """Write the tokenizer into a folder; return the number of tokens."""
        fixed = () if self.profile is None else prompt_words(self.format, self.profile)
        return make_tokenizer(
            out,
            kind=self.kind,
            environments=self.environments,
            vocab_size=self.vocab_size,
            words=(*fixed, *self.words),
            format=self.format,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareRecipe:
    """Shares of the hours."""

    learn: float = 0.7
    practice: float = 0.25
    scores: float = 0.05

    def __post_init__(self) -> None:
        for name in ("learn", "practice", "scores"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}, it must lie between 0 and 1")
        if (total := self.learn + self.practice + self.scores) > 1 + 1e-9:
            raise ValueError(f"learn, practice and scores add up to {total:g}, 1 is the most")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRecipe:
    """Tasks that the finished model is asked, greedily."""

    environments: tuple[str, ...]
    """Names of environments that no training has seen"""
    tasks: int = 400
    """Tasks of each"""
    seed: int = 0
    """Seed of the tasks"""
    unknown: str | None = None
    """The one among them that asks for what the model has not learnt: refusals are counted"""
    no_call: str | None = None
    """The one among them that needs no tool: answers without a call are counted"""

    def __post_init__(self) -> None:
        if not self.environments:
            raise ValueError("environments is empty, at least one is needed")
        check_whole("tasks", self.tasks, 1, 10**6)
        for name in ("unknown", "no_call"):
            value = getattr(self, name)
            if value is not None and value not in self.environments:
                raise ValueError(f"{name} is {value}, it must be one of environments")


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """Content of recipe.toml."""

    tokenizer: TokenizerRecipe
    scores: ScoreRecipe
    shares: ShareRecipe = field(default_factory=ShareRecipe)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that a model is made from, but for the time."""

    name: str
    tokenizer: TokenizerRecipe
    shares: ShareRecipe
    scores: ScoreRecipe
    learn: LMConfig
    practice: RLRun

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Read the recipe in a folder. Raises ValueError for one that cannot be."""
        file = read_run_file(folder / _RECIPE, _File)
        learn = read_run_file(folder / "learn.toml", LMConfig)
        if not learn.model.config or learn.schedule.unit != "tokens":
            raise ValueError(
                f"{folder / 'learn.toml'} must begin with a new model (model.config), and its "
                "schedule must be in tokens"
            )
        return cls(
            name=folder.name,
            tokenizer=file.tokenizer,
            shares=file.shares,
            scores=file.scores,
            learn=learn,
            practice=read_run_file(folder / "practice.toml", RLRun),
        )


def recipe_names() -> list[str]:
    """Return the names of the recipes that come along."""
    return sorted(file.parent.name for file in MINIS.glob(f"*/{_RECIPE}"))


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name, or the one in a folder of one's own.

    Raises ValueError for a name that no recipe has.
    """
    if name in recipe_names():
        return Recipe.read(MINIS / name)
    if (Path(name) / _RECIPE).is_file():
        return Recipe.read(Path(name).resolve())
    raise ValueError(
        f"there is no recipe {shorten(name, 80)}, there are {' and '.join(recipe_names())}, and "
        f"folders with a {_RECIPE}"
    )


def prompt_words(format: str, profile: str) -> list[str]:
    """Return the texts that every prompt with an agent's tools holds: what the format says around
    tools, its example of a call, the profile's system prompt, and each tool as it is listed."""
    if profile not in PROFILES:
        raise ValueError(
            f"{shorten(profile, 80)} is no profile of tools, it must be one of "
            f"{', '.join(PROFILES)}"
        )
    chat = get_format(format)
    prompt = chat.render([], [Tool("a")])
    listed = _listed(Tool("a"))
    if listed not in prompt or chat.calls is None:
        raise ValueError(f"{format} lists no tools line by line, a profile needs minimax_m2")
    identity, line, after = prompt.partition("system\n")[2].partition("\n")
    before, after = f"{line}{after}".split(listed)
    after, example = after.partition("<minimax:tool_call>")[::2]
    return [
        *(identity, system_prompt(profile), before, after),
        example.partition("</minimax:tool_call>")[0],
        *(_listed(tool) for tool in PROFILES[profile]),
    ]


def _listed(tool: Tool) -> str:
    return f"<tool>{dump_json(tool.function)}</tool>\n"
