"""Runs `predict` on the nodes of a Ray cluster, where each process opens the network itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from tsm_jax.data.prepare.cluster import run_on_ray
from tsm_jax.data.prepare.jobs import JobFailure
from tsm_jax.deploy.engine import PACKAGES
from tsm_jax.deploy.json_lines import json_line, request_of
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.errors import StopJobsError, UnreadableClipError, UserError

Result = TypeVar("Result")


class OnRay(NamedTuple):
    """A Ray cluster that answers videos.

    Attributes:
        address: of the cluster, see `run_on_ray`.
        load: opens this process's network on a node; must be importable there.
    """

    address: str
    load: Callable[[], Predictor]

    def run(
        self,
        predictor: Predictor,
        videos: Sequence[str],
        function: Callable[[Predictor, str], Result],
    ) -> Generator[tuple[str, Result | JobFailure], None, None]:
        """Yields (video, result of the function), in the order of the videos.

        Args:
            predictor: what `load` returns here; it must return the same network on the nodes.
            videos: paths.
            function: must be importable on the nodes.

        Raises:
            UserError: the cluster cannot be used, or the network on a node is not the same or
                fails.
        """
        work = _Work(self.load, json_line(request_of(predictor, ())), function)
        jobs = run_on_ray(
            work,
            videos,
            self.address,
            path_of=str,
            prepare=work.prepare,
            packages=PACKAGES[predictor.engine.name],
            on_gpus=True,
        )
        with closing(jobs):
            yield from jobs


@dataclass
class _Work:
    """The function that a process on a node runs, with its own network."""

    load: Callable[[], Predictor]
    expected: str
    function: Callable[[Predictor, str], Any]
    _predictor: Predictor | None = field(default=None, init=False)

    def prepare(self) -> None:
        self._predictor = self.load()
        found = json_line(request_of(self._predictor, ()))
        if found != self.expected:
            raise UserError(
                f"{self._predictor.source} on a node is not the same model as on this machine:"
                " copy it to all nodes, or to a disk that they share"
            )

    def __call__(self, video: str) -> Any:
        assert self._predictor is not None
        try:
            return self.function(self._predictor, video)
        except UnreadableClipError:
            raise
        except UserError as error:  # about the network, not about the video
            raise StopJobsError(str(error)) from error
