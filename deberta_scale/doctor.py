"""Whether this machine can train: one finding for each thing that training relies on.

Imports torch only to look at it, and late: that it is missing is a finding, too.

Every finding is `ok`, a `warning` (training works, or works in part) or a `problem` (something will not work), and says
what to do.
"""

import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from deberta_scale.durable import write_durably
from deberta_scale.extension_cache import VARIABLE, building_alone, cache_directory, killed_builds

INSTALL = "run `pip install -c constraints.txt -e .`"
OPEN_FILES = 4096
SHARED_MEMORY_BYTES = 2**30
CHILD_SECONDS = 60.0
_CLOCK_ERROR = 5
"""What adjtimex(2) returns when the clock is not synchronised."""
_TIMEX_BYTES = 512
"""More than the structure that adjtimex fills."""


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "warning", "problem"]
    what: str
    text: str


def examine(directory: Path) -> list[Finding]:
    """Everything about this machine; `directory` is where runs are written. Leaves nothing behind but directories that
    were not there."""
    checks: list[Callable[[], Finding]] = [
        packages,
        devices,
        compilers,
        extensions,
        attention,
        lambda: disk(directory),
        clock,
        limits,
        shared_memory,
        mpi,
    ]
    return [check() for check in checks]


def packages() -> Finding:
    """Installed versions against those that the project requires."""
    try:
        from packaging.requirements import Requirement

        required = [Requirement(line) for line in requires("deberta-scale") or []]
    except (ImportError, PackageNotFoundError) as error:
        return Finding("problem", "packages", f"{error.name} is missing; {INSTALL}")
    wrong = []
    for requirement in required:
        if requirement.marker is not None:
            continue
        installed = _version(requirement.name)
        if installed is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    if wrong:
        return Finding("problem", "packages", f"{'; '.join(wrong)}; {INSTALL}")
    return Finding("ok", "packages", ", ".join(f"{name} {text}" for name, text in versions().items()))


def versions() -> dict[str, str]:
    """Of what must be the same on all hosts."""
    names = ("deberta-scale", "torch", "deepspeed", "numpy")
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {name: _version(name) or "missing" for name in names}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> Finding:
    """GPUs that torch sees; a driver that it does not use is a problem."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("problem", "devices", f"torch cannot be loaded ({error}); {INSTALL}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        return Finding("ok", "devices", f"{len(names)} GPU(s): {', '.join(dict.fromkeys(names))}; NCCL {nccl}")
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists():
        return Finding(
            "problem",
            "devices",
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU: install a torch built for CUDA"
            f" {'newer than the driver allows, or update the driver' if torch.version.cuda else ''}".rstrip(),
        )
    return Finding("ok", "devices", f"no GPU; {cores}, torch {torch.__version__}. Training runs on the CPU, with gloo")


def compilers() -> Finding:
    """For what is compiled at the first start: optimizers on GPUs and with offload, attention on CPUs."""
    wanted = {"a C++ compiler (Debian: g++)": os.environ.get("CXX", "c++"), "ninja": "ninja"}
    found = {name: shutil.which(command) for name, command in wanted.items()}
    beside_python = Path(sys.executable).with_name("ninja")
    found["ninja"] = found["ninja"] or (str(beside_python) if beside_python.exists() else None)
    on_gpu = _num_gpus() > 0
    if on_gpu:
        home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
        found["nvcc (the CUDA toolkit; set CUDA_HOME)"] = shutil.which("nvcc") or (str(home) if home.exists() else None)
    missing = [name for name, path in found.items() if path is None]
    if not missing:
        return Finding("ok", "compilers", ", ".join(path for path in found.values() if path))
    needed = (
        "the optimizer is compiled at the first start"
        if on_gpu
        else "needed for engine.offload_optimizer, and for attention to be fast on a CPU"
    )
    return Finding("problem" if on_gpu else "warning", "compilers", f"missing: {', '.join(missing)}; {needed}")


def extensions() -> Finding:
    """Where compiled parts are kept; what a killed build left is cleared by the next start."""
    cache = cache_directory()
    try:
        with building_alone(cache, wait=False):
            killed = [build.name for build in killed_builds(cache)]
    except BlockingIOError:
        return Finding("ok", "extension cache", f"{cache}: another process is building in it now")
    except OSError as error:
        text = f"{cache}: {error.strerror}; set {VARIABLE} to a writable directory"
        return Finding("problem", "extension cache", text)
    if killed:
        text = f"{cache}: builds were killed ({', '.join(killed)}); the next start clears and repeats them"
        return Finding("warning", "extension cache", text)
    return Finding("ok", "extension cache", str(cache))


def attention() -> Finding:
    """Whether the compiled kernel of attention can be used; on a machine without GPUs it decides the speed."""
    if _num_gpus():
        return Finding("ok", "attention", "runs in torch operations on GPUs")
    try:
        import torch

        from deberta_scale.kernels.cpu_build import lacking

        dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
        reasons = {name: lacking(dtype) for name, dtype in dtypes.items()}
    except ImportError as error:
        return Finding("problem", "attention", f"{error}; {INSTALL}")
    slow = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    if slow:
        return Finding("warning", "attention", f"in torch operations, several times slower, in {'; '.join(slow)}")
    return Finding("ok", "attention", "compiled for this processor at the first start, in bf16 and fp32")


def disk(directory: Path) -> Finding:
    """Write, force to disk, rename, list: what a checkpoint needs."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=directory) as name:
            write_durably(Path(name) / "a", "x" * 2**20)
            listed = [path.name for path in Path(name).iterdir()]
        free = shutil.disk_usage(directory).free
    except OSError as error:
        text = f"{directory}: {error.strerror} ({error.filename or 'fsync'}); give a directory that can be written"
        return Finding("problem", "directory", text)
    if listed != ["a"]:
        return Finding("problem", "directory", f"{directory}: a renamed file is listed as {listed}; use another disk")
    return Finding("ok", "directory", f"{directory.resolve()}: written, synced, renamed; {free / 1e9:.1f} GB free")


