"""Puts poolalloc in the place of torch's CUDA allocator.

What is installed is known to poolalloc._internal.installed. Not for configuration (config.py) or figures (memory.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from poolalloc import _core, recording
from poolalloc._internal import bridge as _bridge
from poolalloc._internal import installed, shared_tensors, torch_slot
from poolalloc._internal.first_touch import first_touch
from poolalloc._internal.installed import BRIDGE_MISSING, MISSING, Installation, installation, is_installed
from poolalloc.config import Config
from poolalloc.errors import AlreadyInitializedError, ConfigError, TorchError, UsageError

__all__ = ["Installation", "install", "installation", "is_installed"]

_lock = threading.RLock()
_importing = threading.local()
"""Has `torch` set in a thread whose install() imports torch, `ended` in one where torch's import is as good as over."""


def install(
    config: Config | Mapping[str, object] | str | os.PathLike[str] | None = None,
    *,
    plan: str | os.PathLike[str] | None = None,
    bridge: bool | None = None,
) -> Installation:
    """Let poolalloc serve all CUDA memory of this process's torch. Call it before anything touches CUDA.

    `config` is a Config, a mapping of options, the path of a TOML file, or the name of a profile; None takes the
    defaults. On top of all but a Config come POOLALLOC_CONFIG and POOLALLOC_CONF, so that options can be changed from
    outside.

    `plan` is the path of a file that `poolalloc plan` wrote: requests of a program that does what it says are served
    from it, and others as without it (docs/plan.md). None takes POOLALLOC_PLAN, if that is set.

    `bridge` says whether torch gets poolalloc's bridge, compiled for it on first use and kept: True makes it an error
    if that fails, False takes the plain plugin, and None (or POOLALLOC_BRIDGE unset) takes the plugin with a warning
    where there is no bridge. POOLALLOC_BRIDGE=1 or 0 decides where the argument does not.

    Calling it again with the same configuration, or with None, returns the first result.

    Raises:
        AlreadyInitializedError: torch has already initialised CUDA, or has another library's allocator.
        PlanError: the file is no plan.
        ConfigError: an option does not exist, or options or a plan differ from those of an earlier call.
        TorchError: there is no torch, it is not built for CUDA, it is half imported, or the bridge was demanded and
            cannot be built.
        UsageError: it is called again while it imports torch.
    """
    if (done := installed.made()) is None:
        config = Config.load(config)
        path = plan if plan is not None else os.environ.get("POOLALLOC_PLAN") or None
        wanted = _bridge_wanted() if bridge is None else bridge
        # Not under the lock: what torch's import runs may install poolalloc itself, and other threads may wait for it.
        _import_torch_for_install()
        with _lock:
            if (done := installed.made()) is None:
                return _install_first(config, None if path is None else Path(path), wanted)
    _require_same(done, config, plan)
    if (problem := installed.replaced()) is not None:
        raise AlreadyInitializedError(f"{problem}. poolalloc cannot take the place back: remove that call")
    return done


def _import_torch_for_install() -> None:
    if in_progress():
        raise UsageError(
            "poolalloc.install() was called again while it imports torch, by something that this import runs; the "
            "first call goes on to install it. Where both may happen, use `import poolalloc.auto`, which leaves it to "
            "the first"
        )
    _importing.torch = True
    try:
        import_torch()
    finally:
        _importing.torch = False


def in_progress() -> bool:
    """Whether this thread is in the middle of install(), where torch is being imported."""
    return getattr(_importing, "torch", False)


def install_at_end_of_import(config: Config, plan: str | None) -> None:
    """install() for hooks that torch's import runs at its very end, when all of it is there."""
    _importing.ended = True
    try:
        install(config, plan=plan)
    finally:
        _importing.ended = False


def _install_first(config: Config, plan: Path | None, bridge: bool | None) -> Installation:
    """Under the lock."""
    done = _install(config, plan, bridge)
    installed.keep(done)
    _warn_of_preloads()
    if done.config.record:
        recording.record(done.config.record, stacks=done.config.record_stacks)
    return done


def _require_same(
    done: Installation,
    config: Config | Mapping[str, object] | str | os.PathLike[str] | None,
    plan: str | os.PathLike[str] | None,
) -> None:
    if config is not None and (asked := Config.load(config)) != done.config:
        raise ConfigError(
            f"poolalloc is already installed with {done.config.to_conf() or 'the defaults'}, and "
            f"cannot change to {asked.to_conf() or 'the defaults'}; call install() once, or without a "
            "configuration where it may have been called before"
        )
    if plan is not None and Path(plan) != done.plan:
        raise ConfigError(
            f"poolalloc is already installed with {done.plan or 'no plan'}, and cannot change to "
            f"{os.fspath(plan)}; name the plan in the first call of install()"
        )


def _bridge_wanted() -> bool | None:
    asked = os.environ.get("POOLALLOC_BRIDGE", "")
    if asked not in ("", "0", "1"):
        raise ConfigError(f'POOLALLOC_BRIDGE is "{asked}"; it must be 1 (the bridge or an error), 0 (never) or unset')
    return None if not asked else asked == "1"


def _install(config: Config, plan: Path | None, bridge: bool | None) -> Installation:
    torch = import_torch()
    _check_untouched(torch)
    # What is to be recorded is recorded from here, where stacks are known, not by the plugin.
    _core.configure(config.unrecorded().to_conf(), None if plan is None else _read_plan(plan))
    if bridge is not False:
        try:
            return _install_bridge(config, plan, torch)
        except _bridge.BridgeError as error:
            if bridge:
                raise TorchError(f"poolalloc.install() has no bridge to torch: {error}") from error
            warnings.warn(_without_bridge(error), RuntimeWarning, stacklevel=4)
    return _install_plugin(config, plan, torch)


