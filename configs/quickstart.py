"""Learns motion from scratch in minutes on a laptop CPU, from videos that it renders itself.

Data: 1,200 training and 400 validation H.264 clips of a moving shape. The 8 classes form 4 pairs,
each of which is one motion forwards and backwards. No single frame distinguishes the two classes of
a pair: a network without shift stays near 0.5.

    python -m tsm_jax.train --config configs/quickstart.py
    python -m tsm_jax.train --config configs/quickstart.py --config.model.shift=none
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet18"
    config.model.width = 24
    config.model.num_classes = 8
    config.model.dropout = 0.0
    config.model.batch_norm_group = 0

    config.data.train_list = "data/quickstart/train.list"
    config.data.val_list = "data/quickstart/val.list"
    config.data.render = "moving_shapes"
    config.data.crop_size = 48
    config.data.short_side = 48
    config.data.flip = False  # left and right are classes

    config.batch_size = 16
    config.epochs = 4
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.fc_weight_multiplier = 1.0
    config.optimizer.fc_bias_multiplier = 1.0
    return config
