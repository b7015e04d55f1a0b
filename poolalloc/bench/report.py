"""Writes the report as one HTML file: pictures as inline SVG, the table, a readout under the pointer.

Nothing is loaded from anywhere, and no optional package is needed.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from poolalloc._internal.atomic_files import write_text
from poolalloc.bench.panels import (
    BEYOND_LABEL,
    HELD_LABEL,
    REQUESTED_LABEL,
    Figure,
    Panel,
    device_text,
    figures,
    overhead_text,
)
from poolalloc.bench.results import Results
from poolalloc.bench.table import about, lines_of

WIDTH, HEIGHT = 400, 260  # of a panel's plot area, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 40

FIRST_HIDDEN = 6
"""The column of the table from which on a phone shows none: it has room for the names, both peaks and the overhead."""

STYLE = """
:root { --paper: #ffffff; --ink: #22262b; --faint: #6c747e; --rule: #e3e6ea; --alarm: #b3261e;
        --requested: #3b6ea8; --held: #cfdbe8; --beyond: #e8833a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e6e8eb; --faint: #98a1ac; --rule: #2e333a; --alarm: #ff8a80;
          --requested: #5b93d3; --held: #344152; --beyond: #e08a45; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
       max-width: 1440px; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; }
p { margin: .2rem 0; color: var(--faint); }
.key { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin: 0 .35em 0 1em;
       vertical-align: -.08em; }
