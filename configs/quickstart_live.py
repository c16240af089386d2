"""The quickstart for live video: a network that answers at every frame while a shape moves.

The videos and the network are those of `configs/quickstart.py`, except for `shift = "past_only"`:
each frame sees earlier frames but no later ones, so the trained network can follow a camera frame
by frame (docs/live.md). Without shift it stays near 0.5.

    tsm train --config configs/quickstart_live.py
    tsm export --streaming --weights output/quickstart_live --output inference/live
    tsm stream --model inference/live --input data/quickstart/videos/grow/01206.mp4
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet18"
    config.model.width = 24
    config.model.num_classes = 8
    config.model.shift = "past_only"
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
