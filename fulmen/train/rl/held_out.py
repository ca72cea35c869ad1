"""Held-out tasks: those that the probe asks, and that a run never trains on.

    every claimed environment -> some of its tasks -> their keys -> the curriculum leaves them out

A key is what makes a task that task, wherever it comes from: tasks of the same key are one, in
another environment and at another index too. Of a file the keys' hash picks, whatever the run. An
endless environment draws them by a seed of its own.
"""

from collections.abc import Mapping

from fulmen.envs import Task
from fulmen.train.rl.rollout import derive_seed
from fulmen.train.rl.tasks import AnyEnvironment, TokenTask


class HeldOut:
    """Tasks kept for the probe."""

    def __init__(
        self,
        trained: Mapping[str, AnyEnvironment],
        probed: Mapping[str, AnyEnvironment],
        count: int,
    ) -> None:
        """trained  environments in training, by name
        probed   those that the probe asks; one in training has its name here too, with a seed of
                 its own
        count    most tasks that are kept of each

        Of a finite environment in training a fifth is kept at most, of an endless one whose tasks
        come again a half of those seen. Raises ValueError where none can be kept.
        """
        self._trained = dict(trained)
        self._keys: set[int] = set()
        self.fingerprints = {
            name: _fingerprint(environment, environment.num_tasks)
            for name, environment in trained.items()
            if environment.num_tasks is not None
        }
        """Hash of all tasks of each finite environment in training, by which a change is seen"""
        self.indices = {
            name: self._keep(name, environment, count) for name, environment in probed.items()
        }
        """Indices of the tasks that are asked, by environment"""

    def has(self, environment: str, index: int) -> bool:
        """Return True if a task of an environment in training is kept for the probe."""
        if not self._keys:
            return False
        key = _key_of(self._trained[environment], index)
        return isinstance(key, int) and key in self._keys

    def _keep(self, name: str, environment: AnyEnvironment, count: int) -> tuple[int, ...]:
        """Keep tasks of an environment; return their indices."""
        places: dict[int, int] = {}
        asked = count if environment.num_tasks is None else environment.num_tasks
        error = ""
        for index in range(asked):
            key = _key_of(environment, index)
            if isinstance(key, int):
                places.setdefault(key, index)
            else:
                error = str(key) or type(key).__name__
        most = len(places)
        if name in self._trained:
            if environment.num_tasks is not None:
                most = max(most // 5, min(most - 1, 1))
            elif most < asked:
                most //= 2
        kept = sorted(places)[: min(most, count)]
        if error and not places:
            raise ValueError(f"{name} has no task that can be made, the last with: {error}")
        if not kept:
            raise ValueError(
                f"{name} has {len(places)} different tasks, so none can be kept for the probe: "
                'leave the probe out with probe = "none"'
            )
        self._keys.update(kept)
        return tuple(sorted(places[key] for key in kept))


def _fingerprint(environment: AnyEnvironment, num_tasks: int) -> str:
    keys = [_key_of(environment, index) for index in range(num_tasks)]
    return f"{derive_seed([key if isinstance(key, int) else None for key in keys]):016x}"


def _key_of(environment: AnyEnvironment, index: int) -> int | Exception:
    """Return the hash of a task's key; the error for a task that cannot be made, whose rollouts
    are counted as failures."""
    try:
        task: Task | TokenTask = environment.task(index)
        return derive_seed(task.key if isinstance(task, Task) else tuple(task.prompt_ids))
    except Exception as error:  # one task, which fails again where it is asked
        return error
