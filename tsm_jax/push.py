"""Puts a model on the Hugging Face Hub.

python -m tsm_jax.push output/quickstart owner/name
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "push",
        description=(
            "Uploads a model with its card to the Hugging Face Hub, from where hf://owner/name"
            " stands for it wherever weights are asked for. Needs pip install 'tsm-jax[hub]' and a"
            " token: hf auth login, or HF_TOKEN."
        ),
        example="python -m tsm_jax.push output/quickstart owner/name",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="an exported folder, a workdir, a model directory or a file of weights",
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="created if it is not there")
    parser.add_argument(
        "--private", action="store_true", help="only for you, if it is created by this"
    )
    options = parser.parse_args(arguments)
    from tsm_jax.assemble.push import push_weights

    page = push_weights(options.model, options.repository, private=options.private)
    print(f"{options.model} is at {page}")


if __name__ == "__main__":
    cli.run(main)
