"""Performing a recording under torch's own allocators gives the peaks that the recorded run itself reported."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer

import poolalloc.config

RECORDED_BY_TORCH = """
    import json, sys
    import torch

    torch.cuda.memory._record_memory_history(context=None)
    other = torch.cuda.Stream()
    model = torch.nn.Sequential(*[torch.nn.Linear(700, 700) for _ in range(8)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(6):
        rows = 1000 + 977 * (step % 4)
        inputs = torch.empty(rows, 700, device="cuda")
        with torch.cuda.stream(other):
            copy = torch.empty(rows, 333, device="cuda")
        inputs.record_stream(other)
        model(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    stats = torch.cuda.memory_stats()
    torch.cuda.memory._dump_snapshot("snapshot.pickle")
    print(json.dumps([stats["requested_bytes.all.peak"], stats["reserved_bytes.all.peak"]]))
"""


Command = Callable[..., str]


@pytest.fixture
def command(fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """command(*words) runs poolalloc's command line in the test's folder; returns what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> str:
        ended, out, err = fork_server.run(["-m", "poolalloc", *words], os.environ, 300, forks=True)
        assert ended == code, out + err
        return out + err

    return run


@pytest.mark.parametrize(("allocator", "settings"), [("default", ""), ("expandable", "expandable_segments:True")])
def test_torch_reserves_what_it_reserved_then(
    on_sim: Callable, command: Command, allocator: str, settings: str
) -> None:
    environment = {"PYTORCH_ALLOC_CONF": settings} if settings else {}
    requested, reserved = on_sim(RECORDED_BY_TORCH, environment=environment).value
    command("import", "snapshot.pickle", "-o", "run.npz")
    shown = command("replay", "run.npz", "--against", allocator, "-o", "figures.json")
    assert allocator in shown
    (row,) = json.loads(Path("figures.json").read_text())["performed"]
    assert row["peak_requested_bytes"] == requested
    assert row["peak_reserved_bytes"] == reserved
    assert row["allocator"] == allocator


def test_settings_of_torch_and_poolalloc_itself_can_be_compared(on_sim: Callable, command: Command) -> None:
    on_sim(
        """
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record("run.npz"):
            pool = torch.cuda.MemPool()
            for size in range(1, 60):
                kept = torch.empty(size * 300_000, dtype=torch.uint8, device="cuda")
                with torch.cuda.use_mem_pool(pool):
                    inside = torch.empty(size * 50_000, dtype=torch.uint8, device="cuda")
        """
    )
    power = "roundup_power2_divisions:1"
    command("replay", "run.npz", "--against", "poolalloc", "--against", power, "-o", "figures.json")
    figures = json.loads(Path("figures.json").read_text())
    ours, rounded_up = figures["performed"]
    assert ours["peak_reserved_bytes"] == figures["devices"][0]["peak_reserved"]
    assert ours["peak_requested_bytes"] == rounded_up["peak_requested_bytes"]
    assert rounded_up["allocator"] == power
    assert rounded_up["peak_reserved_bytes"] > ours["peak_reserved_bytes"]


def test_running_out_of_memory_is_said(on_sim: Callable, command: Command) -> None:
    on_sim(
        """
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record("run.npz"):
            kept = [torch.empty(100 << 20, dtype=torch.uint8, device="cuda") for _ in range(6)]
        """
    )
    command("replay", "run.npz", "--against", "default", "--memory", "512MiB", "-o", "figures.json", code=1)
    (row,) = json.loads(Path("figures.json").read_text())["performed"]
    assert row["out_of_memory"]


def test_an_unknown_allocator_is_one_clear_line(tmp_path: Path, on_sim: Callable, command: Command) -> None:
    on_sim(
        f"""
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record({str(tmp_path / "run.npz")!r}):
            torch.empty(10, device="cuda")
        """
    )
    said = command("replay", str(tmp_path / "run.npz"), "--against", "best", code=2)
    assert "unknown allocator 'best'; there are default, expandable, poolalloc" in said


def test_a_page_shows_every_allocator(on_sim: Callable, command: Command) -> None:
    on_sim(
        """
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record("run.npz"):
            kept = []
            for step in range(12):
                poolalloc.mark(f"step {step}")
                kept = [torch.empty((7 + step % 3) << 20, dtype=torch.uint8, device="cuda") for _ in range(5)]
        """
    )
    command("replay", "run.npz", "--against", "expandable", "--html", "run.html", "-o", "figures.json")
    text = Path("run.html").read_text()
    spec = json.loads(text.split('id="document">')[1].split("</script>")[0])
    names = [(layer["name"], layer["how"].split()[0]) for layer in spec["layers"]]
    assert names == [("poolalloc", "replayed"), ("poolalloc", "as"), ("expandable", "performed")]
    figures = json.loads(Path("figures.json").read_text())
    performed = spec["layers"][2]
    assert performed["peaks"]["0"]["reserved"] == figures["performed"][0]["peak_reserved_bytes"]
    assert performed["peaks"]["0"]["requested"] == figures["performed"][0]["peak_requested_bytes"]
    assert performed["maps"]["0"] > performed["peaks"]["0"]["requested"] * 0.9
    ours, theirs = figures["driver_time"]["allocators"]
    assert theirs["work"]["second_half"]["steps"] == ours["work"]["second_half"]["steps"] > 0
    assert theirs["work"]["first_half"]["steps"] == ours["work"]["first_half"]["steps"] > 0
    assert min(theirs["handles_mapped"], ours["handles_mapped"], *theirs["milliseconds"]["start_up"]) > 0


@pytest.mark.parametrize("program", ["several devices", "several streams"])
def test_what_ran_on_several_devices_and_streams_is_judged_whole(
    on_sim: Callable, command: Command, program: str
) -> None:
    """Record, replay, perform, fit and tune; and what poolalloc itself reported is what the replay says."""
    devices = 2 if program == "several devices" else 1
    done = on_sim(
        """
        import json, torch, poolalloc
        poolalloc.install()
        devices = range(torch.cuda.device_count())
        streams = [[torch.cuda.Stream(device) for _ in range(2)] for device in devices]
        with poolalloc.record("run.npz"):
            models = [torch.nn.Linear(900, 900).to(f"cuda:{device}") for device in devices]
            for step in range(12):
                poolalloc.mark(f"step {step}")
                for device in devices:
                    with torch.cuda.device(device):
                        rows = 1000 + 517 * (step % 4) + 100 * device
                        inputs = torch.empty(rows, 900, device="cuda")
                        for number, stream in enumerate(streams[device]):
                            stream.wait_stream(torch.cuda.current_stream())
                            with torch.cuda.stream(stream):
                                copy = torch.empty(rows + number, 700, device="cuda")
                                copy.add_(1)
                            inputs.record_stream(stream)
                        models[device](inputs).sum().backward()
                        del inputs, copy
                    torch.cuda.synchronize(device)
            stats = [poolalloc.memory_stats(device) for device in devices]
        print(json.dumps([[row[name]["peak"] for name in ("requested", "reserved")] for row in stats]))
        """,
        devices=devices,
        lag=3,
    )
    command("replay", "run.npz", "--against", "default", "--against", "expandable", "--against", "poolalloc",
            "-o", "figures.json", "--html", "run.html")  # fmt: skip
    figures = json.loads(Path("figures.json").read_text())
    replayed = [[device["peak_requested"], device["peak_reserved"]] for device in figures["devices"]]
    assert [requested for requested, _ in replayed] == [requested for requested, _ in done.value]
    assert len(replayed) == devices
    for row in figures["performed"]:
        assert "error" not in row, row
        # torch counts a block as requested until other streams are done with it, and the program until it frees it.
        assert row["peak_requested_bytes"] >= sum(requested for requested, _ in replayed)
    page = json.loads(Path("run.html").read_text().split('id="document">')[1].split("</script>")[0])
    assert len(page["devices"]) == devices
    assert all(len(layer["maps"]) in (0, devices) for layer in page["layers"])
    fitted = json.loads(command("fit", "run.npz", "--memory", "2GiB", "--json"))
    assert [device["device"] for device in fitted["devices"]] == list(range(devices))
    for device, (requested, _) in zip(fitted["devices"], replayed, strict=True):
        assert requested <= device["smallest_memory"] <= device["peak_reserved"] + (2 << 20)
        assert device["live_set"]["requested"] == requested
    pytest.importorskip("optuna")
    command("tune", "run.npz", "-o", "found.toml", "--trials", "4")
    assert "[provenance]" in Path("found.toml").read_text()


def test_fit_judges_torchs_allocators_by_what_they_need(on_sim: Callable, command: Command) -> None:
    on_sim(
        """
        import torch, poolalloc
        poolalloc.install()
        with poolalloc.record("run.npz"):
            kept = [torch.empty(11 << 20, dtype=torch.uint8, device="cuda") for _ in range(4)]
        """
    )
    words = ("--against", "default", "--config", "default", "--json")
    document = json.loads(command("fit", "run.npz", "--memory", "46MiB", *words))
    ours, theirs = document["verdicts"]
    assert (ours["allocator"], ours["config"], ours["smallest_memory"]) == ("poolalloc", "", 44 << 20)
    # Four segments of their own, 11 MiB each rounded to 2 MiB.
    assert (theirs["allocator"], theirs["smallest_memory"]) == ("default", 48 << 20)
    assert theirs["peak_reserved"] == 48 << 20
    work = theirs["driver_work"]["total"]
    assert (work["allocate_segment"], work["allocate_segment_pages"]) == (4, 24)
    assert theirs["driver_time"]["milliseconds"]["total"] == [0.4, 0.4]
    assert ours["driver_time"]["handles_mapped"] == ours["driver_work"]["total"]["map"] > 0
    assert (theirs["fits"], theirs["spare"]) == (False, -2 << 20)
    assert "does NOT fit" in command("fit", "run.npz", "--memory", "46MiB", "--against", "default")
    assert "unknown allocator" in command("fit", "run.npz", "--memory", "46MiB", "--against", "best", code=2)


def test_the_shipped_snapshot_goes_all_the_way(command: Command) -> None:
    """Imported with nothing dropped, replayed under every allocator and configuration, fitted and tuned."""
    shipped = Path(__file__).parents[1] / "data" / "medium_512_training.pickle"
    account = json.loads(command("import", str(shipped), "-o", "run.npz", "--json"))
    assert account["left_out"] == {}
    allocators = ["default", "expandable", "max_split_size_mb:64", "poolalloc"]
    against = [word for name in allocators for word in ("--against", name)]
    command("replay", "run.npz", *against, "-o", "figures.json", "--html", "run.html")
    figures = json.loads(Path("figures.json").read_text())
    (device,) = figures["devices"]
    assert [row["allocator"] for row in figures["performed"]] == allocators
    for row in figures["performed"]:
        assert "error" not in row, row
        assert row["peak_requested_bytes"] == device["peak_requested"]
        assert row["peak_reserved_bytes"] >= device["peak_reserved"]
    assert figures["performed"][-1]["peak_reserved_bytes"] == device["peak_reserved"]
    # What poolalloc counts itself and what the simulated driver counts is the same, but for the page with which
    # poolalloc tries the driver before its first block (docs/design/driver.md).
    replayed, *_, performed = figures["driver_time"]["allocators"]
    for kind in ("create", "create_pages", "map", "map_pages", "allow_access", "allow_access_pages"):
        assert performed["work"]["total"][kind] == replayed["work"]["total"][kind] + 1
    profiles = [word for name in poolalloc.config.profiles() for word in ("--config", name)]
    fitted = json.loads(command("fit", "run.npz", "--memory", "16GiB", *profiles, "--json"))
    assert all(verdict["fits"] for verdict in fitted["verdicts"])
    assert len(fitted["verdicts"]) == len(profiles) // 2
    pytest.importorskip("optuna")
    command("tune", "run.npz", "-o", "found.toml", "--trials", "3")
    command("replay", "run.npz", "--config", "found.toml")


AS_IF_REAL = """
    import sys
    from poolalloc.analysis import baselines
    from poolalloc.cli import run

    baselines.has_real_gpu = lambda: True
    sys.exit(run(sys.argv[1:]))
"""


def test_on_a_real_device_what_requests_take_is_measured(on_sim: Callable, command: Command) -> None:
    requested, _ = on_sim(RECORDED_BY_TORCH).value
    command("import", "snapshot.pickle", "-o", "run.npz")
    words = ["replay", "run.npz", "--device", "real", "--against", "default", "--against", "poolalloc"]
    words += ["-o", "figures.json", "--html", "run.html"]
    shown = on_sim(AS_IF_REAL, arguments=words).out
    assert "a real device, all together" in shown
    figures = json.loads(Path("figures.json").read_text())
    # With several streams a heap of poolalloc's tells the device of 64 KiB at a time.
    for row, inexact in zip(figures["performed"], (0, 2 << 16), strict=True):
        assert abs(row["peak_requested_bytes"] - requested) <= inexact
        assert "H100" in row["device"]
        assert row["requests_seconds"] > 0
    assert [one["allocator"] for one in figures["driver_time"]["allocators"]] == ["poolalloc, replayed"]
    assert "seconds (measured)" in Path("run.html").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--device", "real"], "say with --against"),
        (["--device", "real", "--against", "default", "--memory", "1GiB"], "cannot be used with --device real"),
        (["--device", "real", "--against", "default"], "no CUDA device here"),
        (["--device", "unreal", "--against", "default"], "neither simulated nor real"),
    ],
)
def test_what_a_real_device_needs(
    monkeypatch: pytest.MonkeyPatch, command: Command, words: list[str], problem: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shipped = Path(__file__).parents[1] / "data" / "medium_512_training.pickle"
    command("import", str(shipped), "-o", "run.npz")
    shown = command("replay", "run.npz", *words, code=2)
    assert problem in shown
    assert len(shown.strip().splitlines()) == 1
