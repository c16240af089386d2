"""Names of an exported graph's input and outputs, and of the files beside it."""

from __future__ import annotations

VIDEO = "video"
LOGITS = "logits"
FEATURES = "features"

STABLEHLO_FILE = "model.stablehlo"
BFLOAT16_STABLEHLO_FILE = "model_bfloat16.stablehlo"
ONNX_FILE = "model.onnx"
INT8_FILE = "model_int8.onnx"
EXAMPLE_FILE = "example.py"
README_FILE = "README.md"
