"""What keys, values and states depend on besides the tokens."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What keys, values and states depend on besides the tokens."""

    model: str
    """Its fingerprint"""
    numerics: str
    """Dtypes, kernels, instruction set: other ones give other bits"""
