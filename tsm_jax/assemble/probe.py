"""A linear classifier on features of the frozen network: the baseline that training must beat."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tsm_jax.assemble.data import (
    build_source,
    class_names,
    ensure_rendered,
    read_eval_batches,
    with_num_classes,
)
from tsm_jax.assemble.network import build_training_network, preprocessing_of
from tsm_jax.assemble.weights import load_start
from tsm_jax.config import PROBE_FILE, flatten
from tsm_jax.data.protocols import protocol_of
from tsm_jax.data.sources import Element, EvalClips, Source
from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, read_json, read_text, replacing, write_json
from tsm_jax.models.network import Network, normalize
from tsm_jax.terminal import progress_bar
from tsm_jax.training.linear_probe import (
    Features,
    answer,
    choose,
    cross_validated,
    folds,
    interval,
    mean_recall,
)

_FEATURES_FILE = "probe_features.npz"
_GROUPS_FILE = "groups.csv"
_BATCH = 8
# Width and height of the thumbnails: enough to locate things, and few enough for few clips.
_THUMBNAIL = (24, 18)


class _ProbeClips(EvalClips):
    """Evaluation clips with a `thumbnail` of the whole picture, float32 `[2 * 18 * 24 * 3]`.

    It contains the mean over frames and the mean absolute change, as fractions of full brightness.
    """

    def read(self, index: int, out: np.ndarray | None = None) -> Element:
        frames = self.read_frames(index)
        small = np.stack(
            [cv2.resize(frame, _THUMBNAIL, interpolation=cv2.INTER_AREA) for frame in frames]
        ).astype(np.float32)
        thumbnail = np.concatenate([small.mean(0), _change(small)], axis=None) / 255
        return {**self.element(frames, index, out), "thumbnail": thumbnail}

    def padding(self, out: np.ndarray | None = None) -> Element:
        size = 2 * _THUMBNAIL[0] * _THUMBNAIL[1] * 3
        return {**super().padding(out), "thumbnail": np.zeros(size, np.float32)}


def _change(frames: Any) -> Any:
    """Returns the mean absolute difference of neighbours along the first axis; 0 without any."""
    return abs(frames[1:] - frames[:-1]).mean(0) if len(frames) > 1 else 0 * frames[0]


def probe_recipe(config: ConfigDict) -> dict[str, Any]:
    """Probes the training clips of a recipe, and stores features and result in its workdir.

    The features of a clip are a thumbnail and, with `config.init_from`, the pooled features of that
    network: square roots of their mean over frames and of their mean absolute change from frame to
    frame.

    Returns:
        A dict with `clips`, `classes`, `groups` (None if unknown), `largest_class_share`; the
        cross-validated `top1`, `mean_recall` and its `interval`; `kinds`, the chosen features; and
        `validation` with `clips`, `top1` and `mean_recall` on the validation list, None without
        such a list.

    Raises:
        UserError: lists, groups, clips or weights cannot be read, or a class has too few clips.
    """
    ensure_rendered(config)
    config = with_num_classes(config)
    source = build_source(config.data, "train", config.model.num_classes)
    groups = _groups(config.data, source)
    sources = [source]
    if config.data.source != "synthetic" and os.path.exists(config.data.val_list):
        sources.append(build_source(config.data, "val", config.model.num_classes))
    kinds = _features(config, sources)
    labels = np.array([s.label(i) for s in sources for i in range(len(s))])
    features = Features(kinds, labels)
    train, val = np.arange(len(source)), np.arange(len(source), len(labels))
    num_classes = config.model.num_classes
    fold = folds(labels[train], groups or list(map(str, train)))
    _check_folds(labels[train], fold, class_names(config))
    inside = Features({name: values[train] for name, values in kinds.items()}, labels[train])
    right = cross_validated(inside, fold, num_classes) == labels[train]
    chosen = choose(inside, train, fold, num_classes)
    result: dict[str, Any] = {
        **_accuracy(labels[train], right),
        "classes": len(np.unique(labels[train])),
        "groups": len(set(groups)) if groups else None,
        "largest_class_share": float(np.bincount(labels[train]).max() / len(train)),
        "interval": interval(labels[train], right, groups or list(map(str, train))),
        "kinds": chosen.kinds,
        "validation": None,
    }
    if len(val):
        right = answer(features, train, val, chosen, num_classes) == labels[val]
        result["validation"] = _accuracy(labels[val], right)
    write_json(os.path.join(config.workdir, PROBE_FILE), result)
    return result


def _accuracy(labels: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    top1 = float(right.mean())
    return {"clips": len(labels), "top1": top1, "mean_recall": mean_recall(labels, right)}


def _check_folds(labels: np.ndarray, fold: np.ndarray, names: Sequence[str]) -> None:
    for label in np.unique(labels):
        if len(np.unique(fold[labels == label])) < 3:
            raise UserError(
                f"class {names[label]!r} has clips from fewer than 3 groups, too few for"
                " cross-validation: add clips to it or leave it out"
            )


def _groups(data: ConfigDict, source: Source) -> list[str] | None:
    """Returns each clip's group from `config.data.groups` or groups.csv beside the training list.

    None if there is no such file.
    """
    beside = os.path.join(os.path.dirname(data.train_list), _GROUPS_FILE)
    path = data.groups or (beside if os.path.isfile(beside) else "")
    if not path:
        return None
    rows = csv.DictReader(read_text(path, "the groups").splitlines())
    if not {"clip", "group"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path}: the first line must name the columns clip and group")
    group_of = {row["clip"]: row["group"] for row in rows}
    groups = []
    for index in range(len(source)):
        name = source.name(index)
        if data.prefix:
            name = os.path.relpath(name, data.prefix)
        name = name.removesuffix(data.suffix)
        if not group_of.get(name):
            raise UserError(f"{path} has no group for the clip {name}: add a line for it")
        groups.append(group_of[name])
    return groups


def _features(config: ConfigDict, sources: Sequence[Source]) -> dict[str, np.ndarray]:
    """Returns the features of all clips by kind, read from the workdir if they are up to date."""
    path = os.path.join(config.workdir, _FEATURES_FILE)
    network = build_training_network(config)
    tensors = None
    if config.init_from:
        tensors, _ = load_start(config, class_names(config), network)
    key = _key(config, sources, tensors or {})
    if os.path.lexists(path):
        check_regular(path, "the features of the probe")
        try:
            with np.load(path) as stored:
                if str(stored["key"]) == key:
                    return {name: stored[name] for name in stored.files if name != "key"}
        except (OSError, ValueError, KeyError, EOFError):
            pass  # written by another version, or incomplete: compute them again
    kinds = _compute(config, network, tensors, sources)
    os.makedirs(config.workdir, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        arrays: dict[str, Any] = {"key": np.array(key), **kinds}
        np.savez(file, **arrays)
    return kinds


def _key(config: ConfigDict, sources: Sequence[Source], tensors: Mapping[str, np.ndarray]) -> str:
    """Returns a hash of what features depend on: clips, preprocessing, network and weights."""
    digest = hashlib.sha256()
    for key, value in flatten(config):
        if key.startswith(("model.", "data.")):
            digest.update(f"{key}={value!r}\n".encode())
    for source in sources:
        for index in range(len(source)):
            name = source.name(index)
            changed = os.stat(name).st_mtime_ns if os.path.exists(name) else 0
            digest.update(f"{name}\0{changed}\n".encode(errors="surrogateescape"))
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _compute(
    config: ConfigDict,
    network: Network,
    tensors: Mapping[str, np.ndarray] | None,
    sources: Sequence[Source],
) -> dict[str, np.ndarray]:
    params, batch_stats = network.init(config.seed, tensors)
    protocol = protocol_of(preprocessing_of(config.data))

    @jax.jit
    def pooled(video: jax.Array) -> jax.Array:  # uint8 [B, 1, T, S, S, 3] to [B, 2C]
        model = network.module(params, batch_stats)
        features = model.features(normalize(video[:, 0])).astype(jnp.float32).mean((1, 2))
        of_frames = features.reshape(len(video), config.model.num_segments, -1).swapaxes(0, 1)
        both = jnp.concatenate([of_frames.mean(0), _change(of_frames)], axis=1)
        return jnp.sqrt(jnp.maximum(both, 0))  # closer to a normal distribution

    found: dict[str, list[np.ndarray]] = {"network": [], "thumbnail": []}
    total, done = sum(map(len, sources)), 0
    with progress_bar("features") as update:
        for source in sources:
            clips = _ProbeClips(source, config.model.num_segments, protocol)
            for batch in read_eval_batches(config, clips, _BATCH):
                real = batch["mask"]
                found["thumbnail"].append(batch["thumbnail"][real])
                if tensors is not None:
                    found["network"].append(np.asarray(pooled(batch["video"]))[real])
                done += int(real.sum())
                update(done, total)
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}


def known_probe(workdir: str) -> str:
    """Describes the stored result of the probe in a workdir."""
    return in_words(read_json(os.path.join(workdir, PROBE_FILE), "the probe's result"))


def in_words(result: Mapping[str, Any]) -> str:
    """Describes a result of `probe_recipe` in one line."""
    low, high = result["interval"]
    known = f" in {result['groups']} groups" if result["groups"] else ""
    words = (
        f"a linear classifier on frozen features ({' and '.join(result['kinds'])}),"
        f" cross-validated on {result['clips']} clips{known}: top1 {result['top1']:.4f},"
        f" mean_recall {result['mean_recall']:.4f} (95 %: {low:.3f} to {high:.3f}), largest class"
        f" {result['largest_class_share']:.4f}"
    )
    if val := result["validation"]:
        words += (
            f"; on {val['clips']} validation clips: top1 {val['top1']:.4f}, mean_recall"
            f" {val['mean_recall']:.4f}"
        )
    return words
