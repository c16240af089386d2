"""The model card: architecture, training, accuracy and limitations of a network.

The card is written from the architecture, the recipe and the metrics alone; unknown facts are
omitted. Every value is escaped, so names cannot break the Markdown.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from ml_collections import ConfigDict

import tsm_jax
from tsm_jax import accuracy
from tsm_jax.config import from_dict
from tsm_jax.errors import UserError
from tsm_jax.weights.model_directory import Model, without_folders

CARD_FILE = "MODEL_CARD.md"  # in a workdir; in an exported folder, the card is part of README.md

_NAMES_SHOWN = 20
_FIGURES = {  # metrics of a validation; older versions stored fewer
    "top1": "top-1",
    "top5": "top-5",
    "mean_recall": "mean recall",
    "largest_class_share": "share of the largest class",
    "loss": "loss",
}
_STATISTICS = (".mean", ".var")
_SIDES = re.compile(r"left|right|clockwise", re.IGNORECASE)


class _Markdown(str):
    """Text that needs no escaping."""


def model_card(model: Model, *, title: str, path: str, streams: bool = False) -> str:
    """Returns the model card as Markdown.

    Args:
        model: the model; its `tensors` may be empty.
        title: heading of the card.
        path: path to the weights for the example command, as the reader will type it; an absolute
            path is reduced to its last part.
        streams: the model was exported for streams, so `tsm predict` cannot run it.
    """
    provenance = model.provenance
    metrics, recipe = provenance.get("metrics") or {}, _recipe(provenance)
    known = (key for key in _FIGURES if key in metrics)
    return render(
        "model_card.md.jinja",
        architecture=model.architecture,
        preprocessing=model.preprocessing,
        classes=model.architecture.num_classes,
        frames=model.architecture.num_segments,
        labels=model.labels,
        shown=_NAMES_SHOWN,
        parameters=sum(
            math.prod(tensor.shape)
            for name, tensor in model.tensors.items()
            if not name.endswith(_STATISTICS)
        ),
        version=tsm_jax.__version__,
        title=title,
        path=_Markdown(shlex.quote(without_folders(path))),
        streams=streams,
        metrics=metrics,
        figures={
            _FIGURES[key]: metrics[key] for key in known if key != "top5" or len(model.labels) > 5
        },
        best=_FIGURES.get(provenance.get("best_metric", "top1"), "top-1"),
        warning=accuracy.warning(metrics, model.labels),
        provenance=provenance,
        recipe=recipe,
        confuses_sides=recipe is not None
        and recipe.data.flip
        and any(_SIDES.search(label) for label in model.labels),
    )


def escape(text: str) -> str:
    """Puts text on one line and escapes the characters that have a meaning in Markdown."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Underscores inside a word, as in most class names, need no escaping.
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", re.sub(r"([\\`*\[\]|#~$!])", r"\\\1", line))
    return re.sub(r"^(\d+)([.)])(?=\s|$)|^([-+])(?=\s|$)", _list_item, line)


def _list_item(match: re.Match[str]) -> str:
    return f"{match[1]}\\{match[2]}" if match[1] else f"\\{match[3]}"


def _shown(value: Any) -> Any:
    return value if isinstance(value, _Markdown) else escape(str(value))


def _recipe(provenance: Mapping[str, Any]) -> ConfigDict | None:
    """Returns the training recipe, or None if it is unknown or cannot be read."""
    try:
        return from_dict(provenance["recipe"])
    except (KeyError, UserError):
        return None


def render(template: str, **values: Any) -> str:
    """Renders a file of `templates/` as Markdown; all values are escaped."""
    environment = Environment(
        loader=PackageLoader("tsm_jax.exporting", "templates"),
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
