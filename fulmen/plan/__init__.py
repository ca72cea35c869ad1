"""What a model needs, and what it reaches on given hardware, before any download."""

from fulmen.plan.figure1 import figure1_svg, figure1_text
from fulmen.plan.plan import Plan, make_plan, render_plan

__all__ = ["Plan", "figure1_svg", "figure1_text", "make_plan", "render_plan"]
