"""Agents: a folder that they work in, and every state it was in."""

from fulmen.agent.scan import Limits, Skipped
from fulmen.agent.workspace import Change, ChangedSince, Restored, Snapshot, Snapshots

__all__ = [
    "Change",
    "ChangedSince",
    "Limits",
    "Restored",
    "Skipped",
    "Snapshot",
    "Snapshots",
]
