"""The compiled kernels: built once for each machine and environment, then loaded in milliseconds.

What is built lies in a directory named by a digest of everything that the result depends on. It is built beside it
under another name and renamed when it is whole, by one process at a time; a build that was killed is cleared away.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

from deberta_scale.extension_cache import building_alone, cache_directory, clear_killed_builds

SOURCES = Path(__file__).parent / "csrc"
NAME = "deberta_scale_kernels"
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++20",
    # at::parallel_for is a header; its threads are those of torch's own OpenMP library, so nothing is linked
    "-fopenmp",
    "-DCPU_CAPABILITY=AVX512",
    "-DCPU_CAPABILITY_AVX512",
)


@lru_cache
def why_not(dtype: torch.dtype) -> str | None:
    """Why this machine cannot run the compiled kernel on tensors of `dtype`; None when it can. Builds it when needed,
    which takes about a minute, once; another process that builds it is waited for."""
    return lacking(dtype) or _load()


def lacking(dtype: torch.dtype) -> str | None:
    """What the processor lacks for it; builds nothing."""
    capabilities = torch.cpu.get_capabilities()
    needed = {torch.float32: ["avx512_f"], torch.bfloat16: ["avx512_f", "avx512_bf16"]}.get(dtype)
    if needed is None:
        return f"the compiled kernel takes fp32 and bf16, not {dtype}"
    needed += ["avx512_bw", "avx512_dq", "avx512_vl"]
    missing = [name for name in needed if not capabilities.get(name, False)]
    return f"this processor lacks {', '.join(missing)}" if missing else None


@lru_cache
def _load() -> str | None:
    """Make the operators of torch.ops.deberta_scale callable, or say why they are not."""
    library = _built_directory() / f"{NAME}.so"
    try:
        if not library.exists():
            with building_alone(cache_directory()):
                clear_killed_builds(cache_directory())
                if not library.exists():
                    _build(library.parent)
        torch.ops.load_library(library)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"it could not be built or loaded: {str(error).strip().splitlines()[0]}"
    return None


def _build(directory: Path) -> None:
    """Raises RuntimeError when there is no compiler or it fails."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise RuntimeError("there is no C++ compiler; install the Debian package g++")
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    from torch.utils import cpp_extension

    cpp_extension.load(
        NAME,
        [str(source) for source in sorted(SOURCES.glob("*.cpp"))],
        extra_cflags=list(FLAGS),
        build_directory=str(partial),
        is_python_module=False,
    )
    partial.rename(directory)


def _built_directory() -> Path:
    parts = [torch.__version__, platform.machine(), *FLAGS, str(sorted(torch.cpu.get_capabilities().items()))]
    parts += [f"{path.name}\n{path.read_text()}" for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp")]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return cache_directory() / f"{NAME}_{digest}"
