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
        cwd=ROOT,
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


@pytest.mark.parametrize("relative", [False, True])
def test_the_environment_may_lie_anywhere(tmp_path, relative):
    interpreter = tmp_path / "python"
    interpreter.write_text("""#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
""")
    interpreter.chmod(0o755)
    venv = tmp_path / "environment"
    done = subprocess.run(
        ["bash", "-c", "source launch/environment.sh && command -v python"],
        cwd=ROOT,
        env=os.environ
        | {
            "BVIT_PYTHON": str(interpreter),
            "BVIT_VENV": os.path.relpath(venv, ROOT) if relative else str(venv),
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.splitlines()[-1] == str(venv / "bin" / "python"), done.stderr


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


SWEEP = [
    "runs/cnn",
    "model=resnet18 hf:timm/x",
    "seed=0 1",
    "--",
    "--config=c.py:{model}",
    "s={seed}",
]
# Stands in for the interpreter: notes its arguments, and ends as the seed says.
STUB = """#!/bin/bash
echo "$*" >>"$CALLS"
for end in $ENDS; do [[ "$*" != *"s=${end%:*} "* ]] || exit "${end#*:}"; done
"""


def sweep(tmp_path, *arguments, ends=""):
    """The exit code of a sweep, the arguments of each run, and what was told."""
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    variables = {"CALLS": str(calls), "ENDS": ends, "BVIT_PYTHON": str(tmp_path / "python")}
    code, _, err = bash("sweep.sh", *arguments, **variables)
    return code, calls.read_text().splitlines(), err


def test_a_sweep_runs_all_combinations_each_in_its_directory(tmp_path):
    code, calls, err = sweep(tmp_path, *SWEEP)
    assert code == 0 and not err
    assert calls == [
        f"-m bvit.main --config=c.py:{model} s={seed} --workdir=runs/cnn/model={name},seed={seed}"
        for model, name in (("resnet18", "resnet18"), ("hf:timm/x", "hf_timm_x"))
        for seed in (0, 1)
    ]
    code, out, _ = bash("sweep.sh", "--dry-run", *SWEEP)
    assert code == 0
    assert [line.replace("'", "") for line in out.splitlines()] == [f"python3 {c}" for c in calls]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    code, calls, err = sweep(tmp_path, *SWEEP, ends="0:2")
    assert code == 1 and len(calls) == 4
    assert "2 of 4 runs failed" in err and "model=resnet18,seed=0 (exit code 2)" in err


def test_a_sweep_runs_several_at_once_and_keeps_what_each_prints(tmp_path):
    """Each run waits until the other has begun."""
    stub = tmp_path / "python"
    stub.write_text(
        "#!/bin/bash\nmkdir -p begun && touch begun/${!#//\\//_}\n"
        'for i in {1..100}; do [ "$(ls begun | wc -l)" -lt 2 ] || break; sleep 0.1; done\n'
        'echo "$XLA_PYTHON_CLIENT_MEM_FRACTION $(ls begun | wc -l)"\n'
    )
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", LAUNCH / "sweep.sh", "--at-once=2", "runs", "seed=0 1", "--", "{seed}"],
        cwd=tmp_path,
        env=os.environ | {"BVIT_PYTHON": str(stub)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        assert (tmp_path / "runs-logs" / f"seed={seed}.txt").read_text() == "0.45 2\n"


@pytest.mark.parametrize("end", [130, 143])
def test_a_run_that_was_asked_to_stop_stops_the_sweep(tmp_path, end):
    code, calls, err = sweep(tmp_path, *SWEEP, ends=f"1:{end}")
    assert code == end and len(calls) == 2
    assert "run the same command to go on" in err


def test_sigterm_to_the_sweep_is_passed_on_to_the_run(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(
        "#!/bin/bash\ntrap 'exit 143' TERM\nkill -TERM $PPID\nsleep 20 >/dev/null 2>&1 & wait\n"
    )
    stub.chmod(0o755)
    code, out, _ = bash("sweep.sh", *SWEEP, BVIT_PYTHON=str(stub))
    assert code == 143 and out.count("run ") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "bash launch/sweep.sh"),
        (["runs", "seed=0"], "bash launch/sweep.sh"),
        (["runs", "seed", "--", "{seed}"], "got 'seed'"),
        (["runs", "seed=0", "--", "x"], "{seed} stands nowhere"),
        (["runs", "seed=0", "--", "{seed}{sede}"], "no values for {sede}"),
        (["--dryrun", "runs"], "no option --dryrun"),
        (["--at-once=0", "runs"], "--at-once must be 1 to 45: got '0'"),
        (["--arguments=2", "runs", "seed=0 1", "--", "{seed}"], "runs 0 to 1: got '2'"),
    ],
)
def test_a_wrong_sweep_is_told_before_anything_runs(tmp_path, arguments, message):
    code, calls, err = sweep(tmp_path, *arguments)
    assert code == 2 and not calls and message in err


def test_slurm_runs_one_task_of_a_sweep():
    code, out, _ = bash("slurm.sbatch", "--dry-run", "--sweep", *SWEEP, SLURM_ARRAY_TASK_ID="3")
    assert code == 0
    assert out.rstrip().endswith(
        "-m bvit.main --config=c.py:hf:timm/x s=1 --workdir=runs/cnn/model=hf_timm_x,seed=1"
    )
    code, out, err = bash("slurm.sbatch", "--sweep", *SWEEP, SLURM_ARRAY_TASK_ID="4")
    assert code == 2 and "runs 0 to 3" in err and not out
    assert bash("slurm.sbatch", "--sweep", *SWEEP)[0] == 2


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
