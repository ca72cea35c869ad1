"""Plans: the memory, speed, cost and launch command of a model, before any download."""

from fulmen.plan.figure1 import figure1_svg, figure1_text
from fulmen.plan.plan import Plan, make_plan
from fulmen.plan.plan_text import render_plan

__all__ = ["Plan", "figure1_svg", "figure1_text", "make_plan", "render_plan"]
