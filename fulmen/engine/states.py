"""Keys, values and states of a sequence as tensors, out of the cache and in; their origin.

    out: KnownStates(prefixes, ids) -> pages and snapshots, to be stored
    in:  check_pages, check_snapshot -> PrefixCache.learn

The keys, values and lightning states after a token are a function of the tokens before it, the
weights and the numerics. `Origin` names the last two: states go back only into a cache of the same
origin. What comes back may have been damaged or made by a stranger, so names, shapes, dtypes and
values are checked before the cache sees them. Where the tensors are kept is not known here.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fulmen.engine.prefixes import PrefixCache
from fulmen.engine.tree import Node
from fulmen.kernels import CHUNK, PAGE, numerics
from fulmen.models import Cache, Model, StateSnapshot

R = TypeVar("R")

_OF_0_1_0 = re.compile(
    r"fulmen-0\.1\.0 (?P<layout>\S+ \S+ \S+) (?P<torch>torch-\S+)(?: (?P<isa>\S+)-[0-9a-f]{16})?"
)
"""Numerics as 0.1.0 wrote them. It named a build of the kernels by its hash; all of them are
revision 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Weights and numerics: all that states depend on besides the tokens."""

    model: str
    """Fingerprint of the weights"""
    numerics: str
    """Device, dtypes, kernels and instruction set, see `numerics_of`"""

    def has_bits_of(self, other: "Origin") -> bool:
        """Return whether states of either origin are the other's, to the bit."""
        if self.model != other.model:
            return False
        if self.numerics == other.numerics:
            return True
        return _is_same_as_0_1_0(self.numerics, other.numerics) or _is_same_as_0_1_0(
            other.numerics, self.numerics
        )


def numerics_of(model: Model, kv_cache_dtype: str) -> str:
    """Return what the bits of keys, values and states depend on besides weights and tokens: such as
    `cpu bfloat16 auto kernels-1 avx2 powers-0123abcd`, and not the version of the package."""
    weight = model.model.embed_tokens.weight
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"{weight.device.type} {dtype} {kv_cache_dtype} {numerics()}"


def _is_same_as_0_1_0(old: str, now: str) -> bool:
    """Return whether numerics that 0.1.0 wrote give the bits of today's, which are this process's.

    Today's name no version of torch where only its powers matter; 0.1.0 named the version, so the
    version must be the one in use.
    """
    match = _OF_0_1_0.fullmatch(old)
    fields = now.split()
    if match is None or " ".join(fields[:3]) != match["layout"]:
        return False
    if match["torch"] != f"torch-{torch.__version__}":
        return False
    isa = None
    for field in fields[3:]:
        name, _, value = field.partition("-")
        if name == "kernels":
            if value != "1":
                return False
        elif name not in ("torch", "powers"):
            isa = re.sub("-[0-9a-f]{16}$", "", field)
    return isa == match["isa"]


class Between(Protocol):
    """Runs work where the cache may be read and changed, and returns its result: at once in the
    engine's own thread, between two of its steps from any other."""

    def __call__(self, work: Callable[[], R], /) -> R: ...


def at_once(work: Callable[[], R], /) -> R:
    """Run work here: a `Between` for the engine's own thread."""
    return work()


class KnownStates:
    """The longest beginning of a sequence that a cache knows, copied piece by piece.

    Between two pieces the engine may step, and the cache may forget pages: the beginning ends
    there. Where it forgot all, its weights may be others since, and nothing more is copied.
    """

    def __init__(
        self, prefixes: PrefixCache, ids: Sequence[int], between: Between = at_once
    ) -> None:
        self._prefixes = prefixes
        self._ids = ids
        self._between = between
        self._generation = prefixes.generation
        self.num_tokens = 0
        """Number of its tokens up to the last page that was copied; it may lie inside the page"""

    def pages(self, start: int, max_bytes: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Copy the pages from the start-th on, in groups of about max_bytes: their number, and
        their tensors by name, pages first."""
        cache = self._prefixes.cache
        step = max(1, max_bytes // max(1, cache.page_bytes))
        self.num_tokens = start * PAGE

        def copy(first: int) -> tuple[int, dict[str, Tensor], int]:
            nodes = self._known()[first : first + step]
            tensors = cache.read_pages([node.page for node in nodes])
            return len(nodes), tensors, nodes[-1].depth if nodes else 0

        count = step
        while count == step and self.num_tokens == start * PAGE:
            count, tensors, depth = self._between(partial(copy, start))
            if not count:
                return
            start, self.num_tokens = start + count, depth
            yield count, tensors

    def snapshots(self, known: Container[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Give the snapshots of lightning states by name, each after the number of tokens before
        it, up to the last page that was copied, without those after `known` numbers of tokens."""
        found = self._between(
            lambda: [(node.depth, node.state) for node in self._known() if node.state is not None]
        )
        for depth, state in found:
            if depth <= self.num_tokens and depth not in known:
                yield depth, state.tensors()

    def _known(self) -> list[Node]:
        is_same = self._prefixes.generation == self._generation
        return self._prefixes.known(self._ids) if is_same else []


def is_of_use(num_before: int, num_tokens: int) -> bool:
    """Return whether a snapshot after num_before tokens can serve a sequence of num_tokens: at the
    end of a page, or at its very end."""
    return num_before == num_tokens or (num_before < num_tokens and num_before % PAGE == 0)


def check_pages(cache: Cache, tensors: Mapping[str, Tensor], num_pages: int) -> None:
    """Raise ValueError unless tensors are at least num_pages pages of a cache like this one."""
    expected = cache.read_pages([])
    _check_names(tensors, expected)
    counts = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors.values()}
    if len(counts) > 1 or min(counts, default=num_pages) < num_pages:
        raise ValueError(f"its tensors hold {_listed(counts)} pages, {num_pages} are needed")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, tensor.shape[:1] + expected[name].shape[1:], expected[name])


def check_snapshot(cache: Cache, tensors: Mapping[str, Tensor], num_tokens: int) -> StateSnapshot:
    """Read a snapshot after num_tokens. Raises ValueError unless tensors are one of a cache like
    this."""
    expected = {
        f"{index}.{name}": part
        for index, states in enumerate(cache.states)
        for name, part in states.carry._asdict().items()
    }
    _check_names(tensors, expected)
    for name, tensor in tensors.items():
        shape = [1, *expected[name].shape[1:]]
        if not name.endswith("kv_state"):  # (1, H, tail, D): the tokens since the last chunk
            shape[2] = num_tokens % CHUNK
        _check_tensor(name, tensor, torch.Size(shape), expected[name])
    return StateSnapshot.of(tensors)


def max_snapshot_bytes(cache: Cache) -> int:
    """Return the memory of the largest snapshot."""
    return cache.snapshot_bytes(CHUNK)


def _check_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if tensors.keys() != expected.keys():
        raise ValueError(f"it holds the tensors {_listed(tensors)}, {_listed(expected)} are needed")


def _check_tensor(name: str, tensor: Tensor, shape: torch.Size, like: Tensor) -> None:
    if tensor.shape != shape or tensor.dtype != like.dtype:
        raise ValueError(
            f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, {like.dtype} {tuple(shape)} "
            "is needed"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"tensor {name} holds numbers that are not finite")


def _listed(names: Iterable[object]) -> str:
    """Return up to eight of names for an error."""
    found = sorted(map(repr, names))
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