def _read_plan(path: Path) -> dict[str, Any]:
    from poolalloc._internal import plan_file  # needs numpy, which poolalloc alone does not

    return plan_file.read(path).to_core()


def _without_bridge(error: Exception) -> str:
    lost = ", ".join(feature for feature in MISSING if feature not in BRIDGE_MISSING)
    return (
        f"poolalloc serves torch without its bridge, so these do not work: {lost}. Why: {error}. "
        "poolalloc build-bridge --force tries again; POOLALLOC_BRIDGE=0 says that it is not wanted"
    )


def _install_bridge(config: Config, plan: Path | None, torch: ModuleType) -> Installation:
    library = _bridge.build_somewhere(torch)
    try:
        _bridge.load(library)
    except _bridge.BridgeError as error:
        if "already initialized" in str(error):
            raise AlreadyInitializedError(_too_late()) from error
        raise
    shared_tensors.name_the_sender()
    return Installation(config, torch.__version__, library.path, backend="bridge", plan=plan)


def _warn_of_preloads() -> None:
    """Libraries that stand between a program and CUDA's allocation calls see none of poolalloc's memory."""
    with contextlib.suppress(OSError):
        if "torch_memory_saver_hook_mode_preload" in Path("/proc/self/maps").read_text():
            warnings.warn(
                "poolalloc: torch_memory_saver is preloaded into this process and has no effect: it pauses memory that "
                "torch takes by cudaMalloc, and poolalloc takes none by it. Its pause and resume free nothing; "
                "poolalloc.compat.torch_memory_saver has the same names, and works; start the process without it",
                RuntimeWarning,
                stacklevel=4,
            )


_BACKEND = re.compile(r"(^|,)\s*backend\s*:\s*([^,]*)")


def _settings_of_torch_without_bridge() -> None:
    """Say what has no effect, and keep torch from an internal error.

    torch reads the variables when CUDA is first used, and insists that a backend named there is the one in use.
    """
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        text = os.environ.get(name, "")
        if (found := _BACKEND.search(text)) is None:
            continue
        if (rest := _BACKEND.sub("", text).strip(", ")) != "":
            os.environ[name] = rest
        else:
            del os.environ[name]
        if found[2].strip() != "native":
            _no_effect(f"backend in {name}", "poolalloc has taken its place")
    if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:
        _no_effect("PYTORCH_NO_CUDA_MEMORY_CACHING", "it takes the bridge")


def _no_effect(setting: str, why: str) -> None:
    text = f"poolalloc: torch's allocator setting {setting} has no effect: {why}"
    warnings.warn(text, RuntimeWarning, stacklevel=7)


def _install_plugin(config: Config, plan: Path | None, torch: ModuleType) -> Installation:
    library = _core.library_path()
    _settings_of_torch_without_bridge()
    handle = torch.cuda.memory.CUDAPluggableAllocator(library, "poolalloc_malloc", "poolalloc_free")
    for setter, address in _core.hook_addresses().items():
        getattr(handle._allocator, setter)(address)
    before = torch_slot.allocators(torch)
    try:
        torch.cuda.memory.change_current_allocator(handle)
    except RuntimeError as error:
        raise AlreadyInitializedError(_too_late()) from error
    accelerator = torch_slot.mend_accelerator(torch, before)
    return Installation(config, torch.__version__, Path(library), accelerator=accelerator, plan=plan)


def import_torch() -> ModuleType:
    """Return torch, if it can be served.

    Raises:
        TorchError: it cannot.
    """
    try:
        import torch
    except ImportError as error:
        raise TorchError(f"poolalloc.install() needs torch, which cannot be imported: {error}") from error
    if getattr(torch.__spec__, "_initializing", False) and not getattr(_importing, "ended", False):
        raise TorchError(
            "poolalloc.install() was called while torch is being imported; call it before `import torch` or after it"
        )
    if torch.version.cuda is None:
        raise TorchError(
            f"poolalloc.install() needs a CUDA build of torch; this is torch {torch.__version__}, built without CUDA. "
            "Install another with: pip install torch"
        )
    if not hasattr(torch._C, "_cuda_customAllocator"):
        raise TorchError(f"poolalloc.install() needs torch 2.4 or newer; this is torch {torch.__version__}")
    return torch


def _check_untouched(torch: ModuleType) -> None:
    if torch.cuda.get_allocator_backend() == "pluggable":
        raise AlreadyInitializedError(
            "poolalloc.install() came too late: torch already uses another pluggable allocator "
            "(torch.cuda.memory.change_current_allocator was called), and it can be changed only once in a process. "
            "Remove that call"
        )
    if torch.cuda.is_initialized():
        raise AlreadyInitializedError(_too_late())


def _too_late() -> str:
    text = "poolalloc.install() came too late: torch has already initialised CUDA and cannot change its allocator now. "
    touch = first_touch()
    if touch is None:
        return text + (
            "Where CUDA was first touched is not known, because poolalloc was imported after it. Move "
            "`import poolalloc; poolalloc.install()` to the top of the program, or start it with: poolalloc run"
        )
    line = f": {touch.line}" if touch.line else ""
    return text + (
        f"CUDA was first touched at {touch.filename}, line {touch.lineno}, in {touch.name}{line}. Move "
        "poolalloc.install() above that line, or start the program with: poolalloc run"
    )
