"""`predict --window`: timelines of videos as JSON lines, in print and as plots."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tsm_jax.deploy.outputs import Results, picture_paths, request_of, save_picture
from tsm_jax.deploy.prediction_run import (
    predictions_as_values,
    report_continued,
    report_failed,
)
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.deploy.timeline import Moment, check_lengths, timeline
from tsm_jax.errors import UnreadableClipError
from tsm_jax.terminal import printable


def write_timelines(
    predictor: Predictor,
    videos: Sequence[str],
    *,
    window: float,
    step: float | None,
    top_k: int = 5,
    output: str | None = None,
    visualize: str | None = None,
    inputs: Sequence[str] = (),
    overwrite: bool = False,
) -> int:
    """Slides a window over every video; a line of JSON per window, written at once.

    An interrupted run with the same output is continued at the first video that was unfinished.

    Args:
        predictor: the network.
        videos: paths.
        window: seconds.
        step: seconds, or None for half a window.
        top_k: classes in an answer.
        output: a file for the lines, `-` for the standard output.
        visualize: a .png for a single video, or a folder for a plot each.
        inputs: files besides the videos that must not be written over.
        overwrite: replace results and plots that exist.

    Returns:
        How many videos could not be read to their end.

    Raises:
        UserError: a number makes no sense, or an output cannot be written, or exists.
    """
    step = check_lengths(window, step)
    settings = {"top_k": top_k, "visualize": visualize, "window": window, "step": step}
    given = (*videos, *inputs)
    request = request_of(predictor, videos, **settings)
    results = Results(output, request, inputs=given, overwrite=overwrite)
    replace = overwrite or results.continued
    plots = picture_paths(visualize, videos, inputs=given, overwrite=replace)
    with results:
        report_continued(results, len(videos))
        for number in range(results.done, len(videos)):
            video, error = videos[number], None
            moments: list[Moment] = []  # for the plot
            try:
                for moment in timeline(predictor, video, window=window, step=step, top_k=top_k):
                    results.write(as_values(video, moment))
                    if output != "-":
                        _print(video, moment)
                    if plots is not None:
                        moments.append(moment)
            except UnreadableClipError as caught:
                error = " ".join(str(caught).split())
                results.write({"video": video, "error": error})
                if output != "-":
                    print(f"error: {printable(error)}", file=sys.stderr)
            if plots is not None and moments:
                from tsm_jax.deploy.timeline_plot import plot_timeline

                save_picture(plot_timeline(video, moments, predictor.labels), plots[number])
            results.finish_video(failed=error is not None)
    report_failed(results, len(videos), output)
    return results.failed


def as_values(video: str, moment: Moment) -> dict[str, Any]:
    """For JSON: `video`, `start` and `end` in seconds, `predictions` best first."""
    return {
        "video": video,
        "start": round(moment.start, 3),
        "end": round(moment.end, 3),
        "predictions": predictions_as_values(moment.predictions),
    }


def _print(video: str, moment: Moment) -> None:
    best = moment.predictions[0]
    times = f"{moment.start:7.1f} s - {moment.end:.1f} s"
    print(f"{printable(video)}  {times}  {printable(best.label)}  {best.score:.4f}")
