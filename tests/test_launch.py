"""The launch scripts: what they would run, their style, and the manifests' structure."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def call(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )


def commands(script, *arguments, **environment):
    """What a script prints in its dry run: a list of words for each command."""
    done = call(script, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def pod(*arguments):
    return commands("tpu_pod.sh", "--dry_run", *arguments, "--name", "n", "--zone", "z")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_call_without_arguments_says_how(script):
    done = call(script.name)
    assert done.returncode == 2
    assert "usage" in done.stdout + done.stderr


def test_local_processes_share_a_coordinator_and_count_from_zero():
    started = commands("local.sh", "3", "--dry_run", "--config", "a b", "--workdir", "w")
    assert len(started) == 3
    ids = [words[words.index("--process_id") + 1] for words in started]
    assert ids == ["0", "1", "2"]
    assert len({words[words.index("--coordinator") + 1] for words in started}) == 1
    assert all(words[words.index("--num_processes") + 1] == "3" for words in started)
    assert all(words[words.index("--config") + 1] == "a b" for words in started)


def test_one_local_process_needs_no_coordinator():
    (words,) = commands("local.sh", "--devices", "4", "--dry_run", "--config", "a")
    assert words == ["python", "-m", "ccl_jax.main", "--config", "a"]


@pytest.mark.parametrize("arguments", [("0", "--config", "a"), ("--devices", "x", "--config", "a")])
def test_local_refuses_counts_that_are_none(arguments):
    done = call("local.sh", *arguments)
    assert done.returncode == 2
    assert "launch/local.sh: " in done.stderr


def test_a_slice_is_created_at_once_or_queued():
    (words,) = pod("create", "--type", "v5litepod-256", "--spot")
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "n"]
    assert "--accelerator-type=v5litepod-256" in words
    assert "--spot" in words
    (words,) = pod("create", "--type", "v6e-256", "--queued", "--project", "p")
    assert words[3:6] == ["queued-resources", "create", "n"]
    assert "--node-id=n" in words
    assert words[words.index("--project") + 1] == "p"


def test_a_run_reaches_every_host_with_its_arguments():
    line = ["--config", "configs/x.py:ccl", "--workdir", "../bucket/a run"]
    words = commands("tpu_pod.sh", "--dry_run", "run", "--name", "n", "--zone", "z", "--", *line)[0]
    assert "--worker=all" in words
    remote = shlex.split(words[-1].removeprefix("--command="))
    start = remote.index("launch/supervise.sh") + 1
    assert remote[start : start + 4] == line


def test_install_copies_the_checkout_to_every_host():
    steps = pod("install")
    assert [words[4] for words in steps if words[0] == "gcloud"] == ["scp", "ssh"]
    assert all("--worker=all" in words for words in steps if words[0] == "gcloud")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "--name", "n"), "--zone"),
        (("create", "--name", "n", "--zone", "z"), "--type"),
        (("run", "--name", "n", "--zone", "z"), "--"),
        (("fly", "--name", "n", "--zone", "z"), "fly"),
        (("create", "--size", "3"), "--size"),
        (("create", "--name", "--zone", "z"), "--name needs a value"),
    ],
)
def test_a_wrong_call_of_the_pod_script_says_what_is_missing(arguments, message):
    done = call("tpu_pod.sh", "--dry_run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_slurm_starts_one_task_a_gpu():
    (words,) = commands("slurm.sbatch", "--config", "a b", DRY_RUN="1", CCL_JAX_PYTHON="py")
    assert words == ["srun", "--kill-on-bad-exit=1", "py", "-m", "ccl_jax.main", "--config", "a b"]


def fake_python(folder, codes):
    """A `python` that ends with one code after the other and counts its calls."""
    folder.mkdir()
    script = folder / "python"
    script.write_text(
        f'#!/usr/bin/env bash\necho "$@" >> {folder}/calls\n'
        f"codes=({' '.join(map(str, codes))})\nexit ${{codes[$(wc -l < {folder}/calls) - 1]}}\n"
    )
    script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SUPERVISE_PAUSE": "0"}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((75, 75, 0), 0),
        ((143, 0), 0),
        ((75, 3), 3),
        ((1,), 1),
        ((134, 137, 75, 0), 0),
        ((134, 134, 134, 134), 134),
    ],
)
def test_the_supervisor_begins_again_after_a_stop_and_a_few_deaths(tmp_path, codes, expected):
    done = call("supervise.sh", "--config", "x", **fake_python(tmp_path / "bin", codes))
    assert done.returncode == expected
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert calls == ["-m ccl_jax.main --config x"] * len(codes)


def test_the_exit_code_of_a_stop_is_the_same_everywhere():
    from ccl_jax.training import stopping

    for script in ("supervise.sh", "slurm.sbatch"):
        assert f"readonly STOPPED={stopping.EXIT_CODE} " in (LAUNCH / script).read_text()


# The fields of a JobSet (jobset.x-k8s.io/v1alpha2), a Job (batch/v1) and a pod (core/v1) that a
# training job has use for, with their types, as the APIs define them. An API server refuses others.
ENV = {"name": str, "value": str}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [ENV],
    "ports": [{"containerPort": int, "name": str}],
    "resources": {"limits": dict, "requests": dict},
    "securityContext": {"privileged": bool},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
    "workingDir": str,
}
CSI = {"driver": str, "readOnly": bool, "volumeAttributes": dict}
POD = {
    "serviceAccountName": str,
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": dict,
    "tolerations": [dict],
    "hostNetwork": bool,
    "dnsPolicy": str,
    "containers": [CONTAINER],
    "volumes": [{"name": str, "csi": CSI, "emptyDir": dict}],
}
METADATA = {"name": str, "namespace": str, "annotations": dict, "labels": dict}
JOB = {
    "completions": int,
    "parallelism": int,
    "backoffLimit": int,
    "completionMode": str,
    "activeDeadlineSeconds": int,
    "template": {"metadata": METADATA, "spec": POD},
}
REPLICATED = {"name": str, "replicas": int, "template": {"metadata": METADATA, "spec": JOB}}
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": METADATA,
    "spec": {
        "failurePolicy": {"maxRestarts": int, "restartStrategy": str},
        "successPolicy": {"operator": str, "targetReplicatedJobs": [str]},
        "network": {"enableDNSHostnames": bool, "subdomain": str},
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
        "replicatedJobs": [REPLICATED],
    },
}


def misfits(value, schema, path=""):
    """Paths of a manifest that its schema does not know or gives another type."""
    if isinstance(schema, dict) and isinstance(value, dict):
        for key, inner in value.items():
            if key not in schema:
                yield f"{path}.{key}: unknown"
            else:
                yield from misfits(inner, schema[key], f"{path}.{key}")
    elif isinstance(schema, list) and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from misfits(inner, schema[0], f"{path}[{index}]")
    elif not (isinstance(schema, type) and type(value) is schema):
        yield f"{path}: {value!r}"


def test_the_jobset_fits_its_schema():
    yaml = pytest.importorskip("yaml")
    text = (LAUNCH / "gke" / "jobset.yaml").read_text()
    assert list(misfits(yaml.safe_load(text), JOBSET)) == []
    broken = text.replace("backoffLimit", "backofLimit").replace("replicas: 1", "replicas: one")
    assert list(misfits(yaml.safe_load(broken), JOBSET)) == [
        ".spec.replicatedJobs[0].replicas: 'one'",
        ".spec.replicatedJobs[0].template.spec.backofLimit: unknown",
    ]


def test_the_jobset_has_a_pod_for_every_host_and_asks_for_chips():
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert job["completions"] == job["parallelism"]
    pod_spec = job["template"]["spec"]
    assert pod_spec["restartPolicy"] == "Never"
    (container,) = pod_spec["containers"]
    rows, columns = pod_spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] * chips == int(rows) * int(columns)
    assert (LAUNCH.parent / container["command"][0]).exists()
