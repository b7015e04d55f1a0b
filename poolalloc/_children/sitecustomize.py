"""Runs when a Python starts that a program under `poolalloc run` has started: __init__.py says how it gets there.

It only waits for torch: a process that never imports torch pays for one comparison at each import. Whatever goes wrong,
the process goes on.
"""

import importlib.machinery
import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _run_hidden() -> None:
    """Run the sitecustomize that this one stands before, if there is one."""
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


class _TorchFinder:
    """Waits for the import of torch, then takes itself away."""

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        """Find torch as it would be found anyway, and have poolalloc installed once it is there."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_install(module):  # type: ignore[no-untyped-def]
                execute(module)
                try:
                    from poolalloc._children import install_in_child
                except ImportError:  # another Python, without poolalloc
                    return
                install_in_child()

            spec.loader.exec_module = execute_and_install  # type: ignore[method-assign]
        return spec


sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != _HERE]
if os.environ.get("POOLALLOC_CHILDREN"):
    sys.meta_path.insert(0, _TorchFinder())
_run_hidden()
