"""Checks that the arrows of the house run one way: python / plugin -> core -> driver contract.

C++: what each folder of csrc/ and each room of csrc/core may include, and headers nobody below may see (CUDA, torch,
Python). Python: torch is imported only inside functions, so that `import poolalloc` costs nothing and works without
torch. Exit code 1 with one line per violation.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Room of csrc/core -> what it may see besides itself. What each is for: csrc/core/README.md.
ROOMS = {
    "base": (),
    "options": ("base",),
    "recording": ("base",),
    "plans": ("base",),
    "streams": ("base", "driver"),
    "sleep": ("base", "options", "streams", "driver"),
    "backing": ("base", "options", "recording", "plans", "driver"),
    "placement": ("base", "options", "plans", "backing"),
    "heap": ("base", "options", "recording", "plans", "streams", "backing", "placement", "driver"),
    "device": ("base", "options", "recording", "plans", "streams", "sleep", "backing", "placement", "heap", "driver"),
}
# Folder -> project headers it may include, by prefix.
ALLOWED = {
    "core": ("core/", "driver/driver.h", "driver/counting_driver.h"),
    "driver": ("driver/", "core/base/"),
    "plugin": ("plugin/", "core/", "driver/"),
    "bridge": ("bridge/", "plugin/", "core/", "driver/"),
    "python": ("python/", "plugin/", "core/", "driver/"),
    "simgpu": ("simgpu/",),
    "simvalues": ("simvalues/", "simgpu/operations.h"),
}
# Foreign headers, and who may include them.
FOREIGN = {
    re.compile(r"^(cuda|cublas|cudnn|nv)"): {"bridge"},
    re.compile(r"^(torch|c10|ATen)/"): {"bridge", "simvalues"},
    re.compile(r"^(Python\.h|pybind11/)"): {"python"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]', re.MULTILINE)


def cpp_violations(path: Path) -> list[str]:
    """Include lines of a C++ file that run against the arrows."""
    folder = path.relative_to(ROOT / "csrc").parts[0]
    found = []
    for bracket, name in INCLUDE.findall(path.read_text()):
        if path.name == "abi_check.cpp" and bracket == "<":
            continue  # it exists to be compared with the real CUDA headers
        for pattern, who in FOREIGN.items():
            if pattern.match(name) and folder not in who and not (ROOT / "csrc" / folder / name).exists():
                found.append(f"{path.relative_to(ROOT)}: csrc/{folder} must not include <{name}>")
        if bracket == '"' and not (path.parent / name).exists() and not name.startswith(ALLOWED[folder]):
            found.append(f"{path.relative_to(ROOT)}: csrc/{folder} must not include {name}")
        elif bracket == '"' and (reason := against_the_rooms(path, name)):
            found.append(f"{path.relative_to(ROOT)}: {reason}")
    return found


def against_the_rooms(path: Path, name: str) -> str | None:
    """Why a file in a room of csrc/core must not include this; None if it may, or lies in no room."""
    inside = path.relative_to(ROOT / "csrc").parts
    if inside[0] != "core" or len(inside) == 2:  # allocator.h sees every room
        return None
    own, *parts = inside[1], *name.split("/")
    if own not in ROOMS:
        return f"csrc/core/{own} is no room that tools/check_includes.py knows"
    room = parts[1] if parts[0] == "core" else parts[0]
    return None if room in (own, *ROOMS[own]) else f"csrc/core/{own} must not include {name}"


def imports_at_module_level(tree: ast.Module) -> list[tuple[int, str]]:
    """Modules imported when the file itself is, those under `if TYPE_CHECKING` left out."""
    found: list[tuple[int, str]] = []

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.extend((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.append((node.lineno, node.module or ""))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
                visit(node.body + node.orelse)
            elif isinstance(node, ast.Try):
                visit(node.body + node.orelse + node.finalbody)

    visit(tree.body)
    return found


def python_violations(path: Path) -> list[str]:
    """Module-level imports of torch in the package."""
    return [
        f"{path.relative_to(ROOT)}:{line}: torch may be imported only inside a function"
        for line, module in imports_at_module_level(ast.parse(path.read_text()))
        if module.split(".")[0] == "torch"
    ]


def main() -> int:
    """Print every violation; 1 if there is one."""
    violations: list[str] = []
    for path in sorted(
        [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.def")]
    ):
        violations += cpp_violations(path)
    for path in sorted((ROOT / "poolalloc").rglob("*.py")):
        violations += python_violations(path)
    print("\n".join(violations) if violations else "includes: the arrows run one way")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
