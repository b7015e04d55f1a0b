"""`poolalloc top`: targets, wrong ones, and rates; a process under it is in tests/torch/test_metrics.py."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from poolalloc.cli import run, scrape, top
from poolalloc.cli.scrape import Look

pytest.importorskip("prometheus_client", reason="metrics are an extra: pip install 'poolalloc[metrics]'")


over = threading.Event()
"""Set when a test is over: servers that answer oddly end with it."""


class Page(http.server.BaseHTTPRequestHandler):
    text = b""
    odd: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None

    def do_GET(self) -> None:
        try:
            if self.path == "/odd":
                assert Page.odd is not None
                Page.odd(self)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.text)
        except OSError:  # who asked has had enough
            pass

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[int]:
    """The port of a server of Page.text."""
    with http.server.ThreadingHTTPServer(("localhost", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        over.clear()
        yield server.server_port
        over.set()
        server.shutdown()


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("9400", "http://localhost:9400/metrics"),
        ("box:9400", "http://box:9400/metrics"),
        ("http://box:9400", "http://box:9400/metrics"),
        ("https://box/deep/metrics", "https://box/deep/metrics"),
    ],
)
def test_targets(target: str, url: str) -> None:
    assert top.url_of(target) == url


@pytest.mark.parametrize(
    ("target", "code"),
    [("1", 1), ("localhost:1", 1), ("no such host:9", 1), ("file:///etc/passwd", 2), ("http://[", 2)],
)
def test_what_is_not_there_is_one_line(target: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", target]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "text",
    [
        b"<html>",
        b"poolalloc_live_bytes{} x",
        b"\xff\x00",
        b"poolalloc_live_bytes 3",
        b'poolalloc_live_bytes{device="0"} +Inf',
        b'poolalloc_live_bytes{device="0"} NaN',
        b'poolalloc_live_bytes{device="0"} -1',
        b'poolalloc_live_bytes{device="0"} 1e300',
        b'poolalloc_live_bytes{device="x"} 1',
        b'poolalloc_live_bytes{device="-1"} 1',
        b'poolalloc_live_bytes{device="123456789012345678901234567890"} 1',
        b'poolalloc_driver_modelled_seconds_total{prices="default"} Inf',
        b'poolalloc_live_bytes{device="0",process="x"} 1',
        b'poolalloc_live_bytes{device="0} 1',
    ],
)
def test_what_is_no_metric_is_one_line(page: int, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = text
    assert run(["top", str(page)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_that_does_not_serve_yet_says_so(page: int, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = b"# HELP other Another program's.\nother 3\n"
    assert run(["top", str(page)]) == 0
    assert capsys.readouterr().out == f"poolalloc serves no device at http://localhost:{page}/metrics yet\n"


def test_names_of_metrics_do_not_collide_without_their_units() -> None:
    from poolalloc.memory import EVENTS, QUANTITIES

    metrics = [f"{name}{peak}_bytes" for name in QUANTITIES for peak in ("", "_peak")]
    metrics += ["limit_bytes", "device_bytes", "metadata_bytes", "blocks", *(f"{name}_total" for name in EVENTS)]
    assert len({"device", *map(scrape.key_of, metrics)}) == len(metrics) + 1


def test_json_numbers_the_devices(page: int, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = b"".join(
        b'poolalloc_device_bytes{device="%d"} 85899345920\npoolalloc_live_bytes{device="%d"} 7\n' % (n, n)
        for n in (1, 0)
    )
    assert run(["top", "--json", str(page)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["devices"] == [
        {"device": number, "total": 85899345920, "live": 7} for number in (0, 1)
    ]


def test_several_processes_at_one_place_are_told_apart(page: int, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = b"".join(
        b'poolalloc_live_bytes{process="%d",device="0"} %d\n'
        b'poolalloc_driver_modelled_seconds_total{process="%d",prices="default"} 0.5\n'
        b'poolalloc_driver_calls_total{process="%d",call="map"} 5\n' % (process, process << 20, process, process)
        for process in (71, 72)
    )
    assert run(["top", "--json", str(page)]) == 0
    (seen,) = json.loads(capsys.readouterr().out)
    assert seen["driver_modelled_seconds"] == 1
    assert seen["devices"] == [{"process": number, "device": 0, "live": number << 20} for number in (71, 72)]
    assert run(["top", "--once", str(page)]) == 0
    assert re.search(rf"localhost:{page} 71 .* 71 MiB", capsys.readouterr().out)


def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not over.wait(0.01):
        handler.wfile.write(b"# x\n")


def trickle_headers(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n")
    while not over.wait(0.01):
        handler.wfile.write(b"x")


def never_end(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not over.is_set():
        handler.wfile.write(b"#" * (1 << 20))


def redirect_for_ever(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/odd")
    handler.end_headers()


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (trickle, "no answer within 0.3 seconds"),
        (trickle_headers, "no answer within 0.3 seconds"),
        (never_end, "longer than 4 MiB"),
        (redirect_for_ever, "no metrics at"),
    ],
)
def test_a_server_that_answers_oddly_is_one_line(
    page: int,
    odd: Callable[[http.server.BaseHTTPRequestHandler], None],
    problem: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if odd in (trickle, trickle_headers):
        monkeypatch.setattr(scrape, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(Page, "odd", staticmethod(odd))
    assert run(["top", f"http://localhost:{page}/odd"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert problem in captured.err


def test_a_server_that_hangs_holds_up_no_other_and_is_not_asked_twice(
    page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hang(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler)
        over.wait(60)

    monkeypatch.setattr(scrape, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(Page, "odd", staticmethod(hang))
    Page.text = b'poolalloc_live_bytes{device="0"} 7\n'
    monkeypatch.setattr(scrape, "_read", lambda url, deadline, read=scrape._read: read(url, deadline + 60))
    scraper = scrape.Scraper([f"http://localhost:{page}/odd", f"http://localhost:{page}/metrics"])
    monkeypatch.setattr("socket.socket.settimeout", lambda *_: None)  # the thread hangs as long as the server does
    for _ in range(2):
        late, fine = scraper.look()
        assert late.failed
        assert "no answer within 0.5 seconds" in late.problem
        assert fine.devices == {("", 0): {"live": 7}}
    assert len(asked) == 1


def test_another_version_may_serve_fewer_metrics(page: int, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = b'poolalloc_live_bytes{device="0"} 1048576\n'
    assert run(["top", "--once", str(page)]) == 0
    assert "1 MiB" in capsys.readouterr().out


def test_what_a_server_says_is_no_command_to_the_terminal(page: int, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = b'poolalloc_live_bytes{device="\x1b]0;gotcha\x07"} 1'
    assert run(["top", str(page)]) == 1
    assert "gotcha" in (text := capsys.readouterr().err)
    assert "\x1b" not in text


def drawn(width: int) -> str:
    keys = (
        "requested",
        "live",
        "pending",
        "kept",
        "idle",
        "reserved",
        "asleep",
        "limit",
        "reserved_peak",
        "requested_peak",
    )
    values = dict.fromkeys(keys, 79 << 30) | {"allocations": 123456, "out_of_memory": 3}
    look = Look("http://gpu-box-17:9400/metrics", 10.0, {("", 0): values, ("", 1): values}, {"": 5.0})
    before = Look("http://gpu-box-17:9400/metrics", 8.0, {("", 0): values, ("", 1): values}, {"": 4.0})
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        top._print(console, [look], [before])
    return captured.get()


def test_a_narrow_terminal_gets_fewer_columns_and_no_broken_lines() -> None:
    for width in (64, 80, 100, 130, 200):
        text = drawn(width)
        table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
        assert {len(line) for line in table} == {len(table[0])}, width
        assert len(table[0]) <= width
        for heading in ("device", "requested", "reserved", "overhead"):
            assert heading in text
        assert len(re.findall("gpu-box-17:9400", text)) == 2
    assert "not shown, for want of room: driver ms/s; allocations/s" in drawn(80)
    assert "not shown" not in drawn(200)


def test_rates_are_of_the_time_between_looks() -> None:
    assert top._rate(300, 100, 2.0) == "100"
    assert top._rate(300, None, 2.0) == "-"
    assert top._share(0.3, 0.1, 2.0) == "100.00"
    assert top._share(0.3, None, 2.0) == top._share(0.1, 0.3, 2.0) == "-"
    assert top._rate(3, 100, 2.0) == "-"  # it was started anew
