r"""TSM-ResNet-50 on HMDB51, fine-tuned from Kinetics-400.

Values: mmaction2's 0.x config tsm_k400_pretrained_r50_1x1x8_25e_hmdb51_rgb (which reads
    frames). MIT fine-tunes as on UCF-101: batches of 64, a learning rate of 0.001, weight decay
    5e-4, dropout 0.8.
Expected: top-1 72.68 %, top-5 92.03 % on split 1 with one clip and the centre crop; 74.77 % with
    16 segments. Not yet measured here.
Cost: 23.6 M parameters, 33 GFLOPs per clip; 3,570 clips are 37 steps per epoch, 925 in total.

    python -m tsm_jax.train --config configs/tsm_hmdb51_videos.py
    python -m tsm_jax.evaluate --config configs/tsm_hmdb51_videos.py \
        --weights output/tsm_hmdb51_videos --config.data.protocol=mmaction2_center_crop
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 51
    config.model.num_segments = 8
    config.model.shift = "future_first"
    config.model.shift_fraction = "1/8"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 12  # clips per GPU in the reference

    config.data.source = "videos"
    config.data.train_list = "data/hmdb51/train_split_1.list"
    config.data.val_list = "data/hmdb51/val_split_1.list"
    config.data.prefix = "data/hmdb51/videos"
    config.data.flip = False

    # Only the backbone; the classifier is new.
    config.init_from = "mmaction2/tsm_r50_256p_1x1x8_50e_kinetics400_rgb_20200726-020785e2"
    config.batch_size = 96  # 8 GPUs with 12 clips each
    config.epochs = 25
    config.optimizer.learning_rate = 0.0015
    config.optimizer.boundaries = (10, 20)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 20.0
    return config
