"""The compiled kernels under the address and undefined-behaviour sanitizers: a minute of compiling, so no part
of the test suite. To be run after changes of csrc/: python -m tests.sanitizers.kernels
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

from deberta_scale.kernels.cpu_build import FLAGS, SOURCES


def build(program: Path) -> None:
    """Compile the kernels, of attention without torch's operators around it, and a program that calls it."""
    sources = [SOURCES / f"{name}.cpp" for name in ("inputs", "forward", "backward", "residual_norm")]
    libraries = cpp_extension.library_paths()
    command = [
        os.environ.get("CXX", "c++"),
        *(flag for flag in FLAGS if flag not in ("-O3", "-fopenmp")),
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-I{path}" for path in (SOURCES, *cpp_extension.include_paths())),
        Path(__file__).with_name("kernels.cpp"),
        *sources,
        *(f"-L{path}" for path in libraries),
        *(f"-Wl,-rpath,{path}" for path in libraries),
        "-ltorch_cpu",
        "-lc10",
        "-o",
        program,
    ]
    subprocess.run(command, check=True)


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "kernels"
        build(program)
        # memory that torch's libraries keep until the end is theirs
        return subprocess.run([program], env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}).returncode


if __name__ == "__main__":
    sys.exit(main())
