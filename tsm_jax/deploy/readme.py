"""The README.md of an exported folder: the model card, and what is in the folder."""

from __future__ import annotations

import json
import os

from tsm_jax.deploy.names import (
    BFLOAT16_STABLEHLO_FILE,
    INT8_FILE,
    ONNX_FILE,
    README_FILE,
    STABLEHLO_FILE,
)
from tsm_jax.weights.model_card import model_card
from tsm_jax.weights.model_directory import CONFIG_FILE, Model

_ABOUT = {
    STABLEHLO_FILE: "JAX program with weights, float32, for CPU, CUDA and TPU",
    BFLOAT16_STABLEHLO_FILE: "the same, convolutions in bfloat16",
    ONNX_FILE: "ONNX graph, float32",
    INT8_FILE: "ONNX graph, 8-bit convolutions",
    "model.safetensors": "the tensors, to load or export them again",
    "labels.txt": "class names, in the order of the logits",
    CONFIG_FILE: "input, outputs, preprocessing, versions, SHA-256 of the files",
}

_TEMPLATE = """
That needs `tsm_jax` and one of jax, onnxruntime or openvino.

## Without `tsm_jax`

The graphs stand alone. Their input is `video`, uint8 `[N, {frames}, {size}, {size}, 3]`: RGB
frames, prepared as told above, any N. The graph normalises by itself. Outputs: `logits`, float32
`[N, {classes}]`, and `features`, what is in front of the average pool.

{snippets}
## Files

| file | what it is |
|---|---|
{files}

## How it was checked

Largest difference of a logit from the model's, over the largest logit:

| graph | engine | precision | input | difference |
|---|---|---|---|---|
{checks}
"""

_JAX = """\
With jax and flatbuffers (`pip install jax flatbuffers`):

```python
import jax, numpy as np
with open({file!r}, "rb") as file:
    network = jax.export.deserialize(bytearray(file.read()))
logits, features = jax.jit(network.call)(video)
```
"""

_ONNX = """\
With ONNX Runtime (`pip install onnxruntime`):

```python
import onnxruntime
session = onnxruntime.InferenceSession({file!r})
(logits,) = session.run(["logits"], {{"video": video}})
```
"""


def write_readme(model: Model, folder: str, title: str) -> None:
    """Writes README.md beside the files that it describes.

    Args:
        model: that was exported.
        folder: with everything else in it.
        title: the folder's final name.
    """
    with open(os.path.join(folder, CONFIG_FILE), encoding="utf-8") as file:
        exported = json.load(file)["export"]
    architecture, preprocessing = model.architecture, model.preprocessing
    present = [name for name in _ABOUT if os.path.exists(os.path.join(folder, name))]
    snippets = {STABLEHLO_FILE: _JAX, ONNX_FILE: _ONNX}
    text = model_card(model, title=title, path=title) + _TEMPLATE.format(
        classes=architecture.num_classes,
        frames=architecture.num_segments,
        size=preprocessing.crop_size,
        files="\n".join(f"| `{name}` | {_ABOUT[name]} |" for name in present),
        snippets="\n".join(
            snippets[name].format(file=f"{title}/{name}") for name in present if name in snippets
        ),
        checks="\n".join(
            "| `{file}` | {engine} | {precision} | {input} | {relative_difference:.1e} |".format(
                **check
            )
            for check in exported["self_check"]
        ),
    )
    with open(os.path.join(folder, README_FILE), "w", encoding="utf-8") as file:
        file.write(text)
