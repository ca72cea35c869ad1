"""All domains by name."""

from typing import Final

from fulmen.envs.tools.domain import Domain
from fulmen.envs.tools.domains.library import LIBRARY
from fulmen.envs.tools.domains.shop import SHOP
from fulmen.envs.tools.domains.trains import TRAINS

DOMAINS: Final[dict[str, Domain]] = {one.name: one for one in (SHOP, TRAINS, LIBRARY)}
"""Domains by name, in the order in which they come"""
