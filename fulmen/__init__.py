"""Fulmen: MiniMax-M1 and MiniMax-M2, whole, in Python."""

__version__ = "0.1.0"
