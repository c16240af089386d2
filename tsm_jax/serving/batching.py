"""Clips of all requests through the network together.

Batches have 1, 2, 4, ... clips: engines compile for each size that they meet. What waits while the
engine works is taken together. Only if more is known to come does a batch wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import numpy as np

Run = Callable[[np.ndarray], Awaitable[np.ndarray]]


class Batcher:
    """Calls a network for clips that come one by one.

    Args:
        run: uint8 `[N, ...]` to an array of N results.
        max_batch: clips at once.
        max_wait: seconds that a batch waits for more while `coming` says that there will be.
        coming: whether clips are being decoded.
    """

    def __init__(self, run: Run, max_batch: int, max_wait: float, coming: Callable[[], bool]):
        self._run, self._max_batch, self._max_wait = run, max_batch, max_wait
        self._coming = coming
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._came = asyncio.Event()

    def __len__(self) -> int:
        """Clips that wait."""
        return len(self._waiting)

    async def __call__(self, clip: np.ndarray) -> np.ndarray:
        """The network's result for a clip; raises what `run` raises."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((clip, future))
        self._came.set()
        return await future

    async def work(self) -> None:
        """Computes until it is cancelled."""
        while True:
            await self._arrival()
            if len(self._waiting) < self._max_batch:
                await self._wait_for_more()
            size = 1
            while 2 * size <= min(len(self._waiting), self._max_batch):
                size *= 2
            batch = [self._waiting.popleft() for _ in range(size)]
            await self._compute([clip for clip, _ in batch], [future for _, future in batch])

    async def _arrival(self) -> None:
        while not self._waiting:
            self._came.clear()
            await self._came.wait()

    async def _wait_for_more(self) -> None:
        try:
            async with asyncio.timeout(self._max_wait):
                while len(self._waiting) < self._max_batch and self._coming():
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            pass

    async def _compute(
        self, clips: list[np.ndarray], futures: list[asyncio.Future[np.ndarray]]
    ) -> None:
        try:
            results = await self._run(np.stack(clips))
        except Exception as error:  # it is theirs who wait
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            if not future.done():  # whoever waited may be gone
                future.set_result(result)
