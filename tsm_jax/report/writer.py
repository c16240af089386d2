"""Writes a report: everything into a folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import tsm_jax
from tsm_jax.assemble.evaluate import Evaluation
from tsm_jax.errors import UserError
from tsm_jax.report.calibration import BINS, Calibration, calibrate
from tsm_jax.report.calibration_picture import draw_calibration
from tsm_jax.report.clips import confident_mistakes, draw_strip, read_frames
from tsm_jax.report.confusion import (
    confusion_matrix,
    most_confused,
    per_class,
)
from tsm_jax.report.confusion_picture import draw_confusion
from tsm_jax.report.page import PAGE_FILE, Page, ShownClip, write_page
from tsm_jax.report.results import Results, collect
from tsm_jax.report.tables import (
    CLASSES_FILE,
    CONFUSION_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SCORES_FILE,
    TOP,
    write_classes,
    write_confusion,
    write_metrics,
    write_predictions,
)
from tsm_jax.weights.model_directory import without_folders

CONFUSION_PICTURE = "confusion.png"
CALIBRATION_PICTURE = "calibration.png"
MISTAKES_FOLDER = "mistakes"

_FILES = (
    (METRICS_FILE, "the figures, and what they are of"),
    (PREDICTIONS_FILE, "a line a clip: right class, the best five with their scores"),
    (SCORES_FILE, "all scores, float32 [clips, classes], in the order of predictions.csv"),
    (CLASSES_FILE, "a line a class"),
    (CONFUSION_FILE, "clips by right class (lines) and predicted class (columns)"),
    (CONFUSION_PICTURE, "the same as a picture"),
    (CALIBRATION_PICTURE, "accuracy by confidence"),
    (MISTAKES_FOLDER, "the frames of the most confident mistakes"),
)
_MOST_MISTAKES, _MOST_CONFUSED = 12, 40


def check_target(folder: str) -> None:
    """Checks that a report may be written to `folder`, before the work is done.

    It may be new, empty, or hold an earlier report, which will be replaced.

    Raises:
        UserError: it is a file, or has other files, which a report must not delete.
    """
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder: give another one for the report")
    present = set(os.listdir(folder))
    others = sorted(present - {PAGE_FILE, *(name for name, _ in _FILES)})
    if others or (present and PAGE_FILE not in present):
        name = others[0] if others else sorted(present)[0]
        raise UserError(
            f"{folder} has files that are of no report ({name}): give a folder of its own"
        )


def write_report(evaluation: Evaluation, folder: str) -> str:
    """Writes the report of an evaluation.

    Args:
        evaluation: what was found.
        folder: of the report; an earlier one there is replaced when the new one is complete.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: as `check_target`; or the folder cannot be written, a clip cannot be read again,
            or scores are not finite.
    """
    check_target(folder)
    results = collect(evaluation)
    target = os.path.abspath(folder)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        staging = tempfile.mkdtemp(prefix=".partial-", dir=os.path.dirname(target))
    except OSError as error:
        raise UserError(f"cannot write the report {folder}: {error.strerror}") from error
    try:
        fresh = os.path.join(staging, "new")
        os.mkdir(fresh)
        _fill(fresh, evaluation, results)
        if os.path.isdir(target):
            os.rename(target, os.path.join(staging, "old"))
        os.rename(fresh, target)
    except OSError as error:
        raise UserError(f"cannot write the report {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return os.path.join(folder, PAGE_FILE)


def _fill(folder: str, evaluation: Evaluation, results: Results) -> None:
    matrix = confusion_matrix(results)
    classes = per_class(results, matrix)
    calibration = calibrate(results)
    metrics = _metrics(evaluation, calibration)
    write_metrics(folder, metrics)
    write_predictions(folder, results)
    write_classes(folder, classes, results.class_names)
    write_confusion(folder, matrix, results.class_names)
    draw_confusion(matrix, results.class_names).save(os.path.join(folder, CONFUSION_PICTURE))
    draw_calibration(calibration).save(os.path.join(folder, CALIBRATION_PICTURE))
    page = Page(
        title=f"Evaluation of {without_folders(evaluation.weights)}",
        metrics=metrics,
        warning=evaluation.warning,
        about=_about(evaluation),
        class_names=results.class_names,
        classes=sorted(classes, key=lambda row: (row.top1 is None, row.top1, row.label)),
        confused=most_confused(matrix, _MOST_CONFUSED),
        calibration=calibration,
        mistakes=_mistakes(folder, evaluation, results),
        num_mistakes=int((~results.correct).sum()),
        pictures={"confusion": CONFUSION_PICTURE, "calibration": CALIBRATION_PICTURE},
        files=_FILES,
    )
    write_page(folder, page)


def _metrics(evaluation: Evaluation, calibration: Calibration) -> dict[str, Any]:
    protocol = evaluation.clips.protocol
    return {
        **evaluation.metrics,
        "expected_calibration_error": calibration.expected_error,
        "calibration_bins": BINS,
        "mean_confidence": calibration.confidence,
        "weights": without_folders(evaluation.weights),
        "list": without_folders(evaluation.list_path),
        "protocol": protocol.name,
        "views": protocol.num_views,
        "average": evaluation.average,
        "crop_size": protocol.crop_size,
        "short_side": protocol.short_side,
        "dtype": evaluation.dtype,
        "architecture": asdict(evaluation.model.architecture),
        "tsm_jax": tsm_jax.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _about(evaluation: Evaluation) -> list[tuple[str, str]]:
    network, protocol = evaluation.model.architecture, evaluation.clips.protocol
    views = "1"
    if protocol.num_views > 1:
        views = (
            f"{protocol.num_views} ({protocol.num_clips} in time x {protocol.num_crops} in space),"
            f" mean of {evaluation.average}"
        )
    shift = network.shift
    if shift != "none":
        shift += f", {network.shift_fraction} of the channels each way"
    return [
        ("weights", without_folders(evaluation.weights)),
        ("list", without_folders(evaluation.list_path)),
        ("network", f"TSM-ResNet-{network.depth}, {network.num_classes} classes"),
        ("shift", shift),
        ("segments", f"{network.num_segments} frames a clip"),
        (
            "pixels",
            f"{protocol.crop_size} x {protocol.crop_size}, short side {protocol.short_side}",
        ),
        ("protocol", protocol.name),
        ("views of a clip", views),
        ("precision", evaluation.dtype),
        ("made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by tsm_jax {tsm_jax.__version__}"),
    ]


def _mistakes(folder: str, evaluation: Evaluation, results: Results) -> list[ShownClip]:
    chosen = confident_mistakes(results, _MOST_MISTAKES)
    if chosen:
        os.mkdir(os.path.join(folder, MISTAKES_FOLDER))
    shown = []
    for place, clip in enumerate(chosen, start=1):
        picture = f"{MISTAKES_FOLDER}/{place:02}.png"
        draw_strip(read_frames(evaluation.clips, clip)).save(os.path.join(folder, picture))
        scores, label = results.scores[clip], int(results.labels[clip])
        best = [
            (results.class_names[k], float(scores[k]), k == label) for k in results.best(clip, TOP)
        ]
        shown.append(
            ShownClip(
                name=results.names[clip],
                class_name=results.class_names[label],
                picture=picture,
                best=best,
                score=float(scores[label]),
            )
        )
    return shown
