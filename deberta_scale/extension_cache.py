"""Where compiled parts are kept, ours and DeepSpeed's, and who may build there. Imports no torch.

torch guards each build with a file `lock` beside it, on which every later build waits for ever when the first was
killed. So builds happen under a lock of our own, which the kernel releases with its owner: whoever holds it knows that
any other lock is a dead one's. And it is always the ninja of this Python's environment that builds: another version
takes the log of this one for none, and compiles everything again, for minutes, whenever the two take turns.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "TORCH_EXTENSIONS_DIR"
"""Where torch and DeepSpeed look."""


def cache_directory() -> Path:
    """What `TORCH_EXTENSIONS_DIR` says; when it says nothing, it is set to a directory in this Python's environment."""
    return Path(os.environ.setdefault(VARIABLE, str(Path(sys.prefix) / "torch_extensions")))


@contextmanager
def building_alone(cache: Path, wait: bool = True) -> Iterator[None]:
    """Be the only process that builds in `cache`, which is made, until the block or the process ends.

    Raises OSError when the directory cannot be made or written, BlockingIOError when another process builds there and
    we do not `wait`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "deberta_scale.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        _prefer_own_ninja()
        yield


def _prefer_own_ninja() -> None:
    """For all that this process builds from now on."""
    beside_python, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if Path(beside_python, "ninja").exists() and path.split(os.pathsep)[0] != beside_python:
        os.environ["PATH"] = os.pathsep.join([beside_python, path])


def killed_builds(cache: Path) -> list[Path]:
    """Directories of builds that were killed. To be asked by who builds alone."""
    return sorted(lock.parent for lock in cache.rglob("lock"))


def clear_killed_builds(cache: Path) -> None:
    """Remove them, and say so; they are built anew when they are needed."""
    for build in killed_builds(cache):
        print(f"cleared a build that was killed: {build}", file=sys.stderr, flush=True)
        shutil.rmtree(build)
