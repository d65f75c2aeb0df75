"use strict";
// The whole report is drawn from the results embedded in the page: text and bars as HTML, plots as SVG at the size
// they are shown in, so that labels stay readable on a phone.

const R = JSON.parse(document.getElementById("results").textContent);
const PAGE = document.getElementById("page");
const TIP = document.getElementById("tip");

const STAGE_COLORS = {
  "video decode": "--s-decode", "text encoder": "--s-text", "VAE encode": "--s-vae-in",
  "UNet evaluation": "--s-unet", "solver": "--s-solver", "VAE decode": "--s-vae-out",
  "pixels and latents": "--s-pixels", "video encode": "--s-encode", "noise and rest": "--s-rest",
};
const COMPONENT_STAGES = {
  unet: "UNet evaluation", vae_encoder: "VAE encode", vae_decoder: "VAE decode", text_encoder: "text encoder",
};
const COMPONENT_SHAPES = { unet: "circle", vae_encoder: "square", vae_decoder: "triangle", text_encoder: "diamond" };
const ENGINE_COLORS = ["--s-unet", "--s-vae-out", "--s-solver", "--s-pixels", "--s-vae-in", "--s-decode", "--s-text"];
const BASELINE_COLORS = { eager: "--grey-1", compile: "--grey-2" };

// Elements ----------------------------------------------------------------------------------------------------

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  return fill(made, attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return fill(made, attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "tip") explain(made, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

function explain(made, text) {
  const show = (event) => {
    TIP.textContent = text;
    TIP.hidden = false;
    const box = TIP.getBoundingClientRect();
    const left = Math.min(Math.max(event.clientX - box.width / 2, 6), innerWidth - box.width - 6);
    const above = event.clientY - box.height - 14;
    TIP.style.left = `${left}px`;
    TIP.style.top = `${above > 6 ? above : event.clientY + 18}px`;
  };
  made.addEventListener("pointerenter", show);
  made.addEventListener("pointermove", show);
  made.addEventListener("pointerleave", () => { TIP.hidden = true; });
}

const color = (name) => `var(${name})`;

/** A plot that is drawn again whenever its width changes. */
function plot(label, paint) {
  const made = draw("svg", { class: "plot", role: "img", "aria-label": label });
  let width = 0;
  made.repaint = () => {
    made.replaceChildren();
    const height = paint(made, width);
    made.setAttribute("viewBox", `0 0 ${width} ${height}`);
    made.setAttribute("height", height);
  };
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now && now !== width) { width = now; requestAnimationFrame(made.repaint); }
  }).observe(made);
  return made;
}

// Numbers -----------------------------------------------------------------------------------------------------

/** Three significant digits, never in scientific notation. */
function digits(value) {
  if (value === 0) return "0";
  const places = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(places, 6));
}

function scaled(value, units) {
  let [factor, unit] = units[0];
  for (const [candidate, name] of units) if (value >= candidate * 0.9995) [factor, unit] = [candidate, name];
  return `${digits(value / factor)} ${unit}`;
}

const seconds = (value) => value >= 600
  ? `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`
  : scaled(value, [[1e-6, "µs"], [1e-3, "ms"], [1, "s"]]);
const bytes = (value) => scaled(value, [[1, "B"], [2 ** 10, "KiB"], [2 ** 20, "MiB"], [2 ** 30, "GiB"]]);
const rate = (value, unit) => scaled(value, [[1e6, `M${unit}`], [1e9, `G${unit}`], [1e12, `T${unit}`]]);
const count = (value) => value.toLocaleString("en");
const times = (value) => `${value >= 10 ? value.toFixed(0) : value.toFixed(2)}×`;

/** The spread in words; nothing where there is one sample. */
function spread(figure, format) {
  if (figure.samples.length < 2) return "once";
  return `${format(figure.low)} to ${format(figure.high)}`;
}

function ticks(from, to, wanted) {
  const raw = (to - from) / Math.max(wanted, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + step * 1e-9; k += 1) found.push(k * step || 0); // never -0
  return found;
}

