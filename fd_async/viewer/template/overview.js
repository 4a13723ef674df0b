const facts = (pairs) => pairs.map(([label, value]) => el("div", {}, el("dt", { text: label }), el("dd", { text: value })));
const tiles = (pairs) => pairs.map(([label, value]) => el("div", { class: "total" }, el("b", { text: value }), el("span", { text: label })));
const row = (cells, kind = "td", attributes = {}) => el("tr", attributes, ...cells.map((cell) => (cell instanceof Node ? cell : el(kind, { text: cell }))));

function evaluationTable(evaluation) {
  const interval = ([low, high]) => ` [${(100 * low).toFixed(0)}, ${(100 * high).toFixed(0)}]`;
  const cell = ({ value, interval: bounds }) => (value === null
    ? el("td", { class: "muted", text: "–" })
    : el("td", {}, `${(100 * value).toFixed(1)}%`, bounds ? el("span", { class: "muted", text: interval(bounds) }) : null));
  const bounded = evaluation.rows.some((one) => one.cells.some((each) => each.interval));
  return [
    el("div", { class: "scroll" }, el("table", { class: "numbers" },
      el("thead", {}, row([evaluation.rows[0].label === undefined ? "step" : "suite", ...evaluation.columns], "th")),
      el("tbody", {}, ...evaluation.rows.map((one) => row([el("td", { text: one.label ?? one.step }), ...one.cells.map(cell)]))))),
    ...(bounded ? [el("p", { class: "muted", text: "In brackets: the 95 % interval." })] : []),
  ];
}

function bookTable(book) {
  const line = (one, i) => {
    const last = i === book.lines.length - 1;
    const bar = el("td", { class: "bar" });
    if (one.share === null) bar.textContent = "–";
    else {
      if (!last) bar.append(paint(el("i"), "width", `${Math.min(100, Math.max(0, 100 * one.share)).toFixed(1)}%`));
      const percent = 100 * one.share;
      bar.append(el("span", { text: `${percent.toFixed(percent > 0 && percent < 10 ? 1 : 0)}%` }));
    }
    return row([one.name, one.text, bar], "td", { class: `${last ? "sum" : ""} ${one.ok ? "" : "bad"}` });
  };
  return el("table", { class: "numbers book" },
    el("thead", {}, row([book.title, book.of, "share"], "th")), el("tbody", {}, ...book.lines.map(line)));
}

function showOverview(data) {
  byId("facts").replaceChildren(...facts(data.facts));
  byId("totals").replaceChildren(...tiles(data.totals));
  showCharts(data.charts);
  const none = (text) => [el("p", { class: "muted", text })];
  byId("evaluation-table").replaceChildren(...(data.evaluation.rows.length ? evaluationTable(data.evaluation) : none("No evaluation has finished yet.")));
  byId("books").replaceChildren(...(data.books.length ? data.books.map(bookTable) : none("No token has been counted yet.")));
}

