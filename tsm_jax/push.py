"""Uploads a model to the Hugging Face Hub.

python -m tsm_jax.push output/quickstart owner/name
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "push",
        description=(
            "Uploads a model with its card to the Hugging Face Hub. Afterwards, every option that"
            " takes weights accepts hf://owner/name. Requires pip install 'tsm-jax[hub]' and a"
            " token: run hf auth login or set HF_TOKEN."
        ),
        example="python -m tsm_jax.push output/quickstart owner/name",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="exported folder, workdir, model directory or weight file",
    )
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="repository; created if it does not exist"
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="make the repository private if this command creates it",
    )
    options = parser.parse_args(arguments)
    from tsm_jax.assemble.push import push_weights

    page = push_weights(options.model, options.repository, private=options.private)
    print(f"uploaded {options.model} to {page}")


if __name__ == "__main__":
    cli.run(main)
