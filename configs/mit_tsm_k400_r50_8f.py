r"""MIT's TSM-ResNet-50 with 8 frames on Kinetics-400 from folders of frames.

Values: mit-han-lab/temporal-shift-module (1f6a834), scripts/train_tsm_kinetics_rgb_8f.sh.
Expected: top-1 71.2 % (one view, centre crop); 72.8 % with `mit_ten_crop`. Not yet measured here.

    python -m tsm_jax.train --config configs/mit_tsm_k400_r50_8f.py
    python -m tsm_jax.evaluate --config configs/mit_tsm_k400_r50_8f.py \
        --weights mit/TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50
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

    config.data.source = "frames"
    config.data.train_list = "data/k400/train_frames.list"
    config.data.val_list = "data/k400/val_frames.list"
    config.data.prefix = "data/k400/rawframes"

    config.init_from = "torchvision/resnet50"
    config.batch_size = 128
    config.epochs = 50
    config.optimizer.learning_rate = 0.02
    config.optimizer.boundaries = (20, 40)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 20.0
    return config
