"""Measures in minutes how well a linear classifier on frozen features does: the baseline.

python -m tsm_jax.probe own_videos_mobilenet
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "probe",
        description="Cross-validates a linear classifier on features of the frozen network that a"
        " recipe starts from. The features are stored in the recipe's workdir.",
        example="python -m tsm_jax.probe own_videos_mobilenet",
    )
    parser.add_recipe(required=True)
    _, config = parser.parse_with_recipe(arguments)
    assert config is not None
    # Late: mistakes in the command are reported at once.
    from tsm_jax.assemble.probe import in_words, probe_recipe

    print(in_words(probe_recipe(config)), flush=True)


if __name__ == "__main__":
    cli.run(main)
