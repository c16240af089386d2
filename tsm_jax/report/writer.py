"""Writes a report: a folder of tables and pictures, and a page that shows all of them. Also renders
parts of that page for notebooks."""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import tsm_jax
from tsm_jax.accuracy import intervals
from tsm_jax.errors import UserError
from tsm_jax.files import new_folder, reason, write_json, write_text
from tsm_jax.report.comparison import PREDICTIONS_FILE, Comparison
from tsm_jax.report.pictures import (
    COLORS,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_frames_seen,
    draw_strip,
)
from tsm_jax.report.results import Evaluation, without_directory
from tsm_jax.report.statistics import (
    BINS,
    ClassResult,
    calibrate,
    confusion_matrix,
    most_confused,
    per_class,
    read_curves,
)
from tsm_jax.terminal import printable

PAGE_FILE = "report.html"
_FILES = {
    "metrics.json": "the metrics, and what was evaluated and how",
    PREDICTIONS_FILE: "one row per clip: its class and the best five, with their scores",
    "scores.npy": "all scores, float32 [clips, classes], in the order of predictions.csv",
    "per_class.csv": "one row per class",
    "confusion.csv": "number of clips by true class (rows) and predicted class (columns)",
    "confusion.png": "the same as a picture",
    "calibration.png": "accuracy by confidence",
    "frames_seen.png": "top-1 by the number of frames seen",
    "curves.png": "loss and accuracy over the epochs of the training",
    "mistakes": "the frames of the most confident mistakes",
}
_MISTAKES = [f"mistakes/{place:02}.png" for place in range(1, 13)]
_MOST_CONFUSED, _TOP = 40, 5

_FRAMES, _HEIGHT = 24, 160  # of an animation; the height in pixels
_SECONDS = 2.4  # duration of an animation, however long the video is


def check_target(folder: str) -> None:
    """Checks that a report may be written to `folder`, before the work is done.

    The folder may be new, empty, or contain an earlier report, which will be replaced.

    Raises:
        UserError: it is a file, or contains other files, which a report must not delete.
    """
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder: choose another path for the report")
    try:
        present = set(os.listdir(folder))
        if "mistakes" in present:
            present |= {f"mistakes/{name}" for name in os.listdir(os.path.join(folder, "mistakes"))}
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {reason(error)}") from error
    others = present - ({PAGE_FILE, *_FILES, *_MISTAKES} if PAGE_FILE in present else set())
    if others:
        raise UserError(
            f"{folder} contains files that do not belong to a report ({printable(min(others))}):"
            " write the report to a folder of its own"
        )


def write_report(evaluation: Evaluation, folder: str, comparison: Comparison | None = None) -> str:
    """Writes the report of an evaluation and returns the path of its page.

    An earlier report in the folder is replaced when the new one is complete.

    Args:
        comparison: with another evaluation, to include.

    Raises:
        UserError: as `check_target`; or the folder cannot be written, a clip cannot be read again,
            or scores are not finite.
    """
    check_target(folder)
    with new_folder(os.path.realpath(folder), replace=True) as fresh:
        _fill(fresh, evaluation, comparison)
        check_target(folder)  # again, because writing takes time
    return os.path.join(folder, PAGE_FILE)


