r"""TSM-ResNet-50 on Something-Something V2 from extracted frames, as MIT trains it.

Values: MIT's README (mmaction2's 0.x config uses a learning rate of 0.0075 and batches of
    48).
Expected: top-1 61.2 % with mit_twice_three_crop, 63.1 % with 16 segments, 63.3 % with ResNet-101
    (MIT).
    mmaction2 0.x: 59.11 % with one clip and the centre crop, 61.82 % with
    mmaction2_twice_three_crop. Not yet measured here.
Cost: 23.9 M parameters, 33 GFLOPs per clip; 168,913 clips are 2,639 steps per epoch, 131,950 in
    total.

    python -m tsm_jax.train --config configs/tsm_sthv2_frames.py
    python -m tsm_jax.evaluate --config configs/tsm_sthv2_frames.py \
        --weights output/tsm_sthv2_frames --config.data.protocol=mit_twice_three_crop
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 174
    config.model.num_segments = 8
    config.model.shift = "future_first"
    config.model.shift_fraction = "1/8"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 8  # clips per GPU in the reference

    config.data.source = "frames"
    config.data.train_list = "data/sthv2/train_frames.list"
    config.data.val_list = "data/sthv2/val_frames.list"
    config.data.prefix = "data/sthv2/rawframes"
    config.data.flip = False

    config.init_from = "torchvision/resnet50"
    config.batch_size = 64
    config.epochs = 50
    config.optimizer.learning_rate = 0.01
    config.optimizer.boundaries = (20, 40)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 20.0
    return config
