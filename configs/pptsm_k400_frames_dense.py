r"""PP-TSM (ResNet-50-vd) on Kinetics-400 from folders of frames, with dense sampling.

Values: PaddleVideo's configs/recognition/pptsm/pptsm_k400_frames_dense.yaml (ed245e9).
Expected: top-1 75.69 % (dense sampling, 10 clips, 3 crops). Not yet measured here.
Cost: 24.3 M parameters.

    python -m tsm_jax.train --config configs/pptsm_k400_frames_dense.py
    python -m tsm_jax.evaluate --config configs/pptsm_k400_frames_dense.py \
        --weights paddle/pptsm_k400_dense \
        --config.data.protocol=paddle_dense
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50_vd"
    config.model.num_classes = 400
    config.model.num_segments = 8
    config.model.shift = "past_first"
    config.model.shift_fraction = "1/num_segments"
    config.model.dropout = 0.5
    config.model.batch_norm_group = 16  # clips per GPU in the reference

    config.data.source = "frames"
    config.data.train_list = "data/k400/train_frames.list"
    config.data.val_list = "data/k400/val_frames.list"
    config.data.prefix = "data/k400/rawframes"
    config.data.sampling = "dense"
    config.data.crop = "pptsm"

    config.init_from = "paddle/resnet50_vd_ssld_imagenet"
    config.batch_size = 128  # 8 GPUs with 16 clips each
    config.epochs = 80
    config.mixup = 0.2
    config.precise_batch_norm = 5
    config.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.02
    config.optimizer.schedule = "whole_cosine"
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.warmup_start = 0.5
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0
    return config
