# pyright: strict
"""What a user writes, checked by `pyright` in its strict mode; never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tsm_jax


def use(film: Path, frames: list[NDArray[np.uint8]], array: NDArray[np.uint8]) -> None:
    recognizer: tsm_jax.Predictor = tsm_jax.load(
        film, engine="auto", precision="float32", num_segments=8, protocol="test"
    )
    best: list[tsm_jax.Prediction] = recognizer.predict(film, top_k=3)
    best = recognizer.predict("https://example.com/film.mp4")
    best = recognizer.predict(array)
    best = recognizer.predict(frames)
    index, label, score = best[0]
    print(index + 1, label.upper(), score / 2)
    several: list[list[tsm_jax.Prediction]] = recognizer.predict([str(film), "b.mp4"])
    several = recognizer.predict([film])
    print(len(several))

    def films() -> Iterator[NDArray[np.uint8]]:
        yield array

    for answer in recognizer.predict_many(films(), 1, batch_size=2, threads=1):
        print(answer.path, answer.predictions[0].label, answer.error)
    for answer in recognizer.predict_many([film, str(film)]):
        print(answer.path)
    embedding: tsm_jax.Embedding = recognizer.embed(array)
    print(embedding.clip.shape, embedding.frames.dtype)
    for name, features in recognizer.embed_many(["a.mp4"]):
        if not isinstance(features, tsm_jax.UnreadableClipError):
            print(name, features.clip)
    for moment in recognizer.timeline(film, window=2.0, step=1.0):
        print(moment.start, moment.end, moment.predictions[0].label)
    architecture: tsm_jax.Architecture = recognizer.architecture
    print(recognizer.labels[0], architecture.num_segments, recognizer.engine.name)
    summary: tsm_jax.Summary = recognizer.summary()
    print(summary.parameters + summary.multiply_adds, summary.layers[0].name)


def train() -> None:
    config = tsm_jax.load_recipe("configs/quickstart.py")
    try:
        workdir: str = tsm_jax.train(config)
    except tsm_jax.UserError as error:
        print(error)
        return
    tsm_jax.train("configs/quickstart.py")
    evaluation: tsm_jax.Evaluation = tsm_jax.evaluate(workdir, report="report")
    print(evaluation.summary(), evaluation.metrics["top1"])
    tsm_jax.evaluate(config=config, average="logits")
