"""`poolalloc top`: targets, wrong ones, and rates; a process under it is in tests/torch/test_metrics.py."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from poolalloc.cli import run, top

pytest.importorskip("prometheus_client", reason="metrics are an extra: pip install 'poolalloc[metrics]'")


class Page(http.server.BaseHTTPRequestHandler):
    text = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[int]:
    """The port of a server of Page.text."""
    with http.server.ThreadingHTTPServer(("localhost", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
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
    "arguments", [["1"], ["localhost:1"], ["no such host:9"], ["file:///etc/passwd"], ["http://["]]
)
def test_what_is_not_there_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("text", [b"<html>", b"poolalloc_live_bytes{} x", b"\xff\x00", b"poolalloc_live_bytes 3"])
def test_what_is_no_metric_is_one_line(page: int, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = text
    assert run(["top", str(page)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_process_that_does_not_serve_yet_says_so(page: int, capsys: pytest.CaptureFixture[str]) -> None:
    Page.text = b"# HELP other Another program's.\nother 3\n"
    assert run(["top", str(page)]) == 0
    assert capsys.readouterr().out == f"poolalloc serves no device at http://localhost:{page}/metrics yet\n"


def test_rates_are_of_the_time_between_looks() -> None:
    assert top._rate(300, 100, 2.0) == "100"
    assert top._rate(300, None, 2.0) == "-"
    assert top._rate(3, 100, 2.0) == "-"  # it was started anew
