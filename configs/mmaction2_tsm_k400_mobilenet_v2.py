r"""mmaction2's TSM-MobileNetV2 on Kinetics-400 from video files.

Values: mmaction2 1.x (4d6c934), configs/recognition/tsm/
    tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb.py.
Expected: top-1 68.71 % (`mmaction2_three_crop`, which averages probabilities).
    Not yet measured here.

    python -m tsm_jax.train --config configs/mmaction2_tsm_k400_mobilenet_v2.py
    python -m tsm_jax.evaluate --config configs/mmaction2_tsm_k400_mobilenet_v2.py \
        --weights mmaction2/tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb \
        --config.data.protocol=mmaction2_three_crop
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "mobilenet_v2"
    config.model.num_classes = 400
    config.model.num_segments = 8
    config.model.shift = "future_first"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 16  # clips per GPU in the reference
    config.model.running_variance = "unbiased"

    config.data.source = "videos"
    config.data.train_list = "data/k400/train.list"
    config.data.val_list = "data/k400/val.list"
    config.data.prefix = "data/k400/videos"

    config.init_from = "torchvision/mobilenet_v2"
    config.batch_size = 128
    config.epochs = 100
    config.optimizer.learning_rate = 0.02
    config.optimizer.boundaries = (40, 80)
    config.optimizer.weight_decay = 2e-5
    config.optimizer.clip_norm = 20.0
    return config
