"use strict";
(() => {
  // All text enters the page through textContent and setAttribute: nothing of an attempt is ever parsed as HTML.
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const SVG = "http://www.w3.org/2000/svg";
  const W = 380, H = 170, LEFT = 44, RIGHT = 8, TOP = 10, BOTTOM = 20;
  const FULL_COLOUR_NATS = 3;

  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") node.textContent = value; else node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const svg = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const paint = (node, property, value) => { node.style.setProperty(property, value); return node; };
  const colour = (index) => `var(--s${index % 6})`;
  const number = (x, unit) => {
    if (unit === "share") return `${(100 * x).toFixed(1)}%`;
    const size = Math.abs(x);
    if (size >= 1e6) return `${(x / 1e6).toFixed(1)}M`;
    if (size >= 1e4) return `${(x / 1e3).toFixed(0)}k`;
    if (size >= 100 || Number.isInteger(x)) return x.toFixed(0);
    return size !== 0 && size < 1e-3 ? x.toExponential(1) : Number(x.toPrecision(3)).toString();
  };
  const signed = (x) => (Math.abs(x) < 0.005 ? "0.00" : `${x > 0 ? "+" : "−"}${Math.abs(x).toFixed(2)}`);
  const ticks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const out = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) out.push(k * step);
    return out;
  };
  const smooth = (points, width) => points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - width), i + width + 1);
    return [x, near.reduce((sum, point) => sum + point[1], 0) / near.length];
  });

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
    const all = series.flatMap((one) => one.drawn);
    const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
    let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
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
      if (Number.isInteger(x)) root.append(svg("text", { x: px(x), y: H - 4, "text-anchor": "middle" }, String(x)));
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
    const steps = [...new Set(xs)].sort((a, b) => a - b);
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
    return el("div", { class: "chart" }, el("h3", {}, spec.title, unit), root, legend);
  }

  function tokens(attempt, from, to) {
    const box = el("div", { class: "tokens" });
    const [texts, deltas] = attempt.tokens;
    for (let i = from; i < to; i += 1) {
      const span = el("span", { text: texts[i] });
      const delta = deltas[i];
      if (delta === null) span.className = "muted";
      else {
        span.dataset.delta = delta;
        const strength = Math.min(Math.abs(delta) / FULL_COLOUR_NATS, 1) * 0.75;
        if (strength > 0.01) {
          paint(span, "background", `rgb(var(${delta > 0 ? "--teacher" : "--student"}) / ${strength.toFixed(2)})`);
        }
      }
      box.append(span);
    }
    return box;
  }

  const heading = (text, ...more) => el("h4", {}, text, ...more);
  function detail(a) {
    const cell = el("td", { colspan: 9 });
    cell.append(heading(`Statement  ${a.name}`), el("pre", { text: a.statement }));
    if (a.feedback) {
      const asked = a.feedback.asked > 1 ? `, asked ${a.feedback.asked} times` : "";
      const usd = a.feedback.usd ? `, $${a.feedback.usd.toFixed(4)}` : "";
      cell.append(heading(`Feedback by ${a.feedback.by}${asked}${usd}`), el("pre", { class: "feedback", text: a.feedback.text || "(empty)" }));
    }
    if (a.tokens) {
      cell.append(heading("log p teacher − log p student of each token", el("span", { class: "scale" }, "student prefers", el("i"), "teacher prefers")));
    }
    for (const turn of a.turns) {
      const tool = turn.role === "tool";
      const title = tool ? `Tool result  ${turn.tool}` : "Model";
      cell.append(heading(title, tool && !turn.ok ? el("span", { class: "odd", text: "error" }) : null));
      cell.append(a.tokens && !tool ? tokens(a, turn.start, turn.end) : el("pre", { class: turn.role, text: turn.text }));
    }
    const where = a.backend ? ` by ${a.backend}` : "";
    cell.append(heading(`Verdict${where}`), el("pre", { text: [`${a.verdict}${a.reason ? `: ${a.reason}` : ""}`, a.output].filter(Boolean).join("\n") }));
    const versions = a.versions.length ? `weight version ${a.versions.join(", ")} · ` : "";
    cell.append(el("p", { class: "muted", text: `${a.id} · ${versions}${a.num_sampled} sampled of ${a.num_tokens} tokens · ${a.seconds} s` }));
    return el("tr", { class: "detail" }, cell);
  }

  function attempts() {
    const rows = document.getElementById("rows");
    if (!rows) return;
    const verdictClass = (kind) => (kind === "proved" ? "proved" : kind === "failed" ? "failed" : "odd");
    const entries = data.attempts.map((a) => {
      const head = el("tr", { class: "head", tabindex: 0, "aria-expanded": "false" },
        el("td", { text: a.step ?? "–" }), el("td", { class: "name", text: a.name }), el("td", { text: a.from }),
        el("td", { class: verdictClass(a.verdict), text: a.verdict.replaceAll("_", " ") }),
        el("td", { text: a.end.replaceAll("_", " ") }),
        el("td", { class: a.outcome.startsWith("dropped") ? "odd" : "", text: a.outcome }),
        el("td", { class: "right", text: a.turns.filter((turn) => turn.role === "assistant").length }),
        el("td", { class: "right", text: a.num_tokens }),
        el("td", { class: "right", text: a.gain === null ? "" : signed(a.gain) }));
      const entry = { a, head, open: null };
      const toggle = () => {
        if (entry.open) { entry.open.remove(); entry.open = null; } else { entry.open = detail(a); head.after(entry.open); }
        head.classList.toggle("open", entry.open !== null);
        head.setAttribute("aria-expanded", String(entry.open !== null));
      };
      head.addEventListener("click", toggle);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
      });
      entry.toggle = toggle;
      entry.text = [a.id, a.name, a.statement, a.reason, a.feedback?.text ?? "", ...a.turns.map((turn) => turn.text)].join("\n").toLowerCase();
      return entry;
    });
    rows.append(...entries.map((entry) => entry.head));

    const byId = (id) => document.getElementById(id);
    for (const [id, every] of [["from", "training and suites"], ["verdict", "every verdict"], ["outcome", "every outcome"]]) {
      const counts = new Map();
      for (const a of data.attempts) counts.set(a[id], (counts.get(a[id]) ?? 0) + 1);
      byId(id).append(el("option", { value: "", text: every }),
        ...[...counts].sort().map(([value, count]) => el("option", { value, text: `${value} (${count})` })));
    }
    const apply = () => {
      const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const { a, head, open, text } of entries) {
        const keep = ["from", "verdict", "outcome"].every((id) => !byId(id).value || a[id] === byId(id).value)
          && (!byId("scored").checked || a.tokens !== null) && words.every((word) => text.includes(word));
        head.hidden = !keep;
        if (open) open.hidden = !keep;
        shown += keep;
      }
      byId("count").textContent = `${shown} of ${entries.length}`;
    };
    for (const id of ["search", "from", "verdict", "outcome", "scored"]) byId(id).addEventListener("input", apply);
    apply();
    const wanted = entries.find((entry) => `#${entry.a.id}` === location.hash);
    if (wanted) { wanted.toggle(); wanted.head.scrollIntoView(); }
  }

  document.addEventListener("pointerover", (event) => {
    const delta = event.target.dataset?.delta;
    tip.hidden = delta === undefined;
    if (delta === undefined) return;
    tip.textContent = `${signed(Number(delta))} nats`;
    const box = event.target.getBoundingClientRect();
    tip.style.setProperty("left", `${Math.min(box.left, innerWidth - 120)}px`);
    tip.style.setProperty("top", `${Math.max(box.top - 28, 2)}px`);
  });
  if (data.charts.length) document.getElementById("charts").replaceChildren(...data.charts.map(chart));
  attempts();
})();
