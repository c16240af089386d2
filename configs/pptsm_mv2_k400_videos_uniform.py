r"""PP-TSM with MobileNetV2 on Kinetics-400 from video files.

Values: PaddleVideo's configs/recognition/pptsm/pptsm_mv2_k400_videos_uniform.yaml (ed245e9): plain
    cross entropy, no dropout, one learning rate for all parameters. There, weight decay also
    applies to batch norm and the bias of the classifier; here it does not. Its precise batch norm
    has no effect, because it looks for layers of another kind.
Expected: top-1 68.09 % (uniform sampling, centre crop, one view). Not yet measured here.
Cost: 2.7 M parameters.

    python -m tsm_jax.train --config configs/pptsm_mv2_k400_videos_uniform.py
    python -m tsm_jax.evaluate --config configs/pptsm_mv2_k400_videos_uniform.py \
        --weights paddle/pptsm_mv2_k400 --config.data.protocol=paddle_predict
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "mobilenet_v2_paddle"
    config.model.num_classes = 400
    config.model.num_segments = 8
    config.model.shift = "past_first"
    config.model.shift_fraction = "1/num_segments"
    config.model.dropout = 0.0
    config.model.batch_norm_group = 16  # clips per GPU in the reference

    config.data.source = "videos"
    config.data.train_list = "data/k400/train.list"
    config.data.val_list = "data/k400/val.list"
    config.data.prefix = "data/k400/videos"
    config.data.crop = "pptsm"

    config.init_from = "paddle/mobilenet_v2_ssld_imagenet"
    config.batch_size = 128  # 8 GPUs with 16 clips each
    config.epochs = 80
    config.mixup = 0.2
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "whole_cosine"
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.warmup_start = 0.5
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0
    config.optimizer.fc_weight_multiplier = 1.0  # PaddleVideo has no separate rates for it
    config.optimizer.fc_bias_multiplier = 1.0
    return config
