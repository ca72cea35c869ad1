"""Examination of the machine and the installation: findings, each with advice where it helps."""

from fulmen.doctor.doctor import PROBES, examine
from fulmen.doctor.finding import Finding
from fulmen.doctor.speed import read_rates

__all__ = ["PROBES", "Finding", "examine", "read_rates"]
