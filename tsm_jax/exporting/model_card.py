"""The model card: what a network is, how it was trained, how well it does and what it cannot do.

Written from the architecture, the recipe and the metrics alone; what is not known is not said.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import tsm_jax
from tsm_jax import accuracy
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights.model_directory import Model, without_folders

CARD_FILE = "MODEL_CARD.md"  # in a workdir; an exported folder has it in its README.md

_NAMES_SHOWN = 20
_FIGURES = {  # of a validation; older versions have stored fewer
    "top1": "top-1",
    "top5": "top-5",
    "mean_recall": "mean recall",
    "largest_class_share": "share of the largest class",
    "loss": "loss",
}
_FEW_CLIPS = 200  # validation clips: below, one of them is worth half a point or more
_STATISTICS = (".mean", ".var")
_SIDES = re.compile(r"left|right|clockwise", re.IGNORECASE)

_INPUTS = {
    "test": "Of each of T equal parts of the video take the middle frame; scale the short side to"
    " {short} pixels (bilinear, antialiased); cut out the centre.",
    "paddle_predict": "Take frame `(n - 1) // 2 + i * n` with `n` the video's frames divided by T;"
    " scale to 4:3, short side {short} pixels (bilinear, antialiased); cut out the centre.",
}
_OTHER_INPUT = (
    "Several views of the video, as the protocol `{protocol}` of `tsm_jax` takes them; short side"
    " {short} pixels."
)

_CARD = """\
---
library_name: tsm-jax
pipeline_tag: video-classification
tags:
- action-recognition
- temporal-shift-module
- jax
---

# {title}

{architecture} for action recognition in videos: {classes} classes, {frames} frames per video.
Made with `tsm_jax` {version}.

## What it is

| | |
|---|---|
| network | {architecture}, width {width}{parameters} |
| temporal shift | {shift} |
| input | {frames} RGB frames of {size}x{size} pixels |
| output | {classes} logits, in the order of the class names |

{input}

Classes: {names}.

## How well it does

{metrics}

## How it was trained

{training}

## What it is for, and what it is not

{limits}

## Run it

```sh
python -m tsm_jax.predict --model {path} --input a.mp4 folder/ list.txt --output results.jsonl
```
"""


def model_card(model: Model, *, title: str, path: str) -> str:
    """Markdown; names of classes and files cannot break it.

    Args:
        model: of which `tensors` may be empty.
        title: what to call it.
        path: to the weights, as its reader will type it; of an absolute one the name is left.
    """
    architecture, provenance = model.architecture, model.provenance
    return _CARD.format(
        version=tsm_jax.__version__,
        title=escape(title),
        path=shlex.quote(without_folders(path)),
        architecture=architecture,
        width=architecture.width,
        parameters=_parameters(model),
        classes=architecture.num_classes,
        frames=architecture.num_segments,
        size=model.preprocessing.crop_size,
        shift=_shift(architecture),
        input=input_of(model.preprocessing),
        names=_names(model.labels),
        metrics=_metrics(provenance, model.labels),
        training=_training(provenance),
        limits="\n".join(f"- {limit}" for limit in _limits(model)),
    )


def input_of(preprocessing: Preprocessing) -> str:
    """How frames become the network's input, in words."""
    text = _INPUTS.get(preprocessing.protocol, _OTHER_INPUT)
    return text.format(short=preprocessing.short_side, protocol=preprocessing.protocol)