.key:first-child { margin-left: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: .6rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--faint); }
svg .title { font-size: 14px; fill: var(--ink); }
svg .figure { font-weight: 600; font-size: 14px; fill: var(--ink); }
svg .peak { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
svg .alarm { fill: var(--alarm); font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.scroll { overflow-x: auto; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--faint); font-weight: 500; white-space: normal; vertical-align: bottom; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
.narrow { display: none; font-size: .85rem; }
@media (max-width: 720px) {
  body { margin: 1rem auto; padding: 0 .8rem; }
  table { font-size: .75rem; }
  th, td { padding: .3rem .15rem; }
  td:first-child { min-width: 3.2rem; }
  th:nth-child(n+FIRST_HIDDEN), td:nth-child(n+FIRST_HIDDEN) { display: none; }
  .narrow { display: block; }
  .panels { grid-template-columns: 1fr; }
}
details { margin-top: 1rem; color: var(--faint); }
.error { color: var(--alarm); white-space: pre-wrap; }
code { font-size: .92em; }
"""

# A pointer over any panel shows the same place in all panels of its workload.
SCRIPT = """
for (const group of document.querySelectorAll('.panels')) {
  const panels = [...group.querySelectorAll('svg')].map(svg => ({svg, ...JSON.parse(svg.dataset.points)}));
  const show = event => {
    for (const panel of panels) {
      const box = panel.svg.getBoundingClientRect();
      if (event.clientX < box.left || event.clientX > box.right || event.clientY < box.top
          || event.clientY > box.bottom) continue;
      const at = ((event.clientX - box.left) / box.width * %(full)d - %(left)d) / %(width)d * panel.x_max;
      for (const other of panels) mark(other, at);
    }
  };
  group.addEventListener('pointermove', show);
  group.addEventListener('pointerleave', () => panels.forEach(panel => mark(panel, null)));
}
function mark(panel, at) {
  const line = panel.svg.querySelector('.cursor'), text = panel.svg.querySelector('.readout');
  const last = panel.x[panel.x.length - 1];
  if (at === null || at < 0 || !(at <= last)) { line.setAttribute('opacity', 0); text.textContent = ''; return; }
  let low = 0, high = panel.x.length - 1;
  while (low < high) { const middle = (low + high) >> 1; panel.x[middle] < at ? low = middle + 1 : high = middle; }
  const x = %(left)d + panel.x[low] / panel.x_max * %(width)d;
  line.setAttribute('x1', x); line.setAttribute('x2', x); line.setAttribute('opacity', 1);
  text.textContent = `${panel.label} ${panel.x[low].toFixed(1)}: ${panel.reserved[low].toFixed(2)} ${panel.unit} `
    + `reserved, ${panel.requested[low].toFixed(2)} requested`;
}
"""


def write_html(results: Results, path: Path) -> None:
    """Write the report of the results into one file."""
    write_text(path, html(results))


def html(results: Results) -> str:
    """Return the report as the text of an HTML page."""
    sections = []
    for part in figures(results):
        drawn = "\n".join(svg(part, panel) for panel in part.panels)
        sections.append(f'<h2>{escape(part.heading)}</h2>\n<div class="panels">\n{drawn}\n</div>')
    errors = [row for row in results.rows if row.error is not None]
    failed = "".join(
        f'<p class="error">{escape(row.workload)} under {escape(row.allocator)}: {escape(row.error or "")}</p>'
        for row in errors
    )
    reasons = {row.workload: row.skipped for row in results.rows if row.skipped is not None}
    skipped = "".join(f"<p>{escape(name)} skipped: {escape(reason)}</p>" for name, reason in reasons.items())
    numbers = {"full": LEFT + WIDTH + RIGHT, "left": LEFT, "width": WIDTH}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Memory report: {escape(results.device_name)}</title>
<style>{STYLE.replace("FIRST_HIDDEN", str(FIRST_HIDDEN))}</style>
</head>
<body>
<h1>Memory requested and memory reserved</h1>
<p>{escape(device_text(results))}</p>
<p><span class="key" style="background:var(--requested)"></span>{REQUESTED_LABEL}
<span class="key" style="background:var(--held)"></span>{HELD_LABEL}
<span class="key" style="background:var(--beyond)"></span>{BEYOND_LABEL}</p>
{"".join(sections)}
<div class="scroll">{table(results)}</div>
<p>{escape(about(results))}</p>
{failed}
{skipped}
<details><summary>How this was made</summary>
<p>Command: <code>{escape(results.command)}</code></p>
<p>{escape(explanation(results))}</p>
</details>
<script>{SCRIPT % numbers}</script>
</body>
</html>
"""


def explanation(results: Results) -> str:
    """Return what the figures mean and what they cannot tell."""
    text = (
        "Every cell ran in its own process. Peaks come from the allocator's own statistics, which miss nothing, and "
        "were checked against the driver's count; the curves are samples, each the largest of its interval. Overhead "
        "is peak reserved / peak requested."
    )
    if results.simulated:
        text += (
            " On a simulated GPU every allocation is real and no kernel computes anything, so seconds are the host's "
            "time only, and say nothing about how fast a card would be."
        )
    return text


def table(results: Results) -> str:
    """Return the rows as an HTML table."""
    headings, *rows = lines_of(results)
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    hidden = ", ".join(headings[FIRST_HIDDEN - 1 :])
    hint = f'<p class="narrow">On a wider screen: {escape(hidden)}.</p>' if hidden else ""
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n{hint}"


def svg(part: Figure, panel: Panel) -> str:
    """Return one cell's picture."""

    def across(value: float) -> float:
        return LEFT + WIDTH * value / part.x_max

    def down(value: float) -> float:
        return TOP + HEIGHT * (1 - value / part.y_max)

    def area(values: list[float]) -> str:
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(panel.x, values, strict=True))
        return f"{across(panel.x[0]):.1f},{down(0):.1f} {points} {across(panel.x[-1]):.1f},{down(0):.1f}"

    full_width, full_height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    data = {
        "x": [round(x, 3) for x in panel.x],
        "requested": [round(y, 4) for y in panel.requested],
        "reserved": [round(y, 4) for y in panel.reserved],
        "x_max": part.x_max,
        "unit": part.unit,
        "label": part.x_label,
    }
    right = LEFT + WIDTH
    lines = [
        f'<svg viewBox="0 0 {full_width} {full_height}" role="img" aria-label="{escape(panel.title)}" '
        f"data-points='{escape(json.dumps(data, separators=(',', ':')))}'>"
    ]
    for tick in part.y_ticks():
        y = down(tick)
        lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--rule)"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    lines += [
        f'<text x="{across(tick):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in part.x_ticks()
    ]
    if panel.x:
        lines.append(f'<polygon points="{area(panel.reserved)}" fill="var(--beyond)"/>')
        lines.append(f'<polygon points="{area(panel.within())}" fill="var(--held)"/>')
        lines.append(f'<polygon points="{area(panel.requested)}" fill="var(--requested)"/>')
    lines.append(f'<text class="title" x="{LEFT}" y="18">{escape(panel.title)}</text>')
    lines.append(f'<text class="figure" x="{right}" y="18" text-anchor="end">{overhead_text(panel.row)}</text>')
    if panel.peak_reserved is not None and panel.peak_requested is not None:
        y = down(panel.peak_reserved)
        lines.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--ink)" stroke-dasharray="5 3"/>'
        )
        lines.append(
            f'<text class="peak" x="{LEFT + 4}" y="{y - 5:.1f}">peak {panel.peak_reserved:.2f} {part.unit} reserved, '
            f"{panel.peak_requested:.2f} requested</text>"
        )
    if part.capacity is not None:
        y = down(part.capacity)
        lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--alarm)"/>')
        lines.append(
            f'<text x="{right}" y="{y - 5:.1f}" text-anchor="end" style="fill:var(--alarm)">'
            f"{part.capacity:.1f} {part.unit} card</text>"
        )
    if panel.note:
        lines.append(
            f'<text class="alarm" x="{right - 4}" y="{TOP + HEIGHT - 8}" text-anchor="end">{escape(panel.note)}</text>'
        )
    lines.append(f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="var(--ink)" opacity="0"/>')
    middle = LEFT + WIDTH / 2
    lines.append(f'<text x="{LEFT - 6}" y="{TOP - 8}" text-anchor="end">{part.unit}</text>')
    lines.append(f'<text x="{middle}" y="{TOP + HEIGHT + 33}" text-anchor="middle">{part.x_label}</text>')
    lines.append(f'<text class="readout peak" x="{LEFT + 4}" y="{TOP + HEIGHT - 10}"></text>')
    lines.append("</svg>")
    return "\n".join(lines)
