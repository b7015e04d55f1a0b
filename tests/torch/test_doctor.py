"""`poolalloc doctor` finds what is there, and says what is missing."""

import json
import subprocess
import sys
from pathlib import Path

from fork_server import ForkServer

DOCTOR = (sys.executable, "-m", "poolalloc", "doctor")


def test_on_a_simulated_gpu_everything_is_found(clean_environment: dict[str, str], fork_server: ForkServer) -> None:
    command = ["-m", "poolalloc", "doctor"]
    done = fork_server.simulated([*command, "--json"], gpu="a100", devices=2, timeout=300, base=clean_environment)
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    assert findings["schema"] == 1
    swap = findings["swap"]
    assert swap["works"]
    assert swap["problem"] is None
    assert swap["accelerator"]
    assert not swap["warnings"]
    assert swap["backend"] == "bridge"
    assert Path(swap["library"]).is_file()
    assert findings["simulated"] is True
    assert findings["driver"]["library"].endswith("libcuda.so.1")
    assert [device["device"] for device in findings["devices"]] == [0, 1]
    assert [device["free_bytes"] is None for device in findings["devices"]] == [False, True]  # one was used
    assert all("A100" in device["name"] and device["virtual_memory"] for device in findings["devices"])
    assert findings["torch"]["cuda"]
    assert list(findings["missing"]) == ["allocateWithAddress (C++ only)"]

    text = fork_server.simulated(command, timeout=300, base=clean_environment).stdout
    for word in (
        "poolalloc",
        "torch",
        "H100",
        "simulated",
        "GiB free",
        "with virtual memory management",
        "mapped pages",
    ):
        assert word in text
    assert "works" in next(line for line in text.splitlines() if line.startswith("swap"))


def test_without_a_gpu_it_says_so_and_fails(clean_environment: dict[str, str]) -> None:
    environment = {**clean_environment, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run(DOCTOR, capture_output=True, text=True, timeout=300, env=environment, check=False)
    if "swap       works" in done.stdout:
        assert done.returncode == 0  # there is a real GPU here
    else:
        assert done.returncode == 1
        assert "swap       does not work" in done.stdout
    assert "simulator  works: poolalloc sim -- python train.py" in done.stdout
    assert "under poolalloc what has a counterpart counts" in done.stdout
    assert done.stderr == ""


def test_without_torch_it_says_what_to_install_and_lists_no_limits_of_torch(clean_environment: dict[str, str]) -> None:
    program = "import sys; sys.modules['torch'] = None; from poolalloc.cli import run; sys.exit(run(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=clean_environment, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "torch      not found" in done.stdout
    assert "simulator  does not work: it needs a CUDA build of torch" in done.stdout
    assert "What torch cannot do" not in done.stdout
