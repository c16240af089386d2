"""`predict`: answers for many videos, printed, as JSON lines and as pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tsm_jax.deploy.outputs import open_output, picture_path
from tsm_jax.deploy.predictor import Answer, Predictor
from tsm_jax.errors import UserError


def predict_videos(
    predictor: Predictor,
    videos: Sequence[str],
    *,
    top_k: int = 5,
    batch_size: int | None = None,
    threads: int | None = None,
    output: str | None = None,
    visualize: str | None = None,
) -> int:
    """Answers for all videos, in order.

    Args:
        predictor: the network.
        videos: paths.
        top_k: classes in an answer.
        batch_size: as for `Predictor.predict_many`.
        threads: as for `Predictor.predict_many`.
        output: a file that receives a line of JSON per video as soon as it is known; `-` is the
            standard output, which otherwise gets the same for people to read.
        visualize: a .png for a single video, or a folder for a picture each.

    Returns:
        How many videos could not be read.

    Raises:
        UserError: an output cannot be written.
    """
    failed = 0
    with ExitStack() as stack:
        lines = stack.enter_context(open_output(output)) if output else None
        choose_path = picture_path(visualize, videos)
        advance = stack.enter_context(_progress(len(videos)))
        answers = predictor.predict_many(videos, top_k, batch_size=batch_size, threads=threads)
        for answer in answers:
            failed += answer.error is not None
            if lines is not None:
                lines.write(as_json(answer) + "\n")
                lines.flush()
            if output != "-":
                _print(answer)
            if choose_path is not None and answer.clip is not None:
                _save_picture(predictor, answer, choose_path(answer.path))
            advance()
    _report(predictor, len(videos), failed)
    return failed


def as_json(answer: Answer) -> str:
    """One line: `video` with `predictions` (best first) or with `error`."""
    line: dict[str, object] = {"video": answer.path}
    if answer.error is None:
        line["predictions"] = [
            {"index": index, "label": label, "score": round(score, 6)}
            for index, label, score in answer.predictions
        ]
    else:
        line["error"] = answer.error
    return json.dumps(line, ensure_ascii=False)


def _save_picture(predictor: Predictor, answer: Answer, path: str) -> None:
    from tsm_jax.deploy.picture import draw_answer

    image = draw_answer(predictor, answer)
    try:
        image.save(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error if that is a terminal and there is more than one video."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predict", total=total)
        yield lambda: progress.advance(task)


def _print(answer: Answer) -> None:
    if answer.error is not None:
        print(f"error: {answer.error}", file=sys.stderr)
        return
    print(answer.path)
    for place, (index, label, score) in enumerate(answer.predictions, start=1):
        print(f"  {place}. {label} (class {index})  {score:.4f}")


def _report(predictor: Predictor, total: int, failed: int) -> None:
    usage, engine = predictor.usage, predictor.engine
    if total > 1 and usage.wall_seconds:
        print(
            f"{usage.clips} videos, {usage.clips / usage.wall_seconds:.1f} a second;"
            f" {engine.name} on {engine.device} in {engine.precision} was busy"
            f" {usage.busy:.0%} of the time",
            file=sys.stderr,
        )
    if failed:
        print(f"error: {failed} of {total} videos could not be read", file=sys.stderr)
