r"""PP-TSMv2 (PP-LCNetV2) with 8 frames on Kinetics-400 from video files.

Values: PaddleVideo's configs/recognition/pptsm/v2/pptsm_lcnet_k400_8frames_uniform.yaml (ed245e9),
    which reads folders of frames: plain cross entropy, one learning rate for all parameters. There,
    weight decay also applies to the biases of the classifier and the gates; here to no bias.
Expected: top-1 71.81 % (uniform sampling, centre crop, one view). Not yet measured here.
Cost: 5.9 M parameters at inference.

With 16 frames (`--config.model.num_segments=16`), PaddleVideo reports 73.1 %. The 75.16 % of its
largest model needed distillation from a second network and
`--config.model.backbone=pplcnet_v2_attention`.

    python -m tsm_jax.train --config configs/pptsm_v2_k400_videos_uniform.py
    python -m tsm_jax.evaluate --config configs/pptsm_v2_k400_videos_uniform.py \
        --weights paddle/pptsmv2_k400_8f --config.data.protocol=paddle_predict
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "pplcnet_v2"
    config.model.num_classes = 400
    config.model.num_segments = 8
    config.model.shift = "past_first"
    config.model.shift_fraction = "1/num_segments"
    config.model.dropout = 0.2
    config.model.batch_norm_group = 16  # clips per GPU in the reference

    config.data.source = "videos"
    config.data.train_list = "data/k400/train.list"
    config.data.val_list = "data/k400/val.list"
    config.data.prefix = "data/k400/videos"
    config.data.crop = "pptsm"

    config.init_from = "paddle/pplcnet_v2_ssld_imagenet"
    config.batch_size = 128  # 8 GPUs with 16 clips each
    config.epochs = 120
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
