const data = JSON.parse(byId("data").textContent);
showOverview(data);

function attempts() {
  const rows = byId("rows");
  if (!rows) return;
  const entries = data.attempts.map((a) => {
    const head = el("tr", { class: "head", tabindex: 0, "aria-expanded": "false" },
      el("td", { text: a.step ?? "–" }), el("td", { class: "name", text: a.name }), el("td", { text: a.from }),
      el("td", { class: verdictClass(a.verdict), text: words(a.verdict) }),
      el("td", { text: words(a.end) }),
      el("td", { class: outcomeClass(a.outcome), text: a.outcome }),
      el("td", { class: "right", text: a.turns.filter((turn) => turn.role === "assistant").length }),
      el("td", { class: "right", text: a.num_tokens }),
      el("td", { class: "right", text: a.gain === null ? "" : signed(a.gain) }));
    const entry = { a, head, open: null };
    const toggle = () => {
      if (entry.open) { entry.open.remove(); entry.open = null; } else {
        entry.open = el("tr", { class: "detail" }, el("td", { colspan: 9 }, ...detail(a)));
        head.after(entry.open);
      }
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

  for (const [id, every] of [["from", "training and suites"], ["verdict", "every verdict"], ["outcome", "every outcome"]]) {
    const counts = new Map();
    for (const a of data.attempts) counts.set(a[id], (counts.get(a[id]) ?? 0) + 1);
    byId(id).append(el("option", { value: "", text: every }),
      ...[...counts].sort().map(([value, num]) => el("option", { value, text: `${value} (${num})` })));
  }
  const apply = () => {
    const wanted = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { a, head, open, text } of entries) {
      const keep = ["from", "verdict", "outcome"].every((id) => !byId(id).value || a[id] === byId(id).value)
        && (!byId("scored").checked || a.tokens !== null) && wanted.every((word) => text.includes(word));
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
attempts();
