"""Packaging: hands the native build to CMakeLists.txt and collects what it installs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def tool(name: str, folder: str) -> str | None:
    """Return the path of a build tool: on PATH, else in the package of its name, whose scripts need not be there."""
    found = shutil.which(name)
    if found is None and importlib.util.find_spec(name) is not None:
        found = shutil.which(name, path=getattr(importlib.import_module(name), folder, None))
    return found


class CMakeBuild(build_ext):
    """Runs cmake once for the whole package.

    POOLALLOC_CMAKE_ARGS adds arguments to the configure step; POOLALLOC_BUILD_DIR keeps the build between runs.
    """

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and install into the package folder of the build."""
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        if cmake is None:
            raise SystemExit("poolalloc: cmake was not found; install it with: pip install cmake ninja")
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler.split()[0]) is None:
            raise SystemExit(f"poolalloc: no C++ compiler ({compiler}); install one, for example: apt-get install g++")
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = self.cmake_folder()
        build.mkdir(parents=True, exist_ok=True)
        ninja = tool("ninja", "BIN_DIR")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure = [cmake, "-S", str(ROOT), "-B", str(build), *generator, f"-DPython_EXECUTABLE={sys.executable}",
                     f"-DCMAKE_INSTALL_PREFIX={destination}", "-DCMAKE_BUILD_TYPE=Release",
                     *os.environ.get("POOLALLOC_CMAKE_ARGS", "").split()]  # fmt: skip
        for command in (configure, [cmake, "--build", str(build), "--parallel"], [cmake, "--install", str(build)]):
            subprocess.run(command, check=True)

    def copy_extensions_to_source(self) -> None:
        """Install into the source tree as well, for an editable install: the libraries beside the module too."""
        cmake = tool("cmake", "CMAKE_BIN_DIR") or "cmake"
        source = str(ROOT / "poolalloc")
        subprocess.run([cmake, "--install", str(self.cmake_folder()), "--prefix", source], check=True)

    def cmake_folder(self) -> Path:
        """Return where cmake builds."""
        return Path(os.environ.get("POOLALLOC_BUILD_DIR", f"{self.build_temp}/cmake")).resolve()


class FilesFromOutside(build_py):
    """Puts files from outside the package into it; an editable install finds them in the checkout.

    The workloads, so that an installed `poolalloc bench` knows them by name. What driver calls take, by device, for
    `poolalloc replay`. The sources of the bridge and of simvalues with the headers they include, since both are
    compiled where torch is.
    """

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "poolalloc"
        shutil.copytree(
            ROOT / "benchmarks" / "workloads",
            package / "bench" / "workload_files",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
        shutil.copytree(ROOT / "benchmarks" / "results" / "driver-costs", package / "driver_costs", dirs_exist_ok=True)
        compiled_later = {"bridge": "*.*", "simvalues": "*.*", "simgpu": "operations.h"}
        headers = dict.fromkeys(("core", "driver", "plugin"), "*.[hd]*")
        for folder, pattern in {**compiled_later, **headers}.items():
            for file in (ROOT / "csrc" / folder).rglob(pattern):
                target = package / "bridge_sources" / file.relative_to(ROOT / "csrc")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target)


setup(
    ext_modules=[Extension("poolalloc._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FilesFromOutside},
)
