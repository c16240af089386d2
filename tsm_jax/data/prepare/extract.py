"""Extracts videos to folders of numbered JPEG files.

A folder is filled under another name and renamed when it is complete, so an existing folder is
finished. The options are stored beside the folders, so that frames of two sizes never end up in one
data set.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tsm_jax.data.decode import every_frame
from tsm_jax.data.lists import FRAME_TEMPLATE, local_copy
from tsm_jax.data.prepare.jobs import JobFailure, run_jobs
from tsm_jax.data.prepare.make_lists import count_frames
from tsm_jax.errors import StopJobsError, UserError
from tsm_jax.files import read_text, reason, write_lines
from tsm_jax.terminal import progress

OPTIONS_FILE = "extraction.json"
FAILED_FILE = "failed.txt"
_PARTIAL = ".partial"


def extract(
    videos: Sequence[str],
    folders: Sequence[str],
    output: str,
    *,
    short_side: int = 256,
    quality: int = 95,
    **jobs: Any,
) -> tuple[list[int | None], list[tuple[str, str]]]:
    """Extracts every video that has no folder yet.

    Args:
        folders: For each video, the folder below `output` that its frames go to.
        output: Created if necessary. Receives `failed.txt` with the videos that failed.
        short_side: In pixels; larger frames are scaled down to it. 0 keeps all sizes. Like
            `quality`, it must be the same as in earlier runs into `output`.
        quality: JPEG quality, 1 to 100.
        jobs: Arguments `processes`, `seconds` and `ray` of `run_jobs`; the nodes of a cluster write
            to `output`.

    Returns:
        The number of frames of each video, None if it failed; and (video, reason) of the failures.

    Raises:
        UserError: `output` was made with other options, or cannot be written.
    """
    if "://" in output:
        raise UserError(
            f"--output {output}: frames go to a disk; use prepare pack to write to a bucket"
        )
    options = {"short_side": short_side, "quality": quality}
    _check_options(output, options)
    shutil.rmtree(os.path.join(output, _PARTIAL), ignore_errors=True)  # left by a killed run
    # The name is new, so a node of a cluster that finds it sees this machine's disk.
    partial_root = os.path.join(output, _PARTIAL, uuid.uuid4().hex)
    try:
        os.makedirs(partial_root)
    except OSError as error:
        raise UserError(f"cannot write {output}: {reason(error)}") from error
    items = zip(videos, (os.path.join(output, folder) for folder in folders), strict=True)
    extract_one = partial(_extract_video, partial_root=partial_root, **options)
    num_frames: list[int | None] = []
    failures: list[tuple[str, str]] = []
    with closing(run_jobs(extract_one, items, path_of=itemgetter(0), **jobs)) as results:
        for (video, _), result in progress(results, "frames", len(videos)):
            if isinstance(result, JobFailure):
                failures.append((video, result.reason))
                num_frames.append(None)
            else:
                num_frames.append(result)
    shutil.rmtree(os.path.join(output, _PARTIAL), ignore_errors=True)
    failed = Path(output, FAILED_FILE)
    if failures:
        write_lines(failed, [f"{name}\t{why}" for name, why in failures])
    else:
        failed.unlink(missing_ok=True)
    return num_frames, failures


def _check_options(output: str, options: dict[str, int]) -> None:
    path = Path(output, OPTIONS_FILE)
    wanted = json.dumps(options, sort_keys=True)
    if not path.exists():
        write_lines(path, [wanted])
        return
    found = read_text(path, "the options of an earlier extraction").strip()
    if found != wanted:
        raise UserError(
            f"{output} contains frames extracted with {found}, not {wanted}: use the same"
            " options or another --output"
        )


def _extract_video(
    job: tuple[str, str], *, partial_root: str, short_side: int, quality: int
) -> int:
    """Extracts one video to its folder and returns its number of frames."""
    video, folder = job
    if not os.path.isdir(partial_root):
        raise StopJobsError(
            f"cannot write {folder}: this node does not share the disk of the machine that runs the"
            " command; --output must be on a disk that all nodes share"
        )
    if os.path.isdir(folder):
        return count_frames(folder)
    # Not named by process number, because processes of several machines may share it.
    partial_folder = os.path.join(partial_root, uuid.uuid4().hex)
    count = 0
    try:
        with _writing(folder):
            os.mkdir(partial_folder)
        with local_copy(video) as path:
            for count, frame in enumerate(every_frame(path), start=1):
                data = encode_frame(frame, short_side, quality)
                with _writing(folder):
                    Path(partial_folder, FRAME_TEMPLATE.format(count)).write_bytes(data)
        with _writing(folder):
            os.makedirs(os.path.dirname(folder), exist_ok=True)
            try:
                os.rename(partial_folder, folder)
            except OSError:
                # A node that was believed lost may have finished it, too.
                if not os.path.isdir(folder):
                    raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return count


@contextmanager
def _writing(folder: str) -> Iterator[None]:
    """Turns an OSError into a StopJobsError, because writing the next video would fail, too."""
    try:
        yield
    except OSError as error:
        raise StopJobsError(f"cannot write {folder}: {reason(error)}") from error


def encode_frame(frame: np.ndarray, short_side: int, quality: int) -> bytes:
    """Encodes uint8[H, W, 3], RGB, as JPEG, scaled down to `short_side` pixels if it is larger."""
    height, width = frame.shape[:2]
    if 0 < short_side < min(height, width):
        scale = short_side / min(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert done, "a uint8 image can always be encoded"
    return data.tobytes()
