"""Names the action in videos.

python -m tsm_jax.predict --model output/quickstart --input a.mp4 b.avi
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tsm_jax import cli
from tsm_jax.errors import UnreadableClipError, UserError


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "predict",
        description="Prints the most likely classes of each video, best first.",
        example="python -m tsm_jax.predict --model output/quickstart --input a.mp4 b.avi --top_k 3",
    )
    parser.add_argument(
        "--model", metavar="PATH", required=True, help="a workdir, a model directory, a .pdparams"
    )
    parser.add_argument("--input", metavar="VIDEO", nargs="+", required=True, help="video files")
    parser.add_argument("--top_k", metavar="K", type=int, default=5, help="classes to print (5)")
    parser.add_argument(
        "--num_segments", metavar="T", type=int, help="frames per clip of a .pdparams (8)"
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="test, or paddle_predict for what PaddleVideo's tools/predict.py does",
    )
    options = parser.parse_args(arguments)
    if options.top_k < 1:
        raise UserError(f"--top_k is {options.top_k}: it must be at least 1")
    from tsm_jax.recognizer import load

    recognizer = load(options.model, num_segments=options.num_segments, protocol=options.protocol)
    failed = 0
    for path in options.input:
        try:
            predictions = recognizer.predict(path, top_k=options.top_k)
        except UnreadableClipError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        print(path)
        for place, (index, label, score) in enumerate(predictions, start=1):
            print(f"  {place}. {label} (class {index})  {score:.4f}")
    if failed:
        raise UserError(f"{failed} of {len(options.input)} videos could not be read")


if __name__ == "__main__":
    cli.run(main)
