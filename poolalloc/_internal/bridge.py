"""The bridge to torch (csrc/bridge): compiled against the installed torch on first use, kept, and loaded.

Not for choosing between bridge and plugin, or for what the user sees: poolalloc/installing.py.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from poolalloc import _core
from poolalloc._internal.private_folder import PrivateFolder, is_settled
from poolalloc.errors import PoolallocError

PACKAGE = Path(__file__).resolve().parents[1]
HEADERS = ("core", "driver", "plugin")
"""The folders of csrc whose headers the bridge includes."""

_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-DNDEBUG")


class BridgeError(PoolallocError, RuntimeError):
    """The bridge cannot be built or loaded; the message is one line that says why, and where known what to do."""


class NotKeptError(BridgeError):
    """The cache folder cannot be used: it cannot be written, or others may change it."""


@dataclass(frozen=True)
class Plan:
    """One build of the bridge: the command, and the name of its result."""

    command: tuple[str, ...]
    source: str
    name: str


@dataclass(frozen=True)
class Library:
    """A bridge that was built, and checked to be the user's own."""

    path: Path
    descriptor: int
    """The open file, for as long as the process lives."""
    built: bool
    """Whether it was compiled just now."""

    def loadable_path(self) -> str:
        """The name to load this very file by.

        Debuggers, profilers and torch (which starts addr2line for stacks of C++) open a library by the name it was
        loaded by, in their own process. So it is the file's path wherever nobody else can put another file there. It is
        the descriptor otherwise, by a name that holds in other processes as well; without /proc there is only the path.
        """
        path = self.path.resolve()
        descriptor = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        return str(path) if is_settled(path, self.descriptor) or not os.path.exists(descriptor) else descriptor


def sources() -> Path:
    """The folder with the C++ sources: beside an installed package, or csrc in a checkout."""
    for folder in (PACKAGE / "bridge_sources", PACKAGE.parent / "csrc"):
        if (folder / "bridge" / "install.cpp").is_file():
            return folder
    raise BridgeError(f"the sources of the bridge are missing: {PACKAGE / 'bridge_sources'}; reinstall poolalloc")


def cache_folder() -> Path:
    """Where built bridges are kept: POOLALLOC_CACHE_DIR, or poolalloc in the user's cache folder."""
    if own := os.environ.get("POOLALLOC_CACHE_DIR"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base).absolute() if base else Path.home() / ".cache") / "poolalloc"
    except RuntimeError as error:  # a user without an entry in the password file, and no HOME
        raise NotKeptError(f"there is no cache folder ({error}); POOLALLOC_CACHE_DIR names one") from error


def plan(torch: ModuleType) -> Plan:
    """How to build the bridge for this torch.

    Raises:
        BridgeError: something that it takes is missing.
    """
    folder = sources()
    if _digest_of_headers(folder) != _core.HEADERS_DIGEST:
        raise BridgeError(
            f"poolalloc was built from other headers than those in {folder}; build it again: make build in a "
            "checkout, else pip install --force-reinstall poolalloc"
        )
    torch_folder = Path(str(torch.__file__)).resolve().parent
    library = PACKAGE / "libpoolalloc.so"
    command = (
        *compiler(),
        *_FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-I{folder}",
        f"-isystem{torch_folder / 'include'}",
        *_cuda_includes(torch_folder.parent),
        "-xc++",
        "-",
        f"-L{torch_folder / 'lib'}",
        "-ltorch_cuda",
        "-lc10_cuda",
        "-lc10",
        "-xnone",
        str(library),
    )
    parts = sorted((folder / "bridge").glob("*.cpp"))
    digest = hashlib.sha256(repr((command[:1], _FLAGS, torch.__version__, torch.version.git_version)).encode())
    for file in sorted([*parts, *(folder / "bridge").glob("*.h")]):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    digest.update(_core.HEADERS_DIGEST.encode())
    abi = sysconfig.get_config_var("SOABI") or "unknown"
    name = f"bridge-torch{torch.__version__}-{abi}-{digest.hexdigest()[:16]}.so"
    # One translation unit: torch's headers are most of the work.
    source = "".join(f'#include "bridge/{part.name}"\n' for part in parts)
    return Plan(command, source, name)


