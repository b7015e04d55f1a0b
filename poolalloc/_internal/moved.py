"""Old names of modules: importing one gives the module in its new place, and warns.

A finder in front of sys.meta_path knows them. In front, because a package that has moved would else give its modules a
second time, under their old names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PREFIX = "poolalloc."
MOVED = {
    "against": "analysis.baselines",
    "archive": "_internal.npz",
    "children": "_children",
    "compare": "analysis.compare",
    "costs": "analysis.costs",
    "driver_work": "_internal.driver_work",
    "exact_bins": "_internal.exact_bins",
    "fit": "analysis.fit",
    "live_set": "analysis.live_blocks",
    "output": "_internal.atomic_files",
    "plan": "analysis.plan",
    "plan.cycle": "analysis.plan.cycle",
    "plan.file": "_internal.plan_file",
    "plan.making": "analysis.plan.making",
    "plan.placement": "analysis.plan.placement",
    "plan.worth": "analysis.plan.worth",
    "proposal": "analysis.block_reuse",
    "replay": "analysis.replay",
    "report": "analysis.report",
    "report.growth": "analysis.report.growth",
    "report.picture": "analysis.report.picture",
    "report.tree": "analysis.report.tree",
    "trace": "analysis.trace",
    "trace.files": "_internal.trace.files",
    "trace.format": "_internal.trace.format",
    "trace.log": "_internal.trace.log",
    "trace.observe": "analysis.trace.observe",
    "trace.parts": "analysis.trace.parts",
    "trace.perform": "analysis.trace.perform",
    "trace.picture": "analysis.replay_picture",
    "trace.rebuild": "analysis.trace.rebuild",
    "trace.report": "analysis.trace.import_report",
    "trace.rmm_csv": "analysis.trace.rmm_csv",
    "trace.steps": "_internal.trace.steps",
    "trace.torch_snapshot": "analysis.trace.torch_snapshot",
    "tune": "analysis.tune",
    "view": "analysis.view",
    "view.blocks": "analysis.view.blocks",
    "view.layers": "analysis.view.layers",
    "view.page": "analysis.view.page",
    "workers": "_internal.workers",
}
"""By old name, the new one; both without `poolalloc.`."""


def keep_old_names() -> None:
    """Let old names of modules be imported."""
    sys.meta_path.insert(0, _Finder())


def warn_of_old_name(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn of a public name that has another place now."""
    warnings.warn(f"{_PREFIX}{old} is now {_PREFIX}{new}", DeprecationWarning, stacklevel=stacklevel)


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module in which some names (keys) are now called otherwise (values)."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = module.removeprefix(_PREFIX)
        warn_of_old_name(f"{home}.{name}", f"{home}.{names[name]}")
        value = getattr(sys.modules[module], names[name])
        setattr(sys.modules[module], name, value)
        return value

    return find


class _Finder:
    """Finds modules by their old names."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(_PREFIX) or (new := _new_name(name.removeprefix(_PREFIX))) is None:
            return None
        warn_of_old_name(name.removeprefix(_PREFIX), new)
        return ModuleSpec(name, _Loader(_PREFIX + new), is_package=True)


def _new_name(old: str) -> str | None:
    if old in MOVED:
        return MOVED[old]
    package, _, module = old.rpartition(".")
    return f"{MOVED[package]}.{module}" if package in MOVED else None


class _Loader(Loader):
    """Gives a module that stands for the one with the new name."""

    def __init__(self, new: str) -> None:
        self._new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _OldName(spec.name, import_module(self._new))

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module with the new name has been executed."""


class _OldName(ModuleType):
    """A module under its old name: whatever is asked of it, its new one answers.

    Not the new one itself: the import system would hang the modules of a package into it, over functions of their name.
    """

    def __init__(self, old: str, new: ModuleType) -> None:
        super().__init__(old, new.__doc__)
        self._new = new

    def __getattr__(self, name: str) -> Any:
        return getattr(self._new, name)

    def __dir__(self) -> list[str]:
        return dir(self._new)

    def __call__(self, *args: Any, **keywords: Any) -> object:
        """Call the function of the same name: poolalloc.compare() is one, whoever imported poolalloc.compare."""
        return getattr(self._new, self.__name__.rpartition(".")[2])(*args, **keywords)
