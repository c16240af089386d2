"""An evaluation whose scores are not finite is an error, not an accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.assemble import evaluate as evaluation_run
from tsm_jax.assemble.network import architecture_of, preprocessing_of
from tsm_jax.config import default
from tsm_jax.errors import UserError
from tsm_jax.models.network import build_network
from tsm_jax.weights.model_directory import Model


def test_scores_that_are_not_finite_are_an_error(monkeypatch):
    config = default()
    config.data.source = "synthetic"
    config.model.backbone, config.model.width, config.model.num_classes = "resnet18", 8, 2
    architecture = architecture_of(config.model)
    params, batch_stats = build_network(architecture, "float32").init(0)
    model = Model(
        architecture=architecture,
        preprocessing=preprocessing_of(config.data),
        labels=["left", "right"],
        tensors={**params, **batch_stats},
        provenance={},
    )

    def evaluate(*_, on_clips, **__):
        logits = np.array([[0.0, 1.0], [np.nan, 0.0], [0.0, np.inf]])
        on_clips({"logits": logits, "rank": np.zeros(3), "mask": np.ones(3, bool)})
        return {"top1": 1.0}

    monkeypatch.setattr(evaluation_run, "evaluate", evaluate)
    with pytest.raises(UserError, match="the scores of 2 of 3 clips are not finite"):
        evaluation_run.evaluate_model(config, model)
