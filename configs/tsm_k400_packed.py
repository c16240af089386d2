"""TSM-ResNet-50 on Kinetics-400 packed into ArrayRecord shards.

Trains like PaddleVideo's `tsm_k400_frames.yaml` (published top-1: 71.06 %; not measured here) on
folders written by these commands:

    python -m tsm_jax.prepare pack --source videos --list data/k400/train.list \\
        --prefix data/k400/videos --output data/k400/packed_train
    python -m tsm_jax.prepare pack --source videos --list data/k400/val.list \\
        --prefix data/k400/videos --output data/k400/packed_val
    python -m tsm_jax.train --config configs/tsm_k400_packed.py
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.source = "packed"
    config.data.train_list = "data/k400/packed_train"
    config.data.val_list = "data/k400/packed_val"
    return config
