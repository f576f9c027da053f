"""The launch scripts: what they would run, without a cluster to run it on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
TPU = {"TPU_NAME": "n", "TPU_ZONE": "z", "TPU_TYPE": "v6e-64", "TPU_RUNTIME": "r"}
K8S = {"NAME": "blur", "HOSTS": "4", "IMAGE": "i", "CLAIM": "c"}
# What must arrive as it is.
ARGUMENTS = ["--config=configs/vit_mask.py:folder", "--config.data.dir=it's a folder"]


def bash(script, *arguments, **variables):
    done = subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=os.environ | {"BVIT_PYTHON": "python3", "BVIT_REPO": "r", "BVIT_REF": "c"} | variables,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean():
    done = subprocess.run(
        ["shellcheck", "--external-sources", *map(str, SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_no_script_sets_a_hyperparameter():
    for script in [*SCRIPTS, LAUNCH / "k8s" / "jobset.yaml"]:
        code = [line for line in script.read_text().splitlines() if not line.startswith("#")]
        assert "--config." not in "\n".join(code), script


def test_local_starts_a_process_for_each_id():
    code, out, _ = bash("local.sh", "--dry-run", "2", "4", "--", *ARGUMENTS)
    assert code == 0
    first, second = out.splitlines()
    assert "device_count=4" in first and "--process_id=0" in first and ARGUMENTS[1] in first
    assert second == first.replace("--process_id=0", "--process_id=1")


@pytest.mark.parametrize("arguments", [[], ["2"], ["0", "4", "--"], ["2", "4", "--config=x"]])
def test_local_says_how_it_is_used(arguments):
    code, out, err = bash("local.sh", *arguments)
    assert code == 2 and not out
    assert "PROCESSES DEVICES --" in err


def test_slurm_leaves_finding_each_other_to_jax():
    code, out, _ = bash("slurm.sbatch", "--dry-run", *ARGUMENTS, SLURM_JOB_ID="7")
    assert code == 0
    assert out.startswith("srun ") and "-m bvit.main" in out and ARGUMENTS[1] in out
    assert "requeue" not in out


@pytest.mark.parametrize("code", [0, 1, 143])
def test_slurm_requeues_a_run_that_was_asked_to_stop_and_nothing_else(tmp_path, code):
    calls = tmp_path / "calls"
    for name, end in (("srun", code), ("scontrol", 0)):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\necho "{name} $*" >>{calls}\nexit {end}\n')
        stub.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert bash("slurm.sbatch", *ARGUMENTS, SLURM_JOB_ID="7", PATH=path)[0] == code
    assert ("scontrol requeue 7" in calls.read_text()) == (code == 143)


def test_tpu_asks_for_a_slice_and_runs_on_all_of_its_hosts():
    code, out, err = bash("tpu_pod.sh", "--dry-run", "--spot", *ARGUMENTS, **TPU)
    assert code == 0, err
    assert "queued-resources create n --zone=z" in out and "--spot" in out
    assert out.count("--worker=all") == 2
    assert r"--config.data.dir=it\'s\ a\ folder" in out


@pytest.mark.parametrize("script, variables", [("tpu_pod.sh", TPU), ("k8s/run.sh", K8S)])
def test_what_is_not_set_is_named(script, variables):
    for name in variables:
        code, _, err = bash(script, "--dry-run", **variables | {name: ""})
        assert code == 2 and f"set {name}" in err


def test_kubernetes_gets_a_manifest_of_as_many_hosts():
    yaml = pytest.importorskip("yaml")
    code, out, err = bash("k8s/run.sh", "--dry-run", *ARGUMENTS, **K8S)
    assert code == 0, err
    assert "${" not in out.split("apiVersion")[1]
    job = yaml.safe_load(out)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    [container] = job["template"]["spec"]["containers"]
    assert container["args"][-2:] == ARGUMENTS
    # The name that JobSet gives the first pod, <set>-<job>-<replica>-<index>.<set>.
    assert container["args"][0] == "--coordinator=blur-hosts-0-0.blur:8476"
