"""A Slurm cluster of two nodes on this machine: the real daemons, in a folder and on ports of their own.

Nothing of a Slurm that the machine may have is touched or used but its programs. Needs root, as `slurmd` does. Knows
nothing of clipbatch. A node has one CPU and one thing that Slurm takes for a GPU, so it runs one task at a time.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import needs

NODES = ("n1", "n2")
# For whatever is waited for; it takes seconds on an idle machine.
PATIENCE_S = 600.0
REQUEUED_AFTER_S = 5
MAX_TASKS = 12

# An array of n1 and n2 in one partition; jobs of the partition urgent push out those of main, which are warned first.
CONFIG = """\
ClusterName=clipbatch
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeued_after_s}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
SlurmdTimeout=10
BatchStartTimeout=60
MessageTimeout=30
KillWait=30
MinJobAge=86400
MaxArraySize={most_tasks}
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=2000 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=2000 Gres=gpu:1
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """Starts when it is made; `stop` ends every process of it, jobs included, and removes its folder."""

    def __init__(self) -> None:
        needs("munged", "slurmctld", "slurmd", "sbatch", path=_PATH)
        self.folder = Path(tempfile.mkdtemp(prefix="clipbatch-slurm-"))
        self.folder.chmod(0o711)  # munged demands that all users can reach its socket
        self.environment = {
            **os.environ,
            "PATH": _PATH,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._configure()
            self._start("munged", *_munge(self.folder))
            self.wait_for("munged", (self.folder / "munge.socket").exists)
            self._start("slurmctld", "slurmctld", "-D")
            self.wait_for("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))
            for node in NODES:
                self.start_node(node)
            self.wait_for("nodes", lambda: all(self.node_state(node) == "idle" for node in NODES))
        except BaseException:
            self.stop()
            raise

    def run(self, *command: object, check: bool = True) -> str:
        """What a command of Slurm prints."""
        made = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True, check=False
        )
        assert not check or made.returncode == 0, f"{command}: {made.stdout}{made.stderr}"
        return made.stdout.strip()

    def state(self, job: object) -> str:
        """State of a job, or of a task as in `7_0`: PENDING, RUNNING, COMPLETED, FAILED, ..."""
        return self._field(job, "JobState")

    def exit_code(self, job: object) -> int:
        return int(self._field(job, "ExitCode").partition(":")[0])

    def node_of(self, job: object) -> str:
        return self._field(job, "NodeList")

    def restarts(self, job: object) -> int:
        return int(self._field(job, "Restarts"))

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "--noheader", f"--nodes={node}", "--partition=main", "--format=%T", check=False)

    def wait_for(self, what: str, happened: Callable[[], bool]) -> None:
        """Return when `happened` says so. Raises: TimeoutError with the ends of all logs."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {PATIENCE_S} s for {what}\n{self._logs()}")
            time.sleep(0.2)

    def wait_for_end(self, job: object) -> str:
        """The state in which a job, or a task, ended."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for(f"the end of job {job}", lambda: self.state(job) in ends)
        return self.state(job)

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node_daemon(self, node: str) -> None:
        """End the node's slurmd as a crash would; the jobs' processes go on."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()

    def revive_node(self, node: str) -> None:
        """Take the node into service again, if it is down."""
        if node not in self._daemons:
            self.start_node(node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)  # refused where it is idle

    def processes(self, pattern: str) -> list[int]:
        """Processes of this cluster in whose command line `pattern` occurs."""
        return [pid for pid in _processes_with(self._mark()) if re.search(pattern, _command(pid))]

    def stop(self) -> None:
        for process in reversed(self._daemons.values()):
            process.kill()
            process.wait()
        while found := _processes_with(self._mark()):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.folder)

    def _configure(self) -> None:
        (self.folder / "state").mkdir()
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir()
        (self.folder / "key").write_bytes(random.randbytes(128))
        (self.folder / "key").chmod(0o400)
        config = CONFIG.format(
            folder=self.folder,
            host=socket.gethostname(),
            ports=_free_ports(1 + len(NODES)),
            requeued_after_s=REQUEUED_AFTER_S,
            most_tasks=MAX_TASKS,
        )
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "gres.conf").write_text("AutoDetect=off\nNodeName=n[1-2] Name=gpu File=/dev/null\n")

    def _start(self, name: str, *command: str) -> None:
        """Start a daemon that ends with this process, also if that is killed."""
        with open(self.folder / f"{name}.out", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _field(self, job: object, name: str) -> str:
        shown = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return next(word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}="))

    def _mark(self) -> bytes:
        return f"SLURM_CONF={self.folder}/slurm.conf".encode()

    def _logs(self) -> str:
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)


_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _munge(folder: Path) -> list[str]:
    places = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    options = [f"--{name}={folder}/{file}" for name, file in (places | {"seed-file": "munge.seed"}).items()]
    return ["munged", "--foreground", "--force", *options]


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, outside the range from which the kernel gives them to clients."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port, trial = random.randrange(16_000, 32_000), held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                trial.bind(("", port))
                ports.append(port)
        return ports


def _processes_with(variable: bytes) -> list[int]:
    """Living processes that have `variable` in the environment that they were started with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and variable in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A cluster for the tests of a module."""
    if os.geteuid():
        pytest.skip("a Slurm cluster of one's own needs root: slurmd starts jobs as their users")
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.stop()
