"""The network in a process of its own, which may die and is started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tsm_jax.data.prepare.jobs import JobFailure, Workers
from tsm_jax.deploy.artifact import read_artifact
from tsm_jax.deploy.engine import Engine, open_engine
from tsm_jax.errors import UserError
from tsm_jax.serving.limits import Refused

_logger = logging.getLogger(__name__)

# Of a batch: a network that takes longer hangs.
_SECONDS = 120


class Running(NamedTuple):
    """An engine that is ready: which one, its precision and device, and clips it takes at once."""

    name: str
    precision: str
    device: str
    max_batch: int


class EngineProcess:
    """An exported folder's network, for an event loop.

    Args:
        folder: that was exported.
        name: of the engine, or `auto`.
        precision: of it.
        max_batch: clips at once; None for what the engine likes.
        orphaned: called in the process when its parent has died.
        failed: called whenever a process ends by itself.

    Attributes:
        running: None until it was started once.
        ready: whether there is a process with a network that has answered.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        precision: str,
        max_batch: int | None,
        *,
        orphaned: Callable[[], None],
        failed: Callable[[], None],
    ):
        run = _Run(folder, name, precision, max_batch)
        self._workers = Workers(
            run, seconds=_SECONDS, prepare=run.prepare, orphaned=orphaned, name="engine"
        )
        self._thread = ThreadPoolExecutor(1, "engine")
        self._failed = failed
        self.running: Running | None = None
        self.ready = False

    async def start(self) -> Running:
        """Loads the network and runs it once in every size of batch.

        Raises:
            UserError: it cannot be opened, or gives scores that are not finite.
            RuntimeError: the process ended.
        """
        running = await self._in_thread(lambda: self._workers.call(None))
        if isinstance(running, JobFailure):
            raise RuntimeError(running.reason)
        self.running, self.ready = running, True
        return running

    async def logits(self, batch: np.ndarray) -> np.ndarray:
        """uint8 `[N, T, S, S, 3]` to float32 `[N, K]`; once more in a new process if one dies.

        Raises:
            Refused: the second one died, too, or none could be started.
        """
        for _ in range(2):
            result = await self._in_thread(lambda: self._call(batch))
            self.ready = isinstance(result, np.ndarray)
            if isinstance(result, np.ndarray):
                return result
            self._failed()
            _logger.error("the engine failed: %s", result.reason)
        raise Refused("interrupted", "the network could not be run: try again")

    def _call(self, batch: np.ndarray) -> np.ndarray | JobFailure:
        try:
            return self._workers.call(batch)
        except (RuntimeError, UserError) as error:  # a new process did not come up
            return JobFailure(" ".join(str(error).split()))

    async def _in_thread(self, function):
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    @property
    def pids(self) -> list[int]:
        """The process, if it runs."""
        return self._workers.pids

    def close(self) -> None:
        self._workers.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Run:
    """What the process does: None to what runs in it, a batch to its logits."""

    def __init__(self, folder: str, name: str, precision: str, max_batch: int | None):
        self._arguments = (folder, name, precision)
        self._max_batch = max_batch
        self._engine: Engine | None = None

    def prepare(self) -> None:
        folder, name, precision = self._arguments
        artifact = read_artifact(folder)
        self._engine = open_engine(artifact, name, precision)
        self._max_batch = self._max_batch or self._engine.batch_size
        size = 1
        while size <= self._max_batch:  # sizes of batches are powers of two, see batching.py
            black = np.zeros((size, *artifact.clip_shape), np.uint8)
            if not np.isfinite(self._engine.logits(black)).all():
                raise UserError(f"{folder} gives scores that are NaN or infinite: export it again")
            size *= 2

    def __call__(self, batch: np.ndarray | None) -> Running | np.ndarray:
        engine = self._engine
        assert engine is not None and self._max_batch is not None
        if batch is None:
            return Running(engine.name, engine.precision, engine.device, self._max_batch)
        return engine.logits(batch)
