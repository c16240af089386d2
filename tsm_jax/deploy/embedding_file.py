"""`predict --embed`: the features of many videos in one NumPy file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tsm_jax.data.prepare.jobs import JobFailure
from tsm_jax.deploy.inputs import refuse_inputs
from tsm_jax.deploy.predictor import Embedding, Predictor
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.files import replacing
from tsm_jax.terminal import printable, progress_bar

if TYPE_CHECKING:
    from tsm_jax.deploy.ray_run import OnRay

SUFFIX = ".npz"


def write_embeddings(
    predictor: Predictor,
    videos: Sequence[str],
    output: str | None,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    inputs: Sequence[str] = (),
    overwrite: bool = False,
    ray: OnRay | None = None,
) -> int:
    """Writes `videos` (N paths), `clips` float32 `[N, C]` and `frames` float32 `[N, T, C]`, see
    `Embedding`; the file appears complete or not at all.

    Args:
        predictor: the network.
        videos: paths; those that cannot be read are named on stderr and are not in the file.
        output: a new .npz.
        batch_size, threads: as for `Predictor.embed_many`.
        inputs: files besides the videos that must not be written over.
        overwrite: replace a file that exists.
        ray: the cluster whose nodes compute; None for this process.

    Returns:
        How many videos could not be read.

    Raises:
        UserError: the file exists or cannot be written, or no video can be read.
    """
    if output is None or not output.endswith(SUFFIX):
        raise UserError(f"--embed writes arrays: give --output FILE{SUFFIX}")
    refuse_inputs([output], [*videos, *inputs])
    if os.path.lexists(output) and not overwrite:
        raise UserError(f"{output} exists already: choose another file, or --overwrite replaces it")
    names, clips, frames = [], [], []
    with progress_bar("embed") as show:
        if ray is None:
            answers = predictor.embed_many(videos, batch_size=batch_size, threads=threads)
        else:
            answers = ray.run(predictor, videos, partial(_embedding, batch_size=batch_size))
        for number, (name, embedding) in enumerate(answers, start=1):
            if isinstance(embedding, JobFailure):
                embedding = UnreadableClipError(f"{name}: {embedding.reason}")
            if isinstance(embedding, UnreadableClipError):
                line = " ".join(str(embedding).split())
                print(f"error: {printable(line)}", file=sys.stderr)
            else:
                names.append(name)
                clips.append(embedding.clip)
                frames.append(embedding.frames)
            show(number, len(videos))
    if not names:
        raise UserError(f"none of {len(videos)} videos could be read: {output} is not written")
    with replacing(output) as path, open(path, "wb") as file:
        np.savez(file, videos=np.array(names), clips=np.stack(clips), frames=np.stack(frames))
    print(f"{output}: features of {len(names)} videos, {len(clips[0])} each")
    return len(videos) - len(names)


def _embedding(
    predictor: Predictor, video: str, *, batch_size: int | None
) -> Embedding | UnreadableClipError:
    """What a node does."""
    ((_, embedding),) = predictor.embed_many([video], batch_size=batch_size)
    return embedding