/** Tick labels of one axis share a unit. */
function axisSeconds(most) {
  const [factor, unit] = most >= 0.9995 ? [1, "s"] : most >= 9.995e-4 ? [1e-3, "ms"] : [1e-6, "µs"];
  return { unit, text: (value) => String(parseFloat((value / factor).toPrecision(6))) };
}

// Subjects ----------------------------------------------------------------------------------------------------

const engineOrder = R.measured.filter((m) => m.subject.kind === "engines");
function subjectColor(measured) {
  const baseline = BASELINE_COLORS[measured.subject.kind];
  return color(baseline ?? ENGINE_COLORS[engineOrder.indexOf(measured) % ENGINE_COLORS.length]);
}
const stageOf = (measured, name) => measured.stages.find((stage) => stage.name === name);
const workOf = (measured, component) => R.work.find((work) =>
  work.component === component && work.model === measured.subject.model
  && work.window === measured.subject.window && work.precision === measured.subject.precision);
const ceilingsOf = (device) => R.ceilings.find((found) => found.device === device);
const comparable = (a, b) => ["model", "window", "device"].every((fact) => a.subject[fact] === b.subject[fact]);
const vaePerFrame = (measured) => {
  const [encode, decode] = ["VAE encode", "VAE decode"].map((name) => stageOf(measured, name).seconds);
  return { median: encode.median + decode.median, low: encode.low + decode.low, high: encode.high + decode.high, samples: encode.samples };
};

// Sections ----------------------------------------------------------------------------------------------------

function section(title, about, ...content) {
  return el("section", {}, el("h2", {}, title), about ? el("p", { class: "about" }, about) : null, content);
}

function unique(values) { return [...new Set(values)]; }

function header() {
  const machine = R.machine;
  const onGpu = R.measured.some((m) => m.subject.device === "cuda");
  const models = unique(R.measured.map((m) => m.subject.model)).join(", ");
  const weights = unique(R.measured.map((m) => m.subject.weights));
  const clip = R.measured[0].clip;
  const sameClip = R.measured.every((m) => JSON.stringify(m.clip) === JSON.stringify(clip));
  const what = sameClip
    ? `${clip.frames} frames, ${clip.source_width}×${clip.source_height} to ${clip.width}×${clip.height}, ${clip.steps} ${clip.steps === 1 ? "step" : "steps"}`
    : "several windows";
  const chips = [
    onGpu && machine.gpu, onGpu && machine.driver && `driver ${machine.driver}`, machine.cpu && `${machine.cpu}, ${machine.cores} cores`,
    `${models}, ${weights.join(" and ")} weights`, `v2v ${R.v2v}`, `measured ${R.created.slice(0, 16).replace("T", " ")} UTC`,
  ].filter(Boolean);
  return [
    el("h1", {}, "v2v benchmark"),
    el("p", { class: "lead" }, `${models}: ${what}. Medians of ${R.repeats} ${R.repeats === 1 ? "run" : "runs"}.`),
    el("ul", { class: "chips" }, chips.map((chip) => el("li", {}, chip))),
    weights.includes("random")
      ? el("p", { class: "warn" }, "The weights are random numbers. Times and memory are those of the real networks; the pictures mean nothing.")
      : null,
    R.failed.length
      ? el("div", { class: "warn" }, "Not measured:", el("ul", {}, R.failed.map((f) => el("li", {}, `${f.name}: ${f.reason}`))))
      : null,
  ];
}

