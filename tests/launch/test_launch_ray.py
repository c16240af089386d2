"""launch/kubernetes_ray.yaml and ray.sbatch: fields that exist, commands that the parsers take."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from manifest_fields import check

from tsm_jax import prepare
from tsm_jax.errors import UserError

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

# The fields of ray.io/v1 and core/v1 that the file uses, with their types; `None` as a key stands
# for any name.
SIZES = {"cpu": str, "memory": str}
CONTAINER = {
    "name": str,
    "image": str,
    "env": [{"name": str, "value": str}],
    "resources": {"requests": SIZES, "limits": SIZES},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
TEMPLATE = {"spec": {"containers": [CONTAINER], "volumes": [VOLUME]}}
GROUP = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": {None: str},
    "template": TEMPLATE,
}
RAYJOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": {
            "headGroupSpec": {"rayStartParams": {None: str}, "template": TEMPLATE},
            "workerGroupSpecs": [GROUP],
        },
    },
}


def parse(words):
    """Has `prepare` parse a command, which then fails for want of the list and of nothing else."""
    assert words[0] == "prepare"
    with pytest.raises(UserError, match=r"cannot read the list .*: No such file"):
        prepare.main(words[1:])


@pytest.fixture(scope="module")
def job():
    (document,) = yaml.safe_load_all((LAUNCH / "kubernetes_ray.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def sbatch():
    return (LAUNCH / "ray.sbatch").read_text()


def test_every_field_exists(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check(job, RAYJOB)


def test_the_entrypoint_is_a_command_of_ours_on_this_cluster(job):
    python, unbuffered, module, package, *words = shlex.split(job["spec"]["entrypoint"])
    assert [python, unbuffered, module, package] == ["python", "-u", "-m", "tsm_jax"]
    assert words[-2:] == ["--ray", "auto"]
    parse(words)


def test_all_nodes_see_the_same_files_and_end_a_file_before_a_neighbour(job):
    cluster = job["spec"]["rayClusterSpec"]
    (others,) = cluster["workerGroupSpecs"]
    assert others["template"] == cluster["headGroupSpec"]["template"]
    pod = others["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    (shared,) = (v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v)
    words = shlex.split(job["spec"]["entrypoint"])
    for option in ("--list", "--prefix", "--output"):
        assert words[words.index(option) + 1].startswith(mounts[shared] + "/")
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment == {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    # Ray goes by the limits, Kubernetes by the requests.
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert others["minReplicas"] == others["replicas"] == others["maxReplicas"] > 0


def test_the_extra_of_the_image_has_what_kuberay_talks_to(job):
    text = (LAUNCH / "kubernetes_ray.yaml").read_text()
    extra = re.search(r"--build-arg ACCELERATOR=(\S+)", text)[1]
    extras = re.search(r"extras_require=\{(.*?)\n    \},", (ROOT / "setup.py").read_text(), re.S)[1]
    assert re.search(rf'"{extra}": \["ray\[default\]>=', extras)
    assert "ARG ACCELERATOR=" in (LAUNCH / "Dockerfile").read_text()


def test_sbatch_parses_and_its_directives_stand_first(sbatch):
    subprocess.run(["bash", "-n", LAUNCH / "ray.sbatch"], check=True)
    head, _, script = sbatch.partition("\nset -uo pipefail\n")
    assert "#SBATCH" not in script
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert len(directives) == head.count("#SBATCH")
    assert directives["ntasks-per-node"] == "1"  # Ray is started once on each


@pytest.mark.parametrize("name", ["kubernetes_ray.yaml", "ray.sbatch"])
def test_what_has_to_be_filled_in_is_marked(name):
    lines = (LAUNCH / name).read_text().splitlines()
    values = [i for i, line in enumerate(lines) if re.search(r"[=:] ?FILL_IN$", line)]
    marks = [i for i, line in enumerate(lines) if re.search(r"# FILL IN (\d) of 2: .", line)]
    assert len(values) == len(marks) == 2
    assert [mark + 1 for mark in marks] == values


def test_sbatch_starts_ray_once_on_each_node_and_the_command_on_the_first(sbatch, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text("#!/bin/bash\nprintf 'n1\\nn2\\nn3\\n'\n")
    (commands / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/srun; exit 3\n')
    for path in commands.iterdir():
        path.chmod(0o755)
    (tmp_path / "activate").touch()
    script = tmp_path / "ray.sbatch"
    filled = sbatch.replace("environment=FILL_IN\n", f"environment={tmp_path}\n")
    script.write_text(filled.replace('"$environment/bin/activate"', '"$environment/activate"'))
    arguments = ["prepare", "pack", "--source", "videos", "--list", "/no/a b.list", "--output", "o"]
    result = subprocess.run(
        ["bash", script, *arguments],
        env={
            "PATH": f"{commands}:/usr/bin:/bin",
            "SLURM_CPUS_PER_TASK": "6",
            "SLURM_JOB_ID": "1234567",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_JOB_NUM_NODES": "3",
        },
        timeout=60,
    )
    assert result.returncode == 3
    words = (tmp_path / "srun").read_text().splitlines()
    split = words.index("--")
    assert words[:split] == [
        *("--cpus-per-task=6", "ray", "symmetric-run", "--address", "n1:24567"),
        *("--min-nodes", "3", "--num-cpus=6"),
    ]
    command = words[split + 1 :]
    assert command[:4] == ["python", "-u", "-m", "tsm_jax"]
    assert command[4:] == [*arguments, "--ray", "n1:24567"]
    parse(command[4:])


def test_ray_has_this_way_to_start():
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'tsm-jax[ray]'")
    source = Path(importlib.util.find_spec("ray").origin).parent / "scripts" / "symmetric_run.py"
    assert all(word in source.read_text() for word in ('"--address"', '"--min-nodes"'))