def escape(text: str) -> str:
    """Text as Markdown shows it: on one line, with no character that means something there."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word, as in most class names, is only an underscore.
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", re.sub(r"([\\`*\[\]|#~$!])", r"\\\1", line))
    return re.sub(r"^(\d+)([.)])(?=\s|$)|^([-+])(?=\s|$)", _list_item, line)


def _list_item(match: re.Match[str]) -> str:
    return f"{match[1]}\\{match[2]}" if match[1] else f"\\{match[3]}"


def _parameters(model: Model) -> str:
    sizes = [
        math.prod(tensor.shape)
        for name, tensor in model.tensors.items()
        if not name.endswith(_STATISTICS)
    ]
    return f", {sum(sizes) / 1e6:.1f} million parameters" if sizes else ""


def _shift(architecture: Architecture) -> str:
    if architecture.shift == "none":
        return "none: frames are looked at one by one and their answers averaged"
    blocks = "every block" if architecture.shift_every == 1 else "every second block"
    return (
        f"`{architecture.shift}`, {architecture.shift_fraction} of the channels each way, {blocks}"
    )


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(escape(label) for label in labels[:_NAMES_SHOWN])
    more = len(labels) - _NAMES_SHOWN
    return f"{shown} and {more} more (`labels.txt`)" if more > 0 else shown


def _metrics(provenance: Mapping[str, Any], labels: Sequence[str]) -> str:
    metrics = provenance.get("metrics")
    if not metrics:
        return "Not measured by the program that wrote this; `python -m tsm_jax.evaluate` does it."
    val_list = _data(provenance).get("val_list")
    where = f" of {escape(str(val_list))}" if val_list else ""
    count = int(metrics["count"])
    best = _FIGURES.get(provenance.get("best_metric", "top1"), "top-1")
    known = [key for key in _FIGURES if key in metrics and (key != "top5" or len(labels) > 5)]
    figures = {_FIGURES[key]: metrics[key] for key in known}
    lines = [
        f"| {' | '.join(figures)} | on |",
        "|---" * (len(figures) + 1) + "|",
        f"| {' | '.join(f'{value:.4f}' for value in figures.values())}"
        f" | {count} validation clips{where}, one view each |",
        "",
        f"This is the best of the validations during training by {best}, so it flatters the network"
        " a little: clips that chose the checkpoint also measure it.",
    ]
    if 0 < count < _FEW_CLIPS:
        lines[-1] += f" One clip more or less is worth {1 / count:.4f}."
    empty = metrics.get("classes_without_clips")
    if "mean_recall" in metrics:
        lines[-1] += " Mean recall: the share of a class's clips that is recognised, averaged over"
        lines[-1] += " classes" + (f", {empty} without clips left out." if empty else ".")
    if warning := accuracy.warning(metrics, labels):
        lines += ["", f"**Beware**: {escape(warning)}."]
    return "\n".join(lines)


def _training(provenance: Mapping[str, Any]) -> str:
    recipe = _recipe(provenance)
    if recipe:
        try:
            rows = [(name, escape(str(value))) for name, value in _recipe_rows(provenance, recipe)]
        except (KeyError, TypeError, ValueError):
            return "By a recipe that this version of `tsm_jax` cannot read."
    elif "source" in provenance:
        rows = [("converted from", escape(str(provenance["source"])))]
        if "source_sha256" in provenance:
            rows.append(("its SHA-256", f"`{escape(str(provenance['source_sha256']))}`"))
    else:
        return "Not known."
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _recipe(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return provenance.get("recipe") or {}


def _data(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    data = _recipe(provenance).get("data")
    return data if isinstance(data, Mapping) else {}


def _recipe_rows(provenance: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[tuple[str, Any]]:
    data, optimizer, model = recipe["data"], recipe["optimizer"], recipe["model"]
    clips = provenance.get("train_clips")
    schedule = "cosine"
    if optimizer["schedule"] == "step":
        epochs = ", ".join(f"{epoch:g}" for epoch in optimizer["boundaries"])
        schedule = f"times {optimizer['decay_factor']:g} after epochs {epochs}"
    mirrored = ", mirrored at random" if data["flip"] else ""
    return [
        ("training clips", f"{clips} of {data['train_list']}" if clips else data["train_list"]),
        ("started from", recipe["init_from"] or "random weights"),
        ("epochs", f"{recipe['epochs']}; this is step {provenance['step']}"),
        ("clips per step", recipe["batch_size"]),
        ("optimizer", f"SGD, momentum {optimizer['momentum']:g}"),
        ("learning rate", f"{optimizer['learning_rate']:g}, {schedule}"),
        ("weight decay", f"{optimizer['weight_decay']:g} ({optimizer['decay']})"),
        ("dropout, label smoothing", f"{model['dropout']:g}, {recipe['label_smoothing']:g}"),
        ("augmentation", f"multi-scale crop{mirrored}"),
        ("precision", recipe["dtype"]),
        ("seed", recipe["seed"]),
    ]


def _limits(model: Model) -> list[str]:
    architecture = model.architecture
    limits = [
        "For short videos that show one of its classes, of the kind it was trained on.",
        "It always answers with one of its classes, also where none of them is to be seen, and its"
        " scores are no probabilities of being right unless somebody has calibrated them.",
        f"It sees {architecture.num_segments} frames, spread over the whole video: in a long one"
        " slide a window (`--window SECONDS`).",
    ]
    if architecture.shift == "none":
        limits.append("Without the shift it cannot tell an action from the same played backwards.")
    flip = _data(model.provenance).get("flip", False)
    if flip and any(_SIDES.search(label) for label in model.labels):
        limits.append("Clips were mirrored in training: it cannot tell left from right.")
    limits.append(
        "Nobody has looked at how its errors fall on different people: do so before it judges any."
    )
    limits.append(
        "The terms of the training videos and of the weights that it started from apply to it."
    )
    return limits
