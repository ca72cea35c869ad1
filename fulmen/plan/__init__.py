"""Plans: the memory, speed, cost and launch command of a model, before any download."""

from fulmen.plan.answer import Way
from fulmen.plan.answer_text import render_answer
from fulmen.plan.figure1 import figure1_svg, figure1_text
from fulmen.plan.hardware import parse_gpus
from fulmen.plan.plan import TYPICAL_MEMORY, Plan, make_plan
from fulmen.plan.plan_text import render_plan
from fulmen.plan.this_machine import ThisMachine, this_machine

__all__ = [
    "TYPICAL_MEMORY",
    "Plan",
    "ThisMachine",
    "Way",
    "figure1_svg",
    "figure1_text",
    "make_plan",
    "parse_gpus",
    "render_answer",
    "render_plan",
    "this_machine",
]
