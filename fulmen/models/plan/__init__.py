"""What a model needs and what it will reach, before anything is downloaded."""

from fulmen.models.plan.figure1 import figure1_svg, figure1_text
from fulmen.models.plan.forecast import parse_bytes
from fulmen.models.plan.plan import Plan, make_plan, render_plan

__all__ = ["Plan", "figure1_svg", "figure1_text", "make_plan", "parse_bytes", "render_plan"]
