"""The place of a process in a run, from what its launcher left in the environment. Imports no torch.

Every launcher numbers the processes it starts; the first in this order that did so is believed:

1. `RANK` and its companions: `deepspeed`, `torchrun`, or a launcher of your own.
2. `SLURM_PROCID`, inside a step of several tasks: `srun` with a task per rank.
3. `OMPI_COMM_WORLD_RANK` or `PMI_RANK`: `mpirun` of Open MPI, MPICH or Intel MPI.
4. Nothing: one process alone.

Where two of them contradict each other the start is refused: the processes would train apart from each other, in the
same directory.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Environment = Mapping[str, str]


class LaunchError(ValueError):
    """The environment does not say clearly who takes part in the run."""


@dataclass(frozen=True)
class Launch:
    """The place of this process in the run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    source: str
    """Who told us: `launcher` (deepspeed, torchrun), `srun`, `mpirun` or `single process`."""
    master_address: str | None = None
    """Where rank 0 listens; None when the ranks have yet to agree on it (`distributed.announce`)."""
    master_port: int | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def complain(message: str) -> None:
    """Say why this process ends."""
    print(f"error: {message}", file=sys.stderr, flush=True)


def launch_or_complain(environment: Environment) -> Launch | None:
    """`read_launch`; None when the start is refused, which one process has told."""
    try:
        return read_launch(environment)
    except LaunchError as error:
        if is_first(environment):
            complain(str(error))
        return None


def read_launch(environment: Environment) -> Launch:
    """Find the place of a process in the run; all processes of one launch find places that fit together.

    Under srun rank 0 listens on the first host of the step, on a port made of job and step id; under mpirun the ranks
    agree later, on loopback when all of them are on one machine. MASTER_ADDR and MASTER_PORT, set by hand for all
    ranks, come before both.

    Raises LaunchError when several processes were started but are not told apart, when a variable is missing or not a
    number, and when launchers contradict each other.
    """
    if "RANK" in environment:
        return _from_variables(environment)
    if _srun_tasks(environment) > 1:
        return _from_srun(environment)
    for names in _MPI_LIBRARIES:
        if _number(environment, names.world_size, 1) > 1:
            return _from_mpirun(environment, names)
    if "PMIX_RANK" in environment and not environment.keys() & {"SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE"}:
        raise LaunchError("PMIX_RANK is set but nothing says how many ranks there are; start with mpirun or srun")
    if _number(environment, "SLURM_NTASKS", 1) > 1 and "SLURM_STEP_ID" not in environment:
        raise LaunchError(
            f"SLURM_NTASKS is {environment['SLURM_NTASKS']} but this process is alone: the job has that many tasks, and"
            " nothing started them. Put srun before the command, or start one `deepspeed` or `torchrun` a node"
        )
    return Launch(0, 1, 0, 1, "single process", "127.0.0.1")


def is_first(environment: Environment) -> bool:
    """Whether this process should speak for all of its launch, also when the launch is refused."""
    try:
        return read_launch(environment).is_main
    except LaunchError:
        names = ("RANK", "SLURM_PROCID", *(library.rank for library in _MPI_LIBRARIES))
        return all(environment.get(name, "0") == "0" for name in names)


def hosts_of(node_list: str) -> list[str]:
    """The hosts of SLURM's short form, in order: `n[1-2,07],m` is n1, n2, n07, m.

    Raises LaunchError when brackets do not close or a range is none.
    """
    return [host for item in re.findall(r"(?:\[[^\]]*\]|[^,])+", node_list) for host in _expand(item)]


def _expand(item: str) -> Iterator[str]:
    """Hosts of one item, whose brackets hold ranges: the leftmost varies slowest, zeros in front are kept."""
    if not (brackets := re.search(r"\[([^\]]*)\]", item)):
        if "[" in item or "]" in item:
            raise LaunchError(f"{item!r} is no list of SLURM nodes; expected something like n[1-3,7],m2")
        yield item
        return
    before, after = item[: brackets.start()], item[brackets.end() :]
    for part in brackets[1].split(","):
        if not (ends := re.fullmatch(r"(\d+)(?:-(\d+))?", part)):
            raise LaunchError(f"{part!r} in {item!r} is no range of SLURM nodes; expected something like 1-3 or 7")
        for number in range(int(ends[1]), int(ends[2] or ends[1]) + 1):
            for rest in _expand(after) if after else [""]:
                yield f"{before}{number:0{len(ends[1])}d}{rest}"


def _from_variables(environment: Environment) -> Launch:
    names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in environment]
    if missing:
        raise LaunchError(f"RANK is set but {', '.join(missing)} is not; start with `deepspeed`, `torchrun` or srun")
    rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    _check_rank("RANK", rank, "WORLD_SIZE", world_size)
    _check_tasks(environment, world_size)
    local_world_size = _number(environment, "LOCAL_WORLD_SIZE", _number(environment, "LOCAL_SIZE", world_size))
    return Launch(
        rank,
        world_size,
        _number(environment, "LOCAL_RANK"),
        local_world_size,
        "launcher",
        environment["MASTER_ADDR"],
        _number(environment, "MASTER_PORT"),
    )


