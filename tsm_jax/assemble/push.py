"""Uploads models of any kind to the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile

from tsm_jax.assemble.weights import load_model
from tsm_jax.deploy.artifact import EXAMPLE_FILE, is_artifact, read_artifact
from tsm_jax.exporting.model_card import model_card
from tsm_jax.files import write_text
from tsm_jax.weights.hub import CARD_FILE, SCHEME, push_to_hub
from tsm_jax.weights.model_directory import (
    CONFIG_FILE,
    LABELS_FILE,
    WEIGHTS_FILE,
    fill_model_directory,
)

_FILES = (CONFIG_FILE, LABELS_FILE, WEIGHTS_FILE, CARD_FILE)


def push_weights(weights: str, repository: str, *, private: bool = False) -> str:
    """Uploads a model with its card, and returns the address of the repository's page.

    Args:
        weights: an exported folder, which is uploaded as it is; or anything else that
            `tsm_jax.load` accepts, which is converted to a model directory.
        repository: `owner/name`.
        private: whether the repository is private if it has to be created.

    Raises:
        UserError: there are no weights, or the hub does not accept them.
    """
    if is_artifact(weights):
        artifact = read_artifact(weights)
        for name in artifact.hashes:
            artifact.path(name)  # verifies its content
        files = (*_FILES, EXAMPLE_FILE, *artifact.hashes)
        return push_to_hub(weights, files, repository, private=private)
    model = load_model(weights)
    repository = repository.removeprefix(SCHEME)
    with tempfile.TemporaryDirectory(prefix="tsm_jax-") as folder:
        fill_model_directory(model, folder)
        title = repository.rpartition("/")[2]
        card = model_card(model, title=title, path=SCHEME + repository)
        write_text(os.path.join(folder, CARD_FILE), card)
        return push_to_hub(folder, _FILES, repository, private=private)
