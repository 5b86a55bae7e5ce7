"""What docs/cluster.md has one write for Slurm and Kubernetes, as far as one machine can tell: the files say what
train.py takes, an srun that starts processes here trains by the one, and three machines, which are network namespaces,
train by the other while some of them fail."""
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import yaml
from conftest import ROOT, add_database, copy_scripts, environment, run_script

import train
from titles import cli, runs

SBATCH = ROOT / "docs/train.slurm"
JOB, SERVICE = yaml.safe_load_all((ROOT / "docs/train.kubernetes.yaml").read_text(encoding="utf-8"))
SPEC, POD = JOB["spec"], JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
ENV = {item["name"]: item["value"] for item in CONTAINER["env"]}
SMALL = "--name first --dim 16 --batch-size 48 --epochs"
PATIENCE = 100  # seconds for all that a test waits for


def losses(folder, name="first"):
    return [[row["epoch"], row["train_loss"], row["valid_loss"]] for row in runs.read_metrics(folder / "runs" / name)]


@pytest.fixture
def shared(tiny, tmp_path):
    """What all machines see: the repository with prepared data, and a python where the files look for one."""
    shutil.copytree(tiny / "data", tmp_path / "data")
    copy_scripts(tmp_path)
    program(tmp_path / ".venv/bin/python", f'exec {shlex.quote(sys.executable)} "$@"')
    add_database("train", tmp_path, None)
    return tmp_path


def program(path, line):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(0o755)


# --- Slurm ------------------------------------------------------------------------------------------------------------

# What jax reads of each task; it takes the name of the first machine from the list.
SRUN = r"""
[[ "$1 $2" == "--kill-on-bad-exit=0 --cpus-per-task=4" ]] || exit 9
for ((i = 0; i < 2; i++)); do
    SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i "${@:3}" &
done
highest=0
for job in $(jobs -p); do
    wait "$job"; status=$?
    ((status > highest)) && highest=$status
done
exit $highest
"""


def batch(folder, flags="", srun=SRUN, **variables):
    """Run the script as sbatch does, with these FLAGS. Returns the finished process, and what scontrol was told."""
    text, count = re.subn(r'^FLAGS="[^"]*"', f'FLAGS="{flags}"', SBATCH.read_text(), flags=re.MULTILINE)
    assert count == 1
    program(folder / "bin/srun", srun)
    program(folder / "bin/scontrol", 'echo "$@" > told')
    (folder / "told").unlink(missing_ok=True)
    # The port is made of the job's number, see jax's SlurmCluster.
    with socket.socket() as free:
        while True:
            job = np.random.randint(4096)
            try:
                free.bind(("", 61440 + job))
                break
            except OSError:
                continue
    variables |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": str(job),
                  "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True, timeout=PATIENCE,
                          env=environment(**variables))
    told = folder / "told"
    return done, told.read_text().split() == ["requeue", str(job)] if told.exists() else False


def test_the_batch_script_says_the_same_twice():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", SBATCH.read_text(), re.MULTILINE))
    assert options["gpus-per-node"] == options["ntasks-per-node"]  # JAX gives each task one
    assert options["open-mode"] == "append"  # else a turn would overwrite what those before it have said
    [line] = re.findall(r"^srun .* python -u train.py (.*)$", SBATCH.read_text(), re.MULTILINE)
    [flags] = re.findall(r'^FLAGS="(.*)"', SBATCH.read_text(), re.MULTILINE)
    args = train.parse_args(shlex.split(line.replace("$FLAGS", flags)))
    assert (args.coordinator, args.resume, args.name) == ("auto", "", "first")


@pytest.mark.parametrize("status, turn, again", [
    (0, 0, False), (2, 0, False), (1, 0, True), (75, 0, True), (128 + signal.SIGTERM, 3, True), (137, 19, True),
    (137, 20, False)])
def test_what_is_worth_another_turn(tmp_path, status, turn, again):
    done, is_requeued = batch(tmp_path, srun=f"exit {status}", SLURM_RESTART_COUNT=str(turn))
    assert done.returncode == status and is_requeued == again