def _check_tasks(environment: Environment, world_size: int) -> None:
    """Refuse a launcher that knows less than all tasks of SLURM: each task would be, or have, a run of its own."""
    tasks = _srun_tasks(environment)
    if tasks > 1:  # torchrun and deepspeed say how many of them there are; without them a task is a rank
        known = next(name for name in ("GROUP_WORLD_SIZE", "CROSS_SIZE", "WORLD_SIZE") if name in environment)
        if _number(environment, known) != tasks:
            raise LaunchError(
                f"srun started {tasks} tasks (SLURM_STEP_NUM_TASKS), but {known} is {environment[known]}: they do not"
                " know of each other. Give deepspeed or torchrun the number of nodes and start one a node"
                " (--ntasks-per-node=1), or let srun start launch/pretrain.py itself, a task per rank"
            )
    elif "SLURM_STEP_ID" not in environment and world_size < _number(environment, "SLURM_NTASKS", 1):
        raise LaunchError(
            f"SLURM_NTASKS is {environment['SLURM_NTASKS']} but WORLD_SIZE is {world_size}: most of the job would be"
            " idle. Start one launcher a node with srun, or ask for fewer tasks"
        )


def _srun_tasks(environment: Environment) -> int:
    """How many tasks of a SLURM step are ranks, or launchers of ranks; 1 outside a step. Within a job mpirun starts
    its own daemons through srun, one a node: those do not count."""
    if "SLURM_STEP_ID" not in environment:
        return 1
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 1))
    mpi_ranks = max(_number(environment, library.world_size, 1) for library in _MPI_LIBRARIES)
    return 1 if mpi_ranks > tasks else tasks


def _from_srun(environment: Environment) -> Launch:
    rank, world_size = _number(environment, "SLURM_PROCID"), _srun_tasks(environment)
    _check_rank("SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", world_size)
    mpi_sizes = {library.world_size: _number(environment, library.world_size, world_size) for library in _MPI_LIBRARIES}
    for name, size in mpi_sizes.items():
        if size != world_size:
            raise LaunchError(
                f"srun started {world_size} tasks (SLURM_STEP_NUM_TASKS), but {name} is {size}: each task has an mpirun"
                " of its own. Use srun or mpirun, not both"
            )
    local_world_size = _tasks_of_node(environment, _number(environment, "SLURM_NODEID"))
    _check_devices(environment, local_world_size)
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    address = environment.get("MASTER_ADDR") or next(iter(hosts_of(nodes)), None)
    if address is None:
        raise LaunchError("SLURM_STEP_NODELIST and SLURM_JOB_NODELIST are not set; set MASTER_ADDR to the first host")
    ids = 7 * _number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID")
    port = _number(environment, "MASTER_PORT", 12_000 + ids % 20_000)  # below the ports of outgoing connections
    return Launch(rank, world_size, _number(environment, "SLURM_LOCALID"), local_world_size, "srun", address, port)


def _tasks_of_node(environment: Environment, node: int) -> int:
    """Tasks on node number `node` of the step, from a form like `2(x3),1`."""
    name = next((n for n in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if n in environment), None)
    if name is None:
        raise LaunchError("SLURM_PROCID is set but SLURM_STEP_TASKS_PER_NODE is not; start with srun")
    counts: list[int] = []
    for part in environment[name].split(","):
        if not (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            raise LaunchError(f"{name} is {environment[name]!r}; expected something like 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    if node >= len(counts):
        raise LaunchError(f"SLURM_NODEID is {node}, but {name} is {environment[name]!r}: {len(counts)} nodes")
    return counts[node]


def _check_devices(environment: Environment, tasks_of_node: int) -> None:
    devices = environment.get("CUDA_VISIBLE_DEVICES", "")
    on_cpu = devices in ("", "-1", "NoDevFiles") or environment.get("DS_ACCELERATOR") == "cpu"
    if not on_cpu and len(devices.split(",")) < tasks_of_node:
        raise LaunchError(
            f"CUDA_VISIBLE_DEVICES is {devices}, but srun started {tasks_of_node} tasks on this node; every task must"
            " see all GPUs of its node: ask with --gpus-per-node, not with --gpus-per-task or --gpu-bind"
        )


@dataclass(frozen=True)
class _MpiLibrary:
    """How one family of mpirun names what it tells its ranks."""

    rank: str
    world_size: str
    local_rank: str
    local_world_size: str


_MPI_LIBRARIES = (
    _MpiLibrary(*(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    _MpiLibrary("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI
)


def _from_mpirun(environment: Environment, names: _MpiLibrary) -> Launch:
    world_size, rank = _number(environment, names.world_size), _number(environment, names.rank)
    _check_rank(names.rank, rank, names.world_size, world_size)
    local_world_size = _number(environment, names.local_world_size)
    on_one_machine = "127.0.0.1" if local_world_size == world_size else None
    return Launch(
        rank,
        world_size,
        _number(environment, names.local_rank),
        local_world_size,
        "mpirun",
        environment.get("MASTER_ADDR") or on_one_machine,
        _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else None,
    )


def _check_rank(name: str, rank: int, size_name: str, size: int) -> None:
    if not 0 <= rank < size:
        raise LaunchError(f"{name} {rank} is outside 0..{size - 1} ({size_name} {size})")


def _number(environment: Environment, name: str, default: int | None = None) -> int:
    """Raises LaunchError when the variable is missing and there is no default, or when it is no number."""
    text = environment.get(name)
    if text is None:
        if default is None:
            raise LaunchError(f"{name} is not set, though the launcher set others; start every rank with one launcher")
        return default
    try:
        return int(text)
    except ValueError:
        raise LaunchError(f"{name} is {text!r}, which is not a number") from None
