"""The network in a process of its own, which may die and is started again; clips of all requests
go through it together.

Batches have 1, 2, 4, ... clips: engines compile for each size that they meet. What waits while the
engine works is taken together. Only if more is known to come does a batch wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.data.prepare.jobs import JobFailure, Workers
from tsm_jax.deploy.artifact import STREAM, State, read_artifact
from tsm_jax.deploy.engine import Engine, StreamEngine, open_engine, open_stream_engine
from tsm_jax.errors import UserError
from tsm_jax.serving.limits import Refused
from tsm_jax.serving.sandbox import leave_stopping_to_parent

_logger = logging.getLogger(__name__)

# Of a batch: a network that takes longer hangs.
_SECONDS = 120


class Batcher:
    """Calls a network for clips that come one by one.

    Args:
        run: uint8 `[N, ...]` to an array of N results.
        max_batch: clips at once.
        max_wait: seconds that a batch waits for more while `coming` says that there will be.
        coming: whether clips are being decoded.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Awaitable[np.ndarray]],
        max_batch: int,
        max_wait: float,
        coming: Callable[[], bool],
    ):
        self._run, self._max_batch, self._max_wait = run, max_batch, max_wait
        self._coming = coming
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._came = asyncio.Event()

    async def __call__(self, clip: np.ndarray) -> np.ndarray:
        """The network's result for a clip; raises what `run` raises."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((clip, future))
        self._came.set()
        return await future

    async def work(self) -> None:
        """Computes until it is cancelled."""
        while True:
            while not self._waiting:
                await self._arrival()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._max_wait):
                    while len(self._waiting) < self._max_batch and self._coming():
                        await self._arrival()
            size = 1
            while 2 * size <= min(len(self._waiting), self._max_batch):
                size *= 2
            await self._compute([self._waiting.popleft() for _ in range(size)])

    async def _arrival(self) -> None:
        self._came.clear()
        await self._came.wait()

    async def _compute(self, batch: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]) -> None:
        try:
            results = await self._run(np.stack([clip for clip, _ in batch]))
        except Exception as error:  # it is theirs who wait
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # whoever waited may be gone
                future.set_result(result)


class Running(NamedTuple):
    """An engine that is ready."""

    name: str
    precision: str
    device: str
    max_batch: int  # clips that it takes at once


class EngineProcess:
    """An exported folder's network, for an event loop.

    Args:
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
        running = await self._in_thread(None)
        if isinstance(running, JobFailure):
            raise RuntimeError(running.reason)
        self.running, self.ready = running, True
        return running

    async def logits(self, batch: np.ndarray) -> np.ndarray:
        """uint8 `[N, T, S, S, 3]` to float32 `[N, K]`; once more in a new process if one dies.

        Raises:
            Refused: the second one died, too, or none could be started.
        """
        return await self._run(batch)

    async def step(self, frame: np.ndarray, state: State | None) -> tuple[np.ndarray, State]:
        """As `StreamEngine.step`, in that process; None is the state of a stream's start. The state
        is kept here and sent along, so that a stream outlives the process. Raises as `logits`."""
        return await self._run((frame, state))

    async def _run(self, item: np.ndarray | tuple[np.ndarray, State | None]) -> Any:
        for _ in range(2):
            try:
                result = await self._in_thread(item)
            except (RuntimeError, UserError) as error:  # a new process did not come up
                result = JobFailure(" ".join(str(error).split()))
            self.ready = not isinstance(result, JobFailure)
            if not isinstance(result, JobFailure):
                return result
            self._failed()
            _logger.error("the engine failed: %s", result.reason)
        raise Refused("interrupted", "the network could not be run: try again")

    async def _in_thread(self, item: Any) -> Any:
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self._workers.call, item)

    @property
    def pids(self) -> list[int]:
        """The process, if it runs."""
        return self._workers.pids

    def close(self) -> None:
        self._workers.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Run:
    """What the process does: None to what runs in it, a batch to its logits, a frame and a state to
    logits and the next state."""

    def __init__(self, folder: str, name: str, precision: str, max_batch: int | None):
        self._arguments = (folder, name, precision)
        self._max_batch = max_batch
        self._engine: Engine | StreamEngine | None = None

    def prepare(self) -> None:
        leave_stopping_to_parent()
        folder, name, precision = self._arguments
        artifact = read_artifact(folder, None)
        if artifact.kind == STREAM:
            self._engine, self._max_batch = open_stream_engine(artifact, name), 1
            self._check(self._step(np.zeros((1, *artifact.clip_shape[1:]), np.uint8), None)[0])
            return
        self._engine = open_engine(artifact, name, precision)
        self._max_batch = self._max_batch or self._engine.batch_size
        size = 1
        while size <= self._max_batch:  # sizes of batches are powers of two, see `Batcher`
            self._check(self._engine.logits(np.zeros((size, *artifact.clip_shape), np.uint8)))
            size *= 2

    def _check(self, logits: np.ndarray) -> None:
        if not np.isfinite(logits).all():
            raise UserError(
                f"{self._arguments[0]} gives scores that are NaN or infinite: export it again"
            )

    def __call__(self, item: np.ndarray | tuple[np.ndarray, State | None] | None) -> Any:
        engine = self._engine
        assert engine is not None and self._max_batch is not None
        if item is None:
            return Running(engine.name, self._arguments[2], engine.device, self._max_batch)
        if isinstance(item, tuple):
            return self._step(*item)
        assert isinstance(engine, Engine)
        return engine.logits(item)

    def _step(self, frame: np.ndarray, state: State | None) -> tuple[np.ndarray, State]:
        engine = self._engine
        assert isinstance(engine, StreamEngine)
        logits, after = engine.step(frame, engine.start if state is None else state)
        return logits, [np.asarray(array) for array in after]
