"""Models on the Hugging Face Hub, tested with a local stand-in."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub

import tsm_jax
from tsm_jax import push
from tsm_jax.assemble.weights import load_model
from tsm_jax.errors import UserError
from tsm_jax.weights.model_directory import write_model_directory


def forget_client():
    """Unloads the client, which reads its URLs and folders when it is imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    home, server = tmp_path_factory.mktemp("hub"), Hub()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        forget_client()
        yield server
    server.close()
    forget_client()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")


def test_push_and_load_round_trip(hub, token, model, tmp_path, capsys):
    write_model_directory(model, str(tmp_path / "model"))
    push.main([str(tmp_path / "model"), "somebody/tsm", "--private"])
    assert f"to {hub.url}/somebody/tsm" in capsys.readouterr().out
    (created,) = hub.created
    assert created.get("private") or created["visibility"] == "private"
    files = hub.repositories["somebody/tsm"]
    assert sorted(files) == ["README.md", "config.json", "labels.txt", "model.safetensors"]
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: tsm-jax\npipeline_tag: video-classification\n")
    assert "hf://somebody/tsm" in card
    files["training.log"] = b"not ours"
    again = load_model("hf://somebody/tsm@main")
    assert (again.architecture, again.preprocessing) == (model.architecture, model.preprocessing)
    assert again.labels == model.labels
    assert again.tensors.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert sorted(hub.downloads) == ["config.json", "labels.txt", "model.safetensors"]
    load_model("hf://somebody/tsm")  # from the cache
    assert len(hub.downloads) == 3
    push.main([str(tmp_path / "model"), "hf://somebody/tsm"])  # again, to the same repository


def test_an_exported_folder_keeps_its_graphs(hub, token, tmp_path, clips):
    with tarfile.open(Path(__file__).parent / "compat" / "version1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    exported = tmp_path / "exported"
    (exported / "secret.txt").write_text("not of the model")
    push.main([str(exported), "somebody/exported"])
    pushed = hub.repositories["somebody/exported"].keys()
    assert {"model.stablehlo", "model.onnx", "labels.txt", "README.md"} <= pushed
    assert "secret.txt" not in pushed
    there, here = tsm_jax.load("hf://somebody/exported"), tsm_jax.load(exported)
    assert there.engine.name == here.engine.name
    assert there.predict(clips[0]) == here.predict(clips[0])


@pytest.mark.parametrize(
    "address, message",
    [
        ("hf://nobody/nothing", "the repository does not exist or is private"),
        ("hf://other/kind@v2", "the repository has no such revision"),
        ("hf://other/kind", "not a tsm_jax model: its config.json has no format_version"),
        ("hf://other/empty", "is not a tsm_jax model: it has no config.json"),
        ("hf://a/b/c", "Repo id must be"),
    ],
)
def test_load_errors_are_one_line(hub, address, message):
    hub.repositories["other/kind"] = {"config.json": b'{"model_type": "bert"}'}
    hub.repositories["other/empty"] = {"README.md": b"nothing"}
    before = len(hub.downloads)
    with pytest.raises(UserError, match=message) as error:
        tsm_jax.load(address)
    assert "\n" not in str(error.value)
    assert address in str(error.value)
    assert "model.safetensors" not in hub.downloads[before:]


def test_push_errors_are_one_line(hub, model, tmp_path, monkeypatch):
    write_model_directory(model, str(tmp_path / "model"))
    arguments = [str(tmp_path / "model"), "other/kind"]
    with pytest.raises(
        UserError, match="hf://other/kind: no token for the hub: run `hf auth login`"
    ):
        push.main(arguments)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    hub.repositories["other/kind"] = {"config.json": b'{"model_type": "bert"}'}
    with pytest.raises(UserError, match="its config.json has no format_version"):
        push.main(arguments)
    assert list(hub.repositories["other/kind"]) == ["config.json"]
    with pytest.raises(UserError, match="there are no weights at nowhere"):
        push.main(["nowhere", "other/kind"])


def test_an_unreachable_hub_is_a_one_line_error(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget_client()
    try:
        with pytest.raises(UserError, match="hf://a/b: cannot reach the hub") as error:
            tsm_jax.load("hf://a/b")
        assert "\n" not in str(error.value)
    finally:
        forget_client()


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"hf://a/b: the hub requires huggingface_hub: pip install 't"
    ):
        tsm_jax.load("hf://a/b")
