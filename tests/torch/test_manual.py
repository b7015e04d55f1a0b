"""The Python in README.md and the manual runs, page by page and from top to bottom."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from poolalloc import Config
from poolalloc._core import library_path
from poolalloc.analysis.plan import make, write
from poolalloc.analysis.trace import read

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)

INSTALL = "import poolalloc; poolalloc.install()"
PAGES = {
    "README.md": "",
    "docs/benchmarks.md": "",
    "docs/exact-bins.md": "",
    "docs/growth.md": "import poolalloc",
    "docs/install.md": "",
    "docs/memory-limits.md": "",
    "docs/monitoring.md": "",
    "docs/options.md": "",
    "docs/plan.md": "",
    "docs/recording.md": "",
    "docs/replay.md": INSTALL,
    "docs/trace-format.md": INSTALL + "\nwith poolalloc.record('run.npz'): train()",
    "docs/sleep.md": """
class Model(torch.nn.Linear):
    def __init__(self):
        super().__init__(512, 512)

class Engine(Model):
    def __init__(self):
        super().__init__()
        self.cuda()
    def allocate_cache(self):
        self.cache = torch.empty(1 << 20, device="cuda")
    def generate(self, prompts):
        return self(prompts)

class Trainer(Engine):
    def step(self, samples):
        self(samples.detach()).sum().backward()

class Batches:
    def __iter__(self):
        yield from (torch.ones(8, 512, device="cuda") for _ in range(2))

batches = Batches()
""",
    "docs/tune.md": "import poolalloc",
    "docs/who-holds-memory.md": "",
}
"""What stands before the first block of a page."""

PROGRAM = """
import torch
def train():
    torch.empty(1000, device="cuda").add_(1)
{before}
{blocks}
"""

TWO_STEPS = """
import torch, poolalloc
poolalloc.install()
with poolalloc.record("run.npz"):
    for step in range(4):
        held = [torch.empty(size << 20, dtype=torch.uint8, device="cuda") for size in (1, 2, 3, 5, 4, 6, 1, 9)]
        del held
"""


def pages_with_python() -> set[str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(page.relative_to(ROOT)) for page in pages if BLOCK.search(page.read_text())}


def test_every_page_with_python_is_tried() -> None:
    assert pages_with_python() == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(
    on_sim: Callable, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "docs/monitoring.md":
        pytest.importorskip("prometheus_client", reason="metrics are an extra: pip install 'poolalloc[metrics]'")
    text = (ROOT / page).read_text()
    blocks = BLOCK.findall(text)
    monkeypatch.chdir(tmp_path)
    if page == "docs/options.md":  # one program installs once; here each line is another way to do so
        Path("settings.toml").write_text(TOML.findall(text)[0])
        blocks = [block.replace("poolalloc.install(", "poolalloc.Config.load(") for block in blocks]
    if page == "docs/exact-bins.md":
        Path("settings.toml").write_text(TOML.findall(text)[0])
        expected = ((6 << 20, 16, 64), (20 << 20, 0, 8))
        found = Config.from_toml("settings.toml").exact_bins
        assert tuple((each.size, each.preallocate, each.keep) for each in found) == expected
        on_sim(TWO_STEPS.replace("run.npz", "monday.npz"))
    if page == "docs/plan.md":
        on_sim(TWO_STEPS)
        write(make(read(tmp_path / "run.npz"), seconds=0)[0], "plan.npz")
    if page == "docs/tune.md":
        Path("service.toml").write_text("[poolalloc]\n")
    if page == "docs/install.md":  # the last way stands for itself
        by_hand = blocks.pop().replace(".../libpoolalloc.so", library_path())
        on_sim(PROGRAM.format(before="", blocks=by_hand + "train()"), memory="80 GiB")
    on_sim(PROGRAM.format(before=PAGES[page], blocks="\n".join(blocks)), memory="80 GiB")
