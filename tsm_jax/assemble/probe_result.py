"""The result of a probe, as it is stored in a workdir and in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tsm_jax.files import read_json

PROBE_FILE = "probe.json"


def known_probe(workdir: str) -> str:
    """What a probe in the workdir has found, in words; empty if there was none."""
    path = os.path.join(workdir, PROBE_FILE)
    return in_words(read_json(path, "the probe's result")) if os.path.isfile(path) else ""


def in_words(result: Mapping[str, Any]) -> str:
    """One line about a result of `probe_recipe`."""
    low, high = result["interval"]
    known = f" in {result['groups']} groups" if result["groups"] else ""
    words = (
        f"a linear classifier on frozen features ({' and '.join(result['kinds'])}),"
        f" cross-validated on {result['clips']} clips{known}: top1 {result['top1']:.4f},"
        f" mean_recall {result['mean_recall']:.4f} (95 %: {low:.3f} to {high:.3f}), largest class"
        f" {result['largest_class_share']:.4f}"
    )
    if result["validation"]:
        words += (
            f"; on {result['validation']['clips']} validation clips: top1"
            f" {result['validation']['top1']:.4f}, mean_recall"
            f" {result['validation']['mean_recall']:.4f}"
        )
    return words
