"""Programs: the kernel calls of a forward pass, recorded once and made again without Python.

A decode step calls some ten kernels a layer, and between them Python takes a third of the time. The
calls of two steps of one shape differ only in what lies at their addresses; so they are recorded at
fixed tensors, and a later step fills the inputs and makes the same calls. The kernels are the same,
and so are the bits.
"""

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fulmen.kernels.backends import native

T = TypeVar("T")

_NEW_MEMORY: Final = frozenset(("empty", "empty_like", "empty_strided", "new_empty"))


class Program(Generic[T]):
    """The kernel calls of one forward pass, with all tensors they name."""

    def __init__(self, forward: Callable[[], T]) -> None:
        """Runs forward, once, and records it.

        All it reads must stay where it is. A pass that does work in torch between its kernels runs
        to its end all the same, but cannot be replayed (`missing`).
        """
        extension = native()
        assert extension is not None
        self._program = extension.Program()
        self._watch = _Watch()
        self._program.record()
        try:
            with self._watch:
                self.outputs = forward()
                """What forward returned: tensors that every replay fills anew."""
        finally:
            self._program.stop()

    @property
    def missing(self) -> str | None:
        """The torch operation that a replay would leave out; None if the calls are complete."""
        return self._watch.work

    def replay(self) -> None:
        """Makes the calls again, on what now lies where the inputs lay."""
        self._program.replay()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps every tensor that torch makes, so that its memory is not used again, and notices work:
    an operation that returns neither a view nor new, empty memory, or that writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: list[Tensor] = []
        self.work: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch asks. To skip torch.compile, which nobody uses here, it would first import it: two
        seconds in the middle of a process's first answer (torch 2.13)."""
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