function tiles() {
  const candidates = engineOrder.length ? engineOrder : R.measured;
  const best = candidates.reduce((a, b) => (b.run.median < a.run.median ? b : a));
  const eager = R.measured.find((m) => m.subject.kind === "eager" && comparable(m, best));
  const unet = stageOf(best, "UNet evaluation").seconds;
  const memory = best.gpu_bytes ?? best.host_bytes;
  const versus = (mine, theirs) => eager && eager !== best
    ? (mine <= theirs ? `${times(theirs / mine)} as fast as PyTorch eager` : `${times(mine / theirs)} the time of PyTorch eager`)
    : "";
  const tile = (label, value, more) => el("div", { class: "card tile" },
    el("div", { class: "label" }, label), el("div", { class: "value" }, value), el("div", { class: "more" }, more));
  return [
    engineOrder.length > 1 || eager ? el("p", { class: "about" }, `Fastest engine set: ${best.subject.name}`) : null,
    el("div", { class: "tiles" },
      tile("Whole run", seconds(best.run.median), eager ? versus(best.run.median, eager.run.median) : `${digits(best.clip.frames / best.run.median)} frames a second`),
      tile("UNet evaluation", seconds(unet.median), eager ? versus(unet.median, stageOf(eager, "UNet evaluation").seconds.median) : `${best.evaluations} in a run`),
      tile("Load to first step", seconds(best.first_step.median), `loading alone ${seconds(best.load.median)}`),
      tile(best.gpu_bytes ? "Peak GPU memory" : "Peak memory", bytes(memory.median), best.gpu_bytes ? `host ${bytes(best.host_bytes.median)}` : "of the process"),
    ),
  ];
}

function bars(title, pick, format, note) {
  const rows = R.measured.map((measured) => [measured, pick(measured)]).filter(([, figure]) => figure);
  if (!rows.length) return null;
  const most = Math.max(...rows.map(([, figure]) => Math.max(figure.high, figure.median)));
  const share = (value) => `${(100 * value / most).toFixed(2)}%`;
  return el("div", { class: "card" }, el("h3", {}, title), rows.map(([measured, figure]) => {
    const several = figure.samples.length > 1;
    return el("div", { class: "bar", tip: `${measured.subject.name}\nmedian ${format(figure.median)}\n${several ? `spread ${spread(figure, format)}, ${figure.samples.length} samples` : "measured once"}` },
      el("div", { class: "head" }, el("span", { class: "name" }, measured.subject.name),
        el("span", { class: "amount" }, format(figure.median))),
      el("div", { class: "groove" },
        el("div", { class: "fill", style: `width:${share(figure.median)};background:${subjectColor(measured)}` }),
        several ? el("div", { class: "whisker", style: `left:${share(figure.low)};width:${share(figure.high - figure.low)}` }) : null));
  }), note ? el("p", { class: "note" }, note) : null);
}

function comparison() {
  return section("Against the baselines", "Medians; the whisker is where the middle 80 % of the samples lie. Less is better throughout.",
    el("div", { class: "grid" },
      bars("Whole run: decode, enhance, encode", (m) => m.run, seconds),
      bars("One UNet evaluation", (m) => stageOf(m, "UNet evaluation").seconds, seconds),
      bars("VAE, encode and decode of one frame", vaePerFrame, seconds),
      bars("From loading to the end of the first step", (m) => m.first_step, seconds, "Measured once, in a fresh process. Random weights of PyTorch are drawn, not read."),
      bars("Peak GPU memory", (m) => m.gpu_bytes, bytes),
      bars("Peak memory of the host", (m) => m.host_bytes, bytes)));
}

function stageLegend(names) {
  return el("ul", { class: "legend" }, names.map((name) =>
    el("li", {}, el("i", { style: `background:${color(STAGE_COLORS[name])}` }), name)));
}

