"use strict";
// Draws what page.py wrote into the page: memory over time, and blocks by address and time, on two canvases that share
// their horizontal axis. Texts of the trace reach the page as text only.
(async () => {
  const $ = (id) => document.getElementById(id);
  const spec = JSON.parse($("document").textContent);
  const LEFT = 76, RIGHT = 14, TOP = 36, BOTTOM = 38; // around what is plotted, in pixels
  const DASHES = { requested: [1, 2], live: [3, 2], resident: [8, 3], reserved: [] };
  const WIDTHS = { requested: 1.2, live: 1.3, resident: 1.5, reserved: 2.2 };

  // --- data -----------------------------------------------------------------------------------------------------

  const column = await unpack().catch((error) => {
    $("failure").hidden = false;
    $("failure").textContent = `This browser cannot unpack the data (${error}); a newer one can.`;
    return null;
  });
  if (column === null) return;
  const knots = summed(column("knots")); // numbers of events
  const seconds = summed(column("times")).map((nanoseconds) => nanoseconds / 1e9);
  const layers = spec.layers.map((layer, number) => ({ ...layer, number, events: column(`layer${number}/events`) }));

  async function unpack() {
    const packed = Uint8Array.from(atob($("columns").textContent.trim()), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    return (name) => {
      const [kind, offset, length] = spec.columns[name];
      return new globalThis[kind](buffer, offset, length);
    };
  }

  function summed(steps) {
    let sum = 0;
    return Float64Array.from(steps, (step) => (sum += step));
  }

  // What is shown of a device; made anew when another is chosen.
  function blocksOf(device) {
    const names = ["birth", "free", "gone", "requested", "id", "stack", "stream", "pool"];
    return Object.fromEntries(names.map((name) => [name, column(`${device}/${name}`)]));
  }

  function placesOf(layer, device) {
    if (!(device in layer.maps)) return null;
    const [row, start, high, low] = ["row", "start", "high", "low"].map((n) => column(`layer${layer.number}/${device}/${n}`));
    return { row, start, high, low, height: layer.maps[device] };
  }

  // --- what is shown --------------------------------------------------------------------------------------------

  const state = {
    device: spec.devices[0].device,
    layer: Math.max(0, layers.findIndex((layer) => Object.keys(layer.maps).length)),
    across: spec.ordered || bunched() ? "event" : "time",
    colour: "size",
    shown: new Set(), // `layer/quantity`
    x0: 0, x1: 1, y0: 0, y1: 1,
    at: null, // the horizontal place under the pointer
    hovered: -1,
    kept: -1,
  };
  for (const layer of layers)
    for (const quantity of ["requested", "reserved"])
      if (quantity === "reserved" || layer.number === 0) state.shown.add(`${layer.number}/${quantity}`);

  let xs, blocks, places, colours; // of the state
  let theme; // colours of the page
  // Whether most of the program happens in a small part of its time, so that a picture by time shows little.
  function bunched() {
    const [tenth, last] = [0.1, 0.9].map((share) => seconds[Math.max(upper(knots, share * spec.events) - 1, 0)]);
    return last - tenth < 0.3 * (seconds[seconds.length - 1] - seconds[0]);
  }

  const edge = () => ({ x0: xs[0], x1: Math.max(xs[xs.length - 1], xs[0] + 1e-9), y1: Math.max(places ? places.height : 1, 1) });

  function choose(changes) {
    const before = state.across;
    Object.assign(state, changes);
    xs = state.across === "time" ? seconds : knots;
    if ("device" in changes || !blocks) {
      blocks = blocksOf(state.device);
      state.hovered = state.kept = -1;
    }
    places = placesOf(layers[state.layer], state.device);
    if (before !== state.across) {
      // The same stretch of the program, by the other measure.
      const from = before === "time" ? seconds : knots;
      [state.x0, state.x1] = [translate(state.x0, from, xs), translate(state.x1, from, xs)];
    }
    colours = coloursOf(state.colour);
    colours.order = byColour(colours.of);
    if ("device" in changes || "layer" in changes) [state.y0, state.y1] = [0, edge().y1];
    if ("device" in changes) [state.x0, state.x1] = [edge().x0, edge().x1];
    fillLegend();
    fillKey();
    fillDetail();
    draw();
  }

  function translate(value, from, to) {
    const after = Math.min(Math.max(upper(from, value), 1), from.length - 1);
    const span = from[after] - from[after - 1];
    const share = span > 0 ? Math.min(Math.max((value - from[after - 1]) / span, 0), 1) : 0;
    return to[after - 1] + share * (to[after] - to[after - 1]);
  }

  function upper(sorted, value) { // the first place whose value is greater
    let low = 0, high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] > value) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // --- colours --------------------------------------------------------------------------------------------------

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(`--${name}`).trim();
    theme = { font: "12px system-ui, sans-serif" };
    for (const name of ["paper", "ink", "faint", "rule", "alarm", "area", "edge", "step", "accent", "other"]) theme[name] = value(name);
    for (const name of ["layers", "ramp", "kinds"]) theme[name] = value(name).split(/\s+/);
    theme.ramp = Array.from({ length: 24 }, (_, i) => mixed(theme.ramp, i / 23));
  }

  function mixed(points, share) {
    const place = share * (points.length - 1), low = Math.min(Math.floor(place), points.length - 2);
    const [a, b] = [points[low], points[low + 1]].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    return "#" + a.map((part, i) => Math.round(part + (b[i] - part) * (place - low)).toString(16).padStart(2, "0")).join("");
  }

  const layerColour = (number) => theme.layers[number % theme.layers.length];

  // For each block the number of its colour, the colours, and what the key says of them.
  function coloursOf(way) {
    const count = blocks.birth.length;
    if (way === "size") return graded((i) => blocks.requested[i], formatBytes);
    if (way === "life") {
      const end = knots.length - 1, life = (i) => seconds[blocks.free[i]] - seconds[blocks.birth[i]];
      const grades = graded((i) => (blocks.free[i] === end ? NaN : Math.max(life(i), 1e-9)), formatSeconds);
      grades.key.push(["kept to the end", theme.other]);
      return grades;
    }
    const label = {
      phase: (i) => phaseOf(blocks.birth[i]),
      stack: (i) => stackName(blocks.stack[i]), // several stacks may have the same line of the program in them
      stream: (i) => blocks.stream[i] * 65536 + blocks.pool[i],
    }[way];
    const named = {
      phase: (value) => phaseName(value),
      stack: (value) => value.replace(/\([^()]*\//, "("), // the file without its folders
      stream: (value) => placeName(Math.floor(value / 65536), value % 65536),
    }[way];
    if (way === "phase") {
      const of = Uint8Array.from({ length: count }, (_, i) => (label(i) <= 0 ? 10 : (label(i) - 1) % 10));
      const first = spec.lines.texts.slice(0, 10).map((text, i) => [short(text, 30), theme.kinds[i]]);
      if (spec.lines.texts.length > 10) first.push(["and so on, the same ten colours", "transparent"]);
      return { of, palette: [...theme.kinds, theme.other], key: [...first, ["before", theme.other]] };
    }
    const bytes = new Map(), unknown = way === "stack" ? stackName(0) : null;
    for (let i = 0; i < count; i++) bytes.set(label(i), (bytes.get(label(i)) || 0) + blocks.requested[i]);
    bytes.delete(unknown);
    const top = [...bytes].sort((a, b) => b[1] - a[1]).slice(0, 10).map(([value]) => value);
    const rank = new Map(top.map((value, i) => [value, i]));
    const of = Uint8Array.from({ length: count }, (_, i) => rank.get(label(i)) ?? 10);
    const key = top.map((value, i) => [short(named(value), 60), theme.kinds[i]]);
    if (unknown !== null) key.push([unknown, theme.other]);
    if (bytes.size > top.length) key.push([`${(bytes.size - top.length).toLocaleString("en")} more`, theme.other]);
    return { of, palette: [...theme.kinds, theme.other], key };
  }

  // The numbers of the blocks, those of one colour together: to change it takes as long as to draw a block.
  function byColour(of) {
    const places = new Uint32Array(257);
    for (const colour of of) places[colour + 1]++;
    for (let i = 0; i < 256; i++) places[i + 1] += places[i];
    const order = new Uint32Array(of.length);
    for (let i = 0; i < of.length; i++) order[places[of[i]]++] = i;
    return order;
  }

  function graded(value, format) {
    const count = blocks.birth.length;
    let low = Infinity, high = 0;
    for (let i = 0; i < count; i++) {
      const v = value(i);
      if (v > 0) { low = Math.min(low, v); high = Math.max(high, v); }
    }
    if (!(low <= high)) low = high = 1;
    const least = low;
    low = Math.max(low, high / 2 ** 14); // whatever is smaller covers nothing that could be seen
    const span = Math.log(high / low) || 1, steps = theme.ramp.length;
    const of = Uint8Array.from({ length: count }, (_, i) => {
      const v = value(i);
      if (Number.isNaN(v)) return steps;
      return Math.round((Math.log(Math.max(v, low) / low) / span) * (steps - 1));
    });
    return { of, palette: [...theme.ramp, theme.other], key: [], range: [(least < low ? "up to " : "") + format(low), format(high)] };
  }

  const phaseOf = (knot) => (knot < spec.initial ? -1 : upper(spec.lines.knots, knot));
  const phaseName = (phase) => (phase < 0 ? "before the recording began" : phase === 0 ? (spec.lines.texts.length ? `before the first ${spec.lines.title}` : "while it was recorded") : spec.lines.texts[phase - 1]);
  const stackName = (stack) => (stack === 0 ? "no stack recorded" : spec.stacks.of[stack] ? spec.stacks.of[stack].name : `stack ${stack} (its text was left out)`);
  const placeName = (stream, pool) => `stream ${spec.streams[stream]}` + (spec.pools[pool] ? `, pool (${spec.pools[pool]})` : "");

  // --- words ----------------------------------------------------------------------------------------------------

  function formatBytes(bytes) {
    for (const [unit, scale] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 1024]])
      if (Math.abs(bytes) >= scale) return `${+(bytes / scale).toFixed(2)} ${unit}`;
    return `${Math.round(bytes)} B`;
  }
  function formatSeconds(value) {
    const size = Math.abs(value);
    if (size >= 1 || size === 0) return `${+value.toPrecision(6)} s`;
    if (size >= 1e-3) return `${+(value * 1e3).toPrecision(5)} ms`;
    return `${+(value * 1e6).toPrecision(5)} µs`;
  }
  const formatX = (value) => (state.across === "time" ? formatSeconds(value) : `event ${Math.round(value).toLocaleString("en")}`);
  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  function ticks(low, high, about) {
    const raw = Math.max(high - low, 1e-12) / about, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return { at: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0)) };
  }

  // --- drawing --------------------------------------------------------------------------------------------------

  let due = false, stale = true; // stale: more than the pointer has moved
  const finished = document.createElement("canvas"); // the map without what follows the pointer
  function draw(all = true) {
    stale ||= all;
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      drawChart();
      drawMap();
      stale = false;
    });
  }

  function prepared(canvas, box = canvas.getBoundingClientRect()) {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(box.width, LEFT + RIGHT + 10), height = Math.max(box.height, 80);
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const ctx = canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = theme.font;
    const plot = { left: LEFT, right: width - RIGHT, top: TOP, bottom: height - BOTTOM };
    const scale = (plot.right - plot.left) / (state.x1 - state.x0);
    return { ctx, plot, x: (value) => plot.left + (value - state.x0) * scale };
  }

  function drawAcross({ ctx, plot, x }, title) {
    const [unit, scale] = state.across === "event" ? ["event", 1]
      : state.x1 - state.x0 < 2e-3 ? ["microseconds since the first event", 1e6]
      : state.x1 - state.x0 < 2 ? ["milliseconds since the first event", 1e3] : ["seconds since the first event", 1];
    ctx.fillStyle = theme.faint;
    ctx.textAlign = "center";
    const marks = ticks(state.x0 * scale, state.x1 * scale, Math.max(2, (plot.right - plot.left) / 110));
    for (const tick of marks.at) {
      const at = x(tick / scale);
      ctx.fillRect(at - 0.5, plot.bottom, 1, 4);
      ctx.fillText((Math.abs(tick) < 1e-12 ? 0 : tick).toLocaleString("en", { maximumFractionDigits: marks.digits }), at, plot.bottom + 17);
    }
    ctx.fillText(unit, (plot.left + plot.right) / 2, plot.bottom + 33);
    ctx.textAlign = "left";
    ctx.fillText(title, 4, 13);
  }

  function drawUp({ ctx, plot }, low, high, y) {
    const [unit, scale] = high >= 2 ** 30 ? ["GiB", 2 ** 30] : high >= 2 ** 20 ? ["MiB", 2 ** 20] : ["KiB", 1024];
    const marks = ticks(low / scale, high / scale, Math.max(2, (plot.bottom - plot.top) / 55));
    ctx.textAlign = "right";
    for (const tick of marks.at) {
      const at = y(tick * scale);
      ctx.fillStyle = theme.rule;
      ctx.fillRect(plot.left, at - 0.5, plot.right - plot.left, 1);
      ctx.fillStyle = theme.faint;
      ctx.fillText(`${tick.toFixed(marks.digits)} ${unit}`, plot.left - 8, at + 4);
    }
  }

  function clipped({ ctx, plot }, paint) {
    ctx.save();
    ctx.beginPath();
    ctx.rect(plot.left, plot.top, plot.right - plot.left, plot.bottom - plot.top);
    ctx.clip();
    paint();
    ctx.restore();
  }

  // Steps or marks, and where memory ran out. As many as can be told apart, and names where there is room.
  function drawLines({ ctx, plot, x }) {
    const lines = spec.lines.knots;
    let first = 0, end = lines.length;
    while (first < end && xs[lines[first]] < state.x0) first++;
    while (end > first && xs[lines[end - 1]] > state.x1) end--;
    const room = plot.right - plot.left;
    if (end - first <= room / 5) {
      let free = -Infinity;
      for (let i = first; i < end; i++) {
        const at = x(xs[lines[i]]);
        ctx.fillStyle = theme.step;
        ctx.fillRect(at - 0.5, plot.top, 1, plot.bottom - plot.top);
        const text = short(spec.lines.texts[i], 26), width = ctx.measureText(text).width;
        if (at < free || at + width > plot.right) continue;
        ctx.fillStyle = theme.faint;
        ctx.textAlign = "left";
        ctx.fillText(text, at + 3, plot.top - 5);
        free = at + width + 14;
      }
    }
    for (const layer of layers) {
      if (layer.lost === null) continue;
      const at = x(xs[layer.lost]);
      if (at < plot.left || at > plot.right) continue;
      ctx.fillStyle = theme.alarm;
      ctx.fillRect(at - 0.75, plot.top, 1.5, plot.bottom - plot.top);
      ctx.textAlign = at > (plot.left + plot.right) / 2 ? "right" : "left";
      ctx.fillText(`${layer.name}: out of memory`, at + (ctx.textAlign === "left" ? 5 : -5), plot.top + 14 + 15 * layer.number);
    }
  }

  function drawCursor({ ctx, plot, x }) {
    if (state.at === null || state.at < state.x0 || state.at > state.x1) return;
    ctx.fillStyle = theme.ink;
    ctx.globalAlpha = 0.55;
    ctx.fillRect(x(state.at) - 0.5, plot.top, 1, plot.bottom - plot.top);
    ctx.globalAlpha = 1;
  }

  const series = (layer, quantity) => column(`layer${layer.number}/${state.device}/${quantity}`);
  const quantitiesOf = (layer) => layer.quantities[state.device] || [];
  const isShown = (layer, quantity) => quantitiesOf(layer).includes(quantity) && state.shown.has(`${layer.number}/${quantity}`);

  function drawChart() {
    const canvas = prepared($("chart")), { ctx, plot, x } = canvas;
    let high = 1;
    for (const layer of layers)
      for (const quantity of spec.quantities)
        if (isShown(layer, quantity)) for (const value of series(layer, quantity)) high = Math.max(high, value);
    high *= 1.06;
    const y = (value) => plot.bottom - (value / high) * (plot.bottom - plot.top);
    drawUp(canvas, 0, high, y);
    clipped(canvas, () => {
      if (layers.length && isShown(layers[0], "requested")) {
        traced(ctx, layers[0], series(layers[0], "requested"), x, y);
        ctx.lineTo(x(xs[layers[0].events[layers[0].events.length - 1]]), plot.bottom);
        ctx.lineTo(x(xs[layers[0].events[0]]), plot.bottom);
        ctx.fillStyle = theme.area;
        ctx.fill();
      }
      for (const layer of [...layers].reverse())
        for (const quantity of spec.quantities) {
          if (!isShown(layer, quantity)) continue;
          if (layer.number === 0 && quantity === "requested") ctx.strokeStyle = theme.edge;
          else ctx.strokeStyle = layerColour(layer.number);
          ctx.lineWidth = WIDTHS[quantity];
          ctx.setLineDash(layer.number === 0 && quantity === "requested" ? [] : DASHES[quantity]);
          traced(ctx, layer, series(layer, quantity), x, y);
          ctx.stroke();
        }
      ctx.setLineDash([]);
    });
    drawLines(canvas);
    drawAcross(canvas, "memory");
    drawCursor(canvas);
  }

  function traced(ctx, layer, values, x, y) {
    ctx.beginPath();
    for (let i = 0; i < values.length; i++) {
      const at = x(xs[layer.events[i]]);
      if (i === 0) ctx.moveTo(at, y(values[0]));
      else {
        ctx.lineTo(at, y(values[i - 1]));
        ctx.lineTo(at, y(values[i]));
      }
    }
  }

  // The last moment that the allocator of the map saw: the end, or where memory ran out.
  const lastKnot = () => layers[state.layer].lost ?? knots.length - 1;

  // Where a block is on the canvas; null if it is outside of what is shown.
  function rectangle(i, { plot, x }, y) {
    const row = places.row[i];
    if (!(row <= state.y1 && row + blocks.requested[i] >= state.y0)) return null;
    const left = x(xs[blocks.birth[i]]), right = x(xs[Math.min(blocks.gone[i], lastKnot())]);
    if (right < plot.left || left > plot.right) return null;
    const bottom = y(row), top = y(row + blocks.requested[i]);
    return [left, top, Math.max(right - left, 0.6), Math.max(bottom - top, 0.6)];
  }

  const scaleUp = ({ plot }) => (row) => plot.bottom - ((row - state.y0) / (state.y1 - state.y0)) * (plot.bottom - plot.top);

  function drawMap() {
    const canvas = prepared($("map")), { ctx, plot } = canvas;
    if (!places) {
      ctx.fillStyle = theme.faint;
      ctx.textAlign = "center";
      ctx.fillText("where this allocator placed blocks is not known", (plot.left + plot.right) / 2, (plot.top + plot.bottom) / 2);
      return;
    }
    if (stale) drawBlocks(prepared(finished, $("map").getBoundingClientRect()));
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.drawImage(finished, 0, 0);
    ctx.setTransform(window.devicePixelRatio || 1, 0, 0, window.devicePixelRatio || 1, 0, 0);
    const y = scaleUp(canvas);
    clipped(canvas, () => {
      for (const [block, width] of [[state.kept, 2.5], [state.hovered, 1.5]]) {
        const box = block >= 0 && rectangle(block, canvas, y);
        if (!box) continue;
        ctx.strokeStyle = theme.ink;
        ctx.lineWidth = width;
        ctx.strokeRect(...box);
      }
    });
    drawCursor(canvas);
  }

  function drawBlocks(canvas) {
    const { ctx, plot } = canvas, y = scaleUp(canvas);
    drawUp(canvas, state.y0, state.y1, y);
    clipped(canvas, () => {
      const labelled = [];
      const { birth, free, gone, requested } = blocks, { row } = places;
      const across = (plot.right - plot.left) / (state.x1 - state.x0), up = (plot.bottom - plot.top) / (state.y1 - state.y0);
      const last = lastKnot();
      let colour = -1;
      for (const i of colours.order) {
        if (!(row[i] <= state.y1 && row[i] + requested[i] >= state.y0)) continue;
        const born = xs[birth[i]], freed = xs[Math.min(free[i], last)], usable = xs[Math.min(gone[i], last)];
        if (born > state.x1 || usable < state.x0) continue;
        if (colours.of[i] !== colour) ctx.fillStyle = colours.palette[(colour = colours.of[i])];
        const left = plot.left + (born - state.x0) * across, width = Math.max((freed - born) * across, 0.6);
        const height = Math.max(requested[i] * up, 0.6), top = plot.bottom - (row[i] - state.y0) * up - height;
        const seam = width > 4 && height > 4 ? 0.7 : 0;
        ctx.fillRect(left, top, width - seam, height - seam);
        if (usable > freed) {
          ctx.globalAlpha = 0.4;
          ctx.fillRect(left + width, top, (usable - freed) * across, height - seam);
          ctx.globalAlpha = 1;
        }
        if (width > 64 && height > 16) labelled.push(i, [left, top, width, height]);
      }
      ctx.textAlign = "left";
      for (let k = 0; k < labelled.length && k < 800; k += 2) {
        const [left, top, width, height] = labelled[k + 1], from = Math.max(left, plot.left);
        const text = formatBytes(blocks.requested[labelled[k]]);
        if (left + width - from < ctx.measureText(text).width + 10) continue;
        ctx.fillStyle = readable(colours.palette[colours.of[labelled[k]]]);
        ctx.fillText(text, from + 5, top + height / 2 + 4);
      }
      drawStretches(canvas, y);
    });
    drawLines(canvas);
    drawAcross(canvas, "addresses");
  }

  // Where addresses were left out.
  function drawStretches({ ctx, plot }, y) {
    const { start } = places, first = upper(start, state.y0), end = upper(start, state.y1);
    if (end - first > (plot.bottom - plot.top) / 6) return;
    ctx.strokeStyle = theme.faint;
    ctx.lineWidth = 1;
    ctx.setLineDash([2, 5]);
    ctx.beginPath();
    for (let i = first; i < end; i++) {
      ctx.moveTo(plot.left, y(start[i]));
      ctx.lineTo(plot.right, y(start[i]));
    }
    ctx.stroke();
    ctx.setLineDash([]);
  }

  function readable(hex) {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#14171b" : "#ffffff";
  }

  // --- words beside the pictures --------------------------------------------------------------------------------

  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  const cells = []; // [layer, quantity, where its figure stands]
  function fillLegend() {
    cells.length = 0;
    const head = element("tr");
    head.append(element("th", ""), ...spec.quantities.map((quantity) => element("th", quantity)));
    const rows = layers.map((layer) => {
      const row = element("tr"), name = element("td", layer.name + " ");
      name.append(element("small", layer.how));
      row.append(name);
      for (const quantity of spec.quantities) {
        const cell = element("td");
        row.append(cell);
        if (!quantitiesOf(layer).includes(quantity)) {
          cell.textContent = "-";
          continue;
        }
        const label = element("label"), box = element("input", undefined, { type: "checkbox", "aria-label": `${layer.name}: ${quantity}` });
        box.checked = isShown(layer, quantity);
        box.addEventListener("change", () => {
          state.shown[box.checked ? "add" : "delete"](`${layer.number}/${quantity}`);
          draw();
        });
        const figure = element("span");
        label.append(box, swatch(layer, quantity), figure);
        cell.append(label);
        cells.push([layer, quantity, figure]);
      }
      return row;
    });
    $("legend").replaceChildren(head, ...rows);
    fillFigures();
  }

  function swatch(layer, quantity) {
    const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), area = layer.number === 0 && quantity === "requested";
    const shape = document.createElementNS(space, area ? "rect" : "line");
    const attributes = area ? { width: 26, height: 12, fill: theme.area, stroke: theme.edge }
      : { x1: 0, x2: 26, y1: 6, y2: 6, stroke: layerColour(layer.number), "stroke-width": WIDTHS[quantity], "stroke-dasharray": DASHES[quantity].join(" ") || "none" };
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
    svg.append(shape);
    return svg;
  }

  // The figures at the pointer, or the peaks.
  function fillFigures() {
    $("legend").querySelector("th").textContent = state.at === null ? "at the peak" : `at ${formatX(state.at)}`;
    for (const [layer, quantity, cell] of cells) {
      const values = series(layer, quantity);
      if (state.at === null) cell.textContent = formatBytes(layer.peaks[state.device][quantity] ?? Math.max(...values));
      else {
        const knot = upper(xs, state.at) - 1, place = upper(layer.events, knot) - 1;
        cell.textContent = place < 0 || (layer.lost !== null && knot > layer.lost) ? "-" : formatBytes(values[Math.min(place, values.length - 1)]);
      }
    }
  }

  function fillKey() {
    const key = $("key");
    key.replaceChildren();
    if (colours.range) {
      const ramp = element("i", "", { class: "ramp" });
      ramp.style.background = `linear-gradient(to right, ${theme.ramp.join(", ")})`;
      const span = element("span");
      span.append(colours.range[0], ramp, colours.range[1]);
      key.append(span);
    }
    for (const [text, colour] of colours.key) {
      const span = element("span"), spot = element("i");
      spot.style.background = colour;
      span.append(spot, text);
      key.append(span);
    }
  }

  function fillDetail() {
    const panel = $("detail"), i = state.hovered >= 0 ? state.hovered : state.kept;
    if (i < 0 || !places) {
      panel.replaceChildren(element("h3", "A block"), element("div", "Point at a block of the map to read what it is; click to keep it here.", { class: "hint" }));
      return;
    }
    const end = knots.length - 1, list = element("dl");
    const say = (name, text) => list.append(element("dt", name), element("dd", text));
    const moment = (knot) => `event ${knots[knot].toLocaleString("en")}, ${formatSeconds(seconds[knot])}`;
    say("requested", `${formatBytes(blocks.requested[i])} (${blocks.requested[i].toLocaleString("en")} bytes)`);
    say("id", String(blocks.id[i]));
    say("address", addressOf(i));
    say("born", blocks.birth[i] < spec.initial ? "before the recording began" : moment(blocks.birth[i]));
    say("freed", blocks.free[i] === end ? "not in this recording" : moment(blocks.free[i]));
    if (blocks.gone[i] > blocks.free[i]) say("usable again", blocks.gone[i] === end ? "not in this recording" : moment(blocks.gone[i]));
    say("lived", formatSeconds(seconds[blocks.free[i]] - seconds[blocks.birth[i]]) + (blocks.free[i] === end || blocks.birth[i] < spec.initial ? " at least" : ""));
    say(spec.lines.title, phaseName(phaseOf(blocks.birth[i])));
    say("on", placeName(blocks.stream[i], blocks.pool[i]));
    const stack = spec.stacks.of[blocks.stack[i]], lines = element("ol");
    if (stack) lines.append(...stack.frames.map((frame) => line(...spec.stacks.frames[frame])));
    const heading = element("h3", i === state.kept ? "Block, kept (Esc lets go)" : "Block");
    panel.replaceChildren(heading, list, element("div", stack ? "stack, innermost first" : stackName(blocks.stack[i]), { class: "hint" }), lines);
  }

  // One frame: its function, and the end of its file's path; the whole path under the pointer.
  function line(name, file, number) {
    const made = element("li", name), where = number ? `${file}:${number}` : file;
    made.title = where;
    made.append(" ", element("small", where.split("/").slice(-2).join("/")));
    return made;
  }

  function addressOf(i) {
    const at = upper(places.start, places.row[i]) - 1;
    const first = (BigInt(places.high[at]) << 32n) + BigInt(places.low[at]);
    return "0x" + (first + BigInt(Math.round(places.row[i] - places.start[at]))).toString(16);
  }

  function fillLeftOut() {
    const { drawn, all, area_usableout: share } = spec.blocks;
    const many = (count) => count.toLocaleString("en");
    $("left-out").textContent = drawn === all
      ? `All ${many(all)} blocks are drawn. Stretches of addresses that no block ever used are left out; dotted lines show where.`
      : `${many(drawn)} of ${many(all)} blocks are drawn, those that cover most; the other ${many(all - drawn)} would cover ${(100 * share).toPrecision(2)} % of what all cover. Their memory is in the curves above. Dotted lines show where addresses without a block are left out.`;
  }

  // --- looking around -------------------------------------------------------------------------------------------

  function zoom(factor, x, y, acrossOnly, upOnly) {
    const { x0, x1, y1 } = edge();
    if (!upOnly) [state.x0, state.x1] = zoomed(state.x0, state.x1, x, factor, x0, x1, (x1 - x0) * 1e-7);
    if (!acrossOnly) [state.y0, state.y1] = zoomed(state.y0, state.y1, y, factor, 0, y1, 512);
    draw();
  }

  function zoomed(low, high, at, factor, least, most, finest) {
    const span = Math.min(Math.max((high - low) * factor, finest), most - least);
    const from = at - ((at - low) / (high - low)) * span;
    return held(from, from + span, least, most);
  }

  function held(low, high, least, most) { // the same span, within its bounds
    const shift = Math.max(least - low, 0) + Math.min(most - high, 0);
    return high - low >= most - least ? [least, most] : [low + shift, high + shift];
  }

  function move(right, up) {
    const { x0, x1, y1 } = edge();
    [state.x0, state.x1] = held(state.x0 + right, state.x1 + right, x0, x1);
    [state.y0, state.y1] = held(state.y0 + up, state.y1 + up, 0, y1);
    draw();
  }

  function whole() {
    const { x0, x1, y1 } = edge();
    Object.assign(state, { x0, x1, y0: 0, y1 });
    draw();
  }

  // What is under a point of a canvas, in the units of its axes.
  function under(canvas, event) {
    const box = canvas.getBoundingClientRect(), width = box.width - LEFT - RIGHT, height = box.height - TOP - BOTTOM;
    const right = (event.clientX - box.left - LEFT) / width, up = 1 - (event.clientY - box.top - TOP) / height;
    return {
      x: state.x0 + right * (state.x1 - state.x0), y: state.y0 + up * (state.y1 - state.y0),
      inside: right >= 0 && right <= 1 && up >= 0 && up <= 1,
      perX: (state.x1 - state.x0) / width, perY: (state.y1 - state.y0) / height,
    };
  }

  function blockAt({ x, y, inside, perX, perY }) {
    if (!inside || !places) return -1;
    const last = lastKnot();
    let found = -1, best = Infinity;
    for (let i = 0; i < places.row.length; i++) {
      const row = places.row[i];
      if (y < row - perY || y > row + blocks.requested[i] + perY) continue;
      if (x < xs[blocks.birth[i]] - perX || x > xs[Math.min(blocks.gone[i], last)] + perX) continue;
      const centre = Math.abs(x - (xs[blocks.birth[i]] + xs[blocks.free[i]]) / 2) / perX + Math.abs(y - row - blocks.requested[i] / 2) / perY;
      const outside = y < row || y > row + blocks.requested[i] || x < xs[blocks.birth[i]] || x > xs[blocks.free[i]] ? 1e9 : 0;
      if (centre + outside < best) { best = centre + outside; found = i; }
    }
    return found;
  }

  function follow(canvas, isMap) {
    const held = new Map(); // pointers that are down
    let moved = false;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const at = under(canvas, event), turn = event.deltaY || event.deltaX;
      zoom(Math.exp(Math.min(Math.max(turn, -300), 300) / 400), at.x, at.y, !isMap || event.shiftKey, isMap && event.altKey);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, event);
      moved = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      const at = under(canvas, event), before = held.get(event.pointerId);
      if (before) {
        const other = [...held.values()].find((one) => one.pointerId !== event.pointerId);
        if (other) {
          const spread = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
          zoom(spread(before) / spread(event), at.x, at.y, !isMap, false);
        } else {
          move((before.clientX - event.clientX) * at.perX, isMap ? (event.clientY - before.clientY) * at.perY : 0);
        }
        moved ||= Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY) > 2;
        held.set(event.pointerId, event);
      }
      point(at.inside ? at.x : null, isMap && !moved ? blockAt(at) : -1);
    });
    canvas.addEventListener("pointerup", (event) => {
      held.delete(event.pointerId);
      if (!isMap || moved) return;
      const block = blockAt(under(canvas, event));
      state.kept = block === state.kept ? -1 : block;
      fillDetail();
      draw();
    });
    canvas.addEventListener("pointercancel", (event) => held.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => point(null, -1));
    canvas.addEventListener("dblclick", whole);
    canvas.addEventListener("keydown", (event) => {
      const right = (state.x1 - state.x0) / 8, up = (state.y1 - state.y0) / 8;
      const keys = {
        ArrowLeft: () => move(-right, 0), ArrowRight: () => move(right, 0),
        ArrowUp: () => move(0, up), ArrowDown: () => move(0, -up),
        "+": closer, "=": closer, "-": farther, 0: whole,
        Escape: () => { state.kept = -1; fillDetail(); draw(); },
      };
      if (!(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  function point(at, block) {
    if (at === state.at && block === state.hovered) return;
    const other = block !== state.hovered;
    Object.assign(state, { at, hovered: block });
    fillFigures();
    if (other) fillDetail();
    draw(false);
  }

  const middle = () => [(state.x0 + state.x1) / 2, (state.y0 + state.y1) / 2];
  const closer = () => zoom(0.6, ...middle(), false, false);
  const farther = () => zoom(1 / 0.6, ...middle(), false, false);

  // --- beginning ------------------------------------------------------------------------------------------------

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => element("option", text, { value })));
    select.value = String(chosen);
  }

  readTheme();
  options($("device"), spec.devices.map(({ device, name }) => [device, name ? `${device}: ${name}` : device]), state.device);
  $("device-choice").hidden = spec.devices.length < 2;
  const mapped = layers.filter((layer) => Object.keys(layer.maps).length);
  options($("layer"), mapped.map((layer) => [layer.number, `${layer.name}, ${layer.how}`]), state.layer);
  $("across").value = state.across;
  if (spec.ordered) $("across").parentElement.hidden = true; // no times were recorded
  if (!spec.lines.knots.length) $("colour").querySelector("[value=phase]").remove();
  if (!Object.keys(spec.stacks.of).length) $("colour").querySelector("[value=stack]").remove();
  for (const hidden of document.querySelectorAll("#controls, section, #detail")) hidden.hidden = false;
  if (!mapped.length) $("map").closest("section").hidden = $("detail").hidden = true;
  $("device").addEventListener("change", () => choose({ device: Number($("device").value) }));
  $("layer").addEventListener("change", () => choose({ layer: Number($("layer").value) }));
  $("across").addEventListener("change", () => choose({ across: $("across").value }));
  $("colour").addEventListener("change", () => choose({ colour: $("colour").value }));
  $("closer").addEventListener("click", closer);
  $("farther").addEventListener("click", farther);
  $("whole").addEventListener("click", whole);
  follow($("chart"), false);
  follow($("map"), true);
  new ResizeObserver(draw).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readTheme(); choose({}); });
  fillLeftOut();
  choose({ device: state.device });
  document.body.dataset.ready = "true"; // for whoever waits for the page
})();
