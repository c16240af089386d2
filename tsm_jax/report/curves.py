"""Learning curves of a run, from the log in its workdir."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np

from tsm_jax.files import read_text
from tsm_jax.training.log import METRICS_FILE

Curves = dict[str, dict[str, np.ndarray]]

_METRICS = {"loss": "loss", "top1": "top-1", "mean_recall": "mean recall"}
_KINDS = {"train": "training", "val": "validation"}


def read_curves(workdir: str) -> Curves:
    """By metric, and by `training` and `validation`: epochs and values, `[2, n]`.

    Empty if the folder has no log; metrics that a version of the package did not log are left out.
    """
    path = os.path.join(workdir, METRICS_FILE)
    if not os.path.isfile(path):
        return {}
    entries = [_entry(line) for line in read_text(path, "the log", errors="replace").splitlines()]
    # The last line of an epoch has its full number of steps; those before it have fewer.
    rates = [e["step"] / e["epoch"] for e in entries if {"step", "epoch"} <= e.keys()]
    curves: Curves = {}
    for metric, title in _METRICS.items():
        for kind, name in _KINDS.items():
            found = [e for e in entries if e.get("kind") == kind and {"step", metric} <= e.keys()]
            if found and rates:
                points = np.array([(e["step"] / max(rates), e[metric]) for e in found]).T
                curves.setdefault(title, {})[name] = points
    return curves


def _entry(line: str) -> dict[str, Any]:
    """The kind and the finite numbers; nothing of the half line of a run that was killed."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(values, dict) or values.get("kind") not in _KINDS:
        return {}
    finite = {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
    return {**finite, "kind": values["kind"]}
