"""install(): once, in time, and with an error that says what to do otherwise."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch_interface

ERROR_OF = """
import poolalloc
def error_of(call):
    try:
        call()
    except poolalloc.errors.PoolallocError as error:
        assert "\\n" not in str(error)
        return error
    raise AssertionError("no error")
"""


def test_importing_poolalloc_imports_neither_torch_nor_the_native_module() -> None:
    program = "import sys, poolalloc; assert not {'torch', 'numpy', 'poolalloc._core'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_can_be_had() -> None:
    program = "import poolalloc; assert all(getattr(poolalloc, name) is not None for name in poolalloc.__all__)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_installing_twice_is_one_installation(without_gpu: Callable) -> None:
    without_gpu(
        ERROR_OF
        + """
assert not poolalloc.is_installed() and poolalloc.installation() is None
first = poolalloc.install({"bin_limit": 65536})
assert poolalloc.is_installed() and poolalloc.installation() is first
assert poolalloc.install({"bin_limit": 65536}) is first
assert poolalloc.install() is first, "no wish of its own"
error = error_of(lambda: poolalloc.install({"bin_limit": 1024}))
assert isinstance(error, poolalloc.ConfigError) and "bin_limit" in str(error)
assert poolalloc.installation() is first
assert first.backend in str(first) and first.config.bin_limit == 65536 and first.missing
import poolalloc.auto
""",
        forked=True,
    )


def test_a_wrong_option_installs_nothing(without_gpu: Callable) -> None:
    without_gpu(
        ERROR_OF
        + """
error = error_of(lambda: poolalloc.install({"bin_limt": 1024}))
assert isinstance(error, poolalloc.ConfigError) and "bin_limit" in str(error)
assert not poolalloc.is_installed()
poolalloc.install({"bin_limit": 1024})
""",
        forked=True,
    )


def test_options_come_from_outside(without_gpu: Callable) -> None:
    program = """
    import poolalloc.auto
    assert poolalloc.installation().config.bin_limit == 128 * 1024
    """
    without_gpu(program, environment={"POOLALLOC_CONF": "bin_limit:128KiB"})


def test_figures_before_install_are_an_error_that_names_it(without_gpu: Callable) -> None:
    without_gpu(
        ERROR_OF
        + """
for call in (poolalloc.memory_stats, poolalloc.memory_summary, poolalloc.fragmentation, poolalloc.empty_cache,
             poolalloc.reset_peak_stats):
    error = error_of(call)
    assert isinstance(error, poolalloc.NotInstalledError) and "poolalloc.install()" in str(error)
"""
    )


@pytest.mark.parametrize("order", ["import torch, poolalloc", "import poolalloc, torch"])
def test_too_late_says_where_cuda_was_first_touched(on_sim: Callable, order: str) -> None:
    on_sim(
        f"{order}\n"
        + ERROR_OF
        + """
def build():
    return torch.nn.Linear(4, 4).to("cuda")  # line to move
model = build()
error = error_of(poolalloc.install)
assert isinstance(error, poolalloc.AlreadyInitializedError)
text = str(error)
assert f"{__file__}, line 13, in build" in text and "line to move" in text and "poolalloc run" in text, text
assert not poolalloc.is_installed()
""",
        fresh=True,  # the order of the imports
    )


def test_too_late_is_said_also_where_the_place_is_not_known(on_sim: Callable) -> None:
    on_sim(
        """
        import torch
        torch.cuda.init()
        import poolalloc
        try:
            poolalloc.install()
        except poolalloc.AlreadyInitializedError as error:
            assert "not known" in str(error) and "top of the program" in str(error)
        else:
            raise AssertionError("no error")
        """
    )


def test_another_pluggable_allocator_is_named(without_gpu: Callable) -> None:
    without_gpu(
        ERROR_OF
        + """
import torch
from poolalloc import _core
other = torch.cuda.memory.CUDAPluggableAllocator(_core.library_path(), "poolalloc_malloc", "poolalloc_free")
torch.cuda.memory.change_current_allocator(other)
error = error_of(poolalloc.install)
assert isinstance(error, poolalloc.AlreadyInitializedError) and "another pluggable allocator" in str(error)
""",
        forked=True,
    )


def test_the_library_serves_torch_without_the_package(on_sim: Callable) -> None:
    # What docs/install.md offers to those who only want the shared library; POOLALLOC_CONF is read by it.
    on_sim(
        """
        import torch
        from poolalloc import _core
        handle = torch.cuda.memory.CUDAPluggableAllocator(_core.library_path(), "poolalloc_malloc", "poolalloc_free")
        torch.cuda.memory.change_current_allocator(handle)
        tensor = torch.empty(2**20, dtype=torch.uint8, device="cuda")
        assert _core.stats(0)["live_blocks"] == 1
        assert _core.stats(0)["heaps"][0]["bins"] == [], "bin_limit:0 puts everything in the arena"
        """,
        environment={"POOLALLOC_CONF": "bin_limit:0"},
    )


def test_no_torch_is_one_clear_line(without_gpu: Callable) -> None:
    without_gpu(
        ERROR_OF
        + """
