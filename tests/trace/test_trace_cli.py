"""`poolalloc import`, `replay` and `fit` as commands: what they print and return, and how they refuse bad input."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_kit import MiB, trace_of

from poolalloc._internal import npz
from poolalloc._internal.trace.files import _arrays
from poolalloc._internal.trace.format import EVENT, Frame, StackTable
from poolalloc.analysis.trace import Op, Trace, read, write
from poolalloc.cli import run

SHIPPED = Path(__file__).parent.parent / "data" / "medium_512_training.pickle"


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """cli("import", path, ...) runs the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("POOLALLOC_CONF", "POOLALLOC_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Outcome:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def refusal(outcome: Outcome) -> str:
    """The one line with which bad input was refused."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("poolalloc: ")
    return outcome.err


# --- the shipped snapshot, from end to end --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "run.npz"
    assert run(["import", str(SHIPPED), "-o", str(path)]) == 0
    return path


def test_import_prints_its_account(cli: Any) -> None:
    outcome = cli("import", SHIPPED, "-o", "run.npz")
    assert outcome.code == 0
    for text in (
        "22,332 found + 664 inferred = 15,626 written + 7,370 merged + 0 left out",
        "wrote run.npz",
        "stacks: none",
    ):
        assert text in outcome.out
    assert len(read("run.npz")) == 15_626


def test_import_prints_json(cli: Any) -> None:
    document = json.loads(cli("import", SHIPPED, "-o", "run.npz", "--json").out)
    assert document["found"]["alloc"] == 7591
    assert document["inferred"] == {"allocations before the recording began": 664}
    assert document["left_out"] == {}
    assert (document["trace"], document["events"]) == ("run.npz", 15_626)


def test_the_trace_says_where_it_is_from(shipped: Path) -> None:
    provenance = read(shipped).provenance
    assert provenance["source"] == SHIPPED.name
    assert provenance["sha256"] == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert provenance["allocator_settings"]["max_split_size"] == -1


def test_replay_prints_both_allocators(cli: Any, shipped: Path) -> None:
    outcome = cli("replay", shipped)
    assert outcome.code == 0
    for text in ("poolalloc, replayed", "torch, as recorded", "11.79 GiB", "driver calls:", "events in"):
        assert text in outcome.out


def peak_requested_of(snapshot: Path) -> int:
    """The same without a trace: from what is held at the end, backwards through the entries."""
    content = pickle.loads(snapshot.read_bytes())
    held = peak = sum(segment["requested_size"] for segment in content["segments"])
    for entry in reversed(content["device_traces"][0]):
        held += {"alloc": -entry["size"], "free_requested": entry["size"]}.get(entry["action"], 0)
        peak = max(peak, held)
    return int(peak)


def test_the_shipped_snapshot_needs_less_than_it_had(cli: Any, shipped: Path) -> None:
    cli("replay", shipped, "-o", "run.json")
    document = json.loads(Path("run.json").read_text())
    device = document["devices"][0]
    assert device["recorded"]["peak_reserved"] == 12_660_506_624
    assert device["peak_requested"] == max(device["over_time"]["requested"]) == peak_requested_of(SHIPPED)
    assert device["peak_requested"] <= device["peak_live"] <= device["peak_resident"] <= device["peak_reserved"]
    assert device["overhead"] < 1.005
    assert document["events"] == document["of_events"] == 15_626
    assert document["out_of_memory"] is None
    assert sum(document["driver_calls"].values()) > 0
    assert max(device["over_time"]["recorded_reserved"]) == 12_660_506_624


def test_a_gzipped_recording_is_read(cli: Any, shipped: Path) -> None:
    Path("zipped.pickle.gz").write_bytes(gzip.compress(SHIPPED.read_bytes(), 1))
    assert "wrote zipped.npz" in cli("import", "zipped.pickle.gz").out
    assert Path("zipped.npz").read_bytes()[:2] == b"PK"
    whole = Path("zipped.pickle.gz").read_bytes()
    bomb = gzip.compress(bytes(1 << 29), 1)
    for data, problem in (
        (whole[: len(whole) // 2], "cut off"),
        (whole[:100] + b"x" * 50 + whole[150:], "no gzip file"),
        (gzip.compress(b""), "empty"),
        (bomb, "unpacks to far more"),
    ):
        Path("bad.pickle.gz").write_bytes(data)
        outcome = cli("import", "bad.pickle.gz")
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert problem in outcome.err


def test_replay_without_matplotlib_prints_its_table_and_then_says_why_there_is_no_picture(
    cli: Any, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in ("replay", "report"):
        outcome = cli(command, shipped, "--png", "run.png")
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert "needs matplotlib" in outcome.err
        assert not Path("run.png").exists()
        assert "peak" in outcome.out


def test_replay_draws_a_picture(cli: Any, shipped: Path) -> None:
    pytest.importorskip("matplotlib")
    assert cli("replay", shipped, "--png", "run.png").code == 0
    assert Path("run.png").read_bytes().startswith(b"\x89PNG")


def test_replay_writes_a_page(cli: Any, shipped: Path) -> None:
    outcome = cli("replay", shipped, "--html", "run.html")
    assert outcome.code == 0
    assert "wrote run.html" in outcome.out
    text = Path("run.html").read_text()
    for part in ("<h1>run.npz</h1>", "as recorded", "modelled with the default price list", '"all":8255'):
        assert part in text


def test_replay_models_the_time_of_driver_calls(cli: Any, shipped: Path) -> None:
    Path("mine.json").write_text(
        json.dumps(
            {
                "schema": 2,
                "device": "X",
                "source": "measured",
                "about": "",
                "microseconds": {"map": [2, 2], "create": [9, 9]},
                "further_page": {"create": 1},
            }
        )
    )
    outcome = cli("replay", shipped, "--costs", "mine.json", "-o", "run.json")
    assert "modelled for X (measured there)" in outcome.out
    document = json.loads(Path("run.json").read_text())
    work = document["driver_work"]["total"]
    (ours,) = document["driver_time"]["allocators"]
    assert document["driver_time"]["modelled"] is True
    expected = [pytest.approx(2e-3 * work["map"] + 9e-3 * work["create_pages"])] * 2
    assert ours["milliseconds"]["total"] == expected
    assert ours["handles_mapped"] == work["map"] == work["allow_access"]
    assert set(ours["unpriced"]) == set(work) & {"allow_access", "reserve", "unmap"}
    assert refusal(cli("replay", shipped, "--costs", "unknown")).endswith("or a file .json\n")


def test_every_command_that_judges_memory_says_what_it_costs(cli: Any, shipped: Path) -> None:
    cli("replay", shipped, "-o", "run.json")
    (replayed,) = json.loads(Path("run.json").read_text())["driver_time"]["allocators"]
    for words in (("replay",), ("fit", "--memory", "16GiB"), ("report",)):
        out = cli(words[0], shipped, *words[1:]).out
        for text in (
            "overhead",
            "handles",  # "mapped" may stand in the heading's next line
            f"{replayed['handles_mapped']:,}",
            "modelled with the default price",
        ):
            assert text in out, words
    (verdict,) = json.loads(cli("fit", shipped, "--memory", "16GiB", "--json").out)["verdicts"]
    assert verdict["driver_time"]["milliseconds"] == replayed["milliseconds"]
    (reported,) = json.loads(cli("report", shipped, "--json").out)["driver_time"]["allocators"]
    assert reported == replayed
    for command in ("replay", "fit", "report"):
        more = ("--memory", "16GiB") if command == "fit" else ()
        assert "not measured" in cli(command, shipped, *more, "--costs", "published-a100").out


def test_the_work_of_a_step_is_that_of_its_half(cli: Any) -> None:
    # Each step asks for a larger block than all before it, and frees it: all steps map, the first the most.
    rows: list[tuple[Any, ...]] = []
    for step in range(8):
        rows += [(Op.MARK, step, 0), (Op.ALLOC, step + 1, (step + 40) * MiB), (Op.FREE, step + 1, (step + 40) * MiB)]
    write(trace_of(rows, marks=tuple(f"step {n}" for n in range(8))), Path("run.npz"))
    outcome = cli("replay", "run.npz", "-o", "run.json", "--conf", "growth:tight")
    work = json.loads(Path("run.json").read_text())["driver_work"]
    assert work["start_up"]["create_pages"] == 20  # the first step
    assert work["first_half"]["steps"] == work["second_half"]["steps"] == 3  # the last of 8 has no end
    assert work["first_half"]["work"]["create_pages"] in (1, 2)  # 3 MiB more, in pages of 2 MiB
    assert work["second_half"]["work"]["create_pages"] in (1, 2)
    assert outcome.code == 0


def test_without_steps_the_second_half_is_priced_whole(cli: Any) -> None:
    rows = [(Op.ALLOC, n, (n * n % 17 + 1) * MiB) for n in range(1, 41)]
    write(trace_of(rows), Path("run.npz"))
    cli("replay", "run.npz", "-o", "run.json")
    document = json.loads(Path("run.json").read_text())
    work = document["driver_work"]
    assert (work["start_up"], work["first_half"], work["second_half"]["steps"]) == (None, None, None)
    mapped = sum(-(-size // (2 * MiB)) for _, _, size in rows[20:])
    assert mapped / 2 <= work["second_half"]["work"]["map_pages"] <= mapped


def test_replay_says_where_memory_ran_out(cli: Any, shipped: Path) -> None:
    outcome = cli("replay", shipped, "--memory", "8GiB", "-o", "run.json")
    assert outcome.code == 1
    assert "OUT OF MEMORY at event" in outcome.out
    lost = json.loads(Path("run.json").read_text())["out_of_memory"]
    assert lost["event"] < 15_626
    assert lost["device"] == 0
    assert "asked for" in lost["message"]


def test_replay_takes_options_from_everywhere(cli: Any, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.toml").write_text('[poolalloc]\nbin_limit = "64 KiB"\nplacement_candidates = 3\n')
    monkeypatch.setenv("POOLALLOC_CONF", "address_space:4")
    outcome = cli("replay", shipped, "--config", "a.toml", "--conf", "bin_limit:128KiB")
    assert "options: bin_limit:128KiB,address_space:4.0,placement_candidates:3" in outcome.out


def test_fit_judges_and_explains(cli: Any, shipped: Path) -> None:
    good = cli("fit", shipped, "--memory", "24GiB")
    assert good.code == 0
    for text in (
        "fits 24 GiB",
        "to spare",
        "smallest memory that fits: 11.61 GiB",
        "11.79 GiB",
        "16 MiB",
        "by stack: none",
    ):
        assert text in good.out
    bad = cli("fit", shipped, "--memory", "8GiB", "--json")
    assert bad.code == 1
    document = json.loads(bad.out)
    device = document["devices"][0]
    assert not document["fits"]
    assert device["spare"] == (8 << 30) - device["smallest_memory"] < 0
    assert device["live_set"]["requested"] == device["peak_requested"]
    assert sum(share["requested"] for share in device["live_set"]["by_phase"]) == device["peak_requested"]


def test_stacks_and_names_from_a_file_cannot_move_the_cursor(cli: Any) -> None:
    snapshot = {
        "segments": [],
        "device_traces": [
            [{"action": "alloc\x1b[2J", "addr": 1, "size": 5}, {"action": "alloc", "addr": 1, "size": 5}]
        ],
        "\x1b[31mkey": 1,
    }
    Path("a.pickle").write_bytes(pickle.dumps(snapshot))
    outcome = cli("import", "a.pickle")
    assert outcome.code == 0
    assert "\x1b" not in outcome.out
    assert Path("a.npz").exists()


# --- bad input ------------------------------------------------------------------------------------------------------


def unchecked(trace: Trace, path: Path) -> None:
    """Write a trace that breaks the rules."""
    npz.write(path, _arrays(trace))


ALLOC = (Op.ALLOC, 1, 100)
BAD_EVENTS = {
    "has no events": [],
    "frees id 1 a second time": [ALLOC, (Op.FREE, 1, 100), (Op.FREE, 1, 100)],
    "frees id 1 with another requested than before": [ALLOC, (Op.FREE, 1, 99)],
    "rounded for 100 requested": [(Op.ALLOC, 1, 100, {"rounded": 99})],
    "on device -1": [(Op.ALLOC, 1, 100, {"device": -1})],
    "allocates id 1 a second time": [ALLOC, ALLOC],
    "frees id 1, which was not allocated before": [(Op.FREE, 1, 100), ALLOC],
    "absurd size: -100 bytes": [(Op.ALLOC, 1, (1 << 64) - 100)],
    "nothing is allocated in it": [(Op.SNAPSHOT, 0, 0)],
}


READERS = [
    ("replay",),
    ("fit", "--memory", "1GiB"),
    ("tune", "-o", "found.toml", "--trials", "2"),
    ("plan", "-o", "plan.npz"),
]
"""Every command that reads a trace."""


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
@pytest.mark.parametrize("problem", BAD_EVENTS)
def test_traces_that_break_the_rules(cli: Any, command: tuple[str, ...], problem: str) -> None:
    unchecked(trace_of(BAD_EVENTS[problem]), Path("bad.npz"))
    text = refusal(cli(command[0], "bad.npz", *command[1:]))
    assert problem in text
    assert "bad.npz" in text


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_files_that_are_no_traces(cli: Any, command: tuple[str, ...]) -> None:
    write(trace_of([ALLOC]), "good.npz")
    data = Path("good.npz").read_bytes()
    Path("cut.npz").write_bytes(data[: len(data) // 2])
    Path("empty.npz").write_bytes(b"")
    np.savez("other.npz", a=np.zeros(3))
    with np.load("good.npz") as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    arrays["header"] = np.frombuffer(json.dumps({**header, "version": 99}).encode(), np.uint8)
    np.savez("newer.npz", **arrays)
    np.savez("pickled.npz", **{**arrays, "events": np.array([Evil()], dtype=object)})
    for name, problem in {
        "cut.npz": "damaged or was cut off",
        "empty.npz": "no trace file",
        "other.npz": "has no header",
        "newer.npz": "version 99",
        "pickled.npz": "pickled.npz",
        "none.npz": "No such file",
        str(SHIPPED): "poolalloc import",
    }.items():
        assert problem in refusal(cli(command[0], name, *command[1:]))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run!",))


def test_files_that_cannot_be_imported(cli: Any) -> None:
    Path("evil.pickle").write_bytes(pickle.dumps(Evil()))
    Path("empty.pickle").write_bytes(b"")
    Path("list.pickle").write_bytes(pickle.dumps([1]))
    Path("cut.pickle").write_bytes(SHIPPED.read_bytes()[:100_000])
    Path("log.csv").write_text("Thread,Time,Action,Pointer,Size,Stream\n1,10:00:00.1,allocate,0x10,-5,0x0\n")
    Path("text.csv").write_text("a,b,c,d\n")
    write(trace_of([ALLOC]), "trace.npz")
    for name, problem in {
        "evil.pickle": "asks for builtins.print",
        "empty.pickle": "it is empty",
        "list.pickle": "list of segments",
        "cut.pickle": "cut off",
        "log.csv": "line 2 has an absurd Size: -5",
        "text.csv": "first line is not Thread,Time",
        "trace.npz": "it is a trace already",
        "none.pickle": "No such file",
        ".": "Is a directory",
    }.items():
        assert problem in refusal(cli("import", name))
    assert "is a trace already" in refusal(cli("import", "trace.npz", "-o", "new.npz"))
    assert not Path("new.npz").exists()
    assert "no/such/a.npz" in refusal(cli("import", SHIPPED, "-o", "no/such/a.npz"))


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_file_holds_no_command_breaks(cli: Any, data: st.DataObject) -> None:
    """Bytes of a trace are changed, or fields of its events: each command works, or refuses it in one line."""
    rows = [(Op.ALLOC, n, 1000 * n) for n in range(1, 9)] + [(Op.FREE, n, 1000 * n) for n in range(1, 9)]
    trace = trace_of(rows)
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 3))):
            row = data.draw(st.integers(0, len(trace) - 1))
            name = data.draw(st.sampled_from(EVENT.names))
            bits = 8 * EVENT[name].itemsize
            value = data.draw(st.one_of(st.integers(0, 20), st.integers(0, 2**bits - 1)))
            trace.events[name][row] = np.array(value, np.uint64).astype(EVENT[name])
        unchecked(trace, Path("any.npz"))
    else:
        write(trace, "any.npz")
        content = bytearray(Path("any.npz").read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        Path("any.npz").write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    command = data.draw(st.sampled_from([*READERS, ("replay", "--html", "any.html")]))
    outcome = cli(command[0], "any.npz", *command[1:])
    assert outcome.code in (0, 1, 2)
    if outcome.code == 2:
        refusal(outcome)


def test_bad_options(cli: Any) -> None:
    write(trace_of([ALLOC]), "good.npz")
    for arguments, problem in {
        ("replay", "good.npz", "--conf", "bin_limt:1"): "bin_limit",
        ("replay", "good.npz", "--config", "none.toml"): "none.toml",
        ("replay", "good.npz", "--memory", "-1GiB"): "--memory",
        ("replay", "good.npz", "--memory", "1"): "cannot be modelled",
        ("replay", "good.npz", "--memory", "1000TiB"): "cannot be modelled",
        ("replay", "good.npz", "-o", "no/such/file"): "there is no folder",
        ("replay", "good.npz", "--png", "no/such/file.png"): "there is no folder",
        ("replay", "good.npz", "--html", "no/such/file.html"): "there is no folder",
        ("replay", "good.npz", "--costs", "none.json"): "none.json",
        ("fit", "good.npz", "--memory", "1GiB", "--config", "servng"): "nearest",
        ("fit", "good.npz", "--memory", "1GiB", "--against", "best"): "unknown allocator",
        ("fit", "good.npz"): "--memory",
        ("fit", "good.npz", "--memory", "much"): "--memory",
        ("import",): "SOURCE",
        ("replay",): "TRACE",
    }.items():
        outcome = cli(*arguments)
        assert outcome.code == 2, arguments
        assert problem in outcome.err
        assert outcome.err.count("\n") == 1


def test_every_command_has_help_with_an_example(cli: Any) -> None:
    for command in ("import", "replay", "fit", "tune"):
        outcome = cli(command, "--help")
        assert outcome.code == 0
        assert f"poolalloc {command}" in outcome.out
        assert "Example" in outcome.out


def test_a_log_of_rmm_goes_through(cli: Any) -> None:
    rows = [f"1,10:00:00.{i},allocate,{(i + 1) << 24:#x},{MiB},0x0" for i in range(5)]
    Path("log.csv").write_text("Thread,Time,Action,Pointer,Size,Stream\n" + "\n".join(rows) + "\n")
    assert cli("import", "log.csv").code == 0
    outcome = cli("replay", "log.npz")
    assert "5 MiB" in outcome.out
    assert "as recorded" not in outcome.out


def test_stacks_that_read_the_same_are_one_row(cli: Any) -> None:
    stacks = StackTable()
    numbers = [
        stacks.add([Frame("/lib/site-packages/torch/adam.py", "init", line), Frame("train.py", "step", 7)])
        for line in (1, 2)
    ]
    rows = [(Op.ALLOC, ident, MiB, {"stack": number}) for ident, number in enumerate(numbers, 1)]
    write(trace_of(rows, stacks=stacks.table()), "run.npz")
    lines = [line for line in cli("fit", "run.npz", "--memory", "1GiB").out.splitlines() if "train.py:7" in line]
    assert len(lines) == 1
    assert "2 MiB" in lines[0]
