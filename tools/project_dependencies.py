"""Prints what pyproject.toml asks for, one requirement a line: dependencies and the `dev` extra.

The Makefile installs from it, so that requirements stand in one place.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
    print(f'"{requirement}"')
