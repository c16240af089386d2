"""`predict`: answers for many videos, printed, as JSON lines and as pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tsm_jax.deploy.outputs import Results, picture_paths, request_of, save_picture
from tsm_jax.deploy.prediction import Prediction
from tsm_jax.deploy.predictor import Answer, Predictor
from tsm_jax.terminal import printable


def predict_videos(
    predictor: Predictor,
    videos: Sequence[str],
    *,
    top_k: int = 5,
    batch_size: int | None = None,
    threads: int | None = None,
    output: str | None = None,
    visualize: str | None = None,
    inputs: Sequence[str] = (),
    overwrite: bool = False,
) -> int:
    """Answers for all videos, in order; an interrupted run with the same output is continued.

    Args:
        predictor: the network.
        videos: paths.
        top_k: classes in an answer.
        batch_size: as for `Predictor.predict_many`.
        threads: as for `Predictor.predict_many`.
        output: a file that receives a line of JSON per video as soon as it is known; `-` is the
            standard output, which otherwise gets the same for people to read.
        visualize: a .png for a single video, or a folder for a picture each.
        inputs: files besides the videos that must not be written over.
        overwrite: replace results and pictures that exist.

    Returns:
        How many videos could not be read.

    Raises:
        UserError: an output cannot be written, or exists.
    """
    request = request_of(predictor, videos, top_k=top_k, visualize=visualize)
    given = (*videos, *inputs)
    results = Results(output, request, inputs=given, overwrite=overwrite)
    replace = overwrite or results.continued
    pictures = picture_paths(visualize, videos, inputs=given, overwrite=replace)
    with results, _progress(len(videos), results.done) as advance:
        report_continued(results, len(videos))
        answers = predictor.predict_many(
            videos[results.done :], top_k, batch_size=batch_size, threads=threads
        )
        for number, answer in enumerate(answers, start=results.done):
            results.write(as_values(answer))
            if output != "-":
                _print(answer)
            if pictures is not None and answer.clip is not None:
                from tsm_jax.deploy.picture import draw_answer

                save_picture(draw_answer(predictor, answer), pictures[number])
            results.finish_video(failed=answer.error is not None)
            advance()
    _report_speed(predictor, answered=len(videos) - results.done)
    report_failed(results, len(videos), output)
    return results.failed


def as_values(answer: Answer) -> dict[str, Any]:
    """For JSON: `video` with `predictions` (best first) or with `error`."""
    if answer.error is not None:
        return {"video": answer.path, "error": answer.error}
    return {"video": answer.path, "predictions": predictions_as_values(answer.predictions)}


def predictions_as_values(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """For JSON: `index`, `label` and `score` each."""
    return [{**each._asdict(), "score": round(each.score, 6)} for each in predictions]


def report_continued(results: Results, total: int) -> None:
    """Says on standard error how many answers an interrupted run had written."""
    if results.done:
        print(f"{results.done} of {total} videos are answered already", file=sys.stderr)


def report_failed(results: Results, total: int, output: str | None) -> None:
    """Says on standard error how many failed, unless that is the only video's printed error."""
    if results.failed and (total > 1 or output == "-"):
        print(f"error: {results.failed} of {total} videos could not be read", file=sys.stderr)


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error if that is a terminal and there is more than one video."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predict", total=total, completed=done)
        yield lambda: progress.advance(task)


def _print(answer: Answer) -> None:
    if answer.error is not None:
        print(f"error: {printable(answer.error)}", file=sys.stderr)
        return
    print(printable(answer.path))
    for place, (index, label, score) in enumerate(answer.predictions, start=1):
        print(f"  {place}. {printable(label)} (class {index})  {score:.4f}")


def _report_speed(predictor: Predictor, answered: int) -> None:
    usage, engine = predictor.usage, predictor.engine
    if answered > 1 and usage.wall_seconds:
        videos = usage.clips / predictor.protocol.num_views
        print(
            f"{videos:.0f} videos, {videos / usage.wall_seconds:.1f} a second;"
            f" {engine.name} on {engine.device} in {engine.precision} was busy"
            f" {usage.busy:.0%} of the time",
            file=sys.stderr,
        )
