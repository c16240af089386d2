r"""TSM-ResNet-50 on Moments in Time.

Values: MIT's for Kinetics-400; no values have been published for this data set.
Expected: no published accuracy. Not yet measured here.
Cost: 24.2 M parameters, 33 GFLOPs per clip; 802,264 clips are 6,267 steps per epoch, 313,350 in
    total.

    python -m tsm_jax.train --config configs/tsm_moments_videos.py
    python -m tsm_jax.evaluate --config configs/tsm_moments_videos.py \
        --weights output/tsm_moments_videos --config.data.protocol=mit_three_crop
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 339
    config.model.num_segments = 8
    config.model.shift = "future_first"
    config.model.shift_fraction = "1/8"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 16  # clips per GPU in the reference

    config.data.source = "videos"
    config.data.train_list = "data/moments/train.list"
    config.data.val_list = "data/moments/val.list"
    config.data.prefix = "data/moments/videos"
    config.data.flip = True

    config.init_from = "torchvision/resnet50"
    config.batch_size = 128
    config.epochs = 50
    config.optimizer.learning_rate = 0.02
    config.optimizer.boundaries = (20, 40)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 20.0
    return config
