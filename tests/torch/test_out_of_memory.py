"""When memory runs out the program hears the figures, and can go on."""

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.torch_interface


def test_out_of_memory_names_the_figures_and_the_program_can_go_on(on_sim: Callable) -> None:
    outcome = on_sim(
        """
        import json
        import poolalloc, torch
        poolalloc.install()
        from poolalloc import _core
        kept = torch.empty(600 * 2**20, dtype=torch.uint8, device="cuda")
        try:
            torch.empty(700 * 2**20, dtype=torch.uint8, device="cuda")
        except RuntimeError as error:
            text = str(error)
        _core.validate()
        stats = poolalloc.memory_stats()
        assert stats["out_of_memory"] == 1 and stats["retries"] == 1
        assert stats["live_blocks"] == 1
        again = torch.empty(300 * 2**20, dtype=torch.uint8, device="cuda")
        del kept
        whole = torch.empty(700 * 2**20, dtype=torch.uint8, device="cuda")
        _core.validate()
        print(json.dumps(text))
        """,
        memory="1 GiB",
    )
    text = outcome.value
    for figure in (
        "asked for 700 MiB",
        "device 0",
        "of 1024.00 MiB",
        "600 MiB live",
        "largest block that would have fitted",
    ):
        assert figure in text, text
    assert "\n" not in text.split("Exception raised from")[0]


def test_out_of_memory_in_the_backward_pass_reaches_the_program(on_sim: Callable) -> None:
    # Autograd runs on a thread of its own: the exception has to cross it. The program ends without the interpreter's
    # finalization, which after an error in a backward pass may meet that thread asking for the interpreter's lock, and
    # then ends with "terminate called", under torch's own allocator too.
    outcome = on_sim(
        """
        import os
        import poolalloc, torch
        poolalloc.install()
        from poolalloc import _core
        x = torch.ones(75 * 2**20, device="cuda", requires_grad=True)  # 300 MiB, and as much for y and its gradient
        y = x * x
        grad = torch.ones_like(y)
        try:
            y.backward(grad)
        except RuntimeError as error:
            assert "asked for 300 MiB" in str(error), error
        else:
            raise AssertionError("no error")
        del y, grad
        (x * 2).sum().backward()
        assert x.grad is not None
        _core.validate()
        assert _core.plugin_state()["failures"] == 0
        print("checked", flush=True)
        os._exit(0)
        """,
        memory="1 GiB",
    )
    assert outcome.out == "checked\n"


def test_idle_memory_is_no_reason_to_fail(on_sim: Callable) -> None:
    on_sim(
        """
        import poolalloc, torch
        poolalloc.install()
        MiB = 2**20
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            other = torch.empty(700 * MiB, dtype=torch.uint8, device="cuda")
            del other  # idle on another stream
        one = torch.empty(300 * MiB, dtype=torch.uint8, device="cuda")
        del one
        two = torch.empty(900 * MiB, dtype=torch.uint8, device="cuda")
        stats = poolalloc.memory_stats()
        assert stats["out_of_memory"] == 0 and stats["pages_stolen"] >= 300
        """,
        memory="1 GiB",
    )
