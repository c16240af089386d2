"""launch/ for machines that are not here: syntax, structure, and dry runs with recorded commands.

The commands are stand-ins in a PATH of its own, so that no real cluster can be reached.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ["slurm.sbatch", "cloud_tpu.sh"]
TO_FILL_IN = {"slurm.sbatch": 2, "cloud_tpu.sh": 2, "kubernetes_jobset.yaml": 2}
TOOLS = ("bash", "env", "dirname", "mktemp", "rm", "git", "tar", "gzip", "cat", "sleep", "mkdir")


@pytest.fixture
def dry_run(tmp_path):
    """Runs a filled-in copy of a script where the cluster's commands only record what they get."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path, tool
        (commands / tool).symlink_to(path)

    def run(name, fakes, arguments=(), variables=(), **filled_in):
        text = (LAUNCH / name).read_text()
        for before, after in filled_in.items():
            assert text.count(f"{before}=FILL_IN\n") == 1
            text = text.replace(f"{before}=FILL_IN\n", f"{before}={after}\n")
        script = tmp_path / "launch" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(text)
        for fake, body in fakes.items():
            path = commands / fake
            path.write_text(
                f'#!/bin/bash\nprintf "{fake}" >> {tmp_path}/record\n'
                f'printf " %q" "$@" >> {tmp_path}/record\necho >> {tmp_path}/record\n{body}\n'
            )
            path.chmod(0o755)
        result = subprocess.run(
            ["bash", script, *arguments],
            env={"PATH": str(commands), "HOME": str(tmp_path), **dict(variables)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        record = tmp_path / "record"
        return result, record.read_text().splitlines() if record.exists() else []

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_pass_shellcheck(name):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", LAUNCH / name], check=True)


@pytest.mark.parametrize("name, count", TO_FILL_IN.items())
def test_what_has_to_be_filled_in_is_marked(name, count):
    lines = (LAUNCH / name).read_text().splitlines()
    values = [i for i, line in enumerate(lines) if re.search(r"[=:] ?FILL_IN$", line)]
    marks = [i for i, line in enumerate(lines) if re.search(r"# FILL IN (\d) of 2: .", line)]
    assert len(values) == len(marks) == count
    assert [mark + 1 for mark in marks] == values


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_no_hyper_parameters(path):
    text = path.read_text()
    allowed = {"workdir"}
    assert set(re.findall(r"--config\.([\w.]+)", text)) <= allowed
    assert not re.search(r"learning_rate|batch_size|epochs|momentum|weight_decay", text)


def test_slurm_directives():
    text = (LAUNCH / "slurm.sbatch").read_text()
    head, _, script = text.partition("\nset -uo pipefail\n")
    assert "#SBATCH" not in script  # sbatch reads none behind the first command
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert len(directives) == head.count("#SBATCH")
    # One process per GPU, and jax takes the process's number for its GPU's: each must see all.
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    assert "gpus-per-task" not in directives
    assert "requeue" in directives
    name, _, seconds = directives["signal"].partition("@")
    assert name == "USR1"
    assert int(seconds) >= 60


@pytest.mark.parametrize("code, requeued", [(0, False), (1, False), (75, True), (137, False)])
def test_slurm_runs_one_step_and_requeues_what_was_preempted(dry_run, tmp_path, code, requeued):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    result, record = dry_run(
        "slurm.sbatch",
        {"srun": f"exit {code}", "scontrol": ""},
        ["--config", "a b.py"],
        {"SLURM_CPUS_PER_TASK": "6", "SLURM_JOB_ID": "42"},
        environment=str(tmp_path / "venv"),
    )
    step = record[0].split()
    assert step[0] == "srun"
    assert "--cpus-per-task=6" in step
    assert any(word.startswith("--wait=") for word in step)
    assert record[0].endswith(r"python -u -m tsm_jax.train --config a\ b.py")
    assert record[1:] == (["scontrol requeue 42"] if requeued else [])
    assert result.returncode == (0 if requeued else code)


def test_slurm_without_its_environment_starts_nothing(dry_run):
    result, record = dry_run("slurm.sbatch", {"srun": ""}, environment="/nowhere")
    assert result.returncode == 1
    assert record == []


def test_cloud_tpu_copies_installs_and_runs_on_every_host(dry_run, tmp_path):
    (tmp_path / "train.py").write_text("")
    (tmp_path / "checkpoint").write_text("not for the hosts")
    for command in (["init", "-q"], ["add", "train.py"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    keep = f'[ "$4" = scp ] && tar -tzf "$5" > {tmp_path}/copied; exit 0'
    result, record = dry_run(
        "cloud_tpu.sh", {"gcloud": keep}, ["--config", "a b.py"], tpu="my-tpu", zone="here-1"
    )
    assert result.returncode == 0, result.stderr
    assert [line.split()[4] for line in record] == ["scp", "ssh", "ssh"]
    assert all("--zone=here-1" in line and "--worker=all" in line for line in record)
    assert (tmp_path / "copied").read_text() == "train.py\n"
    # What the hosts would run, run here: with a train that is preempted once.
    remote = subprocess.run(
        ["bash", "-c", 'shift; eval set -- "$1"; echo "${@: -1}"', "", "", record[2]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.removeprefix("--command=")
    python = tmp_path / "tsm_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/bash\nprintf "%s|" "$@" >> ran\n[ -e once ]; code=$?\ntouch once\n'
        "exit $((code ? 75 : 3))\n"
    )
    python.chmod(0o755)
    run = subprocess.run(["bash", "-c", f"sleep() {{ :; }}; {remote}"], cwd=tmp_path, check=False)
    assert run.returncode == 3
    once = "-u|-m|tsm_jax.train|--config|a b.py|"
    assert (tmp_path / "tsm_jax" / "ran").read_text() == 2 * once


@pytest.mark.parametrize("arguments", [[], ["--config", "a.py"]])
def test_cloud_tpu_says_what_is_missing(dry_run, arguments):
    names = {} if arguments else {"tpu": "my-tpu", "zone": "here-1"}
    result, record = dry_run("cloud_tpu.sh", {"gcloud": ""}, arguments, **names)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert record == []


def instructions():
    """The Dockerfile's instructions, comments and continuations resolved."""
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_copies_what_exists_and_is_not_ignored():
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    copied = [what.split()[:-1] for name, what in instructions() if name == "COPY"]
    sources = [source for group in copied for source in group]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored
    needed = {"setup.py", "README.md", "tsm_jax", "configs"}  # setup.py reads README.md
    assert needed <= set(sources)
    names = [name for name, _ in instructions()]
    assert "COPY" not in names[names.index("RUN") :]  # what is installed has to be there before


def test_the_image_installs_an_extra_that_exists_and_starts_python_itself():
    steps = instructions()
    assert steps[0][0] == "FROM"
    assert {name for name, _ in steps} <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENTRYPOINT"}
    default = next(what for name, what in steps if name == "ARG").partition("=")[2]
    assert default in importlib.metadata.metadata("tsm-jax").get_all("Provides-Extra", [])
    assert steps[-1] == ("ENTRYPOINT", '["python", "-u", "-m", "tsm_jax.train"]')