import sys
sys.modules["torch"] = None
error = error_of(poolalloc.install)
assert isinstance(error, RuntimeError) and "torch" in str(error)
assert not poolalloc.is_installed()
"""
    )


def test_torch_without_cuda_is_one_clear_line(without_gpu: Callable) -> None:
    without_gpu(
        ERROR_OF
        + """
import sys, types
torch = types.ModuleType("torch")
torch.__version__, torch.version = "2.15.0+cpu", types.SimpleNamespace(cuda=None, hip=None)
sys.modules["torch"] = torch
error = error_of(poolalloc.install)
assert isinstance(error, RuntimeError) and "CUDA build" in str(error) and "2.15.0+cpu" in str(error)
"""
    )


def test_torch_accelerator_reaches_poolalloc_too(on_sim: Callable) -> None:
    on_sim(
        """
        import poolalloc, torch
        assert poolalloc.install().accelerator
        tensor = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
        del tensor
        assert poolalloc.memory_stats()["reserved"]["current"] >= 64 * 2**20
        torch.accelerator.empty_cache()
        assert poolalloc.memory_stats()["reserved"]["current"] == 0
        # A storage without a tensor takes the allocator that torch.accelerator sees.
        storage = torch.UntypedStorage(3 * 2**20, device="cuda")
        assert poolalloc.memory_stats()["requested"]["current"] == 3 * 2**20
        """
    )


def test_a_program_without_a_gpu_runs_on_the_cpu(without_gpu: Callable) -> None:
    without_gpu(
        """
        import poolalloc.auto, torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        assert torch.ones(3, device=device).sum() == 3
        """,
        forked=True,
    )


def test_another_allocator_after_it_is_noticed(without_gpu: Callable, tmp_path: Path) -> None:
    (tmp_path / "torch_memory_saver_hook_mode_preload.abi3.so").write_bytes(bytes(4096))
    program = """
import atexit, mmap, warnings
with open("{folder}/torch_memory_saver_hook_mode_preload.abi3.so") as file:  # as if it were preloaded
    mapped = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first = poolalloc.install()
(text,) = [str(warning.message) for warning in caught if "torch_memory_saver" in str(warning.message)]
assert "has no effect" in text
import torch
plain = torch.cuda.memory.CUDAPluggableAllocator(poolalloc._core.library_path(), "poolalloc_malloc", "poolalloc_free")
torch.cuda.memory.CUDAPluggableAllocator(poolalloc._core.library_path(), "poolalloc_malloc", "poolalloc_free")
assert poolalloc.installation() is first, "one that is only made takes no place"
torch.cuda.memory.change_current_allocator(plain)
assert not poolalloc.is_installed()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert poolalloc.installation() is None and poolalloc.installation() is None
(warning,) = caught
assert "change_current_allocator was called after it" in str(warning.message) and warning.filename == __file__
error = error_of(lambda: poolalloc.memory_stats(0))
assert isinstance(error, poolalloc.NotInstalledError) and "another library" in str(error)
error = error_of(poolalloc.install)
assert isinstance(error, poolalloc.AlreadyInitializedError) and "remove that call" in str(error)
"""
    assert without_gpu(ERROR_OF + program.replace("{folder}", str(tmp_path)), forked=True).err == ""


def test_another_allocator_is_named_at_the_end_of_a_program_that_asks_for_no_figures(without_gpu: Callable) -> None:
    program = """
import poolalloc, torch
poolalloc.install()
plain = torch.cuda.memory.CUDAPluggableAllocator(poolalloc._core.library_path(), "poolalloc_malloc", "poolalloc_free")
torch.cuda.memory.change_current_allocator(plain)
"""
    assert "poolalloc was installed, but does not serve torch" in without_gpu(program, forked=True).err


IMPORT_HOOK = """
import importlib.abc, sys, threading
class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == WHERE:
            sys.meta_path.remove(self)
            called()
"""


def test_install_called_again_by_the_import_of_torch_does_not_wait(without_gpu: Callable) -> None:
    program = """
WHERE = "torch"
def called():
    import poolalloc.auto  # leaves it to the call that goes on
    assert not poolalloc.is_installed()
    error = error_of(poolalloc.install)
    assert isinstance(error, poolalloc.errors.UsageError) and "again while it imports torch" in str(error)
    seen.append(1)
seen = []
sys.meta_path.insert(0, Hook())
poolalloc.install()
assert seen == [1] and poolalloc.is_installed()
"""
    without_gpu(ERROR_OF + IMPORT_HOOK + program)


def test_install_in_the_middle_of_the_import_of_torch_says_so(without_gpu: Callable) -> None:
    program = """
WHERE = "torch.cuda"
def called():
    error = error_of(poolalloc.install)
    assert isinstance(error, poolalloc.errors.TorchError) and "while torch is being imported" in str(error)
    # Another thread waits for the import, and not for a lock that this thread would want.
    other = threading.Thread(target=lambda: seen.append(poolalloc.install()))
    other.start()
    waits.append(other)
seen, waits = [], []
sys.meta_path.insert(0, Hook())
import torch
first = poolalloc.install()
waits[0].join()
assert seen == [first]
"""
    without_gpu(ERROR_OF + IMPORT_HOOK + program)
