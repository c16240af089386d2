"""Runs the network, for clips of all requests, in a separate process that is restarted if it dies.

Batches have 1, 2, 4, ... clips, because engines compile for each new size. Clips that arrive while
the engine is working are computed together. A batch waits for more clips only if some are known to
be coming.
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

# Time limit of a batch: a network that takes longer is considered stuck.
_SECONDS = 120


class Batcher:
    """Runs a network on batches of clips that arrive one by one.

    Args:
        run: maps uint8 `[N, ...]` to an array of N results.
        max_batch: maximum number of clips per batch.
        max_wait: seconds that a batch waits for more clips while `coming` returns True.
        coming: returns whether clips are being decoded.
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
        """Returns the network's result for a clip; raises what `run` raises."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((clip, future))
        self._came.set()
        return await future

    async def work(self) -> None:
        """Computes batches until it is cancelled."""
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
        except Exception as error:  # raised to the callers of this batch
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # the caller may be gone
                future.set_result(result)


class Running(NamedTuple):
    """An engine that is ready."""

    name: str
    precision: str
    device: str
    max_batch: int  # maximum number of clips per batch


class EngineProcess:
    """The network of an exported folder in its own process, for use from an event loop.

    Args:
        max_batch: maximum number of clips per batch; None for the engine's preference.
        orphaned: called in the process when its parent has died.
        failed: called whenever the process fails.

    Attributes:
        running: the engine, or None until it has been started once.
        ready: whether the network runs and its last call succeeded.
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
        """Loads the network and runs it once with every batch size.

        Raises:
            UserError: the network cannot be opened, or its scores are not finite.
            RuntimeError: the process ended.
        """
        running = await self._in_thread(None)
        if isinstance(running, JobFailure):
            raise RuntimeError(running.reason)
        self.running, self.ready = running, True
        return running

    async def logits(self, batch: np.ndarray) -> np.ndarray:
        """Computes logits, float32 `[N, K]`, for uint8 `[N, T, S, S, 3]`.

        If the process dies, a new one repeats the computation once.

        Raises:
            Refused: the new process died as well, or could not be started.
        """
        return await self._run(batch)

    async def step(self, frame: np.ndarray, state: State | None) -> tuple[np.ndarray, State]:
        """Runs `StreamEngine.step` in the process; raises as `logits`.

        The caller keeps the state, so that a stream survives the process; None starts a stream.
        """
        return await self._run((frame, state))

    async def _run(self, item: np.ndarray | tuple[np.ndarray, State | None]) -> Any:
        for _ in range(2):
            try:
                result = await self._in_thread(item)
            except (RuntimeError, UserError) as error:  # a new process did not start
                result = JobFailure(" ".join(str(error).split()))
            self.ready = not isinstance(result, JobFailure)
            if not isinstance(result, JobFailure):
                return result
            self._failed()
            _logger.error("the engine failed: %s", result.reason)
        raise Refused("interrupted", "the network failed: try again")

    async def _in_thread(self, item: Any) -> Any:
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self._workers.call, item)

    @property
    def pids(self) -> list[int]:
        """Id of the process, if it is running."""
        return self._workers.pids

    def close(self) -> None:
        self._workers.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Run:
    """The function that the process runs.

    It maps None to the `Running` engine, a batch to its logits, and a frame with a state to logits
    and the next state.
    """

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
        while size <= self._max_batch:  # batch sizes are powers of two, see `Batcher`
            self._check(self._engine.logits(np.zeros((size, *artifact.clip_shape), np.uint8)))
            size *= 2

    def _check(self, logits: np.ndarray) -> None:
        if not np.isfinite(logits).all():
            raise UserError(
                f"{self._arguments[0]} produces scores that are NaN or infinite: export it again"
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
