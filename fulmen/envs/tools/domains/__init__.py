"""Domains by name; each file has one desk: its tools, rules and cases."""

from fulmen.envs.tools.domains.table import DOMAINS

__all__ = ["DOMAINS"]
