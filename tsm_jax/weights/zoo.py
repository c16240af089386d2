"""Published weights by name, and the download of remote weight files."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tsm_jax.download import check_address, download
from tsm_jax.errors import UserError
from tsm_jax.terminal import progress_bar, typed

# The recipe for the data on which a published accuracy was measured.
_RECIPES = {
    "kinetics400": "tsm_k400_videos",
    "ucf101": "tsm_ucf101_videos",
    "hmdb51": "tsm_hmdb51_videos",
    "jester": "tsm_jester_frames",
    "diving48": "tsm_diving48_videos",
    "something_v1": "tsm_sthv1_frames",
    "something_v2": "tsm_sthv2_frames",
}


@dataclass(frozen=True)
class Published:
    """A published weight file.

    Attributes:
        data: the data set it was trained on.
        segments: number of segments T in its evaluation; 0 for image networks.
        top1: published accuracies in percent, each with its protocol: a name from
            `tsm_jax.data.protocols`, or `its own` if none of them matches.
        megabytes: size of the file if published, else 0.
        note: why it cannot be used (`not supported: ...`), or other remarks.
        address: its URL.
    """

    name: str
    data: str
    segments: int
    top1: tuple[tuple[float, str], ...]
    megabytes: float
    note: str
    address: str

    @property
    def sha256(self) -> str:
        """The first eight digits of the checksum, from the file name, or an empty string."""
        if not self.name.startswith(("mmaction2/", "torchvision/")):
            return ""
        return re.search(r"[-_]([0-9a-f]{8})\.pth$", self.address)[1]  # pyright: ignore

    @property
    def is_supported(self) -> bool:
        return not self.note.startswith("not supported")

    @property
    def command(self) -> str:
        """The command that should reproduce the first accuracy, or starts from an image network.

        Empty if there is none.
        """
        if not self.is_supported:
            return ""
        if self.data == "imagenet":
            return typed(f"train --config RECIPE --config.init_from={self.name}")
        if not self.top1 or self.data not in _RECIPES:
            return ""
        segments = f" --config.model.num_segments={self.segments}" if self.segments != 8 else ""
        return typed(
            f"evaluate --config {_RECIPES[self.data]} --weights {self.name}"
            f"{segments} --config.data.protocol={self.top1[0][1]}"
        )


def _read() -> dict[str, Published]:
    """Reads zoo.tsv: the model zoos of PaddleVideo, MIT and mmaction2, and torchvision networks."""
    lines = (resources.files("tsm_jax.weights") / "zoo.tsv").read_text("utf-8").splitlines()
    found = {}
    for line in lines[1:]:
        name, data, segments, top1, megabytes, note, address = line.split("\t")
        pairs = [pair.split(" ", 1) for pair in top1.split(", ") if pair]
        results = tuple((float(accuracy), protocol) for accuracy, protocol in pairs)
        found[name] = Published(
            name, data, int(segments or 0), results, float(megabytes or 0), note, address
        )
    return found


ZOO = _read()


def table() -> str:
    """Formats the published weights for the terminal, as a block of lines each."""
    blocks = []
    for entry in ZOO.values():
        facts = [entry.data, f"{entry.segments} segments" if entry.segments else ""]
        facts += [f"top-1 {accuracy:g} ({protocol})" for accuracy, protocol in entry.top1]
        facts += [f"{entry.megabytes:g} MB" if entry.megabytes else "size unknown"]
        facts += [f"SHA-256 {entry.sha256}..." if entry.sha256 else "", entry.note]
        lines = [entry.name, ", ".join(filter(None, facts)), entry.address, entry.command]
        blocks.append("\n    ".join(filter(None, lines)))
    return "\n".join(blocks)


MAX_BYTES = 2 * 2**30


def is_remote(text: str) -> bool:
    """Returns whether `text` is a name in the zoo or a URL, rather than a path."""
    return text in ZOO or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def names_like(text: str) -> str:
    """Returns a hint for messages with names from the zoo that are similar to `text`."""
    alike = difflib.get_close_matches(text, ZOO, cutoff=0.5) or ["paddle/tsm_k400"]
    return f"available names include {', '.join(alike)}; `{typed('convert')} --list` prints all"


def fetch(name_or_url: str) -> Path:
    """Returns the local path of a published file, which is downloaded on first use.

    Files are cached in `$TSM_JAX_CACHE`, by default `~/.cache/tsm_jax/weights`.

    Args:
        name_or_url: a name in `ZOO` or an https URL.

    Raises:
        UserError: the name is unknown or its weights are not supported, the URL is not https, the
            download failed, or the local copy has changed since it was downloaded.
    """
    if not is_remote(name_or_url):
        raise UserError(
            f"{name_or_url}: no published weights have this name; {names_like(name_or_url)}"
        )
    known = ZOO.get(name_or_url)
    if known and not known.is_supported:
        raise UserError(f"{known.name}: {known.note}")
    url = known.address if known else name_or_url
    check_address(url, url)
    # One folder per URL, because different URLs may end in the same file name.
    cache = Path(os.environ.get("TSM_JAX_CACHE") or "~/.cache/tsm_jax/weights").expanduser()
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "weights"
    path = cache / hashlib.sha256(url.encode()).hexdigest()[:12] / name
    with progress_bar(name, in_bytes=True) as update:
        return download(
            url,
            path,
            what="the weights",
            setting="TSM_JAX_CACHE",
            max_bytes=MAX_BYTES,
            sha256=known.sha256 if known else "",
            on_progress=update,
        )
