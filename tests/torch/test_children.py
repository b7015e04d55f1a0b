"""Processes that a program under `poolalloc run` starts: served as it is, seen in its metrics, or told why not."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolalloc._children import VARIABLE
from poolalloc.analysis.trace import Op, read

RUN = (sys.executable, "-m", "poolalloc", "run")

PROGRAM = """
import os, sys
import torch
import torch.multiprocessing as mp

def consumer(there, back):
    import poolalloc
    try:
        tensor = there.get()
    except Exception as error:
        back.put(("error", str(error)))
        return
    assert tensor.cpu().tolist() == [1, 2, 3]
    mine = torch.empty(6 << 20, dtype=torch.uint8, device="cuda")
    about, own = poolalloc.installation(), getattr(sys.modules.get("sitecustomize"), "OWN", None)
    back.put((os.getpid(), about.config.bin_limit, about.backend, own))
    there.get()
    del tensor, mine

def grandchild():
    import subprocess
    program = "import torch, poolalloc; print(poolalloc.is_installed())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()

if __name__ == "__main__":
    context = mp.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=consumer, args=(there, back), daemon=True)
    process.start()
    tensor = torch.tensor([1, 2, 3]).cuda()
    there.put(tensor)
    answer = back.get(timeout=100)
"""


def test_children_are_served_with_the_same_options_and_seen_in_the_metrics(on_sim: Callable, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="metrics are an extra: pip install 'poolalloc[metrics]'")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("OWN = 'still there'\n")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    on_sim(
        PROGRAM
        + f"""
    child, bin_limit, backend, own = answer
    assert (bin_limit, backend, own) == (65536, "bridge", "still there"), answer
    assert grandchild() == "True"
    import urllib.request
    text = urllib.request.urlopen("http://localhost:{port}/metrics").read().decode()
    from poolalloc.cli import scrape
    found = scrape.parse("", text)
    assert set(found.devices) == {{(str(process), 0) for process in (child, os.getpid())}}, text
    assert found.devices[str(child), 0]["requested"] == 6 << 20
    assert found.devices[str(os.getpid()), 0]["requested"] == 24
    assert found.driver_seconds[str(child)] > 0
    there.put("end")
    process.join()
    text = urllib.request.urlopen("http://localhost:{port}/metrics").read().decode()
    assert set(scrape.parse("", text).devices) == {{(str(os.getpid()), 0)}}, "who has ended is gone"
""",
        command=(
            *(*RUN, "--conf", "bin_limit:64KiB", "--metrics", str(port)),
            *("--record", str(tmp_path / "run-%p.npz")),
        ),
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path / "own"), str(Path(__file__).parents[2])])},
    )
    # Each has a recording of its own, since its name has the number of the process in it.
    recorded = [read(path).events for path in tmp_path.glob("run-*.npz")]
    assert sorted(events["requested"][events["op"] == Op.ALLOC].max() for events in recorded) == [24, 6 << 20]


def test_without_them_the_error_says_which_side_lacks_poolalloc(on_sim: Callable) -> None:
    on_sim(
        PROGRAM
        + """
    what, text = answer
    assert what == "error", answer
    assert f"process {os.getpid()} runs on poolalloc" in text and f"process {process.pid}, which does not" in text, text
    assert "poolalloc.install()" in text
    assert grandchild() == "False"
""",
        command=(*RUN, "--no-children"),
    )


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a child of a covered one would be."""
    folder = str(Path(__file__).parents[2] / "poolalloc" / "_children")
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": folder, **environment},
    )


def test_a_child_that_imports_no_torch_pays_nothing() -> None:
    program = "import sys, json; assert not {'torch', 'numpy', 'poolalloc'} & set(sys.modules), sys.modules.keys()"
    done = python(program + "; assert not any('_children' in folder for folder in sys.path)", **{VARIABLE: "{}"})
    assert done.stderr == ""


def test_a_child_that_cannot_be_served_goes_on(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import types\n__version__ = '2.15.0+cpu'\nversion = types.SimpleNamespace(cuda=None)\n"
    )
    wish = '{"conf": "", "plan": null, "record": null, "stacks": false, "metrics": null}'
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch; print(torch.__version__)"
    done = python(program, **{VARIABLE: wish})
    assert done.stdout == "2.15.0+cpu\n"
    assert done.stderr.count("\n") == 1
    assert "is not served" in done.stderr
    assert "CUDA build" in done.stderr
    assert "is not served" in python(program, **{VARIABLE: "nonsense"}).stderr
    assert python(program).stderr == ""
