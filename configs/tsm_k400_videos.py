r"""TSM-ResNet-50 on Kinetics-400 from video files.

Values: PaddleVideo's configs/recognition/tsm/tsm_k400_videos.yaml (ed245e9).
Expected: top-1 71.06 %, row "TSM on Kinetics-400" of its model zoo (uniform sampling, centre crop,
    one view). Not yet measured here.
Cost: 24.3 M parameters, 33 GFLOPs per clip; 234,619 clips are 1,832 steps per epoch, 91,600 in
    total.

    python -m tsm_jax.train --config configs/tsm_k400_videos.py
    python -m tsm_jax.evaluate --config configs/tsm_k400_videos.py \
        --weights paddle/tsm_k400
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 400
    config.model.num_segments = 8
    config.model.shift = "past_first"
    config.model.shift_fraction = "1/num_segments"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 16  # clips per GPU in the reference

    config.data.source = "videos"
    config.data.train_list = "data/k400/train.list"
    config.data.val_list = "data/k400/val.list"
    config.data.prefix = "data/k400/videos"

    config.init_from = "paddle/resnet50_imagenet"
    config.batch_size = 128  # 8 GPUs with 16 clips each
    config.epochs = 50
    config.optimizer.learning_rate = 0.02
    config.optimizer.boundaries = (20, 40)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 20.0
    return config
