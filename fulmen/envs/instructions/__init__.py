"""Instruction following: prompts with rules that a program can check, as IFEval has them."""

from fulmen.envs.instructions.environment import Instructions, InstructionTask

__all__ = ["InstructionTask", "Instructions"]