@pytest.mark.slow
def test_the_batch_script_trains(shared):
    done, is_requeued = batch(shared, f"{SMALL} 2")
    assert done.returncode == 0 and not is_requeued, done.stderr
    assert " of 2 processes: " in done.stdout and [row[0] for row in losses(shared)] == [1, 2]
    done, _ = batch(shared, f"{SMALL} 2")
    assert done.returncode == 0 and "mlp: is there already, as first\n" in done.stdout
    done, is_requeued = batch(shared, f"{SMALL} 2 --data nowhere")
    assert done.returncode == 2 and "error: nowhere: no prepared data" in done.stderr and not is_requeued


# --- Kubernetes -------------------------------------------------------------------------------------------------------

def test_the_manifest_says_the_same_everywhere():
    name, machines = JOB["metadata"]["name"], SPEC["completions"]
    assert SPEC["parallelism"] == machines == int(ENV["MACHINES"]) and SPEC["completionMode"] == "Indexed"
    assert POD["subdomain"] == SERVICE["metadata"]["name"] and SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["selector"] == {"job-name": name} and POD["restartPolicy"] == "Never"
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    assert CONTAINER["workingDir"] == CONTAINER["volumeMounts"][0]["mountPath"]

    shell, c, line = CONTAINER["command"]
    assert (shell, c) == ("sh", "-c") and line.startswith("exec python -u train.py ")
    said = subprocess.run(["sh", "-c", line.replace("exec", "printf '%s\\n'", 1)], check=True, capture_output=True,
                          text=True, env=ENV | {"JOB_COMPLETION_INDEX": "1"}).stdout.split("\n")[3:-1]
    args = train.parse_args(said)
    assert args.coordinator.rpartition(":")[0] == f"{name}-0.{POD['subdomain']}"
    assert (args.processes, args.process, args.resume, args.name) == (machines, 1, "", "first")


def action(status):
    """What the Job does when a pod ends with a status."""
    for rule in SPEC["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and codes["operator"] == "In" and codes["containerName"] == CONTAINER["name"] and (
                status in codes["values"]):
            return rule["action"]
    return "Count"


def test_bad_input_is_not_tried_again():
    assert action(cli.UserError.status) == "FailJob"
    assert action(cli.TryAgain.status) == action(134) == action(137) == action(1) == "Count"
    assert 0 < SPEC["backoffLimitPerIndex"] < 100 and SPEC["maxFailedIndexes"] == 0


def ip(*words):
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {words[0]}: {done.stderr.strip()}")


