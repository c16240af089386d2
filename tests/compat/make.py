"""Writes version 1 of the stored formats, together with the results of the code that wrote it.

Run it with the code of commit f87f4f1 (0.1.0) in an empty folder: it writes version1.tar.xz.

Kernels and momenta are reduced to few distinct values before saving, so that they compress well.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import tarfile

import av
import cv2
import jax
import numpy as np

import tsm_jax
from tsm_jax import config as config_lib
from tsm_jax import evaluation_run, loading, training_run
from tsm_jax.config import default
from tsm_jax.data.moving_shapes import LABELS, draw_clip
from tsm_jax.deploy import exporter
from tsm_jax.models.normalize import normalize
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.weights.model_directory import write_model_directory

SIZE = 32


def recipe():
    config = default()
    config.model.depth, config.model.width, config.model.num_segments = 18, 8, 4
    config.model.num_classes, config.model.dropout = 8, 0.0
    config.model.batch_norm_group = 0
    config.model.shift, config.model.shift_fraction = "future_first", "1/num_segments"
    config.data.train_list, config.data.val_list = "clips/train.list", "clips/val.list"
    config.data.prefix, config.data.labels = "clips", "clips/labels.txt"
    config.data.crop_size, config.data.short_side, config.data.flip = SIZE, SIZE, False
    config.batch_size, config.epochs, config.workdir = 4, 1, "workdir"
    config.dtype = "float32"
    config.optimizer.learning_rate = 0.002
    return config


def draw(path, label, seed):
    frames = draw_clip(label, np.random.default_rng(seed))[:16]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "34"})
        stream.height, stream.width, stream.pix_fmt = 40, 44, "yuv420p"
        for frame in frames:
            small = cv2.resize(frame, (44, 40), interpolation=cv2.INTER_AREA)
            yuv = cv2.cvtColor(small, cv2.COLOR_RGB2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")))
        container.mux(stream.encode(None))


def clips():
    os.makedirs("clips")
    for split, count in (("train", 8), ("val", 8)):
        names = [f"{split}{label}.mp4" for label in range(count)]
        for label, name in enumerate(names):
            draw(f"clips/{name}", label, [count, label, len(split)])
        with open(f"clips/{split}.list", "w") as file:
            file.writelines(f"{name} {label}\n" for label, name in enumerate(names))
    with open("clips/labels.txt", "w") as file:
        file.writelines(f"{name}\n" for name in LABELS)


def coarse(path, value):
    """Rounds kernels to two values and all other arrays to multiples of 1/256."""
    if value.dtype != np.float32:
        return value
    if "kernel" in jax.tree_util.keystr(path[-1:]):
        scale = np.float32(2.0) ** np.round(np.log2(np.std(value) + 1e-9))
        if value.ndim == 2:  # the classifier: scores that are clearly different
            scale = np.float32(0.125)
        if "opt_state" in jax.tree_util.keystr(path):  # momentum that counts in the next step
            scale = np.float32(4)
        rounded = np.sign(np.asarray(value)) * scale
    else:
        rounded = np.round(np.asarray(value) * 256) / 256
    return jax.device_put(rounded.astype(np.float32), value.sharding)


def save_coarsely():
    """Makes all checkpoints compressible."""
    save = Checkpoints.save

    def coarse_save(self, state, config, progress):
        save(self, jax.tree_util.tree_map_with_path(coarse, state), config, progress)

    Checkpoints.save = coarse_save


def anonymous(member):
    member.uname = member.gname = ""
    member.uid = member.gid = member.mtime = 0
    return member


def continued():
    """Trains a copy for one more epoch and returns its log."""
    shutil.copytree("workdir", "continued")
    config = recipe()
    config.epochs, config.workdir = 2, "continued"
    training_run.train_recipe(config)
    with open("continued/metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    (last,) = [line for line in lines if line["kind"] == "train" and line["epoch"] == 2]
    return {name: last[name] for name in ("step", "loss", "grad_norm", "learning_rate")}


def main():
    jax.config.update("jax_traceback_in_locations_limit", 0)  # names of folders
    save_coarsely()
    clips()
    config = recipe()
    config_lib.validate(config)
    training_run.train_recipe(config)
    evaluation = evaluation_run.evaluate_weights(None, "workdir")
    metrics = {
        name: float(value) for name, value in evaluation.metrics.items() if np.ndim(value) == 0
    }
    (step,) = os.listdir("workdir/checkpoints")
    with open(f"workdir/checkpoints/{step}/validation.json", "w") as file:
        json.dump(metrics, file)  # of what was saved
    model = loading.load_model("workdir")
    write_model_directory(model, "model")
    exporter.export_model(model, "exported", videos=["clips/val0.mp4"])
    video = np.random.default_rng(0).normal(size=(2, 4, SIZE, SIZE, 3)).astype("float32")
    recognizer = tsm_jax.load("workdir")
    best = recognizer.predict("clips/val3.mp4", top_k=8)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, SIZE, SIZE, 3), np.uint8)
    answers = {
        "forward": recognizer.forward(video).tolist(),
        "pixels": recognizer.forward(np.asarray(normalize(pixels, "NHWC"))).tolist(),
        "predict": {prediction.label: prediction.score for prediction in best},
        "evaluate": metrics,
        "step": int(step),
        "continued": continued(),
    }
    with open("answers.json", "w") as file:
        json.dump(answers, file, indent=1)
    names = ["answers.json", "clips", "workdir", "model", "exported"]
    with tarfile.open("version1.tar.xz", mode="w:xz", preset=9 | lzma.PRESET_EXTREME) as archive:
        for name in names:
            archive.add(name, filter=anonymous)


if __name__ == "__main__":
    main()