function shares() {
  const names = Object.keys(STAGE_COLORS).filter((name) => R.measured.some((m) => stageOf(m, name)));
  const longest = Math.max(...R.measured.map((m) => m.stages.reduce((sum, stage) => sum + stage.total, 0)));
  const stacks = R.measured.map((measured) => {
    const total = measured.stages.reduce((sum, stage) => sum + stage.total, 0);
    return el("div", { class: "bar" },
      el("div", { class: "head" }, el("span", { class: "name" }, measured.subject.name), el("span", { class: "amount" }, seconds(total))),
      el("div", { class: "stack", style: `width:${(100 * total / longest).toFixed(2)}%` }, names.map((name) => {
        const stage = stageOf(measured, name);
        return stage ? el("span", {
          style: `flex:${stage.total} 0 0;background:${color(STAGE_COLORS[name])}`,
          tip: `${name}\n${seconds(stage.total)}, ${(100 * stage.total / total).toFixed(1)} % of the run`,
        }) : null;
      })));
  });
  const cell = (measured, name) => {
    const stage = stageOf(measured, name);
    if (!stage) return el("td", {}, "–");
    const each = stage.calls > 1 ? el("small", {}, ` ${count(stage.calls)} × ${seconds(stage.seconds.median)}`) : null;
    return el("td", {}, seconds(stage.total), each);
  };
  return section("Where the time goes", "One run under watch. On a GPU the stages are timed by events on its stream and may overlap with the host's.",
    el("div", { class: "card" }, stacks, stageLegend(names)),
    el("div", { class: "card", style: "margin-top:12px" }, el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, "stage"), R.measured.map((m) => el("th", {}, m.subject.name)))),
      el("tbody", {}, names.map((name) => el("tr", {}, el("td", {}, name), R.measured.map((m) => cell(m, name)))))))));
}

