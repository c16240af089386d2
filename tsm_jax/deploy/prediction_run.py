"""The command `predict`: prints answers for many videos, or writes them as JSON lines and pictures;
or writes the videos' features to one NumPy file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsm_jax.data.prepare.jobs import JobFailure
from tsm_jax.deploy.json_lines import PICTURE_SUFFIX, Results, check_new, refuse_inputs, request_of
from tsm_jax.deploy.prediction import Moment, as_values
from tsm_jax.deploy.predictor import Embedding, Predictor
from tsm_jax.deploy.videos import check_lengths
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.files import reason, replacing
from tsm_jax.terminal import printable, progress_bar

if TYPE_CHECKING:
    from tsm_jax.deploy.ray_run import OnRay

_EMBEDDING_SUFFIX = ".npz"
_LONGEST_STEM = 200  # bytes of a picture's file name; file systems allow 255


class _Line(NamedTuple):
    """A line of results, as JSON values and as text; an error if `error` is among the values."""

    values: dict[str, Any]
    text: str


class _Answered(NamedTuple):
    """The lines of a video, some not known yet; then a function that draws its picture, if any."""

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
    """Answers all videos, in order.

    An interrupted run with the same output is resumed at the first unfinished video.

    Args:
        window, step: as for `Predictor.timeline`; `window` is None for one answer per video.
        top_k, batch_size, threads: as for `Predictor.predict_many`.
        output: a file that receives one JSON line per answer as soon as it is known; `-` for
            standard output, which otherwise gets the answers as text.
        visualize: a .png for a single video, or a folder for one picture per video.
        inputs: files besides the videos that must not be overwritten.
        overwrite: replace existing results and pictures.
        ray: the cluster whose nodes compute the answers; None for this process.

    Returns:
        Number of videos that could not be read to their end.

    Raises:
        UserError: an output exists or cannot be written, or the window or step is out of range.
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
    work = _Work(top_k, batch_size, threads, window, step, draws=pictures is not None)
    with results, progress_bar("predict") as show:
        if results.done:
            done = f"{results.done} of {len(videos)} videos are already answered"
            print(done, file=sys.stderr)
        rest = videos[results.done :]
        if ray is None:
            answered = work.answers(predictor, rest)
        else:
            answered = _by_nodes(ray.run(predictor, rest, work))
        for number, (lines, draw) in enumerate(answered, start=results.done):
            failed = False
            for line in lines:
                results.write(line.values)
                if output != "-":
                    _print(line)
                failed = failed or "error" in line.values
            if pictures is not None and (png := draw()) is not None:
                with replacing(pictures[number]) as path, open(path, "wb") as file:
                    file.write(png)
            results.finish_video(failed=failed)
            if len(videos) > 1:
                show(number + 1, len(videos))
    _report_speed(predictor, answered=len(videos) - results.done)
    if results.failed and (len(videos) > 1 or output == "-"):  # otherwise its error was printed
        print(f"error: {results.failed} of {len(videos)} videos could not be read", file=sys.stderr)
    return results.failed


def _by_nodes(results: Iterable[tuple[str, Any]]) -> Iterator[_Answered]:
    for video, result in results:
        if isinstance(result, JobFailure):
            yield _Answered([_error(video, f"{video}: {result.reason}")], lambda: None)
        else:
            lines, png = result
            yield _Answered(lines, lambda png=png: png)


