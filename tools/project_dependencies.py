"""Prints what pyproject.toml asks for, one requirement a line.

`build` is what building poolalloc and its C++ tests takes, `demo` what the demo takes besides, `dev` what working on
the project takes. The Makefile installs from it, so that requirements stand in one place.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
wanted = {
    "build": [*project["build-system"]["requires"], "wheel", *(each for each in extras["dev"] if "pgm-build" in each)],
    "demo": [*project["project"]["dependencies"], *extras["report"]],
    "dev": extras["dev"],
}
for requirement in wanted[sys.argv[1]]:
    print(f'"{requirement}"')
