"""The `fulmen` command: a verb and its object."""

from fulmen.cli.app import app, main

__all__ = ["app", "main"]
