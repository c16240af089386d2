"""The command `tsm`: every verb of the package in one place.

tsm train --config configs/quickstart.py
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# One line each; the order is that of a project.
VERBS = {
    "prepare": "download, list, check, extract and pack videos",
    "train": "train a recipe, or continue its run",
    "evaluate": "measure weights on a validation list",
    "predict": "name the action in videos",
    "serve": "answer HTTP with the actions in videos that are sent",
    "export": "write a folder that runs in jax, ONNX Runtime or OpenVINO",
    "convert": "turn PaddleVideo's .pdparams into a model directory, or back",
    "push": "put a model on the Hugging Face Hub",
    "benchmark": "measure reading, the training step, and prediction by engine",
}


def main() -> NoReturn:
    """Runs `tsm VERB ...`; `tsm VERB --help` is that verb's own help."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_help())
        sys.exit(0)
    if verb == "--version":
        from tsm_jax import __version__

        print(f"tsm-jax {__version__}")
        sys.exit(0)
    if verb not in VERBS:
        print(f"error: {_stranger(verb)}", file=sys.stderr)
        sys.exit(1)
    from tsm_jax import cli  # here: the help above must not wait for anything

    cli.run(_command(verb), arguments)


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {about}" for verb, about in VERBS.items()]
    return "\n".join(
        [
            "usage: tsm VERB [--help] ...",
            "",
            "Video action recognition with the Temporal Shift Module.",
            "",
            "verbs:",
            *lines,
            "",
            "`tsm VERB --help` tells more, with an example; `tsm --version` the version.",
            "`python -m tsm_jax.VERB` is the same.",
            "",
            "example:",
            "  tsm train --config configs/quickstart.py",
        ]
    )


def _stranger(verb: str) -> str:
    close = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean `tsm {close[0]}`?" if close else f"the verbs are {', '.join(VERBS)}"
    return f"there is no verb {verb}: {hint}"


def _command(verb: str) -> Callable[[Sequence[str]], None]:
    match verb:
        case "prepare":
            from tsm_jax.prepare import main as command
        case "train":
            from tsm_jax.train import main as command
        case "evaluate":
            from tsm_jax.evaluate import main as command
        case "predict":
            from tsm_jax.predict import main as command
        case "export":
            from tsm_jax.export import main as command
        case "convert":
            from tsm_jax.convert import main as command
        case "serve":
            from tsm_jax.serve import main as command
        case "push":
            from tsm_jax.push import main as command
        case _:
            from tsm_jax.benchmark import main as command
    return command


if __name__ == "__main__":
    main()
