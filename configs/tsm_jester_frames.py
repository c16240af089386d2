r"""TSM-ResNet-50 on Jester, which is distributed as folders of frames.

Values: mmaction2's 0.x config tsm_r50_1x1x8_50e_jester_rgb, which crops 8 to 100 % of the area
    and does not swap the labels of Turning Hand Clockwise and Counterclockwise.
Expected: top-1 96.5 % with one clip and the centre crop, 97.2 % with
    mmaction2_twice_three_crop. Not yet measured here.
Cost: 23.6 M parameters, 33 GFLOPs per clip; 118,562 clips are 1,852 steps per epoch, 92,600 in
    total.

    python -m tsm_jax.train --config configs/tsm_jester_frames.py
    python -m tsm_jax.evaluate --config configs/tsm_jester_frames.py \
        --weights output/tsm_jester_frames --config.data.protocol=mmaction2_twice_three_crop
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 27
    config.model.num_segments = 8
    config.model.shift = "future_first"
    config.model.shift_fraction = "1/8"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 8  # clips per GPU in the reference

    config.data.source = "frames"
    config.data.train_list = "data/jester/train_frames.list"
    config.data.val_list = "data/jester/val_frames.list"
    config.data.prefix = "data/jester/rawframes"
    config.data.frame_template = "{:05}.jpg"
    config.data.flip = True  # swaps the labels of left and right, and of the turns

    config.init_from = "torchvision/resnet50"
    config.batch_size = 64
    config.epochs = 50
    config.optimizer.learning_rate = 0.01
    config.optimizer.boundaries = (20, 40)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.clip_norm = 20.0
    return config
