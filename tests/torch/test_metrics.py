"""Metrics: what Prometheus reads is what the statistics say, and costs nothing until somebody reads."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import started

from poolalloc.analysis import costs
from poolalloc.cli import scrape
from poolalloc.memory import EVENTS, QUANTITIES
from poolalloc.sim import sim_environment

pytest.importorskip("prometheus_client", reason="metrics are an extra: pip install 'poolalloc[metrics]'")

SERVE = """
    import json, os, threading, urllib.error, urllib.request
    import poolalloc
    from poolalloc import metrics
    from poolalloc.errors import UsageError

    def read(server):
        return urllib.request.urlopen(server.url).read().decode()

    server = metrics.serve(0)
    assert read(server) == ""  # nothing before install()
    poolalloc.install()
    import torch
"""


def test_every_statistic_is_a_metric_of_the_same_value(on_sim: Callable) -> None:
    out = on_sim(
        textwrap.dedent(SERVE)
        + textwrap.dedent("""
        held = [[torch.empty(3 << 20, device=f"cuda:{device}") for _ in range(4)] for device in range(2)]
        del held[1][0]
        side = torch.cuda.Stream()
        held[0][0].record_stream(side)
        print(json.dumps({"text": read(server), "stats": [poolalloc.memory_stats(device) for device in range(2)]}))
    """),
        devices=2,
    ).value
    found = scrape.parse("", out["text"])
    assert set(found.devices) == {("", 0), ("", 1)}
    for device, stats in enumerate(out["stats"]):
        metrics = found.devices["", device]
        for name in QUANTITIES:
            assert metrics[name] == stats[name]["current"]
            if name != "idle":
                assert metrics[f"{name}_peak"] == stats[name]["peak"]
        assert {name: metrics[name] for name in EVENTS} == {name: stats[name] for name in EVENTS}
        assert metrics["blocks"] == stats["live_blocks"]
        assert (metrics["limit"], metrics["total"]) == (stats["limit_bytes"], stats["total_bytes"])
    work = out["stats"][0]["driver_work"]
    assert found.driver_seconds[""] == pytest.approx(costs.find().price(work).middle)
    for kind in ("create", "map", "allow_access"):
        assert f'poolalloc_driver_handles_total{{work="{kind}"}} {float(work[kind])}' in out["text"]
        assert f'poolalloc_driver_pages_total{{work="{kind}"}} {float(work[kind + "_pages"])}' in out["text"]
    assert found.about["settings"] == ""
    # Each has a help of its own, and a name that Prometheus's rules allow.
    helps = re.findall(r"^# HELP (poolalloc_[a-z_]+) (.*)$", out["text"], re.MULTILINE)
    assert len({text for _, text in helps}) == len(helps) > 30


def test_metrics_end_with_close_and_stay_out_of_children(on_sim: Callable) -> None:
    on_sim(
        textwrap.dedent(SERVE)
        + textwrap.dedent("""
        held = torch.empty(1 << 20, device="cuda")
        import prometheus_client
        registry = prometheus_client.CollectorRegistry()
        metrics.register(registry)
        assert b"poolalloc_reserved_bytes" in prometheus_client.generate_latest(registry)
        child = os.fork()
        if child == 0:
            os._exit(0 if b"poolalloc" not in prometheus_client.generate_latest(registry) else 1)
        assert os.waitpid(child, 0)[1] == 0
        try:
            metrics.serve(int(server.url.split(":")[2].split("/")[0]))
            raise AssertionError
        except UsageError as error:
            assert "\\n" not in str(error)
        server.close()
        try:
            read(server)
            raise AssertionError
        except urllib.error.URLError:
            pass
    """)
    )


def test_reading_metrics_while_threads_allocate(on_sim: Callable) -> None:
    on_sim(
        textwrap.dedent(SERVE)
        + textwrap.dedent("""
        done = threading.Event()
        def work():
            while not done.is_set():
                torch.empty(5 << 20, device="cuda")
        torch.empty(5 << 20, device="cuda")
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert "poolalloc_reserved_bytes" in read(server)
        done.set()
        for thread in threads:
            thread.join()
    """)
    )


def test_run_serves_metrics_that_top_shows(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    program = tmp_path / "serve.py"
    program.write_text(
        "import sys, torch\nheld = torch.empty(7 << 20, device='cuda')\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1] - 3
    environment = {**sim_environment(base=clean_environment), "LOCAL_RANK": "3"}
    command = [sys.executable, "-m", "poolalloc", "run", "--metrics", str(port), str(program)]
    with started(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        looked = [
            subprocess.run(
                [sys.executable, "-m", "poolalloc", "top", str(port + 3), *options],
                capture_output=True,
                text=True,
                check=True,
                env=clean_environment,
            ).stdout
            for options in (["--once"], ["--json"])
        ]
        process.communicate("")
    assert "28 MiB" in looked[0]
    (seen,) = json.loads(looked[1])
    assert seen["devices"][0]["requested"] == 28 << 20
