"""Models on the Hugging Face Hub: `hf://owner/name`.

A repository contains the files of a model directory or an exported folder, with the model card as
README.md. Files are downloaded to the cache of `huggingface_hub` and read like local ones: JSON and
safetensors, never pickle.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tsm_jax.errors import UserError
from tsm_jax.files import read_json
from tsm_jax.terminal import printable
from tsm_jax.weights.model_directory import CONFIG_FILE, LABELS_FILE, WEIGHTS_FILE

SCHEME = "hf://"
CARD_FILE = "README.md"

_GRAPHS = ("model*.onnx", "model*.stablehlo")  # of an exported folder


def is_hub_address(text: str) -> bool:
    """Returns whether `text` is the address of a repository on the hub."""
    return text.startswith(SCHEME)


def fetch_from_hub(address: str) -> str:
    """Downloads a repository and returns its local path; cached files are not downloaded again.

    Args:
        address: `hf://owner/name`, or `hf://owner/name@revision` for a branch, a tag or a commit.

    Raises:
        UserError: huggingface_hub is not installed; the repository does not exist, is not
            accessible or cannot be downloaded; or it is not a tsm_jax model.
    """
    hub = _client(address)
    repository, _, revision = address.removeprefix(SCHEME).partition("@")
    wanted = [CONFIG_FILE, LABELS_FILE, WEIGHTS_FILE]
    with _one_line(address):
        # The config comes first: the files of another library's model may be huge.
        config = hub.hf_hub_download(repository, CONFIG_FILE, revision=revision or None)
        if "export" in _check_ours(config, address):
            wanted += _GRAPHS
        return hub.snapshot_download(repository, revision=revision or None, allow_patterns=wanted)


def push_to_hub(folder: str, files: Sequence[str], repository: str, *, private: bool) -> str:
    """Uploads files of a folder in one commit and returns the URL of the repository.

    Args:
        folder: a model directory or an exported folder.
        files: names of the files in `folder` to upload.
        repository: `owner/name`; created if it does not exist.
        private: whether a new repository is private.

    Raises:
        UserError: huggingface_hub is not installed; there is no token; the hub refuses; or the
            repository contains another library's model.
    """
    address = SCHEME + repository.removeprefix(SCHEME)
    repository = address.removeprefix(SCHEME)
    hub = _client(address)
    if hub.get_token() is None:
        raise UserError(f"{address}: no token for the hub: run `hf auth login` or set HF_TOKEN")
    with _one_line(address):
        page = hub.create_repo(repository, private=private, exist_ok=True)
        if hub.file_exists(repository, CONFIG_FILE):
            _check_ours(hub.hf_hub_download(repository, CONFIG_FILE), address)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Model of tsm_jax",
        )
    return str(page)


def _client(address: str) -> Any:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{address}: the hub requires {error.name}: pip install 'tsm-jax[hub]'"
        ) from error
    if not sys.stderr.isatty():  # progress bars would clutter a log
        from huggingface_hub.utils import (  # pyright: ignore[reportMissingImports]
            disable_progress_bars,
        )

        disable_progress_bars()
    return huggingface_hub


def _check_ours(config: str, address: str) -> dict[str, Any]:
    description = read_json(config, f"{CONFIG_FILE} of {address}:")
    if not isinstance(description, dict) or "format_version" not in description:
        raise UserError(
            f"{address} is not a tsm_jax model: its {CONFIG_FILE} has no format_version"
        )
    return description


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Converts errors of the client, which share no base class, to UserErrors of one line."""
    from huggingface_hub import errors  # pyright: ignore[reportMissingImports]

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address}: request access on its page, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{address}: the repository does not exist or is private: check the name, or run `hf"
            " auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{address}: cannot reach the hub, and the model is not in the cache"
            f" ({os.environ.get('HF_ENDPOINT', 'https://huggingface.co')})"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{address} is not a tsm_jax model: it has no {CONFIG_FILE}; `tsm push` writes one"
        ) from error
    except Exception as error:
        words = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise UserError(f"{address}: {printable(words)}") from error