class Cluster:
    """Machines of this one: each a network namespace with an address of its own, joined by a bridge in another one. A
    pod has a host name, its own processes, and the names of all in its /etc/hosts."""

    def __init__(self, folder, count):
        self.folder, self.prefix = folder, f"titles-{os.getpid()}"
        self.spaces = [f"{self.prefix}-{i}" for i in range(count)]
        name, domain = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
        self.env, self.hosts = ENV | {"MACHINES": str(count)}, folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(
            f"10.77.0.{i + 1} {name}-{i}.{domain} {name}-{i}\n" for i in range(count)))
        self.log, self.pods, self.ended = [], [None] * count, threading.Event()

    def __enter__(self):
        try:
            self.switch = f"{self.prefix}-switch"
            ip("netns", "add", self.switch)
            ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", self.switch, "link", "set", "bridge", "up")
            for i, space in enumerate(self.spaces):
                ip("netns", "add", space)
                ip("link", "add", f"port{i}", "netns", self.switch, "type", "veth", "peer", "name", "eth0", "netns",
                   space)
                ip("-n", self.switch, "link", "set", f"port{i}", "master", "bridge", "up")
                ip("-n", space, "address", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    ip("-n", space, "link", "set", device, "up")
        except OSError as error:
            self.__exit__()
            pytest.skip(f"needs network namespaces, which root may make: {error}")
        return self

    def __exit__(self, *_):
        self.ended.set()
        for pod in filter(None, self.pods):
            pod.kill()
        for space in (*self.spaces, self.switch):
            with suppress(OSError):
                ip("netns", "delete", space)

    def plug(self, i, state):
        """Put a machine's cable in ("up") or out ("down")."""
        ip("-n", self.switch, "link", "set", f"port{i}", state)

    def start(self, i, flags):
        """A pod of index i."""
        inside = f'mount --bind {self.hosts} /etc/hosts && hostname {JOB["metadata"]["name"]}-{i} && exec "$@"'
        command = ["ip", "netns", "exec", self.spaces[i], "unshare", "--uts", "--mount", "--pid", "--fork",
                   "--kill-child", "--mount-proc", "sh", "-c", inside, "pod", *CONTAINER["command"]]
        path = f"{self.folder}/.venv/bin:{os.environ['PATH']}"
        variables = environment(PATH=path, JOB_COMPLETION_INDEX=str(i), KUBERNETES_SERVICE_HOST="10.77.0.99",
                                **self.env | {"FLAGS": flags})
        with open(self.folder / f"{i}.out", "a") as out, open(self.folder / f"{i}.err", "a") as err:
            self.pods[i] = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=err, env=variables)

    def keep(self, i, flags):
        """Start the pod of an index again and again, as the Job does, but soon."""
        failures = 0
        while not self.ended.is_set():
            self.start(i, flags)
            status = self.pods[i].wait()
            status = 128 - status if status < 0 else status
            self.log.append((i, status))
            failures += status != 0
            if status == 0 and i != 0:
                return
            if status == 0 or action(status) == "FailJob" or failures > SPEC["backoffLimitPerIndex"]:
                self.ended.set()
            self.ended.wait(1)

    def run(self, flags):
        """Supervisors of all indices, the first one late. Returns their threads."""
        threads = [threading.Thread(target=self.keep, args=(i, flags)) for i in range(len(self.spaces))]
        for thread in reversed(threads):
            thread.start()
            time.sleep(1)
        return threads

    def said(self):
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("?.???")))


def wait_for(what, cluster):
    limit = time.time() + PATIENCE
    while not what():
        assert time.time() < limit and not cluster.ended.is_set(), f"{cluster.log}\n{cluster.said()}"
        time.sleep(0.05)


def epochs(folder):
    path = folder / "runs/first/metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


@pytest.mark.slow
def test_machines_that_fail(shared):
    """One is killed; then the first one, to which all connect, loses its network. Each time all end, and go on."""
    flags = f"{SMALL} 16 --save-seconds 0"
    with Cluster(shared, 3) as cluster:
        threads = cluster.run(flags)
        wait_for(lambda: epochs(shared) >= 3, cluster)
        cluster.pods[1].kill()
        wait_for(lambda: len(cluster.log) == 3, cluster)
        first = epochs(shared)
        wait_for(lambda: epochs(shared) >= first + 3, cluster)
        cluster.plug(0, "down")
        wait_for(lambda: len(cluster.log) == 6, cluster)
        second = epochs(shared)
        cluster.plug(0, "up")
        for thread in threads:
            thread.join(PATIENCE)
    assert 3 <= first < second < 16, (first, second)

    # In each turn all end, and none as for bad input; JAX's way to abort the first process of a machine is 139.
    turns = [dict(cluster.log[i:i + 3]) for i in (0, 3)]
    assert all(turn.keys() == {0, 1, 2} for turn in turns) and turns[0][1] == 128 + signal.SIGKILL, cluster.log
    others = {status for turn in turns for status in turn.values()} - {128 + signal.SIGKILL}
    assert others <= {cli.TryAgain.status, 128 + signal.SIGABRT, 128 + signal.SIGSEGV}, cluster.log
    assert (0, 0) in cluster.log[6:] and {status for _, status in cluster.log[6:]} == {0}, cluster.log
    assert (shared / "0.out").read_text().count(" on 3 devices, ") == 3
    assert "Kubernetes environment detected" not in (shared / "0.err").read_text()

    # One process with as many devices, which nothing has disturbed, comes to the same.
    run_script("train", *shlex.split(flags.replace("first", "alone")), cwd=shared, env={"JAX_NUM_CPU_DEVICES": "3"})
    np.testing.assert_allclose(losses(shared), losses(shared, "alone"), rtol=1e-5)
