r"""TSM-ResNet-50 on Something-Something V1, which is distributed as folders of frames.

Values: MIT's README and mmaction2's 0.x config tsm_r50_1x1x8_50e_sthv1_rgb, which agree.
Expected: top-1 45.6 % (MIT), 45.58 % (mmaction2) with one clip and the centre crop; 47.2 % with
    mit_twice_three_crop, 47.70 % with mmaction2_twice_three_crop. With --config.data.flip=True and
    swapped labels, mmaction2 reports 47.10 % and 48.51 %. 16 segments: MIT 47.2 % and 48.4 %;
    mmaction2 47.77 % and 49.03 % with a learning rate of 0.0075 and batches of 48. ResNet-101: MIT
    46.9 % and 48.7 % with --config.model.backbone=resnet101 --config.model.shift_every=2
    --config.init_from=torchvision/resnet101. Not yet measured here.
Cost: 23.9 M parameters, 33 GFLOPs per clip; 86,017 clips are 1,344 steps per epoch, 67,200 in
    total.

    python -m tsm_jax.train --config configs/tsm_sthv1_frames.py
    python -m tsm_jax.evaluate --config configs/tsm_sthv1_frames.py \
        --weights output/tsm_sthv1_frames --config.data.protocol=mit_twice_three_crop
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
    config.data.train_list = "data/sthv1/train_frames.list"
    config.data.val_list = "data/sthv1/val_frames.list"
    config.data.prefix = "data/sthv1/rawframes"
    config.data.frame_template = "{:05}.jpg"
    config.data.flip = False  # as in both references; True swaps the labels of left and right

    config.init_from = "torchvision/resnet50"
    config.batch_size = 64
    config.epochs = 50
    config.optimizer.learning_rate = 0.01
    config.optimizer.boundaries = (20, 40)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 20.0
    return config
