"""Plan mode under torch: a recorded training program is planned, and its next run is served from the plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolalloc.analysis.plan import make, write
from poolalloc.analysis.trace import read

TRAIN = """
    import json
    import sys
    import torch
    import poolalloc

    {install}
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(6)]).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    calls, misses = [], []
    for step in range({steps}):
        rows = 2048 + {varying} * (37 * step % 200) * 64
        model(torch.empty(rows, 1024, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if {wander} and step == 4:  # something else, once
            rest = [torch.empty(3_000_000 + 700_000 * i, device="cuda") for i in range(20)]
            del rest
        stats = poolalloc.memory_stats()
        calls.append(sum(stats["driver_calls"].values()))
        misses.append(stats["plan_misses"])
    poolalloc._core.validate()
    names = ("plan_hits", "plan_misses", "plan_resyncs", "overhead")
    print(json.dumps({{**{{name: stats[name] for name in names}}, "calls": calls, "misses": misses,
                       "reserved": stats["reserved"]["peak"]}}))
"""
RECORD = 'poolalloc.install(); poolalloc.record("run.npz")'
SERVE = 'poolalloc.install(plan="plan.npz")'


def program(install: str, steps: int = 8, varying: int = 0, wander: bool = False) -> str:
    return TRAIN.format(install=install, steps=steps, varying=varying, wander=wander)


@pytest.fixture
def planned(on_sim: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """on_sim, in a folder with a plan of the program's fixed shapes."""
    monkeypatch.chdir(tmp_path)
    on_sim(program(RECORD, steps=5))
    plan, _ = make(read("run.npz"), seconds=1)
    write(plan, "plan.npz")
    return on_sim


def test_the_next_run_is_served_from_the_plan(planned: Callable) -> None:
    served, without = planned(program(SERVE)).value, planned(program("poolalloc.install()")).value
    assert served["plan_misses"] == 0
    assert served["plan_hits"] > 8 * 20
    assert served["calls"][1:] == [served["calls"][1]] * 7
    assert served["reserved"] <= without["reserved"]
    assert served["overhead"] <= without["overhead"]


def test_the_command_and_the_environment_name_a_plan_too(planned: Callable) -> None:
    by_command = planned(
        program("pass"),
        command=(sys.executable, "-m", "poolalloc", "run", "--plan", "plan.npz"),
    ).value
    assert by_command["plan_misses"] == 0
    by_environment = planned(program("import poolalloc.auto"), environment={"POOLALLOC_PLAN": "plan.npz"}).value
    assert by_environment["plan_hits"] == by_command["plan_hits"] > 0


def test_a_program_that_leaves_the_plan_for_a_while_is_followed_again(planned: Callable) -> None:
    value = planned(program(SERVE, steps=12, wander=True)).value
    assert value["plan_resyncs"] == 1
    steps = [after - before for before, after in zip(value["misses"], value["misses"][1:], strict=False)]
    assert steps[:3] == [0] * 3
    assert sum(steps) < 3 * value["plan_hits"] / 12, "followed again within three steps' requests"
    # It is no longer trusted with new memory: a place that idle pages do not fill is a miss. They are few and settled.
    assert max(steps[-4:]) <= 2
    assert len(set(value["calls"][-4:])) == 1, value["calls"]


def test_a_plan_does_no_harm_to_shapes_that_vary(planned: Callable) -> None:
    served = planned(program(SERVE, steps=20, varying=1)).value
    without = planned(program("poolalloc.install()", steps=20, varying=1)).value
    assert served["reserved"] <= without["reserved"] + 2 * (2 << 20)


def test_a_file_that_is_no_plan_and_a_second_plan_are_refused(planned: Callable) -> None:
    run = (sys.executable, "-m", "poolalloc", "run", "--plan", "run.npz")
    refused = planned(program("pass"), command=run, code=2)
    assert refused.err.strip().splitlines()[-1].startswith("poolalloc: run: run.npz: it is no plan file")
    planned(
        """
        import poolalloc

        poolalloc.install(plan="plan.npz")
        assert str(poolalloc.install(plan="plan.npz").plan) == "plan.npz"
        try:
            poolalloc.install(plan="another.npz")
        except poolalloc.ConfigError as error:
            assert "plan.npz" in str(error)
        else:
            raise AssertionError
        """
    )
