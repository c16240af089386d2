"""Parts of a report as HTML for a notebook: clips that play, accuracies side by side."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from tsm_jax.assemble.evaluate import Evaluation
from tsm_jax.deploy.drawing import PALETTE
from tsm_jax.report.confusion import confusion_matrix, per_class
from tsm_jax.report.html import data_uri, render
from tsm_jax.report.page import ShownClip
from tsm_jax.report.results import collect

_FRAMES, _HEIGHT = 24, 160  # of a film, and pixels
_SECONDS = 2.4  # that a film lasts, however long the video is


def playing_clips(evaluation: Evaluation, clips: Sequence[int]) -> str:
    """HTML with clips that play, each with its right class and the best three answers.

    Args:
        evaluation: what was found.
        clips: their indices in the list.

    Raises:
        UserError: a clip cannot be read again, or scores are not finite.
    """
    results = collect(evaluation)
    shown = []
    for i in clips:
        label, scores = int(results.labels[i]), results.scores[i]
        shown.append(
            ShownClip(
                name=os.path.basename(results.names[i]),
                class_name=results.class_names[label],
                picture=data_uri(_film(evaluation, i), "image/gif"),
                best=[
                    (results.class_names[k], float(scores[k]), k == label)
                    for k in results.best(i, 3)
                ],
                score=float(scores[label]),
            )
        )
    return render("clips.html.jinja", clips=shown)


def _film(evaluation: Evaluation, clip: int) -> bytes:
    """An animated GIF of the whole video, not of the network's frames alone."""

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
    """HTML with the top-1 of every class that has clips, a column for each evaluation.

    Args:
        evaluations: by the heading of their column, on the same list. The largest loss from the
            first to the last comes first; with one evaluation, the worst class.
    """
    tables = []
    for evaluation in evaluations.values():
        results = collect(evaluation)
        tables.append(per_class(results, confusion_matrix(results)))
    rows = [
        {"name": same[0].name, "clips": same[0].clips, "shares": [row.top1 for row in same]}
        for same in zip(*tables, strict=True)
        if same[0].clips
    ]
    if len(tables) > 1:
        rows.sort(key=lambda row: row["shares"][-1] - row["shares"][0])
    else:
        rows.sort(key=lambda row: row["shares"][0])
    return render("classes.html.jinja", columns=list(evaluations), rows=rows, colors=PALETTE)
