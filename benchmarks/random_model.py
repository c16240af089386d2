"""Writes a model directory with a recipe's network and random weights, for measuring its speed.

python benchmarks/random_model.py --config configs/tsm_k400_videos.py --output /tmp/R50
python -m tsm_jax export --weights /tmp/R50 --output /tmp/R50_int8 --precisions float32 int8 \\
    --videos DIR
"""

from __future__ import annotations

import argparse
import runpy
from dataclasses import replace

from tsm_jax.assemble.network import architecture_of, build_training_network, preprocessing_of
from tsm_jax.weights.model_directory import Model, write_model_directory

_CLASSES = 400  # for recipes that take the number of classes from their labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, help="recipe file")
    parser.add_argument("--output", required=True, help="folder to create")
    parser.add_argument("--shift", help="shift to use instead of the recipe's")
    parser.add_argument("--fps", type=float, default=0, help="frame rate to store with the model")
    options = parser.parse_args()
    config = runpy.run_path(options.config)["get_config"]()
    config.model.num_classes = config.model.num_classes or _CLASSES
    config.model.shift = options.shift or config.model.shift
    params, batch_stats = build_training_network(config).init(seed=0)
    model = Model(
        architecture_of(config.model),
        replace(preprocessing_of(config.data), frame_rate=options.fps),
        [f"class {k}" for k in range(config.model.num_classes)],
        {**params, **batch_stats},
        {"source": "random"},
    )
    write_model_directory(model, options.output)


if __name__ == "__main__":
    main()
