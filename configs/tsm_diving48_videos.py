r"""TSM-ResNet-50 on Diving48 V2.

Values: mmaction2's 0.x config tsm_r50_video_1x1x8_50e_diving48_rgb.
Expected: top-1 75.99 %, top-5 97.16 % with one clip and the centre crop; 81.62 % with 16 segments,
    a learning rate of 0.005 and batches of 32. Not yet measured here.
Cost: 23.6 M parameters, 33 GFLOPs per clip; 15,027 clips are 234 steps per epoch, 11,700 in total.

    python -m tsm_jax.train --config configs/tsm_diving48_videos.py
    python -m tsm_jax.evaluate --config configs/tsm_diving48_videos.py \
        --weights output/tsm_diving48_videos --config.data.protocol=mmaction2_center_crop
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 48
    config.model.num_segments = 8
    config.model.shift = "future_first"
    config.model.shift_fraction = "1/8"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 8  # clips per GPU in the reference

    config.data.source = "videos"
    config.data.train_list = "data/diving48/train.list"
    config.data.val_list = "data/diving48/val.list"
    config.data.prefix = "data/diving48/rgb"
    config.data.flip = True  # no class name mentions a side

    config.init_from = "torchvision/resnet50"
    config.batch_size = 64
    config.epochs = 50
    config.optimizer.learning_rate = 0.01
    config.optimizer.boundaries = (20, 40)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 20.0
    return config
