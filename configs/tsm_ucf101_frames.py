r"""TSM-ResNet-50 on UCF-101 from extracted frames, fine-tuned from Kinetics-400.

Values: PaddleVideo's configs/recognition/tsm/tsm_ucf101_frames.yaml (ed245e9).
Expected: top-1 94.42 % on split 1, row "TSM on UCF-101, NCHW" of its model zoo (uniform
    sampling, centre crop, one view). Not yet measured here.
Cost: 23.7 M parameters, 33 GFLOPs per clip; 9,537 clips are 149 steps per epoch, 3,725 in total.

    python -m tsm_jax.train --config configs/tsm_ucf101_frames.py
    python -m tsm_jax.evaluate --config configs/tsm_ucf101_frames.py \
        --weights paddle/tsm_ucf101_nchw
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 101
    config.model.num_segments = 8
    config.model.shift = "past_first"
    config.model.shift_fraction = "1/num_segments"
    config.model.dropout = 0.8
    config.model.batch_norm_group = 16  # clips per GPU in the reference

    config.data.source = "frames"
    config.data.train_list = "data/ucf101/ucf101_train_split_1_rawframes.txt"
    config.data.val_list = "data/ucf101/ucf101_val_split_1_rawframes.txt"
    config.data.prefix = ""
    config.data.frame_template = "img_{:05}.jpg"

    config.init_from = "paddle/tsm_k400"  # only the backbone; the classifier is new
    config.batch_size = 64  # 4 GPUs with 16 clips each
    config.epochs = 25
    config.optimizer.learning_rate = 0.001
    config.optimizer.boundaries = (10, 20)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "fc"  # PaddleVideo decays no other weight
    config.optimizer.clip_norm = 20.0
    return config
