"""launch/serve.Dockerfile and kubernetes_serve.yaml: what they say fits the service."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

from tsm_jax import serve

pytest.importorskip("starlette", reason="the extra serve is not installed")

ROOT = Path(__file__).parents[2]
IMAGE = (ROOT / "launch" / "serve.Dockerfile").read_text()


@pytest.fixture(scope="module")
def manifest():
    documents = yaml.safe_load_all((ROOT / "launch" / "kubernetes_serve.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(manifest):
    return manifest["Deployment"]["spec"]["template"]["spec"]


IMPORT = """
import sys
from tsm_jax import cli, serve
from tsm_jax.deploy import onnx_engines
import tsm_jax.serving.server
if "onnxruntime" in {engines!r}:
    onnx_engines.gpu_providers()
if "openvino" in {engines!r}:
    onnx_engines.has_bfloat16()
cli.run(serve.main, ["--model", "none", "--port", "0"])
"""


def test_the_image_has_the_packages_that_the_service_imports(run_with_only):
    installed = {
        re.match(r"[\w-]+", each)[0].lower() for each in re.findall(r'"([^"]+>=[^"]+)"', IMAGE)
    }
    required = [
        each for each in importlib.metadata.requires("tsm-jax") or [] if "extra ==" not in each
    ]
    left_out = {re.match(r"[\w-]+", each)[0].lower() for each in required} - installed
    names = importlib.metadata.packages_distributions()
    blocked = {
        module
        for module, distributions in names.items()
        if all(each.lower() in left_out for each in distributions)
    }
    assert {"jax", "flax", "optax", "matplotlib"} <= blocked
    engines = [name for name in ("onnxruntime", "openvino") if name in names]
    result = run_with_only(IMPORT.format(engines=engines), blocked=tuple(blocked))
    assert result.stderr == "error: none is not an exported folder: write one with tsm export\n"


def test_the_image_runs_as_nobody_and_without_a_shell():
    lines = IMAGE.splitlines()
    assert "USER 10001" in lines
    assert lines[-1].startswith('ENTRYPOINT ["python"')
    assert any(line.startswith("HEALTHCHECK") for line in lines) and "/healthz" in IMAGE
    ignored = (ROOT / "launch" / "serve.Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (.+) \S+$", IMAGE, re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists() and f"!{source}" in ignored


def test_the_arguments_are_those_of_the_service(pod):
    (container,) = pod["containers"]
    entry = re.findall(r'"([^"]*)"', IMAGE.splitlines()[-1])
    options = serve._parser().parse_args([*entry[entry.index("serve") + 1 :], *container["args"]])
    serve._check(options)
    assert options.decoders == int(container["resources"]["limits"]["cpu"])
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + options.drain_seconds
    (uploads,) = [volume for volume in pod["volumes"] if volume["name"] == "uploads"]
    assert int(uploads["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024 > options.max_storage_mb
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts.keys() >= {options.model, "/tmp", str(Path(options.token_file).parent)}
    assert {mount["name"] for mount in mounts.values()} == {each["name"] for each in pod["volumes"]}


def test_probes_rights_and_disruptions(manifest, pod):
    (container,) = pod["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")
    }
    assert paths == {"readiness": "/readyz", "liveness": "/healthz"}
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifest["Service"]["spec"]["selector"] == labels
    budget = manifest["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] < manifest["Deployment"]["spec"]["replicas"]
