"""Lists the CUDA library functions that torch's shared objects import, as csrc/simgpu/stubs/library_symbols.txt.

Not for the CUDA runtime and driver (cuda*, cu*): those are simulated by hand in csrc/simgpu, not stubbed.
Run it once over every torch version to support; a name in the file that no given version imports is dropped:

    python tools/list_cuda_symbols.py TORCH_LIB_FOLDER [TORCH_LIB_FOLDER ...] > csrc/simgpu/stubs/library_symbols.txt
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Longest prefix first: cublasLt is not cublas, cusparseLt is not cusparse.
LIBRARIES = {
    "cublasLt": "cublasLt",
    "cublas": "cublas",
    "cusparseLt": "cusparseLt",
    "cusparse": "cusparse",
    "cusolver": "cusolver",
    "cudnn": "cudnn",
    "cufft": "cufft",
    "curand": "curand",
    "nvrtc": "nvrtc",
    "nvJitLink": "nvJitLink",
    "nccl": "nccl",
    "cupti": "cupti",
    "cuFile": "cufile",
}

HEADER = """\
# Functions of NVIDIA's libraries that torch's shared objects import, grouped by library.
# Each becomes a stub in libsimgpu.so (generate_stubs.cmake), so that no call reaches the real library.
# Made from the torch versions that the tests use, with:
#   python tools/list_cuda_symbols.py TORCH_LIB_FOLDER [TORCH_LIB_FOLDER ...] > csrc/simgpu/stubs/library_symbols.txt
# Do not edit by hand: add behaviour in outputs.def or a .cpp file of this folder instead.
"""


def library_of(symbol: str) -> str | None:
    """Return the library that `symbol` belongs to, or None for a function that is not to be stubbed."""
    for prefix, library in LIBRARIES.items():
        if re.match(prefix + r"[A-Z]", symbol) or (prefix in {"nvrtc", "cupti"} and symbol.startswith(prefix)):
            return library
    return None


def imported_symbols(shared_object: Path) -> set[str]:
    """Return the undefined dynamic symbols of one shared object, without their version suffix."""
    command = ["nm", "-D", "--undefined-only", str(shared_object)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in output.splitlines() if line.strip()}


def main(folders: list[str]) -> int:
    """Print the list for the given torch/lib folders; return the exit code."""
    shared_objects = [file for folder in folders for file in sorted(Path(folder).glob("lib*.so"))]
    if not shared_objects:
        print("usage: list_cuda_symbols.py TORCH_LIB_FOLDER [TORCH_LIB_FOLDER ...]", file=sys.stderr)
        return 2
    groups: dict[str, set[str]] = {}
    for shared_object in shared_objects:
        for symbol in imported_symbols(shared_object):
            library = library_of(symbol)
            if library is not None:
                groups.setdefault(library, set()).add(symbol)
    print(HEADER, end="")
    for library in sorted(groups):
        print(f"\n[{library}]")
        print("\n".join(sorted(groups[library])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
