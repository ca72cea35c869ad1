"""Speedruns: small models made anew from their recipes, in some hours on two cores."""

from fulmen.train.speedrun.plan import SpeedrunPlan
from fulmen.train.speedrun.recipe import Recipe, find_recipe, recipe_names
from fulmen.train.speedrun.run import Speedrun, SpeedrunWatcher

__all__ = [
    "Recipe",
    "Speedrun",
    "SpeedrunPlan",
    "SpeedrunWatcher",
    "find_recipe",
    "recipe_names",
]
