r"""mmaction2's TSM-ResNet-50 with 8 frames on Kinetics-400 from video files.

Values: mmaction2 1.x (4d6c934), configs/recognition/tsm/
    tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb.py.
    Here the learning rate warms up per step, there per epoch.
Expected: top-1 73.18 % (`mmaction2_ten_crop`, which averages probabilities). Not yet measured here.

    python -m tsm_jax.train --config configs/mmaction2_tsm_k400_r50_8f.py
    python -m tsm_jax.evaluate --config configs/mmaction2_tsm_k400_r50_8f.py \
        --weights mmaction2/tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb \
        --config.data.protocol=mmaction2_ten_crop
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
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

    config.init_from = "torchvision/resnet50"
    config.batch_size = 128
    config.epochs = 50
    config.optimizer.learning_rate = 0.02
    config.optimizer.boundaries = (25, 45)
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.warmup_start = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 20.0
    return config
