"""The published weights by name, and how any remote file of weights becomes a local one."""

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

# The recipe whose data a published accuracy was measured on.
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
    """A published file of weights.

    Attributes:
        data: the data set it was trained for.
        segments: T that it is tested with; 0 for image networks.
        top1: published accuracies in percent, each with its protocol: one of
            `tsm_jax.data.protocols`, or `its own` where none here is the same.
        megabytes: of the file, where its publisher tells; else 0.
        note: why it cannot be used (`not supported: ...`), or what else to know.
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
        """The digits of the checksum that are published: the first eight, in the file's name."""
        if not self.name.startswith(("mmaction2/", "torchvision/")):
            return ""
        return re.search(r"[-_]([0-9a-f]{8})\.pth$", self.address)[1]  # pyright: ignore

    @property
    def is_supported(self) -> bool:
        return not self.note.startswith("not supported")

    @property
    def command(self) -> str:
        """What should give the first accuracy; how to start from an image network."""
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
    """zoo.tsv: PaddleVideo's, MIT's and mmaction2's model zoos, and torchvision's networks."""
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
    """The published weights for people: a block of lines each."""
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
    """Whether `text` is a name of the zoo or an address, rather than a path."""
    return text in ZOO or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def names_like(text: str) -> str:
    """For a message: names of the zoo that `text` may have meant."""
    alike = difflib.get_close_matches(text, ZOO, cutoff=0.5) or ["paddle/tsm_k400"]
    return f"there are {', '.join(alike)} and others: {typed('convert')} --list"


def fetch(name_or_url: str) -> Path:
    """The local copy of a published file, downloaded when it is first asked for.

    It is kept in `$TSM_JAX_CACHE`, by default `~/.cache/tsm_jax/weights`.

    Args:
        name_or_url: a name of `ZOO` or an https address.

    Raises:
        UserError: an unknown name, an address that is not https, a download that failed for
            good, or a copy that is no longer what was downloaded.
    """
    if not is_remote(name_or_url):
        raise UserError(
            f"{name_or_url}: no published weights of this name; {names_like(name_or_url)}"
        )
    known = ZOO.get(name_or_url)
    if known and not known.is_supported:
        raise UserError(f"{known.name}: {known.note}")
    url = known.address if known else name_or_url
    check_address(url, url)
    # A folder per address, since different addresses end in the same file name.
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
