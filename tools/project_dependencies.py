"""Prints what pyproject.toml asks for, one requirement a line.

`demo` is what building and the demo take, `dev` what working on the project takes. The Makefile installs from it, so
that requirements stand in one place.
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
    "demo": [*project["project"]["dependencies"], *project["build-system"]["requires"], "wheel", *extras["report"]],
    "dev": extras["dev"],
}
for requirement in wanted[sys.argv[1]]:
    print(f'"{requirement}"')
