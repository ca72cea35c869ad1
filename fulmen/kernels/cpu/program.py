"""Programs: the kernel calls of a forward pass, recorded once and replayed without Python.

A decode step calls some ten kernels a layer, and Python between them takes a third of the time. Two
steps of one shape make the same calls; only the values at their addresses differ. So the calls are
recorded at fixed tensors, and a later step fills the inputs and replays them. The kernels are the
same, and so are the bits.
"""

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fulmen.kernels.cpu.extension import loaded

T = TypeVar("T")

_NEW_MEMORY: Final = frozenset(("empty", "empty_like", "empty_strided", "new_empty"))


class Program(Generic[T]):
    """The kernel calls of one forward pass, with all tensors they name."""

    def __init__(self, forward: Callable[[], T]) -> None:
        """Run forward, once, and record it.

        All that it reads must stay at its address. A pass that works in torch between its kernels
        runs to its end as well, but cannot be replayed (see `missing`).
        """
        self._program = loaded().Program()
        self._watch = _Watch()
        self._program.record()
        try:
            with self._watch:
                self.outputs = forward()
                """Result of forward: tensors that every replay fills again."""
        finally:
            self._program.stop()

    @property
    def missing(self) -> str | None:
        """Name of a torch operation that a replay would leave out; None if there is none."""
        return self._watch.work

    def replay(self) -> None:
        """Make the calls again, on the values that now lie at the inputs' addresses."""
        self._program.replay()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keep every tensor that torch makes, so that its memory is not used again, and notice work: an
    operation that writes, or that returns neither a view nor new, empty memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: list[Tensor] = []
        self.work: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to look for torch.compile, which nobody uses here: it would import it
        first, two seconds in the middle of a process's first answer (torch 2.13)."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        known = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        is_work = name not in _NEW_MEMORY and not known.issuperset(map(_memory, made))
        if is_work or func._schema.is_mutable:
            self.work = name
        self.kept += made
        return out


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
