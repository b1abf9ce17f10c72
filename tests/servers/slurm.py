"""A real Slurm of two nodes on loopback, from Debian's packages `slurm-wlm` and `munge`.

Everything lies in one folder and listens on ports of its own, so several can run beside each other.
Nothing needs systemd or root: `munged`, `slurmctld` and `slurmd` run as whoever runs the tests.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NODES = ("n1", "n2")
# Debian's daemons lie where only root's PATH looks.
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun", "scontrol")

CONFIGURATION = """\
ClusterName=hourllava
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort={ports[0]}
SlurmctldTimeout=5
SlurmdTimeout=10
KillWait=5
MinJobAge=60
BatchStartTimeout=20
SwitchType=switch/none
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,defer_batch
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=p Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=2
"""


def missing_programs() -> list[str]:
    """What is not installed of what a Slurm is made of."""
    return [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]


class SlurmCluster:
    """A running Slurm.

    Attributes:
        folder: of its configuration, state and logs.
        environment: variables with which its commands find it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": SBIN, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                folder=self.folder,
                user=getpass.getuser(),
                ports=_free_ports(3),
            )
        )
        self._start(
            "munged",
            [
                "munged", "--foreground", "--force", "--num-threads=2",
                f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                f"--seed-file={self.folder}/munged.seed",
            ],
        )  # fmt: skip
        _wait_for((self.folder / "munge.socket").exists, "munged's socket")
        self.restore()

    def start_controller(self) -> None:
        self._start("slurmctld", ["slurmctld", "-D", "-f", f"{self.folder}/slurm.conf"])

    def start_node(self, node: str) -> None:
        command = ["slurmd", "-D", "-N", node, "-f", f"{self.folder}/slurm.conf"]
        self._start(node, command)

    def kill(self, daemon: str, alone: bool = False) -> None:
        """Kill `slurmctld`, or a node with everything that runs on it, as a dead machine ends.

        Args:
            alone: of a node only `slurmd`, and what it runs goes on.
        """
        process = self._daemons.pop(daemon)
        process.kill()
        process.wait()
        if daemon in NODES and not alone:
            kill_all(self.processes(daemon))

    def save(self, job: str) -> None:
        """Wait until the controller has written down what it knows of a job. One that is killed
        before forgets it, and gives its number to the next.
        """
        asked = time.time()
        self.run("scontrol", "update", f"JobId={job}", "AdminComment=saved")
        state = self.folder / "state" / "job_state"
        _wait_for(lambda: state.exists() and state.stat().st_mtime > asked, "saved state")

    def restore(self) -> None:
        """Cancel every job, start what was killed, and wait until both nodes are idle."""
        if "slurmctld" not in self._daemons:
            self.start_controller()
        for node in NODES:
            if node not in self._daemons:
                self.start_node(node)
        _wait_for(lambda: not self._cancel_all(), "empty queue")
        _wait_for(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "both nodes")

    def _cancel_all(self) -> list[str]:
        if jobs := self.jobs():
            self.run("scancel", *jobs)
        return jobs

    def run(self, *command: str) -> str:
        """The output of a command of this Slurm."""
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    def jobs(self) -> list[str]:
        """Jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def processes(self, node: str | None = None) -> list[int]:
        """Processes of jobs, of one node or of all, and before each the daemon of its step."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            variables = environment_of(folder)
            if variables.get("SLURM_CONF") == self.environment["SLURM_CONF"] and (
                variables.get("SLURMD_NODENAME") in (NODES if node is None else (node,))
            ):
                parent = _parent(folder)
                if _command(parent).startswith("slurmstepd"):
                    found.append(parent)
                found.append(int(folder.name))
        return list(dict.fromkeys(found))

    def stop(self) -> None:
        """End every job and daemon."""
        kill_all(self.processes())
        for name in reversed(list(self._daemons)):
            process = self._daemons.pop(name)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        kill_all(self.processes())

    def _start(self, name: str, command: Sequence[str]) -> None:
        program = shutil.which(command[0], path=SBIN)
        assert program is not None
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                [program, *command[1:]],
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """A Slurm with two idle nodes; everything of it ends with the block."""
    folder.mkdir(parents=True)
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]


def _wait_for(reached: Callable[[], bool], what: str) -> None:
    for _ in range(300):
        with contextlib.suppress(subprocess.CalledProcessError):
            if reached():
                return
        time.sleep(0.1)
    raise TimeoutError(f"Slurm did not start: no {what}")


def environment_of(process: Path) -> dict[str, str]:
    """Variables of a process; none where it ended or belongs to somebody else."""
    try:
        lines = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(line.decode(errors="replace").split("=", 1) for line in lines if b"=" in line)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def kill_all(processes: Iterable[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
