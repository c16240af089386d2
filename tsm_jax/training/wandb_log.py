"""A logger for Weights & Biases (the extra `wandb`)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from ml_collections import ConfigDict

from tsm_jax.errors import UserError
from tsm_jax.files import write_text

# In the workdir, so that a continued run extends the same curves.
_ID_FILE = "wandb_id.txt"


class WeightsAndBiases:
    """Sends a run's numbers to Weights & Biases.

    Its environment variables select the project (`WANDB_PROJECT`, tsm-jax by default), the account
    and the mode (`WANDB_MODE=offline` keeps everything in the workdir).

    Raises:
        UserError: wandb is not installed, or access is denied.
    """

    def __init__(self, config: ConfigDict):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError('wandb is not installed: pip install "tsm-jax[wandb]"') from None
        workdir = config.workdir
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "tsm-jax",
                name=os.path.basename(os.path.normpath(workdir)),
                dir=workdir,
                id=_id(workdir),
                resume="allow",
                config=config.to_dict(),
            )
        except wandb.Error as error:
            raise UserError(f"wandb: {' '.join(str(error).split())}") from error
        # Our own step metric: a continued run repeats steps, but wandb's step can only increase.
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"{kind}/{name}": v for name, v in numbers.items()}})

    def close(self) -> None:
        self._run.finish()


def _id(workdir: str) -> str:
    path = os.path.join(workdir, _ID_FILE)
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    name = secrets.token_hex(4)
    write_text(path, name + "\n")
    return name
