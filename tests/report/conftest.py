"""Evaluations with chosen answers, of plain clips that grow brighter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tsm_jax.data.protocols import Preprocessing, eval_protocol
from tsm_jax.data.sources import EvalClips, SyntheticSource
from tsm_jax.models.architecture import Architecture
from tsm_jax.report.results import Evaluation
from tsm_jax.weights.model_directory import Model


@dataclass(frozen=True)
class NamedSource(SyntheticSource):
    """Clips with chosen names and labels."""

    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()

    def label(self, index):
        return self.labels[index]

    def name(self, index):
        return self.names[index]

    def read(self, index, choose):
        """Frames that grow brighter."""
        shape = (self.height, self.width, 3)
        return [np.full(shape, 20 * i, np.uint8) for i in choose(self.num_frames)]


def make_evaluation(
    logits, labels, *, names=None, class_names=None, weights="output/model", list_path="val.list"
) -> Evaluation:
    """Returns what `evaluate_model` would return for a network with these logits."""
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.int32)
    count, num_classes = logits.shape
    names = names or [f"videos/{i}.mp4" for i in range(count)]
    class_names = class_names or [f"class {k}" for k in range(num_classes)]
    own = logits[np.arange(count), labels]
    ranks = (logits >= own[:, None]).sum(1).astype(np.int32) - 1
    log_scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    sizes = np.bincount(labels, minlength=num_classes)
    answers = np.bincount(logits.argmax(1), minlength=num_classes)
    metrics = {
        "top1": float((ranks < 1).mean()),
        **({"top5": float((ranks < 5).mean())} if num_classes > 5 else {}),
        "mean_recall": float(np.mean([(ranks[labels == k] < 1).mean() for k in set(labels)])),
        "classes_without_clips": num_classes - len(set(labels)),
        "largest_class": int(sizes.argmax()),
        "largest_class_share": sizes.max() / count,
        "most_answered_class": int(answers.argmax()),
        "most_answered_share": answers.max() / count,
        "loss": float(-log_scores[np.arange(count), labels].mean()),
        "count": count,
    }
    source = NamedSource(
        count, num_classes, 40, 40, 12, tuple(names), tuple(int(label) for label in labels)
    )
    return Evaluation(
        metrics=metrics,
        model=Model(
            Architecture("resnet18", num_classes, 4), Preprocessing(32, 32), class_names, {}
        ),
        weights=weights,
        list_path=list_path,
        clips=EvalClips(source, 4, eval_protocol("test", short_side=32, crop_size=32)),
        average="logits",
        dtype="float32",
        class_names=list(class_names),
        labels=labels,
        logits=logits,
        ranks=ranks,
    )


def random_evaluation(count, num_classes, *, skill=2.0, seed=0, **names) -> Evaluation:
    """Random answers that are more often right the larger `skill` is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    logits = rng.normal(size=(count, num_classes))
    logits[np.arange(count), labels] += skill
    return make_evaluation(logits, labels, **names)


@pytest.fixture(scope="session")
def evaluation_of():
    return make_evaluation


@pytest.fixture(scope="session")
def random_answers():
    return random_evaluation
