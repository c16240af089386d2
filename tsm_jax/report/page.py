"""HTML of a report: the page, and parts of it for a notebook."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from tsm_jax.report.pictures import COLORS
from tsm_jax.report.results import Evaluation
from tsm_jax.report.statistics import confusion_matrix, per_class
from tsm_jax.terminal import printable

_FRAMES, _HEIGHT = 24, 160  # of a film, and pixels
_SECONDS = 2.4  # that a film lasts, however long the video is


def render(template: str, **values: Any) -> str:
    """The HTML of a file in `templates/`.

    Names of classes and files come from others: every value is escaped, and its control codes and
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
    """An address that holds a file itself; `kind` is `image/png` or the like."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def clip_answers(evaluation: Evaluation, clip: int, most: int) -> dict[str, Any]:
    """What the templates show of a clip: its class and the best answers, with their scores."""
    label, scores = int(evaluation.labels[clip]), evaluation.scores[clip]
    return {
        "class_name": evaluation.class_names[label],
        "score": scores[label],
        "best": [
            (evaluation.class_names[k], scores[k], k == label) for k in evaluation.best(clip, most)
        ],
    }


def playing_clips(evaluation: Evaluation, clips: Sequence[int]) -> str:
    """HTML with clips that play, each with its true class and the best three answers.

    Raises:
        UserError: a clip cannot be read again, or scores are not finite.
    """
    shown = [
        {
            "name": os.path.basename(evaluation.names[clip]),
            "picture": data_uri(_film(evaluation, clip), "image/gif"),
            **clip_answers(evaluation, clip, 3),
        }
        for clip in clips
    ]
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