@dataclass
class _Work:
    """The work on each video, see `predict_videos`."""

    top_k: int
    batch_size: int | None
    threads: int | None
    window: float | None
    step: float | None
    draws: bool

    def answers(self, predictor: Predictor, videos: Sequence[str]) -> Iterator[_Answered]:
        if self.window is None:
            return self._whole(predictor, videos)
        return (self._windows(predictor, video, self.window) for video in videos)

    def __call__(self, predictor: Predictor, video: str) -> tuple[list[_Line], bytes | None]:
        """Runs on a node: returns all lines of a video, and its picture if one is wanted."""
        (answered,) = self.answers(predictor, [video])
        lines = list(answered.lines)
        return lines, answered.draw() if self.draws else None

    def _whole(self, predictor: Predictor, videos: Sequence[str]) -> Iterator[_Answered]:
        for answer in predictor.predict_many(
            videos, self.top_k, batch_size=self.batch_size, threads=self.threads
        ):

            def draw(answer=answer) -> bytes | None:
                from tsm_jax.deploy.drawing import draw_answer  # imports matplotlib, half a second

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

    def _windows(self, predictor: Predictor, video: str, window: float) -> _Answered:
        moments: list[Moment] = []  # only for the plot: a stream has no end

        def lines() -> Iterator[_Line]:
            try:
                for moment in predictor.timeline(
                    video, window=window, step=self.step, top_k=self.top_k
                ):
                    if self.draws:
                        moments.append(moment)
                    yield _moment_line(video, moment)
            except UnreadableClipError as error:
                yield _error(video, str(error))

        def draw() -> bytes | None:
            from tsm_jax.deploy.drawing import draw_timeline  # imports matplotlib, half a second

            return draw_timeline(video, moments, predictor.labels) if moments else None

        return _Answered(lines(), draw)


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


def picture_paths(
    target: str | None, videos: Sequence[str], *, inputs: Iterable[str] = (), overwrite: bool
) -> list[str] | None:
    """Returns the path of each video's picture, or None without a target; creates the folder.

    Args:
        target: a .png for a single video, or a folder.
        videos: the videos that may get a picture.
        inputs, overwrite: as for `predict_videos`.

    Raises:
        UserError: there is one picture for several videos, a picture exists, the folder cannot be
            created, or matplotlib is not installed.
    """
    if target is None:
        return None
    if find_spec("matplotlib") is None:
        raise UserError("--visualize needs matplotlib: pip install matplotlib")
    one_file = target.lower().endswith(PICTURE_SUFFIX)
    if one_file and len(videos) > 1:
        raise UserError(
            f"--visualize {target} is one picture for {len(videos)} videos: use a folder"
        )
    folder = (os.path.dirname(target) or ".") if one_file else target
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {folder}: {reason(error)}") from error
    taken: set[str] = set()
    paths = [target if one_file else os.path.join(target, _free_name(v, taken)) for v in videos]
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} already exists: choose another place, or --overwrite to replace it"
        )
    refuse_inputs(existing, inputs)
    return paths


def _free_name(video: str, taken: set[str]) -> str:
    """Returns `clip.png` for `a/clip.mp4`, and `clip_2.png` for the second `clip` of a run."""
    stem = os.path.splitext(os.path.basename(video))[0]
    stem = os.fsdecode(os.fsencode(stem)[:_LONGEST_STEM])
    name, number = stem + PICTURE_SUFFIX, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}{PICTURE_SUFFIX}"
    taken.add(name)
    return name


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
    """Writes the features of videos, see `Embedding`, to a file that appears once it is complete.

    Its arrays are `videos` (N paths), `clips` (float32 `[N, C]`) and `frames` (float32
    `[N, T, C]`).

    Args:
        videos: paths; those that cannot be read are named on stderr and left out of the file.
        output: a new .npz file.
        batch_size, threads, inputs, overwrite, ray: as for `predict_videos`.

    Returns:
        Number of videos that could not be read.

    Raises:
        UserError: the file exists or cannot be written, or no video can be read.
    """
    if output is None or not output.endswith(_EMBEDDING_SUFFIX):
        raise UserError(f"--embed writes arrays: add --output FILE{_EMBEDDING_SUFFIX}")
    check_new(output, [*videos, *inputs], overwrite=overwrite)
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
        raise UserError(f"none of {len(videos)} videos could be read: {output} was not written")
    with replacing(output) as path, open(path, "wb") as file:
        np.savez(file, videos=np.array(names), clips=np.stack(clips), frames=np.stack(frames))
    print(f"{output}: features of {len(names)} videos, {len(clips[0])} each")
    return len(videos) - len(names)


def _embedding(
    predictor: Predictor, video: str, *, batch_size: int | None
) -> Embedding | UnreadableClipError:
    """Runs on a node."""
    ((_, embedding),) = predictor.embed_many([video], batch_size=batch_size)
    return embedding
