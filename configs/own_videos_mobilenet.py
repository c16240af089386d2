"""TSM-MobileNetV2 fine-tuned from ImageNet on a folder of your own videos; a CPU is enough.

Data: the lists that `prepare lists folders` writes to data/own. The number of classes comes from
data/own/labels.txt, and the run is stored in output/own_videos_mobilenet. docs/own_videos.md
explains how many clips are needed and what to change.
Values: the stem and the first six blocks, which would take two thirds of the time, keep their
    ImageNet weights, and all batch norms keep their statistics. Large pictures, refitting the
    classifier after the last epoch, and training without class weights improved accuracy
    (benchmarks/RESULTS.md, "Few real clips").
Expected: no published figure. Measured on ten classes of UCF-101, three splits with about 350
    training clips and 166 to 183 clips of other recordings: 77, 77 and 72 %. Half an hour on one
    core.
Cost: 2.2 M parameters, 2.4 G multiply-adds per clip; downloads weights of 14 MB. Without internet
    access, copy them to the machine and give --config.init_from=FILE.

    python -m tsm_jax.prepare lists folders --videos my_videos --val_share 0.2 --output data/own
    python -m tsm_jax.probe --config configs/own_videos_mobilenet.py
    python -m tsm_jax.train --config configs/own_videos_mobilenet.py
    python -m tsm_jax.evaluate --weights output/own_videos_mobilenet --report report
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "mobilenet_v2"
    config.model.num_classes = 0  # the number of lines in labels.txt
    config.model.dropout = 0.2
    config.model.batch_norm_group = 0
    config.model.frozen_batch_norm = "all"

    config.data.train_list = "data/own/train.list"
    config.data.val_list = "data/own/val.list"
    config.data.prefix = ""
    config.data.suffix = ""
    config.data.crop_size = 224
    config.data.short_side = 224
    config.data.color_jitter = 0.4
    config.data.sampling = "whole"
    config.data.flip = True  # set to False if left and right are classes

    config.init_from = "torchvision/mobilenet_v2"
    config.batch_size = 8
    config.refit_classifier = 0.3  # it weights all classes equally
    config.epochs = 12
    config.best_metric = "mean_recall"  # the classes rarely have equal numbers of clips
    config.log_every = 5
    config.label_smoothing = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 0.0015
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 5e-4
    config.optimizer.fc_weight_multiplier = 1.0
    config.optimizer.fc_bias_multiplier = 1.0
    config.optimizer.frozen = ("backbone.stem", *(f"backbone.blocks.{i}" for i in range(6)))
    return config
