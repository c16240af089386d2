"""TSM-ResNet-50 fine-tuned from Kinetics-400 on a folder of your own videos; for a GPU or TPU.

Data: the lists that `prepare lists folders` writes to data/own. The number of classes comes from
data/own/labels.txt, and the run is stored in output/own_videos_finetune.
Values: those of PaddleVideo's fine-tuning on UCF-101 (tsm_ucf101_videos.yaml, ed245e9), with 16
    clips per step instead of 64 and a proportionally lower learning rate.
Expected: no published figure. Not yet measured here.
Cost: 23.7 M parameters, 33 GFLOPs per clip; downloads weights of 98 MB.

    python -m tsm_jax.prepare lists folders --videos my_videos --val_share 0.2 --output data/own
    python -m tsm_jax.train --config configs/own_videos_finetune.py
    python -m tsm_jax.evaluate --weights output/own_videos_finetune
"""

from ml_collections import ConfigDict

from tsm_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 0  # the number of lines in labels.txt
    config.model.num_segments = 8
    config.model.shift = "past_first"
    config.model.shift_fraction = "1/num_segments"
    config.model.dropout = 0.8
    config.model.batch_norm_group = 16

    config.data.train_list = "data/own/train.list"
    config.data.val_list = "data/own/val.list"
    config.data.prefix = ""
    config.data.suffix = ""
    config.data.flip = True  # set to False if left and right are classes

    config.init_from = "paddle/tsm_k400"  # only the backbone; the classifier is new
    config.batch_size = 16
    config.class_balance = 1.0
    config.epochs = 25
    config.best_metric = "mean_recall"  # the classes rarely have equal numbers of clips
    config.optimizer.learning_rate = 0.00025
    config.optimizer.boundaries = (10, 20)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "fc"
    config.optimizer.clip_norm = 20.0
    return config
