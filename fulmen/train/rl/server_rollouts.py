"""Rollouts from a server at a URL that holds the weights: SGLang, which can be given new ones.

    tasks -> agent loop -> ids out, ids back -> Sample
    weights -> a checkpoint in a folder that the server sees too -> POST /update_weights_from_disk

Prompts are encoded here and answers come back as ids, so nothing is encoded twice. The server's
arithmetic is its own: its log-probabilities are close to the trainer's and not equal, so such a run
is not exact, and how far the two are apart is measured in every step instead of asserted.
"""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from fulmen.checkpoints import save_model
from fulmen.envs import Environment
from fulmen.llm import Peer, PeerConfig, PeerError, UpstreamModel
from fulmen.models import Model
from fulmen.train.rl.curriculum import Draw
from fulmen.train.rl.playing import LimitsConfig, Play, Player, close_loop
from fulmen.train.rl.rollout import (
    Meter,
    Outcome,
    Progress,
    RolledOut,
    SamplingConfig,
    check_known,
    derive_seed,
    grouped,
)
from fulmen.train.rl.samples import Sample
from fulmen.train.rl.tasks import AnyEnvironment, TokenEnvironment

_PUBLISHES: Final = "SGLang"
"""Server that takes new weights from a folder"""


class ServerRollouts:
    """A server that draws, whose weights follow those in training."""

    def __init__(
        self,
        name: str,
        url: str,
        environments: Mapping[str, AnyEnvironment],
        sampling: SamplingConfig,
        limits: LimitsConfig | None = None,
        *,
        folder: Path,
        key: str | None = None,
        connect_seconds: float = 60.0,
    ) -> None:
        """name             checkpoint whose tokenizer and format the server's model has
        folder           where new weights are put; the server must see it at the same path
        connect_seconds  longest wait until the server answers at all

        Raises ValueError for what cannot be, PeerError for a server that does not answer.
        """
        if sampling.exact:
            raise ValueError(
                f"{url} computes in its own way, so a run that samples there is not exact: set "
                "exact to false"
            )
        self._environments: dict[str, Environment] = {}
        for each, environment in environments.items():
            if isinstance(environment, TokenEnvironment):
                raise ValueError(f"{each} has tasks of ids, a server is asked in messages")
            self._environments[each] = environment
        self._sampling, self._limits = sampling, limits or LimitsConfig()
        self._folder = folder
        self._url, self._key = url, key
        self._version = 0
        config = PeerConfig(
            connect_seconds=min(10.0, connect_seconds),
            first_byte_seconds=self._limits.trajectory_seconds,
            idle_seconds=self._limits.trajectory_seconds,
            answer_seconds=self._limits.trajectory_seconds,
        )
        self._runner = asyncio.Runner()
        try:
            self._model = self._runner.run(_connected(name, url, key, config, connect_seconds))
        except BaseException:
            self._runner.close()
            raise
        if (server := self._model.name_of_server) != _PUBLISHES:
            self.close()
            raise ValueError(
                f"{self._model.url} is {server}, which takes no new weights while it runs: use "
                f"{_PUBLISHES}"
            )
        self._player = Player(
            self._model, self._environments, self._limits, name=f"the server at {self._model.url}"
        )

    @property
    def policy_version(self) -> int:
        """Number of the weights that draw now."""
        return self._version

    def load_weights(self, model: Model, *, policy_version: int | None = None) -> int:
        """Write the weights into a folder, and have the server read them; return their version, the
        next one unless it is given.

        Raises ValueError or PeerError, with no new folder, for a server that does not take them.
        """
        version = self._version + 1 if policy_version is None else policy_version
        target = self._folder / f"version-{version}"
        try:
            save_model(model, target)
            self._runner.run(self._publish(target))
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            with suppress(OSError):
                self._folder.rmdir()  # only where nothing else is in it
            raise
        for old in self._folder.glob("version-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
        self._version = version
        return version

    def roll_out(
        self,
        draws: Sequence[Draw],
        *,
        group_size: int,
        seed: int,
        max_tokens: int,
        on_progress: Progress | None = None,
    ) -> RolledOut:
        """Return groups of scored samples. Rollouts that fail are counted."""
        check_known(draws, self._environments)
        meter = Meter(
            len(draws) * group_size, lambda: self._model.stats.num_new_tokens, on_progress
        )
        plays = [
            Play(
                draw.environment,
                draw.task_index,
                self._sampling.params(seed=derive_seed(seed, place, member), max_tokens=max_tokens),
            )
            for place, draw in enumerate(draws)
            for member in range(group_size)
        ]
        work = self._player.play(
            plays,
            seconds=self._limits.batch_seconds,
            policy_version=self._version,
            on_end=meter.end_one,
        )
        played = iter(self._runner.run(work))
        outcomes: list[list[Outcome]] = [[next(played) for _ in range(group_size)] for _ in draws]
        return grouped(draws, outcomes, num_tokens=meter.num_tokens)

    def text(self, sample: Sample) -> str:
        """Return a sample as people read it."""
        return self._model.tokenizer.decode(sample.ids.tolist())

    def close(self) -> None:
        """End all requests."""
        self._runner.run(self._model.close())
        close_loop(self._runner)

    async def _publish(self, target: Path) -> None:
        headers = {} if self._key is None else {"authorization": f"Bearer {self._key}"}
        seconds = self._limits.batch_seconds
        config = PeerConfig(first_byte_seconds=seconds, answer_seconds=seconds, max_retries=0)
        async with Peer(self._url, headers=headers, config=config) as peer:
            answer = await peer.post(
                "/update_weights_from_disk", {"model_path": str(target.resolve())}
            )
        if answer.get("success") is not True:
            raise ValueError(
                f"{peer.shown_url} did not take the new weights: {answer.get('message')}"
            )


async def _connected(
    name: str, url: str, key: str | None, config: PeerConfig, seconds: float
) -> UpstreamModel:
    """Return the model at a URL. Raises PeerError if it does not answer in this time."""
    async with Peer(url) as peer:
        shown = peer.shown_url
    try:
        return await asyncio.wait_for(
            UpstreamModel.connect(name, url, key=key, config=config, wait_seconds=seconds), seconds
        )
    except TimeoutError:
        raise PeerError(
            f"{shown} did not answer within {seconds:g} seconds: is the server up, and is that its "
            "address?"
        ) from None
