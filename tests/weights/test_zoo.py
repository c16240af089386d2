from __future__ import annotations

import io
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tsm_jax.cli import recipe_path
from tsm_jax.data.protocols import PROTOCOLS
from tsm_jax.download import check_address
from tsm_jax.errors import UserError
from tsm_jax.weights import zoo
from tsm_jax.weights.foreign_models import told_by_name
from tsm_jax.weights.zoo import ZOO, fetch, is_remote, names_like


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TSM_JAX_CACHE", str(tmp_path))


def answer(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"hello")


def test_the_published_addresses():
    tsm = "https://videotag.bj.bcebos.com/PaddleVideo-release2.1/TSM/"
    assert ZOO["paddle/tsm_k400"].address == tsm + "TSM_k400.pdparams"
    assert ZOO["paddle/tsm_ucf101_amp_nhwc"].address == tsm + "TSM_ucf101_amp_nhwc.pdparams"
    families = Counter(name.partition("/")[0] for name in ZOO)
    # 14 of MIT, and 36 of mmaction2 0.x and 12 of 1.x, as listed in their model zoos.
    assert (families["mit"], families["mmaction2"], families["torchvision"]) == (14, 48, 10)
    assert sum("/v1.0/" in entry.address for entry in ZOO.values()) == 12
    assert len({entry.address for entry in ZOO.values()}) == len(ZOO)
    ported = "mmaction2/tsm_mobilenetv2_dense_1x1x8_kinetics400_rgb_port_20210922-aa5cadf6"
    assert (ZOO[ported].sha256, ZOO[ported].top1[0][0]) == ("aa5cadf6", 69.89)


@pytest.mark.parametrize("name", ZOO)
def test_an_entry_is_usable(name):
    entry = ZOO[name]
    assert is_remote(name) and check_address(entry.address, entry.address) is None
    assert entry.address.endswith((".pdparams", ".pth", ".pth.tar"))
    assert len(entry.sha256) == (8 if name.startswith(("mmaction2", "torchvision")) else 0)
    for accuracy, protocol in entry.top1:
        assert 40 < accuracy < 98 and protocol in (*PROTOCOLS, "its own")
    command = entry.command.split()
    assert "evaluate" not in entry.command or recipe_path(command[command.index("--config") + 1])
    assert bool(command) == (entry.is_supported and bool(entry.top1 or entry.data == "imagenet"))
    if "evaluate" in entry.command:
        assert f"--config.data.protocol={entry.top1[0][1]}" in command
        assert entry.segments == 8 or f"--config.model.num_segments={entry.segments}" in command


@pytest.mark.parametrize("name", [name for name in ZOO if name.startswith(("mit", "mmaction2"))])
def test_facts_in_published_file_names(name):
    """Facts inferred from the name of a published file agree with the table."""
    entry = ZOO[name]
    facts = told_by_name(entry.address.rpartition("/")[2])
    assert facts.data == entry.data
    if facts.num_segments != entry.segments:
        assert "TSN" in entry.note or "streams" in entry.note


def test_commands_are_quoted_as_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tsm", "convert"])
    assert ZOO["paddle/tsm_k400"].command.startswith("tsm evaluate --config tsm_k400_videos ")
    assert ZOO["torchvision/resnet50"].command.startswith("tsm train ")
    assert names_like("paddle/tsm_k401").endswith("`tsm convert --list` prints all")


def test_pptsm_uses_other_views_than_tsm():
    """Its recipes sample without `select_left` and scale to 4:3, like `tools/predict.py`."""
    protocols = {p for e in ZOO.values() if "/pptsm" in e.name for _, p in e.top1}
    assert protocols == {"paddle_predict", "paddle_dense"}
    assert ZOO["paddle/tsm_k400"].top1 == ((71.06, "test"),)


def test_a_file_with_another_checksum_is_deleted(server, tmp_path, monkeypatch):
    server.answer = answer  # its SHA-256 begins with 2cf24dba
    name = "torchvision/resnet50"
    for digits, is_right in (("0676ba61", False), ("2cf24dba", True)):
        address = server.url.rpartition("/")[0] + f"/resnet50-{digits}.pth"
        monkeypatch.setitem(ZOO, name, replace(ZOO[name], address=address))
        if is_right:
            assert fetch(name).read_bytes() == b"hello"
        else:
            with pytest.raises(UserError, match="begins with 2cf24dba instead of 0676ba61"):
                fetch(name)
            assert not list(tmp_path.rglob("*.pth*[!k]"))


@pytest.mark.parametrize(
    "text, remote",
    [
        ("https://example.com/x", True),
        ("http://localhost/x", True),
        ("ftp://example.com/x", True),
        ("paddle/tsm_k400", True),
        ("paddle/other", False),
        ("models/tsm_k400", False),
        ("/data/TSM_k400.pdparams", False),
        ("C:\\weights\\x.pdparams", False),
        ("", False),
    ],
)
def test_is_remote(text, remote):
    assert is_remote(text) is remote


def test_fetch(server, tmp_path):
    server.answer = answer
    path = fetch(server.url)
    assert path.read_bytes() == b"hello"
    assert path.name == "weights.pdparams" and path.parent.parent == tmp_path
    assert fetch(server.url) == path
    assert len(server.requests) == 1


def test_fetch_by_name(server, monkeypatch):
    server.answer = answer
    entry = replace(ZOO["paddle/tsm_k400"], address=server.url)
    monkeypatch.setitem(ZOO, entry.name, entry)
    assert fetch("paddle/tsm_k400").read_bytes() == b"hello"


def test_equal_file_names_of_different_addresses(server):
    server.answer = answer
    assert fetch(server.url) != fetch(server.url + "?v=2")
    assert len(server.requests) == 2


def test_the_size_limit_is_passed_on(server, monkeypatch):
    assert zoo.MAX_BYTES == 2 * 2**30
    monkeypatch.setattr(zoo, "MAX_BYTES", 4)
    server.answer = answer
    with pytest.raises(UserError, match="larger than 4 bytes"):
        fetch(server.url)


def test_cache_from_the_environment(server, tmp_path, monkeypatch):
    server.answer = answer
    monkeypatch.setenv("TSM_JAX_CACHE", str(tmp_path / "chosen"))
    assert fetch(server.url).is_relative_to(tmp_path / "chosen")
    monkeypatch.delenv("TSM_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch(server.url).is_relative_to(tmp_path / "home/.cache/tsm_jax/weights")


def test_unknown_name():
    with pytest.raises(UserError, match=r"paddle/tsm_x: no published weights.*paddle/tsm_k400"):
        fetch("paddle/tsm_x")


@pytest.mark.parametrize(
    "end", ["..", "%2e%2e%2fx", ".hidden", "", "a%00b", "a/../../b", "x" * 300]
)
def test_no_url_escapes_the_cache(server, tmp_path, end):
    server.answer = answer
    path = fetch(server.url.rpartition("/")[0] + "/" + end)
    assert path.resolve().parent.parent == tmp_path
    assert not path.name.startswith(".") and len(path.name) <= 100


def test_a_malformed_address():
    with pytest.raises(UserError, match=r"https://\[::1/x.*not an https URL"):
        fetch("https://[::1/x")


def test_progress_bar_only_on_a_terminal(server, monkeypatch, capsys):
    server.answer = answer
    fetch(server.url)
    assert capsys.readouterr().err == ""
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(server.url + "?again")
    assert "weights.pdparams" in terminal.getvalue()
