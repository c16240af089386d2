"""`predict`: answers for many videos, printed, as lines of JSON and as pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tsm_jax.data.prepare.jobs import JobFailure
from tsm_jax.deploy.json_lines import Results, request_of
from tsm_jax.deploy.picture_files import picture_paths, save_picture
from tsm_jax.deploy.prediction import as_values
from tsm_jax.deploy.predictor import Answer, Predictor
from tsm_jax.deploy.timeline import Moment, check_lengths, timeline
from tsm_jax.errors import UnreadableClipError
from tsm_jax.terminal import printable, progress_bar

if TYPE_CHECKING:
    from tsm_jax.deploy.ray_run import OnRay


class _Line(NamedTuple):
    """A line of results: for JSON and for people; with an error if `error` is among the values."""

    values: dict[str, Any]
    text: str


class _Answered(NamedTuple):
    """The lines of a video, some not known yet; then what draws it, None if there is nothing."""

    lines: Iterable[_Line]
    draw: Callable[[], bytes | None]


def predict_videos(
    predictor: Predictor,
    videos: Sequence[str],
    *,
    window: float | None = None,
    step: float | None = None,
    top_k: int = 5,
    batch_size: int | None = None,
    threads: int | None = None,
    output: str | None = None,
    visualize: str | None = None,
    inputs: Sequence[str] = (),
    overwrite: bool = False,
    ray: OnRay | None = None,
) -> int:
    """Answers for all videos, in order; an interrupted run with the same output is continued at the
    first video that was unfinished.

    Args:
        predictor: the network.
        videos: paths.
        window: seconds of a sliding window, see `timeline`; None for one answer per video.
        step: seconds from one window to the next, or None for half a window.
        top_k: classes in an answer.
        batch_size, threads: as for `Predictor.predict_many`, without a window.
        output: a file that receives a line of JSON per answer as soon as it is known; `-` is the
            standard output, which otherwise gets the same for people to read.
        visualize: a .png for a single video, or a folder for a picture each.
        inputs: files besides the videos that must not be written over.
        overwrite: replace results and pictures that exist.
        ray: the cluster whose nodes answer; None for this process.

    Returns:
        How many videos could not be read to their end.

    Raises:
        UserError: an output cannot be written, or exists; or a window is not a sensible number.
    """
    settings: dict[str, Any] = {"top_k": top_k, "visualize": visualize}
    if window is not None:
        step = check_lengths(window, step)
        settings |= {"window": window, "step": step}
    request = request_of(predictor, videos, **settings)
    given = (*videos, *inputs)
    results = Results(output, request, inputs=given, overwrite=overwrite)
    replace = overwrite or results.continued
    pictures = picture_paths(visualize, videos, inputs=given, overwrite=replace)
    with results, progress_bar("predict") as show:
        if results.done:
            done = f"{results.done} of {len(videos)} videos are answered already"
            print(done, file=sys.stderr)
        rest = videos[results.done :]
        answer = partial(
            _answers,
            top_k=top_k,
            batch_size=batch_size,
            threads=threads,
            window=window,
            step=step,
            draws=pictures is not None,
        )
        if ray is None:
            answered = answer(predictor, rest)
        else:
            work = _Complete(answer, draws=pictures is not None)
            answered = _by_nodes(predictor, rest, work, ray)
        for number, (lines, draw) in enumerate(answered, start=results.done):
            failed = False
            for line in lines:
                results.write(line.values)
                if output != "-":
                    _print(line)
                failed = failed or "error" in line.values
            png = draw() if pictures is not None else None
            if pictures is not None and png is not None:
                save_picture(png, pictures[number])
            results.finish_video(failed=failed)
            if len(videos) > 1:
                show(number + 1, len(videos))
    _report_speed(predictor, answered=len(videos) - results.done)
    if results.failed and (len(videos) > 1 or output == "-"):  # else its error was printed
        print(f"error: {results.failed} of {len(videos)} videos could not be read", file=sys.stderr)
    return results.failed


def _by_nodes(
    predictor: Predictor, videos: Sequence[str], work: _Complete, ray: OnRay
) -> Iterator[_Answered]:
    for video, result in ray.run(predictor, videos, work):
        if isinstance(result, JobFailure):
            yield _Answered([_error(video, f"{video}: {result.reason}")], lambda: None)
        else:
            lines, png = result
            yield _Answered(lines, lambda png=png: png)


class _Complete(NamedTuple):
    """What a node does: all lines of a video, and its picture if there is to be one."""

    answer: Callable[[Predictor, Sequence[str]], Iterator[_Answered]]
    draws: bool

    def __call__(self, predictor: Predictor, video: str) -> tuple[list[_Line], bytes | None]:
        (answered,) = self.answer(predictor, [video])
        lines = list(answered.lines)
        return lines, answered.draw() if self.draws else None


def _answers(
    predictor: Predictor,
    videos: Sequence[str],
    *,
    top_k: int,
    batch_size: int | None,
    threads: int | None,
    window: float | None,
    step: float | None,
    draws: bool,
) -> Iterator[_Answered]:
    if window is not None:
        slide = partial(timeline, predictor, window=window, step=step, top_k=top_k)
        return _windows(predictor, videos, slide, keep=draws)
    answers = predictor.predict_many(videos, top_k, batch_size=batch_size, threads=threads)
    return _whole(predictor, answers)


def _whole(predictor: Predictor, answers: Iterable[Answer]) -> Iterator[_Answered]:
    for answer in answers:

        def draw(answer=answer) -> bytes | None:
            from tsm_jax.deploy.drawing import draw_answer  # half a second of matplotlib

            return None if answer.clip is None else draw_answer(predictor, answer)

        if answer.error is not None:
            line = _error(answer.path, answer.error)
        else:
            best = [
                f"  {place}. {printable(each.label)} (class {each.index})  {each.score:.4f}"
                for place, each in enumerate(answer.predictions, start=1)
            ]
            values = {"video": answer.path, "predictions": as_values(answer.predictions)}
            line = _Line(values, "\n".join([printable(answer.path), *best]))
        yield _Answered([line], draw)


def _windows(
    predictor: Predictor,
    videos: Sequence[str],
    slide: Callable[[str], Iterator[Moment]],
    *,
    keep: bool,
) -> Iterator[_Answered]:
    """Moments are kept for the plot only: a stream has no end."""
    for video in videos:
        moments: list[Moment] = []

        def lines(video=video, moments=moments) -> Iterator[_Line]:
            try:
                for moment in slide(video):
                    if keep:
                        moments.append(moment)
                    yield _moment_line(video, moment)
            except UnreadableClipError as error:
                yield _error(video, str(error))

        def draw(video=video, moments=moments) -> bytes | None:
            from tsm_jax.deploy.drawing import draw_timeline  # half a second of matplotlib

            return draw_timeline(video, moments, predictor.labels) if moments else None

        yield _Answered(lines(), draw)


def _moment_line(video: str, moment: Moment) -> _Line:
    best = moment.predictions[0]
    values = {"video": video, **moment.values()}
    times = f"{moment.start:7.1f} s - {moment.end:.1f} s"
    return _Line(values, f"{printable(video)}  {times}  {printable(best.label)}  {best.score:.4f}")


def _error(video: str, error: str) -> _Line:
    error = " ".join(error.split())
    return _Line({"video": video, "error": error}, f"error: {printable(error)}")


def _print(line: _Line) -> None:
    print(line.text, file=sys.stderr if "error" in line.values else sys.stdout)


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
