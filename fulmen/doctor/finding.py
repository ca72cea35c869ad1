"""A finding: what one probe saw, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Result of one probe."""

    name: str
    found: str
    """Result of the probe, on one line."""
    advice: tuple[str, ...] = ()
    """A line for each thing that is missing or slow."""
    prevents_running: bool = False
    is_unknown: bool = False
    """The probe failed, and `found` says why."""
    values: Mapping[str, object] = field(default_factory=dict)
    """Numbers and names behind `found`, for programs; all of it fits into JSON."""

    @property
    def status(self) -> str:
        """Return "fault" where Fulmen cannot run, "advice" where something helps, "unknown" where
        the probe failed, else "ok"."""
        if self.prevents_running:
            return "fault"
        if self.is_unknown:
            return "unknown"
        return "advice" if self.advice else "ok"

    def to_dict(self) -> dict[str, object]:
        """Return the finding as a JSON object."""
        return {
            "name": self.name,
            "status": self.status,
            "found": self.found,
            "advice": list(self.advice),
            "values": dict(self.values),
        }
