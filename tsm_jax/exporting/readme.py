"""The README.md of an exported folder: the model card, and what is in the folder."""

from __future__ import annotations

import os
from typing import Any

from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import (
    BFLOAT16_STABLEHLO_FILE,
    EXAMPLE_FILE,
    INT8_FILE,
    ONNX_FILE,
    README_FILE,
    STABLEHLO_FILE,
    STREAM,
)
from tsm_jax.exporting.model_card import model_card
from tsm_jax.files import write_text
from tsm_jax.weights.model_directory import CONFIG_FILE, LABELS_FILE, WEIGHTS_FILE, Model

_ABOUT = {
    EXAMPLE_FILE: "predicts without `tsm_jax`",
    STABLEHLO_FILE: "JAX program with weights, float32, for CPU, CUDA and TPU",
    BFLOAT16_STABLEHLO_FILE: "the same, convolutions in bfloat16",
    ONNX_FILE: "ONNX graph, float32",
    INT8_FILE: "ONNX graph, 8-bit convolutions",
    WEIGHTS_FILE: "the tensors, to load or export them again",
    LABELS_FILE: "class names, in the order of the logits",
    CONFIG_FILE: "input, outputs, preprocessing, versions, SHA-256 of the files",
}

_TEMPLATE = """
That needs `tsm_jax` and one of jax, onnxruntime or openvino.

## Without `tsm_jax`

```sh
pip install {packages}
python {example} VIDEO
```

`example.py` decodes a video, prepares its frames and prints the best classes with their scores: the
same ones as `tsm_jax`. It reads all that it has to know from `config.json`.

The graphs stand alone. Their input is `video`, uint8 `[N, {frames}, {size}, {size}, 3]`: RGB
frames, prepared as in `example.py`, any N. The graph normalises by itself. Outputs: `logits`,
float32 `[N, {classes}]`, and `features`, the input of the average pool.

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


_STREAM_TEMPLATE = """
It follows a camera (`--input 0`), an address or a video. That needs `tsm_jax` and one of jax,
onnxruntime or openvino.

## Without `tsm_jax`
{loop}
The graphs stand alone and take one frame at a time. Their inputs are `frame`, uint8
`[1, {size}, {size}, 3]` (RGB: scaled to a short side of {short_side} pixels, bilinear and
antialiased, and cut out of the centre; the graph normalises it), and the state: `state_0`,
`state_1`, ..., zeros before the first frame. Outputs: `logits`, float32 `[1, {classes}]`, and
`next_state_0`, `next_state_1`, ..., the state for the next frame. The network was trained with
{rate:g} frames a second: pick them in time.

For people show the mean of the last {frames} logits, and a new class when it has led twice running.

## Files

| file | what it is |
|---|---|
{files}

## How it was checked

Frame by frame against the network on the same frames as a clip; largest difference of a logit,
over the largest logit:

| graph | engine | precision | input | difference |
|---|---|---|---|---|
{checks}
"""

_ONNX_LOOP = """
```python
import json, numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
labels = json.load(open("config.json"))["export"]["labels"]
state = {{port.name: np.zeros(port.shape, np.float32) for port in session.get_inputs()[1:]}}
for frame in frames:  # uint8 [1, {size}, {size}, 3], RGB, {rate:g} a second
    logits, *after = session.run(None, {{"frame": frame, **state}})
    state = dict(zip(state, after))
    print(labels[logits.argmax()])
```
"""

_JAX_LOOP = """
```python
import json, jax, numpy as np

step = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
labels = json.load(open("config.json"))["export"]["labels"]
call, state = jax.jit(step.call), [np.zeros(port.shape, port.dtype) for port in step.in_avals[1:]]
for frame in frames:  # uint8 [1, {size}, {size}, 3], RGB, {rate:g} a second
    logits, *state = call(frame, *state)
    print(labels[logits.argmax()])
```
"""

_CHECK = "| `{file}` | {engine} | {precision} | {input} | {relative_difference:.1e} |"


def write_readme(model: Model, folder: str, title: str, description: dict[str, Any]) -> None:
    """Writes README.md beside the files that it describes.

    Args:
        model: that was exported.
        folder: with everything else in it.
        title: the folder's final name.
        description: the content of config.json.
    """
    architecture, checks = model.architecture, description["export"]["self_check"]
    present = [name for name in _ABOUT if os.path.exists(os.path.join(folder, name))]
    engine = "onnxruntime" if ONNX_FILE in present else "jax flatbuffers"
    streams = description["export"]["kind"] == STREAM
    values = {
        "packages": f"av numpy {engine} pillow",
        "example": EXAMPLE_FILE,
        "classes": architecture.num_classes,
        "frames": architecture.num_segments,
        "size": protocol_of(model.preprocessing).crop_size,
        "short_side": model.preprocessing.short_side,
        "rate": model.preprocessing.frame_rate,
        "files": "\n".join(f"| `{name}` | {_ABOUT[name]} |" for name in present),
        "checks": "\n".join(_CHECK.format(**check) for check in checks),
    }
    loop = (_ONNX_LOOP if ONNX_FILE in present else _JAX_LOOP).format(**values)
    template = _STREAM_TEMPLATE if streams else _TEMPLATE
    text = model_card(model, title=title, path=title, streams=streams)
    text += template.format(loop=loop, **values)
    write_text(os.path.join(folder, README_FILE), text)