def _digest_of_headers(folder: Path) -> str:
    """What CMakeLists.txt makes of them too."""
    files = sorted(file.relative_to(folder).as_posix() for name in HEADERS for file in (folder / name).rglob("*.[hd]*"))
    lines = [f"{file} {hashlib.sha256((folder / file).read_bytes()).hexdigest()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def compiler() -> tuple[str, ...]:
    """The C++ compiler to use, as the first words of a command: CXX, or what is found.

    Raises:
        BridgeError: there is none.
    """
    asked = os.environ.get("CXX")
    for candidate in [asked] if asked else ["g++", "c++", "clang++"]:
        words = candidate.split()
        if words and shutil.which(words[0]):
            return tuple(words)
    raise BridgeError(
        f"there is no C++ compiler ({asked or 'g++, c++ or clang++'}); install one, for example: apt-get install g++"
    )


def _cuda_includes(site_packages: Path) -> list[str]:
    """Flags for the CUDA runtime's headers: those beside torch first, then a toolkit's.

    NVIDIA's wheels leave out a few that the others include; triton, which comes with torch, has them.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [
        *sorted((site_packages / "nvidia").glob("cu[0-9]*/include"), reverse=True),
        site_packages / "nvidia" / "cuda_runtime" / "include",
        *(Path(home) / "include" for home in homes),
        Path("/usr/local/cuda/include"),
        site_packages / "triton" / "backends" / "nvidia" / "include",
    ]
    folders = [folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()]
    if not folders:
        raise BridgeError(
            "the headers of the CUDA runtime were found neither beside torch nor in CUDA_HOME; install them, for "
            "example: pip install nvidia-cuda-runtime, or set CUDA_HOME"
        )
    if not any((folder / "crt" / "host_defines.h").is_file() for folder in folders):
        raise BridgeError(
            "the CUDA header crt/host_defines.h was found neither beside torch nor in CUDA_HOME; install it, for "
            "example: pip install nvidia-cuda-crt, or set CUDA_HOME"
        )
    return [f"-isystem{folders[0]}", *(flag for folder in folders[1:] for flag in ("-idirafter", str(folder)))]


def build(torch: ModuleType, force: bool = False) -> Library:
    """The bridge for this torch, in the cache folder; built if it is not there yet.

    Raises:
        BridgeError: it cannot be compiled; the compiler's first error.
        NotKeptError: the folder cannot be used; why.
    """
    return build_plan(plan(torch), force)


def build_somewhere(torch: ModuleType) -> Library:
    """The same, in a temporary folder, with a warning, where the cache folder cannot be used."""
    wanted = plan(torch)
    try:
        return build_plan(wanted, force=False)
    except NotKeptError as error:
        problem = error
    for folder in _temporary_folders():
        try:
            library = _build_in(folder, wanted, force=False)
        except OSError:
            continue
        warnings.warn(f"{problem}. It is kept in {folder} instead", RuntimeWarning, stacklevel=6)
        return library
    raise problem


def build_plan(wanted: Plan, force: bool) -> Library:
    """The library of a plan, in the cache folder; built if it is not there yet. Raises as `build` does."""
    folder = cache_folder()
    try:
        return _build_in(folder, wanted, force)
    except OSError as error:
        raise NotKeptError(
            f"the bridge cannot be kept in {folder}: {error.strerror or error}; POOLALLOC_CACHE_DIR names another "
            "folder"
        ) from error


def _temporary_folders() -> Iterator[Path]:
    """One that the user's next process finds too; then, where somebody else took its name, one for this process."""
    yield Path(tempfile.gettempdir()) / f"poolalloc-{os.geteuid()}"
    folder = tempfile.mkdtemp(prefix="poolalloc-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    yield Path(folder)


def _build_in(path: Path, wanted: Plan, force: bool) -> Library:
    with PrivateFolder(path) as folder:
        if not force and (found := folder.open(wanted.name)) is not None:
            return Library(path / wanted.name, found, built=False)
        with folder.lock(f"{wanted.name}.lock"):
            found = None if force else folder.open(wanted.name)  # another process may have built it meanwhile
            if built := found is None:
                _compile(wanted, folder)
                found = folder.open(wanted.name)
            if found is None:
                raise FileNotFoundError(f"{wanted.name} was removed as soon as it was built")
            return Library(path / wanted.name, found, built)


def _compile(wanted: Plan, folder: PrivateFolder) -> None:
    with tempfile.TemporaryDirectory(prefix="poolalloc-build-") as work:
        result = Path(work) / wanted.name
        try:
            done = subprocess.run(
                [*wanted.command, "-o", str(result)], input=wanted.source, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise BridgeError(f"{wanted.command[0]} cannot be started: {error.strerror or error}") from error
        if done.returncode != 0:
            raise BridgeError(f"{wanted.command[0]} failed: {_first_error(done.stderr, done.returncode)}")
        folder.put(wanted.name, result)


def _first_error(text: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "undefined reference" in line]
    return (errors or lines or [f"exit code {code}"])[0]


def _warn(text: bytes) -> None:
    """Warn where the program calls torch."""
    warnings.warn(text.decode(errors="replace"), RuntimeWarning, stacklevel=2)


_WARN = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_warn)
"""Called by the bridge, for as long as the process lives."""


def load(library: Library) -> None:
    """Let the bridge take over torch's CUDA memory.

    Raises:
        BridgeError: it cannot be loaded, or torch refuses it.
    """
    try:
        install = ctypes.CDLL(library.loadable_path()).poolalloc_bridge_install
    except (OSError, AttributeError) as error:
        raise BridgeError(f"{library.path.name} cannot be loaded: {error}") from error
    install.restype = ctypes.c_char_p
    problem = install(_WARN)
    if problem is not None:
        raise BridgeError(problem.decode(errors="replace"))