def _fill(folder: str, evaluation: Evaluation, comparison: Comparison | None) -> None:
    matrix = confusion_matrix(evaluation)
    classes = per_class(evaluation, matrix)
    calibration = calibrate(evaluation)
    metrics = {
        **evaluation.metrics,
        **intervals(evaluation.metrics),
        "expected_calibration_error": calibration.expected_error,
        "calibration_bins": BINS,
        "mean_confidence": float(evaluation.confidence.mean(dtype=np.float64)),
        **_conditions(evaluation),
    }
    if comparison:
        metrics["comparison"] = {
            **asdict(comparison),
            "names": without_directory(comparison.names),
            "difference": comparison.difference,
            "p_value": comparison.p_value,
        }
    names = evaluation.short_names
    np.save(os.path.join(folder, "scores.npy"), evaluation.scores)
    _write_predictions(folder, evaluation, names)
    head = ["label", "class", *ClassResult._fields[2:]]
    _write_table(folder, "per_class.csv", head, classes)
    lines = ([name, *row] for name, row in zip(evaluation.class_names, matrix, strict=True))
    _write_table(folder, "confusion.csv", ["class", *evaluation.class_names], lines)
    pictures = {
        "confusion.png": draw_confusion(matrix, evaluation.class_names),
        "calibration.png": draw_calibration(calibration),
    }
    others = [(name, read_curves(name)) for name in (comparison.names[1:] if comparison else ())]
    if curves := read_curves(evaluation.weights):
        pictures["curves.png"] = draw_curves(
            curves, {os.path.basename(os.path.normpath(name)): found for name, found in others}
        )
    if evaluation.right_after is not None:
        accuracies = evaluation.right_after.mean(0, dtype=np.float64)
        metrics["top1_after_frames"] = accuracies.tolist()
        pictures["frames_seen.png"] = draw_frames_seen(accuracies)
    write_json(os.path.join(folder, "metrics.json"), metrics)
    mistakes = []
    for path, clip in zip(_MISTAKES, evaluation.confident_mistakes(len(_MISTAKES)), strict=False):
        video = evaluation.clips.read(clip)["video"]  # [V, T, S, S, 3]
        pictures[path] = draw_strip(video[len(video) // 2])
        answers = clip_answers(evaluation, clip, _TOP)
        mistakes.append({"name": names[clip], "picture": path, **answers})
    for path, content in pictures.items():
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        with open(os.path.join(folder, path), "wb") as file:
            file.write(content)
    page = render(
        "report.html.jinja",
        metrics=metrics,
        warning=evaluation.warning,
        protocol=evaluation.clips.protocol,
        class_names=evaluation.class_names,
        classes=sorted(classes, key=lambda row: (row.top1 is None, row.top1, row.label)),
        confused=most_confused(matrix, _MOST_CONFUSED),
        mistakes=mistakes,
        num_mistakes=int((~evaluation.correct).sum()),
        pictures={path: data_uri(content, "image/png") for path, content in pictures.items()},
        files={name: _FILES[name] for name in _FILES if name in os.listdir(folder)},
    )
    write_text(os.path.join(folder, PAGE_FILE), page)


def _conditions(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what was evaluated and how; absolute paths without their directories."""
    protocol = evaluation.clips.protocol
    return {
        "weights": without_directory([evaluation.weights])[0],
        "list": without_directory([evaluation.list_path])[0],
        "protocol": protocol.name,
        "views": protocol.num_views,
        "average": evaluation.average,
        "crop_size": protocol.crop_size,
        "short_side": protocol.short_side,
        "dtype": evaluation.dtype,
        "network": str(evaluation.model.architecture),
        "architecture": asdict(evaluation.model.architecture),
        "tsm_jax": tsm_jax.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write_predictions(folder: str, evaluation: Evaluation, names: Sequence[str]) -> None:
    top = min(_TOP, len(evaluation.class_names))
    head = ["clip", "label", "class", "correct", "score_of_class"]
    head += [f"top{n}_{part}" for n in range(1, top + 1) for part in ("label", "class", "score")]

    def answer(clip: int, k: int) -> list[Any]:
        return [k, evaluation.class_names[k], evaluation.scores[clip, k]]

    def line(clip: int) -> list[Any]:
        label, name, score = answer(clip, int(evaluation.labels[clip]))
        best = [value for k in evaluation.best(clip, top) for value in answer(clip, k)]
        return [names[clip], label, name, int(evaluation.correct[clip]), score, *best]

    _write_table(folder, PREDICTIONS_FILE, head, map(line, range(len(names))))


def _write_table(
    folder: str, name: str, head: Sequence[str], lines: Iterable[Sequence[Any]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    write_text(os.path.join(folder, name), text.getvalue())


def render(template: str, **values: Any) -> str:
    """Renders a file of `templates/` to HTML.

    Names of classes and files are untrusted: every value is escaped, and its control codes and
    marks that reverse the direction of writing are shown as `\\x1b`.
    """
    environment = Environment(
        loader=PackageLoader("tsm_jax.report", "templates"),
        autoescape=True,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: "" if share is None else f"{share:.1%}"
    return environment.get_template(template).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """Returns a data URI with the content of a file; `kind` is its type, such as `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def clip_answers(evaluation: Evaluation, clip: int, most: int) -> dict[str, Any]:
    """Returns what the templates show of a clip: its class and the best answers, with scores."""
    label, scores = int(evaluation.labels[clip]), evaluation.scores[clip]
    return {
        "class_name": evaluation.class_names[label],
        "score": scores[label],
        "best": [
            (evaluation.class_names[k], scores[k], k == label) for k in evaluation.best(clip, most)
        ],
    }


def playing_clips(evaluation: Evaluation, clips: Sequence[int]) -> str:
    """Returns HTML with playing clips, each with its true class and the best three answers.

    Raises:
        UserError: a clip cannot be read again, or scores are not finite.
    """
    shown = [
        {
            "name": os.path.basename(evaluation.names[clip]),
            "picture": data_uri(_animation(evaluation, clip), "image/gif"),
            **clip_answers(evaluation, clip, 3),
        }
        for clip in clips
    ]
    return render("clips.html.jinja", clips=shown)


def _animation(evaluation: Evaluation, clip: int) -> bytes:
    """Returns an animated GIF of the whole video, not only of the network's frames."""

    def choose(num_frames: int) -> np.ndarray:
        return np.unique(np.linspace(0, num_frames - 1, _FRAMES).round().astype(int))

    frames = evaluation.clips.source.read(clip, choose)
    images = [Image.fromarray(frame) for frame in frames]
    width = max(round(images[0].width * _HEIGHT / images[0].height), 1)
    images = [image.resize((width, _HEIGHT)) for image in images]
    file = io.BytesIO()
    duration = round(1000 * _SECONDS / len(images))
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return file.getvalue()


def class_accuracies(evaluations: Mapping[str, Evaluation]) -> str:
    """Returns HTML with the top-1 of every class that has clips, one column per evaluation.

    Rows are sorted by the change from the first evaluation to the last, largest loss first; with a
    single evaluation, the worst class comes first.

    Args:
        evaluations: on the same list, by the heading of their column.
    """
    tables = [per_class(one, confusion_matrix(one)) for one in evaluations.values()]
    rows = [
        {"name": same[0].name, "clips": same[0].clips, "shares": [row.top1 for row in same]}
        for same in zip(*tables, strict=True)
        if same[0].clips
    ]
    base = [row["shares"][0] if len(tables) > 1 else 0 for row in rows]
    order = sorted(range(len(rows)), key=lambda i: rows[i]["shares"][-1] - base[i])
    return render(
        "classes.html.jinja",
        columns=list(evaluations),
        rows=[rows[i] for i in order],
        colors=COLORS,
    )