def clock() -> Finding:
    """Whether the kernel says that the clock is synchronised; stops before a time limit rely on it."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (AttributeError, OSError):
        state = -1
    if state == _CLOCK_ERROR:
        text = "not synchronised, says the kernel (in a container it may not know): SLURM's end of time may be missed"
        return Finding("warning", "clock", f"{text}; start chrony or ntpd")
    known = "synchronised" if state >= 0 else "the kernel does not tell whether it is synchronised"
    return Finding("ok", "clock", known)


def limits() -> Finding:
    """Open files, and memory that may be locked where there is InfiniBand."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = f"open files {_limit(files)}, locked memory {_limit(locked)}"
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        return Finding("warning", "limits", f"{text}; raise the first with `ulimit -n {OPEN_FILES}` for many shards")
    if Path("/sys/class/infiniband").exists() and locked != resource.RLIM_INFINITY:
        return Finding("warning", "limits", f"{text}; InfiniBand needs `ulimit -l unlimited`")
    return Finding("ok", "limits", text)


def shared_memory() -> Finding:
    """NCCL's way between the GPUs of a machine."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError as error:
        return Finding("warning", "/dev/shm", f"{error.strerror}; NCCL needs it between the GPUs of a machine")
    text = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f}"
    if _num_gpus() > 1 and usage.free < SHARED_MEMORY_BYTES:
        return Finding("warning", "/dev/shm", f"{text}; NCCL may fail: start the container with --shm-size=8g")
    return Finding("ok", "/dev/shm", text)


def mpi() -> Finding:
    """The MPI that mpi4py loads, asked in a process of its own: one that does not fit may abort it."""
    program = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            "warning", "MPI", f"loading it takes more than {CHILD_SECONDS:.0f} seconds; mpirun will not work"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        return Finding("warning", "MPI", f"cannot be loaded ({last}); only needed under mpirun: install mpich")
    launcher = shutil.which("mpirun") or "no mpirun in PATH"
    library = " ".join(done.stdout.splitlines()[0].split())
    return Finding("ok", "MPI", f"{library}; {launcher}")


def _num_gpus() -> int:
    """That torch sees; without torch none."""
    try:
        import torch
    except (ImportError, OSError):
        return 0
    return torch.cuda.device_count()


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"
