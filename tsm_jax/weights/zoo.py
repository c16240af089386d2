"""The published weights by name, and how any remote file of weights becomes a local one."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tsm_jax.download import OnProgress, check_address, download
from tsm_jax.errors import UserError
from tsm_jax.terminal import progress_bar

_TSM = "https://videotag.bj.bcebos.com/PaddleVideo-release2.1/TSM"
_PRETRAINED = "https://videotag.bj.bcebos.com/PaddleVideo/PretrainModel"

# PaddleVideo's model zoo: docs/en/model_zoo/recognition/tsm.md
ZOO = {
    "paddle/tsm_k400": f"{_TSM}/TSM_k400.pdparams",
    "paddle/tsm_ucf101_nchw": f"{_TSM}/TSM_ucf101_nchw.pdparams",
    "paddle/tsm_ucf101_amp_nchw": f"{_TSM}/TSM_ucf101_amp_nchw.pdparams",
    "paddle/tsm_ucf101_amp_nhwc": f"{_TSM}/TSM_ucf101_amp_nhwc.pdparams",
    "paddle/resnet50_imagenet": f"{_PRETRAINED}/ResNet50_pretrain.pdparams",
}
MAX_BYTES = 2 * 2**30


def is_remote(text: str) -> bool:
    """Whether `text` is a name of the zoo or an address, rather than a path."""
    return text in ZOO or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def fetch(
    name_or_url: str,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    on_progress: OnProgress | None = None,
) -> Path:
    """The local copy of a published file, downloaded when it is first asked for.

    Args:
        name_or_url: a name of `ZOO` or an https address.
        cache_dir: by default `$TSM_JAX_CACHE`, else `~/.cache/tsm_jax/weights`.
        on_progress: by default a progress bar where stderr is a terminal.

    Raises:
        UserError: an unknown name, an address that is not https, a download that failed for
            good, or a copy that is no longer what was downloaded.
    """
    url = _url(name_or_url)
    check_address(url, url)
    path = _cache_path(url, Path(cache_dir) if cache_dir else _default_cache())
    with progress_bar(path.name, in_bytes=True) as update:
        return download(
            url,
            path,
            what="the weights",
            setting="TSM_JAX_CACHE",
            max_bytes=max_bytes,
            on_progress=on_progress or update,
        )


def _url(name_or_url: str) -> str:
    if name_or_url in ZOO:
        return ZOO[name_or_url]
    if is_remote(name_or_url):
        return name_or_url
    raise UserError(f"{name_or_url}: no published weights of this name; there are {', '.join(ZOO)}")


def _default_cache() -> Path:
    chosen = os.environ.get("TSM_JAX_CACHE")
    return Path(chosen).expanduser() if chosen else Path("~/.cache/tsm_jax/weights").expanduser()


def _cache_path(url: str, cache_dir: Path) -> Path:
    """A folder per address, since different addresses end in the same file name."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "weights"
    return cache_dir / hashlib.sha256(url.encode()).hexdigest()[:12] / name
