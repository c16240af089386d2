"""A small TSM for a folder of your own videos, trained from scratch on any machine.

Data: the lists that `prepare lists folders` writes to data/own. The number of classes comes from
data/own/labels.txt, and the run is stored in output/own_videos.
Expected: no published figure. Measured: 35 % on ten classes of UCF-101 with 160 training clips, at
    48 px for 60 epochs (benchmarks/RESULTS.md); chance is 10 %. Long training on small pictures
    was the better use of the same time.
Cost: TSM-ResNet-18 of half width at 80 px, 2.8 M parameters, 0.5 G multiply-adds per clip.

If you can download weights, use configs/own_videos_mobilenet.py instead: it starts from ImageNet
and is far more accurate with as few clips. docs/own_videos.md compares the two.

    python -m tsm_jax.prepare lists folders --videos my_videos --val_share 0.2 --output data/own
    python -m tsm_jax.train --config configs/own_videos.py
    python -m tsm_jax.evaluate --weights output/own_videos
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet18"
    config.model.width = 32
    config.model.num_classes = 0  # the number of lines in labels.txt
    config.model.dropout = 0.2
    config.model.batch_norm_group = 0

    config.data.train_list = "data/own/train.list"
    config.data.val_list = "data/own/val.list"
    config.data.prefix = ""
    config.data.suffix = ""
    config.data.crop_size = 80
    config.data.short_side = 80
    config.data.crop_scales = (1.0, 0.875)  # the position of an object may determine its class
    config.data.sampling = "whole"
    config.data.flip = True  # set to False if left and right are classes

    config.batch_size = 8
    config.class_balance = 1.0
    config.epochs = 40
    config.best_metric = "mean_recall"  # the classes rarely have equal numbers of clips
    config.log_every = 5
    config.label_smoothing = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 0.004
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.weight_decay = 5e-4
    config.optimizer.fc_weight_multiplier = 1.0
    config.optimizer.fc_bias_multiplier = 1.0
    return config
