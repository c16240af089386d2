"""launch/kubernetes_jobset.yaml: every field is one that the APIs have, and they fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from manifest_fields import check

from tsm_jax.training import preemption, processes

FILE = Path(__file__).parents[2] / "launch" / "kubernetes_jobset.yaml"

# The fields of jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 that the file uses, with their types;
# `None` as a key stands for any name.
FIELD_REF = {"fieldRef": {"fieldPath": str}}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": FIELD_REF}],
    "resources": {"limits": {None: int}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "containers": [CONTAINER],
    "volumes": [
        {"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": str}}
    ],
}
FAILURE_RULE = {
    "action": str,
    "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
    "onPodConditions": [{"type": str, "status": str}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [FAILURE_RULE]},
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "coordinator": {"replicatedJob": str},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}


@pytest.fixture(scope="module")
def jobset():
    documents = list(yaml.safe_load_all(FILE.read_text()))
    assert len(documents) == 1
    return documents[0]


@pytest.fixture(scope="module")
def node(jobset):
    (node,) = jobset["spec"]["replicatedJobs"]
    return node


def test_every_field_exists(jobset):
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["kind"] == "JobSet"
    check(jobset, JOBSET, "")


def test_each_node_learns_its_place_from_jobset(jobset, node):
    assert jobset["spec"]["coordinator"] == {"replicatedJob": node["name"]}
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    environment = {item["name"]: item for item in container["env"]}

    def annotation(name):
        path = environment[name]["valueFrom"]["fieldRef"]["fieldPath"]
        return path.removeprefix("metadata.annotations['jobset.sigs.k8s.io/").removesuffix("']")

    assert annotation(processes.COUNT) == "replicatedjob-replicas"
    assert annotation(processes.INDEX) == "job-index"
    assert annotation("COORDINATOR_HOST") == "coordinator"
    assert environment[processes.ADDRESS]["value"].startswith("$(COORDINATOR_HOST):")
    # Kubernetes resolves $(NAME) only from what stands before it.
    names = list(environment)
    assert names.index("COORDINATOR_HOST") < names.index(processes.ADDRESS)
    # The job's index counts the nodes only if each job is one pod.
    job = node["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (1, 1)


def test_a_preempted_run_is_restarted_without_limit_and_an_error_is_not(jobset, node):
    job = node["template"]["spec"]
    pod = job["template"]["spec"]
    rules = job["podFailurePolicy"]["rules"]
    (container,) = pod["containers"]
    codes = next(rule["onExitCodes"] for rule in rules if "onExitCodes" in rule)
    assert codes == {
        "containerName": container["name"],
        "operator": "In",
        "values": [preemption.EXIT_CODE],
    }
    assert any("onPodConditions" in rule for rule in rules)
    assert all(rule["action"] == "FailJob" for rule in rules)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] > 0
    assert job["backoffLimit"] == 0  # a pod alone cannot join the others again
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy demands it
    assert pod["terminationGracePeriodSeconds"] >= 30


def test_the_workdir_is_on_the_volume_that_all_share(node):
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    (shared,) = (v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v)
    workdir = next(word for word in container["args"] if word.startswith("--config.workdir="))
    assert workdir.partition("=")[2].startswith(mounts[shared] + "/")