function timeline() {
  const candidates = R.measured.filter((measured) => measured.timeline.length);
  if (!candidates.length) return null;
  let chosen = candidates.find((m) => m.subject.kind === "engines") ?? candidates[0];
  let view = null; // [from, to] in seconds; null: the whole run
  const end = () => Math.max(...chosen.timeline.map((span) => span.start + span.seconds));
  const legend = el("div");
  const reset = el("button", { disabled: true, onclick: () => { view = null; refresh(); } }, "Whole run");
  const choice = el("select", { "aria-label": "what to show", onchange: (event) => { chosen = candidates[event.target.value]; view = null; refresh(); } },
    candidates.map((m, place) => el("option", { value: place, selected: m === chosen }, m.subject.name)));
  const picture = plot("timeline of a run", (svg, width) => {
    const left = 56, right = 14, row = 40, top = 6, tracks = ["host", "device"];
    const [from, to] = view ?? [0, end()];
    const x = (time) => left + (time - from) / (to - from) * (width - left - right);
    const bottom = top + tracks.length * row;
    const unit = axisSeconds(to - from);
    for (const tick of ticks(from, to, (width - left - right) / 90)) {
      svg.append(draw("line", { class: "axis", x1: x(tick), x2: x(tick), y1: top, y2: bottom + 4 }),
        draw("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, unit.text(tick)));
    }
    svg.append(draw("text", { x: width - right, y: bottom + 36, "text-anchor": "end" }, `time, ${unit.unit}`));
    tracks.forEach((track, place) => {
      const y = top + place * row;
      svg.append(draw("text", { class: "strong", x: 0, y: y + row / 2 + 4 }, track));
      for (const span of chosen.timeline) {
        const begin = Math.max(span.start, from), finish = Math.min(span.start + span.seconds, to);
        if (span.track !== track || finish <= begin) continue;
        svg.append(draw("rect", {
          x: x(begin).toFixed(2), y: y + 4, width: Math.max(x(finish) - x(begin), 0.6).toFixed(2), height: row - 8,
          fill: color(STAGE_COLORS[span.stage]), tip: `${span.stage}\n${seconds(span.seconds)}, from ${seconds(span.start)}`,
        }));
      }
    });
    const cover = draw("rect", { x: 0, y: 0, width: 0, height: bottom, fill: "currentColor", opacity: 0.15, "pointer-events": "none" });
    svg.append(cover);
    zoomable(svg, (pixel) => from + (pixel - left) / (width - left - right) * (to - from), cover, [from, to], (range) => { view = range; refresh(); });
    return bottom + 44;
  });
  function refresh() {
    reset.disabled = !view;
    const shown = Object.keys(STAGE_COLORS).filter((name) => chosen.timeline.some((span) => span.stage === name));
    legend.replaceChildren(stageLegend(shown));
    if (picture.getAttribute("height")) picture.repaint();
  }
  refresh();
  return section("Timeline of a run", "The run of the table above. Drag across a part to enlarge it; point at a span to read it.",
    el("div", { class: "card" }, el("div", { class: "tools" }, choice, reset), picture, legend));
}

function zoomable(svg, timeAt, cover, [from, to], zoom) {
  let start = null;
  const clamp = (pixel) => Math.min(Math.max(timeAt(pixel), from), to);
  const pixel = (event) => event.clientX - svg.getBoundingClientRect().left;
  svg.onpointerdown = (event) => { start = pixel(event); svg.setPointerCapture(event.pointerId); };
  svg.onpointermove = (event) => {
    if (start === null) return;
    const [a, b] = [start, pixel(event)].sort((m, n) => m - n);
    cover.setAttribute("x", a);
    cover.setAttribute("width", b - a);
  };
  svg.onpointerup = (event) => {
    const [a, b] = [start, pixel(event)].sort((m, n) => m - n);
    start = null;
    cover.setAttribute("width", 0);
    if (b - a > 6) zoom([clamp(a), clamp(b)]);
  };
  svg.onpointercancel = () => { start = null; cover.setAttribute("width", 0); };
}

/** Powers of ten, and between them 2 and 5 where that leaves few. */
function logTicks(from, to) {
  const steps = to / from < 200 ? [1, 2, 5] : [1];
  const found = [];
  for (let p = Math.floor(Math.log10(from)); p <= Math.log10(to); p += 1) found.push(...steps.map((m) => m * 10 ** p));
  return found.filter((value) => value >= from && value <= to);
}

/** A power of ten with the prefix of its unit. */
function power(value) {
  const [factor, prefix] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"]].find(([least]) => value >= least * 0.999) ?? [1, ""];
  return `${parseFloat((value / factor).toPrecision(3))} ${prefix}`;
}

function marker(shape, x, y, size, attributes) {
  const r = size / 2;
  if (shape === "circle") return draw("circle", { cx: x, cy: y, r, ...attributes });
  const paths = {
    square: `M${x - r * 0.9} ${y - r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
    triangle: `M${x} ${y - r * 1.1}L${x + r * 1.1} ${y + r * 0.85}H${x - r * 1.1}z`,
    diamond: `M${x} ${y - r * 1.2}L${x + r * 1.2} ${y}L${x} ${y + r * 1.2}L${x - r * 1.2} ${y}z`,
  };
  return draw("path", { d: paths[shape], ...attributes });
}

function rooflinePoints(device) {
  const found = [];
  for (const measured of R.measured.filter((m) => m.subject.device === device)) {
    for (const [component, name] of Object.entries(COMPONENT_STAGES)) {
      const stage = stageOf(measured, name), work = workOf(measured, component);
      if (stage && work) found.push({ measured, component, name, work, intensity: work.flops / work.bytes, speed: work.flops / stage.seconds.median });
    }
  }
  return found;
}

function roofline(device) {
  const ceilings = ceilingsOf(device), points = rooflinePoints(device);
  if (!ceilings || !points.length) return null;
  const copy = ceilings.copy_bytes_per_second.median, product = ceilings.product_flops_per_second?.median ?? Infinity;
  const roof = (intensity) => Math.min(copy * intensity, product);
  const ridge = product / copy;
  const around = (values) => [Math.min(...values) / 1.8, Math.max(...values) * 1.8];
  const [x0, x1] = around([...points.map((p) => p.intensity), ...(Number.isFinite(ridge) ? [ridge] : [])]);
  const [y0, y1] = around(points.flatMap((p) => [p.speed, roof(p.intensity)]));
  const picture = plot(`roofline of the ${device}`, (svg, width) => {
    const left = 50, right = 16, top = 24, height = Math.round(Math.min(Math.max(width * 0.5, 260), 420)), bottom = height - 46;
    const x = (value) => left + Math.log10(value / x0) / Math.log10(x1 / x0) * (width - left - right);
    const y = (value) => bottom - Math.log10(value / y0) / Math.log10(y1 / y0) * (bottom - top);
    for (const value of logTicks(x0, x1)) {
      svg.append(draw("line", { class: "axis", x1: x(value), x2: x(value), y1: top, y2: bottom }),
        draw("text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, count(value)));
    }
    for (const value of logTicks(y0, y1)) {
      svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
        draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, power(value)));
    }
    svg.append(draw("text", { x: width - right, y: bottom + 38, "text-anchor": "end" }, "arithmetic intensity, FLOP per byte"),
      draw("text", { x: 0, y: 11 }, "FLOP/s"));
    // The slope is left where it would leave the plot.
    const low = Math.max(x0, y0 / copy), high = Math.min(Number.isFinite(ridge) ? Math.max(ridge, low) : x1, x1);
    const flat = Number.isFinite(product) && high < x1 ? `L${x(x1)} ${y(product)}` : "";
    svg.append(draw("path", { class: "ceiling", d: `M${x(low)} ${y(copy * low)}L${x(high)} ${y(roof(high))}${flat}` }));
    if (flat) svg.append(draw("text", { class: "strong", x: width - right - 2, y: y(product) - 7, "text-anchor": "end" }, `matrix product ${rate(product, "FLOP/s")}`));
    const middle = Math.sqrt(low * high);
    const angle = Math.atan2(y(roof(high)) - y(copy * low), x(high) - x(low)) * 180 / Math.PI;
    svg.append(draw("text", { class: "strong", "text-anchor": "middle", dy: 17, transform: `translate(${x(middle)} ${y(copy * middle)}) rotate(${angle.toFixed(1)})` }, `copy ${rate(copy, "B/s")}`));
    for (const p of points) {
      svg.append(marker(COMPONENT_SHAPES[p.component], x(p.intensity), y(p.speed), 13, {
        fill: subjectColor(p.measured), stroke: "var(--card)", "stroke-width": 1.5,
        tip: `${p.name}, ${p.measured.subject.name}\n${rate(p.speed, "FLOP/s")} at ${digits(p.intensity)} FLOP per byte\n${(100 * p.speed / roof(p.intensity)).toFixed(0)} % of the ceiling there`,
      }));
    }
    return height;
  });
  const subjects = unique(points.map((p) => p.measured));
  const shapes = unique(points.map((p) => p.component));
  const row = (p) => el("tr", {}, el("td", {}, p.name), el("td", { class: "words" }, p.measured.subject.name), el("td", {}, rate(p.work.flops, "FLOP")), el("td", {}, bytes(p.work.bytes)),
    el("td", {}, rate(p.speed, "FLOP/s")), el("td", {}, `${(100 * p.speed / roof(p.intensity)).toFixed(0)} %`));
  return [el("div", { class: "card", style: "margin-top:12px" },
    el("h3", {}, device === "cuda" ? (R.machine.gpu ?? "GPU") : R.machine.cpu), picture,
    el("ul", { class: "legend" }, subjects.map((m) => el("li", {}, el("i", { style: `background:${subjectColor(m)}` }), m.subject.name)),
      shapes.map((shape) => el("li", {}, draw("svg", { width: 14, height: 14 }, marker(COMPONENT_SHAPES[shape], 7, 7, 11, { fill: "var(--soft)" })), COMPONENT_STAGES[shape])))),
  el("div", { class: "card", style: "margin-top:12px" }, el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ["component", "on", "work of a call", "traffic of a call", "reached", "of the ceiling"].map((head, k) => el("th", k === 1 ? { style: "text-align:left" } : {}, head)))),
    el("tbody", {}, points.map(row)))))];
}

function rooflines() {
  const drawn = unique(R.measured.map((m) => m.subject.device)).map(roofline).filter(Boolean);
  if (!drawn.length) return null;
  return section("Roofline", "Work and traffic are counted from the networks' shapes: each convolution, matrix product and attention reads its inputs and writes its result once, everything else counts as free. The ceilings were measured in the same session.", drawn);
}

function scaling(over) {
  const lines = R.measured.map((measured) => [measured, measured.sweeps.find((sweep) => sweep.over === over)]).filter(([, sweep]) => sweep);
  if (!lines.length) return null;
  const names = { frames: "frames of the clip", pixels: "pixels of a frame", steps: "steps" };
  const most = Math.max(...lines.flatMap(([, sweep]) => sweep.points.map((p) => p.seconds.high)));
  const furthest = Math.max(...lines.flatMap(([, sweep]) => sweep.points.map((p) => p.value)));
  const unit = axisSeconds(most);
  const picture = plot(`cost against ${names[over]}`, (svg, width) => {
    const left = 48, right = 18, top = 22, height = 250, bottom = height - 46;
    const x = (value) => left + value / furthest * (width - left - right);
    const y = (value) => bottom - value / (most * 1.05) * (bottom - top);
    for (const tick of ticks(0, most * 1.05, 6)) {
      svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        draw("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, unit.text(tick)));
    }
    for (const tick of ticks(0, furthest, Math.min((width - left - right) / 55, 8))) {
      svg.append(draw("line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }),
        draw("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, scaledCount(tick)));
    }
    svg.append(draw("text", { x: left - 8, y: 12, "text-anchor": "end" }, unit.unit),
      draw("text", { x: width - right, y: bottom + 38, "text-anchor": "end" }, names[over]));
    for (const [measured, sweep] of lines) {
      const stroke = subjectColor(measured);
      svg.append(draw("path", { d: sweep.points.map((p, k) => `${k ? "L" : "M"}${x(p.value)} ${y(p.seconds.median)}`).join(""), fill: "none", stroke, "stroke-width": 2 }));
      for (const p of sweep.points) {
        svg.append(draw("line", { x1: x(p.value), x2: x(p.value), y1: y(p.seconds.low), y2: y(p.seconds.high), stroke, "stroke-width": 2 }),
          draw("circle", { cx: x(p.value), cy: y(p.seconds.median), r: 4.5, fill: stroke, stroke: "var(--card)", "stroke-width": 1.5,
            tip: `${measured.subject.name}\n${count(p.value)} ${over}: ${seconds(p.seconds.median)}\nspread ${spread(p.seconds, seconds)}` }));
      }
    }
    return height;
  });
  const clip = lines[0][1].clip;
  const fixed = { frames: `${clip.width}×${clip.height}, ${steps(clip)}`, pixels: `${clip.frames} frames, ${steps(clip)}`, steps: `${clip.frames} frames of ${clip.width}×${clip.height}` }[over];
  return el("div", { class: "card" }, el("h3", {}, `Against ${names[over]} (${fixed})`), picture,
    el("ul", { class: "legend" }, lines.map(([measured, sweep]) => el("li", {}, el("i", { style: `background:${subjectColor(measured)}` }), `${measured.subject.name}: ${law(sweep)}`))));
}

const steps = (clip) => `${clip.steps} ${clip.steps === 1 ? "step" : "steps"}`;
const scaledCount = (value) => value >= 1e6 ? `${parseFloat((value / 1e6).toPrecision(3))} M` : value >= 1e4 ? `${parseFloat((value / 1e3).toPrecision(3))} k` : count(value);

/** A straight line through the medians, least squares: what is paid once and what each unit costs. */
function law(sweep) {
  const xs = sweep.points.map((p) => p.value), ys = sweep.points.map((p) => p.seconds.median);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const [mx, my] = [mean(xs), mean(ys)];
  const slope = xs.reduce((sum, value, k) => sum + (value - mx) * (ys[k] - my), 0) / xs.reduce((sum, value) => sum + (value - mx) ** 2, 0);
  const [unit, name] = { frames: [1, "frame"], pixels: [1e6, "megapixel"], steps: [1, "step"] }[sweep.over];
  return slope > 0 ? `each further ${name} ${seconds(slope * unit)}` : `further ${name}s cost nothing`;
}

function sweeps() {
  const drawn = ["steps", "frames", "pixels"].map(scaling).filter(Boolean);
  return drawn.length ? section("Scaling", "Whole runs with one setting changed. A clip that is longer or larger than the window takes several overlapping windows.", el("div", { class: "grid" }, drawn)) : null;
}

function sets() {
  const order = ["text_encoder", "vae_encoder", "unet", "vae_decoder"];
  const rows = R.measured.map((m) => el("tr", {}, el("td", {}, m.subject.name), el("td", {}, m.subject.window), el("td", {}, m.subject.precision),
    el("td", {}, `${m.subject.backend} ${m.subject.backend_version}`), el("td", {}, m.subject.weights), el("td", {}, m.build ? seconds(m.build.seconds) : "–"),
    el("td", {}, seconds(m.load.median)), el("td", {}, m.engine_bytes ? bytes(m.engine_bytes) : "–")));
  const built = R.measured.filter((m) => m.build);
  const parts = built.length ? el("div", { class: "scroll", style: "margin-top:14px" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}, "build: export + compile"), order.map((name) => el("th", {}, name)))),
    el("tbody", {}, built.map((m) => el("tr", {}, el("td", {}, m.subject.name), order.map((name) => el("td", {},
      [m.build.export[name], m.build.compile[name]].filter((value) => value !== undefined).map(seconds).join(" + ")))))))) : null;
  return section("Engine sets and baselines", null, el("div", { class: "card" }, el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ["", "window", "precision", "backend", "weights", "build", "load", "on disk"].map((head) => el("th", {}, head)))), el("tbody", {}, rows))), parts));
}

function method() {
  const machine = R.machine;
  const facts = [
    ["CPU", `${machine.cpu}, ${machine.cores} cores, ${bytes(machine.memory_bytes)}`],
    ["GPU", machine.gpu ? `${machine.gpu}, ${bytes(machine.gpu_memory_bytes)}, driver ${machine.driver}` : "none"],
    ["System", `${machine.system}, Python ${machine.python}`],
    ["Libraries", Object.entries(machine.versions).map((pair) => pair.join(" ")).join(", ")],
    ...R.ceilings.map((c) => [`Ceilings, ${c.device}`, `copy ${rate(c.copy_bytes_per_second.median, "B/s")}${c.product_flops_per_second ? `, ${c.precision} matrix product ${rate(c.product_flops_per_second.median, "FLOP/s")}` : ""}`]),
    ["Command", R.command],
    ["Date", R.created],
  ];
  return section("How this was measured", null, el("div", { class: "card" }, el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))),
    el("div", { class: "card", style: "margin-top:12px" }, el("ul", { class: "how" }, [
      "Each engine set and baseline ran alone in a fresh process: loaded, one run of a single step to warm up, the whole runs undisturbed, then one more under watch for the stages.",
      "A whole run decodes a generated H.264 clip of half the size, enhances it and encodes the result; every run has a prompt of its own.",
      "PyTorch eager has the precisions of the reference (FP16 autocast on a GPU); torch.compile runs the same networks in half with its defaults. Both take the engines' place in the same pipeline, without CUDA graphs; on a CPU both are FP32.",
      "Some engines do once what the two UNet evaluations of a guided step have in common: each then counts as half of what the two took together, and the roofline credits it with the work of a whole one.",
      "Memory is the peak of the process before any sweep; GPU memory includes the CUDA context. The time to build torch.compile's networks is what their first calls took beyond the later ones.",
    ].map((text) => el("li", {}, text)))));
}

function footer() {
  const save = () => {
    const link = el("a", { href: URL.createObjectURL(new Blob([JSON.stringify(R, null, 1)], { type: "application/json" })), download: "results.json" });
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return el("footer", {}, el("button", { onclick: save }, "Save results.json"), `v2v ${R.v2v}, format ${R.format}`);
}

document.title = `v2v benchmark, ${R.created.slice(0, 10)}`;
PAGE.replaceChildren(...[header(), tiles(), comparison(), shares(), timeline(), rooflines(), sweeps(), sets(), method(), footer()].flat(Infinity).filter(Boolean));
document.documentElement.dataset.drawn = "yes";
