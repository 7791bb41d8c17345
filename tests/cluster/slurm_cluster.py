"""A real SLURM cluster of a few nodes on one machine, which leaves nothing behind.

The whole cluster lives in namespaces of its own (processes, mounts, network, host name), and in them each node in
further ones: its own address, host name, process table and shared memory, with a slurmd and an sshd. The file system is
shared, as by NFS. Ending one process, the first of the cluster's namespaces, ends everything; so does the end of the
process that started it. Needs root and the packages in `PROGRAMS`.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "unshare": "util-linux",
}
"""What is called, and the Debian package that has it."""

_INIT = Path(__file__).with_name("namespace.sh")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_NEW_NAMESPACES = [
    "unshare",
    "--fork",
    "--pid",
    "--kill-child=KILL",
    "--mount",
    "--mount-proc",
    "--net",
    "--uts",
    "--ipc",
]
_CPUS_PER_NODE = 8  # claimed; the machine may have fewer

_SLURM_CONF = """
ClusterName=test
SlurmctldHost=ctl(10.88.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5  # also how long a requeued job waits; 5 is the least
StateSaveLocation={directory}/state
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir={directory}/spool/%n
SlurmdLogFile={directory}/slurmd.%n.log
SlurmctldLogFile={directory}/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
SlurmdTimeout=10  # seconds after which a node that is silent counts as down
MessageTimeout=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeAddr=10.88.0.[11-{last_address}] \\
  CPUs={cpus} CoresPerSocket={cpus} Sockets=1 ThreadsPerCore=1 RealMemory=16000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL Default=NO PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""

_SSHD_CONFIG = """
HostKey {directory}/ssh/host_key
AuthorizedKeysFile {directory}/ssh/key.pub
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
"""

_SSH_CONFIG = """
Host n*
  IdentityFile {directory}/ssh/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "a cluster in namespaces needs root"
    packages = {package for program, package in PROGRAMS.items() if shutil.which(program, path=_PATH) is None}
    if packages:
        return f"a cluster needs: apt-get install {' '.join(sorted(packages))}"
    if subprocess.run([*_NEW_NAMESPACES, "ip", "link", "set", "lo", "up"], env={"PATH": _PATH}, check=False).returncode:
        return "this root may not make namespaces, as in a container without CAP_SYS_ADMIN and CAP_NET_ADMIN"
    return None


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Ask a few times a second; raises TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.1)


class SlurmCluster:
    """A running cluster: `run` is its login host. Use it with `contextlib.closing`."""

    def __init__(self, directory: Path, num_nodes: int) -> None:
        """Start and wait until all nodes are idle. `directory` must be empty or not exist."""
        self.directory = directory
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self._write_files()
        self._log = (directory / "namespaces.log").open("w")
        self._inits: dict[str, int] = {}
        self._outer = self._start("cluster")
        try:
            wait_until((directory / "cluster.up").exists, "the cluster's first process", 20)
            for node in self.nodes:
                self.boot(node)
            wait_until(
                lambda: self.run("sinfo", "-hNp", "low", "-o%t").split() == ["idle"] * num_nodes, "idle nodes", 30
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process of the cluster."""
        self._outer.kill()
        self._outer.wait()
        self._log.close()

    def run(self, *words: str | Path, seconds: float = 400, check: bool = True, **variables: str) -> str:
        """Output of a command on the login host, standard error included. Raises AssertionError when it fails."""
        done = subprocess.run(
            _enter(self._inits["cluster"], words),
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        command = " ".join(map(str, words))
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def environment(self, **variables: str) -> dict[str, str]:
        """Ours without what a launcher may have left in it, and with the cluster's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PMI", "OMPI", "MPI_", "PYTEST_"))}
        return kept | {"PATH": _PATH, "SLURM_CONF": str(self.directory / "slurm.conf"), **variables}

    def submit(self, *words: str | Path, **variables: str) -> str:
        """Number of a job that was submitted with `sbatch WORDS`."""
        return self.run("sbatch", "--parsable", *words, **variables).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells; of an array the first element's."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """What is known of a job once it is in one of the states; raises TimeoutError."""
        wait_until(lambda: self.job(job)["JobState"] in states, f"job {job} to be {' or '.join(states)}", seconds)
        return self.job(job)

    def wait_for_end(self, job: str, seconds: float = 400) -> dict[str, str]:
        """The same once a job has ended for good."""
        return self.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", seconds=seconds)

    def kill(self, node: str) -> None:
        """A node loses its power."""
        os.kill(self._inits.pop(node), signal.SIGKILL)

    def boot(self, node: str) -> None:
        """Start a node, for the first time or again."""
        number = self.nodes.index(node) + 1
        cable = f"cable{number}"
        self._in_network("ip", "link", "delete", cable, check=False)
        self._start(node, f"10.88.0.{10 + number}")
        init = self._inits[node]
        self._in_network("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(init))
        self._in_network("ip", "link", "set", cable, "master", "bridge0", "up")

    def unplug(self, node: str) -> None:
        """Nothing reaches the node any more, and nothing is told so."""
        self._in_network("ip", "link", "set", f"cable{self.nodes.index(node) + 1}", "down")

    def plug_in(self, node: str) -> None:
        """The same cable again, after `unplug`."""
        self._in_network("ip", "link", "set", f"cable{self.nodes.index(node) + 1}", "up")

    def _write_files(self) -> None:
        for name in ("state", "spool", "ssh"):
            (self.directory / name).mkdir(parents=True)
        places = {"directory": self.directory, "nodes": len(self.nodes), "last_address": 10 + len(self.nodes)}
        (self.directory / "slurm.conf").write_text(_SLURM_CONF.format(**places, cpus=_CPUS_PER_NODE))
        (self.directory / "mpi.conf").write_text("PMIxCliTmpDirBase=/run\n")  # each node's own, as its address is
        hosts = ["127.0.0.1 localhost", "10.88.0.1 ctl"]
        hosts += [f"10.88.0.{11 + number} {node}" for number, node in enumerate(self.nodes)]
        (self.directory / "hosts").write_text("\n".join(hosts) + "\n")
        self._write_secret(self.directory / "munge.key", os.urandom(128))
        ssh = self.directory / "ssh"
        (ssh / "sshd_config").write_text(_SSHD_CONFIG.format(**places))
        (ssh / "cluster.conf").write_text(_SSH_CONFIG.format(**places))
        for key in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / key], check=True)

    @staticmethod
    def _write_secret(path: Path, content: bytes) -> None:
        path.touch(mode=0o600)
        path.write_bytes(content)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the first process of the cluster or of a node, and find out its number here."""
        if name == "cluster":
            inside, role = [], ["cluster", str(self.directory)]
        else:
            inside = [*self._on_own_cores(name), *_enter(self._inits["cluster"], [])]
            role = ["node", str(self.directory), name, *arguments]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *inside, *_NEW_NAMESPACES, "bash", str(_INIT), *role],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def has_namespaces() -> bool:
            assert process.poll() is None, (self.directory / "namespaces.log").read_text()
            for number in _descendants(process.pid):
                if _command(number)[:2] == ["bash", str(_INIT)]:
                    self._inits[name] = number
                    return True
            return False

        wait_until(has_namespaces, f"the namespaces of {name}", 20)
        return process

    def _on_own_cores(self, node: str) -> list[str]:
        """Words that keep a command to this node's share of the cores, as on machines of their own."""
        cores = sorted(os.sched_getaffinity(0))
        share = cores[self.nodes.index(node) :: len(self.nodes)] or cores
        return ["taskset", "--cpu-list", ",".join(map(str, share))]

    def _in_network(self, *words: str, check: bool = True) -> None:
        """Run a command in the cluster's network, where process numbers are ours."""
        enter = ["nsenter", f"--target={self._inits['cluster']}", "--net"]
        subprocess.run(
            [*enter, *words], env=self.environment(), check=check, stderr=None if check else subprocess.DEVNULL
        )


def _enter(init: int, words: Sequence[str | Path]) -> list[str]:
    """Words that run a command in the namespaces of this process, in the working directory of the caller."""
    return ["nsenter", f"--target={init}", "-m", "-u", "-i", "-n", "-p", f"--wdns={Path.cwd()}", "--", *map(str, words)]


def _descendants(process: int) -> Iterator[int]:
    """Children, their children and so on, of processes that have one child each."""
    while children := Path(f"/proc/{process}/task/{process}/children").read_text().split():
        process = int(children[0])
        yield process


def _command(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_text().split("\0")
