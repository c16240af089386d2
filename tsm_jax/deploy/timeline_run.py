"""`predict --window`: timelines of videos as JSON lines, in print and as plots."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO

from tsm_jax.deploy.outputs import open_output, picture_path
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.deploy.timeline import Moment, step_in_frames, timeline
from tsm_jax.errors import UnreadableClipError, UserError


def write_timelines(
    predictor: Predictor,
    videos: Sequence[str],
    *,
    window: float,
    step: float | None,
    top_k: int = 5,
    output: str | None = None,
    visualize: str | None = None,
) -> int:
    """Slides a window over every video; a line of JSON per window, written at once.

    Args:
        predictor: the network.
        videos: paths.
        window: seconds.
        step: seconds, or None for half a window.
        top_k: classes in an answer.
        output: a file for the lines, `-` for the standard output.
        visualize: a .png for a single video, or a folder for a plot each.

    Returns:
        How many videos could not be read to their end.

    Raises:
        UserError: a number makes no sense, or an output cannot be written.
    """
    step_in_frames(window, step, predictor.num_segments)  # raises before anything is written
    failed = 0
    with ExitStack() as stack:
        lines = stack.enter_context(open_output(output)) if output else None
        choose_path = picture_path(visualize, videos)
        for video in videos:
            moments: list[Moment] = []
            try:
                for moment in timeline(predictor, video, window=window, step=step, top_k=top_k):
                    moments.append(moment)
                    _write(lines, output, video, moment)
            except UnreadableClipError as error:
                failed += 1
                _write_error(lines, output, video, error)
            if choose_path is not None and moments:
                _plot(predictor, video, moments, choose_path)
    if failed:
        print(f"error: {failed} of {len(videos)} videos could not be read", file=sys.stderr)
    return failed


def as_json(video: str, moment: Moment) -> str:
    """One line: `video`, `start` and `end` in seconds, `predictions` best first."""
    predictions = [
        {"index": index, "label": label, "score": round(score, 6)}
        for index, label, score in moment.predictions
    ]
    times = {"start": round(moment.start, 3), "end": round(moment.end, 3)}
    return json.dumps({"video": video, **times, "predictions": predictions}, ensure_ascii=False)


def _write(lines: IO[str] | None, output: str | None, video: str, moment: Moment) -> None:
    if lines is not None:
        lines.write(as_json(video, moment) + "\n")
        lines.flush()
    if output != "-":
        best = moment.predictions[0]
        print(
            f"{video}  {moment.start:7.1f} s - {moment.end:.1f} s  {best.label}  {best.score:.4f}"
        )


def _write_error(
    lines: IO[str] | None, output: str | None, video: str, error: UnreadableClipError
) -> None:
    message = " ".join(str(error).split())
    if lines is not None:
        lines.write(json.dumps({"video": video, "error": message}, ensure_ascii=False) + "\n")
    if output != "-":
        print(f"error: {message}", file=sys.stderr)


def _plot(
    predictor: Predictor, video: str, moments: Sequence[Moment], choose_path: Callable[[str], str]
) -> None:
    from tsm_jax.deploy.timeline_plot import plot_timeline

    path = choose_path(video)
    try:
        plot_timeline(video, moments, predictor.labels).save(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
