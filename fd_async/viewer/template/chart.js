const W = 380, H = 170, LEFT = 44, RIGHT = 8, TOP = 10, BOTTOM = 20;

const ticks = (low, high, wanted) => {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9 && out.length <= 2 * wanted; k += 1) out.push(k * step);
  return out;
};
const smooth = (points, width) => points.map(([x], i) => {
  const near = points.slice(Math.max(0, i - width), i + width + 1);
  return [x, near.reduce((sum, point) => sum + point[1], 0) / near.length];
});

// Lines between points, or areas one on the other; the pointer reads the values of a step.
function chart(spec) {
  const stacked = spec.kind === "stack";
  const sums = new Map();
  const series = spec.series.map((one) => ({
    ...one,
    drawn: one.points.map(([x, y]) => {
      const from = sums.get(x) ?? 0;
      if (stacked) sums.set(x, from + y);
      return stacked ? [x, from + y, from] : [x, y];
    }),
  }));
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const one of series) {
    for (const [x, y] of one.drawn) {
      x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y);
    }
  }
  if (x0 === x1) { x0 -= 1; x1 += 1; }
  if (stacked || (y0 > 0 && y0 < 0.6 * y1)) y0 = Math.min(0, y0);
  if (spec.unit === "share" && y0 === 0 && y1 > 0.5) y1 = 1;
  if (y0 === 0 && y1 === 0) y1 = 1;
  if (y0 === y1) { y0 -= Math.abs(y0) * 0.1 || 1; y1 += Math.abs(y1) * 0.1 || 1; }
  const px = (x) => LEFT + (W - LEFT - RIGHT) * (x - x0) / (x1 - x0);
  const py = (y) => H - BOTTOM - (H - TOP - BOTTOM) * (y - y0) / (y1 - y0);
  const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("");

  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${spec.title}, ${spec.unit}` });
  for (const y of ticks(y0, y1, 4)) {
    root.append(svg("line", { class: "rule", x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y) }));
    root.append(svg("text", { x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, number(y, spec.unit).replace(".0%", "%")));
  }
  for (const x of ticks(x0, x1, 5)) {
    const inside = px(x) < W - 4 * RIGHT;
    if (Number.isInteger(x) && x >= 0) root.append(svg("text", { x: inside ? px(x) : W - 1, y: H - 4, "text-anchor": inside ? "middle" : "end" }, String(x)));
  }
  const window = Math.floor(Math.max(...series.map((one) => (one.smooth ? one.points.length : 0))) / 60);
  series.forEach((one, i) => {
    const line = (points, name) => paint(svg("path", { class: name, d: path(points) }), "stroke", colour(i));
    if (stacked) {
      const floor = one.drawn.map((p) => [p[0], p[2]]).reverse();
      root.append(paint(svg("path", { class: "area", d: `${path(one.drawn)}${path(floor).replace("M", "L")}Z` }), "fill", colour(i)));
      return;
    }
    const smoothed = window > 0 && one.smooth && one.points.length > 2 * window;
    if (smoothed) root.append(line(one.drawn, "line raw"));
    root.append(line(smoothed ? smooth(one.drawn, window) : one.drawn, "line"));
    if (one.marks || one.points.length < 3) {
      for (const p of one.drawn) root.append(paint(svg("circle", { cx: px(p[0]), cy: py(p[1]), r: 3 }), "fill", colour(i)));
    }
  });

  const cursor = svg("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  root.append(cursor);
  const values = series.map(() => el("b"));
  const legend = el("div", { class: "legend" }, ...series.map((one, i) => el("span", {},
    paint(el("i"), "background", colour(i)), one.name, values[i])));
  const steps = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
  const note = window > 0 ? `${spec.unit}, bold: ${2 * window + 1}-step mean` : spec.unit;
  const unit = el("span", { text: note });
  const show = (step) => {
    series.forEach((one, i) => {
      const found = step === null ? one.points.at(-1) : one.points.find((p) => p[0] === step);
      values[i].textContent = found ? number(found[1], spec.unit) : "–";
    });
    unit.textContent = step === null ? note : `step ${step}`;
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) cursor.setAttribute(end, px(step));
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left) / box.width * W - LEFT) / (W - LEFT - RIGHT) * (x1 - x0);
    show(steps.reduce((best, step) => (Math.abs(step - x) < Math.abs(best - x) ? step : best)));
  });
  root.addEventListener("pointerleave", () => show(null));
  show(null);
  return el("div", { class: "chart", "data-title": spec.title }, el("h3", {}, spec.title, unit), root, legend);
}

// Draw charts into the element of their group, each in the place where it was; one that is being read is left alone.
function showCharts(specs) {
  for (const about of ["learning", "health"]) {
    const box = byId(`${about}-charts`);
    const before = new Map([...box.querySelectorAll(".chart")].map((node) => [node.dataset.title, node]));
    const mine = specs.filter((spec) => spec.about === about);
    const nodes = mine.map((spec) => (before.get(spec.title)?.matches(":hover") ? before.get(spec.title) : chart(spec)));
    box.replaceChildren(...(nodes.length ? nodes : [el("p", { class: "muted", text: "No step has finished yet." })]));
  }
}

