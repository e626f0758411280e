# SPDX-License-Identifier: MIT
"""Train on two hosts: network namespaces of this machine, joined by a cable that can be unplugged.

`make check-hosts` runs this; it needs root and iproute2. Each check trains the tests' tiny models by the command line,
and compares the losses with those of two processes on one host, to the last digit.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.tiny_tasks import TASKS, arguments

HOSTS = ("hostA", "hostB")
CABLE = {"hostA": "cableA", "hostB": "cableB"}
ADDRESS = {"hostA": "10.87.0.1", "hostB": "10.87.0.2"}
PORT = 29_555
LIMIT = 300  # seconds of a training
STEPS = 30
LONG = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 5,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "ema_decay": 0.0,
}


def ip(*words, host=None):
    """Run `ip`, in a host or outside."""
    subprocess.run(["ip", *(["-n", host] if host else []), *words], check=True, capture_output=True)


@contextlib.contextmanager
def two_hosts():
    """Make the hosts and the cable between them, and remove them."""
    remove()
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip(
            "link",
            "add",
            CABLE["hostA"],
            "netns",
            "hostA",
            "type",
            "veth",
            "peer",
            "name",
            CABLE["hostB"],
            "netns",
            "hostB",
        )
        for host in HOSTS:
            ip("addr", "add", f"{ADDRESS[host]}/24", "dev", CABLE[host], host=host)
            for device in ("lo", CABLE[host]):
                ip("link", "set", device, "up", host=host)
        yield
    finally:
        remove()


def remove():
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


def start(host, launcher, task_name, folder, **settings):
    """Start a training of a task's data in `folder`; its output goes to a file there."""
    task = TASKS[task_name]
    values = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "output_dir": "out", **settings}
    command = [*launcher, "-m", "hf_internimage", "train", task_name, *arguments(task, **values)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE[host]}
    with (folder / f"{host}.log").open("a") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def torchrun(host, nodes="2", processes=1, restarts=0):
    """Return the words that start torchrun, whose meeting point is the first host."""
    words = f"torch.distributed.run --nnodes {nodes} --nproc-per-node {processes} --max-restarts {restarts}"
    words += f" --rdzv-backend c10d --rdzv-endpoint {ADDRESS['hostA']}:{PORT} --rdzv-id check"
    # Both hosts have this machine's name, by which torchrun would look for itself.
    return f"{words} --rdzv-conf is_host={int(host == 'hostA')} --local-addr {ADDRESS[host]}".split()


def accelerate(host):
    """Return the words that start `accelerate launch` on one of two machines."""
    words = "accelerate.commands.launch --multi_gpu --num_machines 2 --num_processes 2"
    words += f" --machine_rank {HOSTS.index(host)} --main_process_ip {ADDRESS['hostA']} --main_process_port {PORT}"
    return words.split()


def wait(processes, folder, expected=0):
    """Wait for processes to end, all with the status `expected` (None: any but 0)."""
    end = time.monotonic() + LIMIT
    for process in processes:
        try:
            status = process.wait(max(1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = "a time-out"
        if status != expected if expected is not None else status in (0, "a time-out"):
            for other in processes:
                stop(other)
            raise SystemExit(f"ended with {status}:\n{logs(folder)[-6000:]}")


def stop(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)


def logs(folder):
    return "\n".join(file.read_text() for file in sorted(folder.glob("*.log")))


def losses(folder):
    """Return the losses of a finished training."""
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def wait_for(path, processes, folder):
    """Wait until a path exists."""
    end = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            raise SystemExit(f"{path.name} did not come:\n{logs(folder)[-6000:]}")
        time.sleep(0.02)


def worker_of(process):
    """Return the number of the training process below a launcher."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


class Checks:
    def __init__(self, root):
        self.root = root

    def folder(self, name, task_name="classification"):
        """Return a new folder with a task's data."""
        folder = self.root / name
        folder.mkdir()
        TASKS[task_name].write(folder)
        return folder

    def one_host(self, name, task_name="classification", **settings):
        """Return the losses of two processes on the first host."""
        folder = self.folder(name, task_name)
        wait([start("hostA", torchrun("hostA", "1", 2), task_name, folder, **settings)], folder)
        return losses(folder)

    def tasks(self):
        """Each task on two hosts, by torchrun and by accelerate."""
        for task_name in TASKS:
            expected = self.one_host(f"{task_name}-one-host", task_name)
            for launcher in ("torchrun", "accelerate"):
                folder = self.folder(f"{task_name}-{launcher}", task_name)
                words = {host: torchrun(host) if launcher == "torchrun" else accelerate(host) for host in HOSTS}
                wait([start(host, words[host], task_name, folder) for host in HOSTS], folder)
                report(f"{task_name}, two hosts by {launcher}", losses(folder), expected)

    def killed(self, expected):
        """A training process that is killed: torchrun starts both again, and they go on from the checkpoint."""
        folder = self.folder("killed")
        processes = [start(host, torchrun(host, restarts=3), "classification", folder, **LONG) for host in HOSTS]
        wait_for(folder / "out" / "checkpoint-5" / "trainer_state.json", processes, folder)
        os.kill(worker_of(processes[1]), 9)
        wait(processes, folder)
        assert "Resuming from out/checkpoint-" in logs(folder), logs(folder)
        report("a killed process on the second host", losses(folder), expected)

    def unplugged(self, expected):
        """The cable is unplugged: both processes end with a clear line, and the same command goes on."""
        folder = self.folder("unplugged")
        settings = {**LONG, "ddp_timeout": 15}
        processes = [start(host, torchrun(host), "classification", folder, **settings) for host in HOSTS]
        wait_for(folder / "out" / "checkpoint-5" / "trainer_state.json", processes, folder)
        ip("link", "set", CABLE["hostB"], "down", host="hostB")
        wait(processes[:1], folder, expected=None)
        ip("link", "set", CABLE["hostB"], "up", host="hostB")  # torchrun on the second host waits for its meeting point
        wait(processes[1:], folder, expected=None)
        assert "lost the others" in logs(folder), logs(folder)
        assert "The same command goes on from out/checkpoint-" in logs(folder)
        wait([start(host, torchrun(host), "classification", folder, **settings) for host in HOSTS], folder)
        report("a cable that was unplugged", losses(folder), expected)


def report(name, got, expected):
    """Print how the losses differ; end the program if they do."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(got, expected, strict=True))
    print(f"{name}: {len(got)} losses, greatest relative difference {worst:.1e}", flush=True)
    if worst:
        raise SystemExit(f"expected {expected}, got {got}")


def main():
    if os.geteuid() or not shutil.which("ip"):
        return "make check-hosts needs root and iproute2: apt-get install iproute2"
    with tempfile.TemporaryDirectory() as root, two_hosts():
        checks = Checks(Path(root))
        expected = checks.one_host("long", **LONG)
        checks.killed(expected)
        checks.unplugged(expected)
        checks.tasks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
