"""Draws what the network saw and how it answered, as PNG files in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tsm_jax.deploy.prediction import Moment, Prediction
from tsm_jax.deploy.predictor import Answer, Predictor
from tsm_jax.figures import COLORS, GREY, add_grid, draw_png, short

_WIDTH = 12  # inches
_SIDE, _GAP, _IN_ROW = 170, 6, 8  # of a frame and between frames, in pixels; frames per row
_EVIDENCE = 0.5  # height of the bars, relative to a frame
_MOST_CLASSES = 20
_MARKED = 60  # windows; the markers of more would cover the line
_NAME_LENGTH = 44  # characters


def draw_answer(predictor: Predictor, answer: Answer) -> bytes:
    """Draws an answer that has a clip."""
    assert answer.clip is not None
    maps = predictor.activation_maps(answer.clip, answer.predictions[0].index)
    views = predictor.protocol.num_views
    return draw_clip(answer.path, answer.clip, answer.predictions, maps, num_views=views)


def draw_clip(
    path: str,
    clip: np.ndarray,
    predictions: Sequence[Prediction],
    maps: np.ndarray,
    *,
    num_views: int = 1,
) -> bytes:
    """Draws the classes with their scores, and below them the frames.

    Below each frame are the activation map of the best class, and a bar for the frame's evidence.

    Args:
        path: of the video, for the title.
        clip: uint8 `[T, S, S, 3]`, the first of the views.
        predictions: best first, at least one; at most `_MOST_CLASSES` are shown.
        maps: of the best class in that clip, float32 `[T, h, w]`.
        num_views: number of views that the predictions average.
    """
    predictions = predictions[:_MOST_CLASSES]
    columns = min(len(clip), _IN_ROW)
    rows = -(-len(clip) // columns)
    height = 2 + _EVIDENCE  # of a row, relative to a frame
    heights = 1 + 0.3 * len(predictions), rows * (height * _WIDTH / columns + 0.3) + 0.3

    def draw(figure: Figure) -> None:
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        above.suptitle(_title(path))
        _draw_scores(above.subplots(), predictions)
        evidence, pictures = maps.mean((1, 2)), _pictures(clip, maps)
        low, high = min(evidence.min(), 0.0), max(evidence.max(), 0.0)
        unit = 0.8 * _EVIDENCE / max(high - low, 1e-6)
        zero = -0.9 * _EVIDENCE - low * unit
        for row, axes in enumerate(below.subplots(rows, squeeze=False)[:, 0]):
            first, last = row * columns, min((row + 1) * columns, len(clip)) - 1
            shown = range(first, last + 1)
            image = np.concatenate([pictures[i] for i in shown], axis=1)
            axes.imshow(image, extent=(first - 0.5, last + 0.5, 0, 2))
            colors = [COLORS[int(evidence[i] < 0)] for i in shown]
            axes.bar(shown, unit * evidence[first : last + 1], 0.5, zero, color=colors)
            axes.axhline(zero, color=GREY)
            names = [f"frame {i + 1}: {evidence[i]:+.1f}" for i in shown]
            axes.set_xticks(shown, names, fontsize=9)
            axes.set(xlim=(first - 0.5, first + columns - 0.5), ylim=(-_EVIDENCE, 2), yticks=[])
            axes.spines[:].set_visible(False)
        views = "" if num_views == 1 else f"the first of {num_views} views; "
        best = short(predictions[0].label, _NAME_LENGTH)
        # A network that pools before its last layers has one value per frame.
        what = "evidence" if maps[0].size > 1 else "frames with evidence"
        note = f"{views}bright: {what} for {best}; bars: evidence per frame"
        below.supxlabel(f"{note} (logit: mean + bias)", fontsize=9, color=GREY)

    return draw_png(_WIDTH, sum(heights), draw)


def draw_timeline(video: str, moments: Sequence[Moment], labels: Sequence[str]) -> bytes:
    """Plots scores at the centres of the windows, and below them a ribbon of the leading class."""
    scores = np.stack([moment.scores for moment in moments])  # [M, K]
    times = np.array([(moment.start + moment.end) / 2 for moment in moments])
    leading = scores.argmax(1)
    shown = _leading_classes(scores)
    colors = dict(zip(shown, COLORS, strict=False))

    def draw(figure: Figure) -> None:
        figure.suptitle(_title(video))
        lines, ribbon = figure.subplots(2, 1, sharex=True, height_ratios=(14, 1))
        for k, color in colors.items():
            # The score comes first because matplotlib hides labels that start with an underscore.
            name = f"{scores[:, k].max():.0%}  {short(labels[k], _NAME_LENGTH)}"
            marker = "o" if len(times) <= _MARKED else ""
            lines.plot(times, scores[:, k], marker=marker, color=color, label=name)
        lines.set(xlim=(0, moments[-1].end), ylim=(-0.02, 1.02), ylabel="score")
        add_grid(lines)
        # The class of a window extends halfway to its neighbours.
        edges = np.concatenate([[0], (times[1:] + times[:-1]) / 2, [moments[-1].end]])
        leaders = [to_rgb(colors.get(k, GREY)) for k in leading.tolist()]
        ribbon.pcolormesh(edges, [0, 1], np.array([leaders]))
        ribbon.set(yticks=[], xlabel="seconds")
        ribbon.spines[:].set_visible(False)
        figure.legend(loc="outside right upper")

    return draw_png(_WIDTH, 4.5, draw)


def _title(path: str) -> str:
    return short(os.path.basename(path), 2 * _NAME_LENGTH)


def _draw_scores(axes: Axes, predictions: Sequence[Prediction]) -> None:
    places, scores = range(len(predictions)), [each.score for each in predictions]
    colors = [COLORS[0], *[GREY] * (len(predictions) - 1)]
    axes.bar_label(axes.barh(places, scores, color=colors), [f"{s:.1%}" for s in scores], padding=4)
    axes.set_yticks(places, [short(each.label, _NAME_LENGTH) for each in predictions])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.08), xticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _pictures(clip: np.ndarray, maps: np.ndarray) -> list[np.ndarray]:
    """Returns each frame above its map, in white margins: uint8 `[H, W, 3]`.

    All frames share one scale for evidence for the class; evidence against it is dark.
    """
    strengths = np.maximum(maps, 0)
    strengths /= max(float(strengths.max()), 1e-6)
    pictures = []
    for frame, strength in zip(clip, strengths.astype(np.float32), strict=True):
        image = Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        smooth = Image.fromarray(strength).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        map_ = np.clip(np.asarray(smooth), 0, 1)
        grey = np.asarray(image.convert("L"))[..., None]
        heat = 255 * colormaps["inferno"](map_)[..., :3]
        share = 0.25 + 0.55 * map_[..., None]
        blended = ((1 - share) * grey + share * heat).astype(np.uint8)
        margins = ((_GAP, 0), (_GAP // 2, _GAP // 2), (0, 0))
        both = [np.pad(part, margins, constant_values=255) for part in (np.asarray(image), blended)]
        pictures.append(np.concatenate(both))
    return pictures


def _leading_classes(scores: np.ndarray) -> list[int]:
    """Returns the classes that lead in a window, by number of windows, then by highest score."""
    wins = np.bincount(scores.argmax(1), minlength=scores.shape[1])
    order = np.lexsort((-scores.max(0), -wins))
    return order[: min(len(COLORS), int((wins > 0).sum()))].tolist()
