"""Saying what a program is at work on, so that a recording tells whose memory it is.

    poolalloc.name_modules(model)           # every module, forward and backward
    with poolalloc.record("run.npz"):
        with poolalloc.scope("validation"):
            validate(model)

`poolalloc report run.npz` then says what each scope held. The name of a scope is a path: scopes inside each other are
joined by "/", and a module has its own dotted path behind the scope around it, as in `validation/GPT.blocks.3.mlp`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from poolalloc import _core

if TYPE_CHECKING:
    import torch

__all__ = ["NamedModules", "name_modules", "scope"]

_KEY = "poolalloc scope"  # in the metadata of a node of the autograd graph


class _Thread(threading.local):
    def __init__(self) -> None:
        self.calls: list[tuple[object, int, tuple[int, int, int]]] = []
        """The modules that this thread is calling, innermost last: each with its scope, and what ends that."""


_thread = _Thread()
_around: dict[int, str] = {}
"""By number of a module's scope: the name of the one around it that is no module's."""
_last_pass = 0


def _join(outer: str, name: str) -> str:
    return f"{outer}/{name}" if outer else name


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Name what this thread is at work on until the end of the `with`.

    What it allocates meanwhile is recorded under that name, with or without stacks. Costs about a microsecond, and
    nothing on any allocation where nothing is recorded.

    Args:
        name: any text; inside another scope it stands behind that one's name and a "/".
    """
    before = _core.enter_scope(_core.scope_number(_join(_core.scope_here(), name)))
    try:
        yield
    finally:
        _core.return_to_scope(before)


class NamedModules:
    """The modules of a model that are scopes, until remove() or the end of a `with`."""

    def __init__(self, hooks: list[Any]) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Let them be scopes no longer. A second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> NamedModules:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def name_modules(model: torch.nn.Module, name: str | None = None) -> NamedModules:
    """Make every module of `model` a scope: what it allocates is recorded under its path in the model.

    So is what its backward pass allocates, in which torch's threads have no stack of Python. There a scope reaches from
    the node that computed the module's output to the one that computed its input, as the engine comes to them; what
    several modules' backward passes do in turn may be told of the wrong one.

    Inside what torch.compile compiled there are no modules to be told apart: it stands under the module around it. Call
    remove() before the model itself is pickled, scripted or exported: its hooks cannot be.

    Args:
        model: the modules that it has now; one that occurs in several places has the first one's path.
        name: what `model` itself is called; by default its class.
    """
    root = type(model).__name__ if name is None else name
    hooks: list[Any] = []
    for path, module in model.named_modules():
        hooks += _hook(module, f"{root}.{path}" if path else root)
    return NamedModules(hooks)


def _hook(module: torch.nn.Module, path: str) -> list[Any]:
    import torch

    def enter(called: Any, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        here = _core.scope_number_here()
        _tag((args, kwargs), here)
        around = _around[here] if here in _around else _core.scope_here()
        number = _core.scope_number(_join(around, path))
        if number != 0:
            _around[number] = around
        _thread.calls.append((called, number, _core.enter_scope(number)))

    def leave(called: Any, _args: Any, output: Any) -> None:
        # Where another hook failed before enter() was reached, this is called all the same.
        if torch.compiler.is_compiling() or not _thread.calls or _thread.calls[-1][0] is not called:
            return
        _, number, before = _thread.calls.pop()
        _tag(output, number)
        _core.return_to_scope(before)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, always_call=True),
    ]


def _tag(values: Any, number: int) -> None:
    """Let the backward pass be in this scope from the nodes of these tensors on, but where they have one."""
    import torch
    from torch.utils import _pytree

    if not torch.is_grad_enabled():
        return
    for value in _pytree.tree_leaves(values):
        node: Any = value.grad_fn if isinstance(value, torch.Tensor) else None
        if node is None or _KEY in node.metadata:
            continue
        node.metadata[_KEY] = number
        node.register_prehook(_Entry(number))


class _Entry:
    """Called by the engine before a node's backward pass."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, _gradients: Any) -> None:
        global _last_pass  # noqa: PLW0603
        import torch

        now = _core.enter_scope_in_pass(self._number)
        if now != _last_pass:
            _last_pass = now
            torch.autograd.Variable._execution_engine.queue_callback(_core.end_pass)
