const POLL_MS = 2000, SLOW_POLL_MS = 10000, TYPING_MS = 100, AT_ONCE = 100;
const FILTERS = ["source", "verdict", "outcome", "ended", "scored", "name", "words", "first_step", "last_step"];
const FACETS = { source: "Training or suite", verdict: "Verdict", outcome: "Outcome", ended: "How it ended", scored: "With token colours" };
const VIEWS = { "/": "run", "/attempts": "attempts", "/config": "config" };

let wanted = {}, selected = "", lines = [], more = false, seen = { version: "", mark: null, view: "" }, listed = "";
const list = byId("list");
const inFlight = {};

// Ask the server; a newer question for the same purpose gives up the older one.
async function ask(name, params = {}, purpose = name) {
  inFlight[purpose]?.abort();
  const control = inFlight[purpose] = new AbortController();
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value !== undefined && value !== null));
  const answer = await fetch(`/api/${name}?${query}`, { signal: control.signal });
  const data = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(data.error);
  return data;
}
const isGivenUp = (error) => error.name === "AbortError";

// ---- the address holds view, filter and attempt ----
const said_ = (value) => words(value).replace(":", ": ");
const view = () => VIEWS[location.pathname] ?? "run";
function readAddress() {
  const query = new URLSearchParams(location.search);
  wanted = Object.fromEntries(FILTERS.filter((key) => query.get(key)).map((key) => [key, query.get(key)]));
  selected = query.get("attempt") ?? "";
}
function writeAddress(how) {
  const query = new URLSearchParams(wanted);
  if (selected) query.set("attempt", selected);
  const address = `/attempts${query.size ? `?${query}` : ""}`;
  if (address !== location.pathname + location.search) history[how](null, "", address);
  document.querySelector('[data-view="attempts"]').setAttribute("href", address);
}

function showView() {
  for (const name of Object.values(VIEWS)) byId(name).hidden = name !== view();
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === view()) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  document.body.classList.toggle("fixed", view() === "attempts");
  if (view() === "attempts") {
    readAddress();
    showFilter();
    if (listed !== JSON.stringify(wanted)) load();
    mark();
    open(selected);
  } else showOverviewIfNew();
}

// ---- how the run stands ----
async function poll() {
  clearTimeout(poll.timer);
  let pause = POLL_MS;
  if (document.visibilityState === "visible") {
    try {
      showStanding(await ask("status"));
      if (view() === "attempts") await refresh(); else await showOverviewIfNew();
    } catch (error) {
      if (error instanceof TypeError) {  // what fetch throws where nobody listens
        pause = SLOW_POLL_MS;
        showNotices(["fd-view does not answer: was it ended? This page shows what it knew."]);
      } else if (!isGivenUp(error)) showNotices([error.message]);
    }
  }
  poll.timer = setTimeout(poll, pause);
}

function showNotices(texts) {
  byId("notices").replaceChildren(...texts.map((text) => el("p", { class: "notice", text })));
}

function showStanding(now) {
  seen.now = now;
  showNotices(now.notices);
  const phase = byId("phase");
  phase.textContent = plain(now.silent ? `${now.phase}, silent for ${now.silent}` : now.phase || "not started");
  phase.className = `tag ${now.alive ? "alive" : now.phase === "failed" || now.silent ? "dead" : ""}`;
  byId("progress").textContent = typeof now.step !== "number" ? "" : `step ${count(now.step)}${now.max_steps ? ` of ${count(now.max_steps)}` : ""}`;
  byId("num-attempts").textContent = now.attempts === null ? "" : count(now.attempts);
  const alarms = Object.entries(now.alarms).map(([name, text]) => `${words(name)}: ${text}`);
  byId("alarms").replaceChildren(...[...(now.error ? [now.error] : []), ...alarms].map((text) => el("p", { class: "alarm", text })));
  byId("standing").hidden = !now.flow.length || !(now.alive || now.silent);  // what a killed run waited for is worth reading
  byId("flow").replaceChildren(...now.flow.map(([name, num]) => el("li", { class: /^0(\/|$)/.test(num) ? "idle" : "" }, el("b", { text: num }), el("span", { text: name }))));
  byId("figures").replaceChildren(...facts(now.figures));
  const time = (s) => (typeof s === "number" ? `${s < 10 ? s.toFixed(1) : Math.round(s)} s` : "");
  const limit = (w) => `${w.deadline ?? ""}${w.deadline_s ? ` = ${w.deadline_s} s` : ""}`;
  const waits = now.waits.map((w) => row([el("td", { text: words(String(w.stage)) }), el("td", { class: "right", text: w.count }),
    el("td", { class: "right", text: time(w.seconds) }), el("td", { text: w.waits_for }), el("td", { class: "muted", text: w.oldest }), el("td", { class: "muted", text: limit(w) })]));
  byId("waits").tBodies[0].replaceChildren(...(waits.length ? waits : [row([el("td", { colspan: 6, class: "muted", text: "Nothing waits." })])]));
}

async function showOverviewIfNew() {
  if (!seen.now || seen.version === seen.now.version) return;
  const version = seen.now.version;
  const data = await ask("overview");
  seen.version = version;
  showOverview(data);
  for (const id of ["learning", "health"]) byId(id).hidden = !data.charts.length && seen.now.phase.startsWith("evaluat");
  byId("period").textContent = data.period;
  byId("config-text").textContent = plain(data.config);
}

// ---- the filter ----
function showFilter() {
  const [words_, steps] = [byId("words"), byId("steps")];
  if (document.activeElement !== words_) words_.value = wanted.words ?? "";
  const { first_step: first, last_step: last } = wanted;
  if (document.activeElement !== steps) steps.value = first === last ? first ?? "" : `${first ?? ""}-${last ?? ""}`;
  const chip = el("button", { type: "button", class: "chip", title: "Show all statements" }, el("span", { class: "lean", text: wanted.name ?? "" }), " ×");
  chip.addEventListener("click", () => want({ name: undefined }));
  byId("name-filter").replaceChildren(...(wanted.name ? [chip] : []));
  byId("clear").hidden = !Object.keys(wanted).length;
  for (const button of document.querySelectorAll(".facet button")) {
    button.setAttribute("aria-pressed", String(wanted[button.dataset.facet] === button.dataset.value));
  }
}
function want(change, how = "pushState") {
  wanted = Object.fromEntries(Object.entries({ ...wanted, ...change }).filter(([, value]) => value));
  writeAddress(how);
  showFilter();
  load();
}
function showCounts(counts) {
  const all = Object.values(wanted).some(Boolean);
  byId("matching").textContent = all ? `${count(counts.matching)} of ${count(counts.total)} attempts` : `${count(counts.total)} attempts`;
  const box = byId("facets");
  for (const [facet, title] of Object.entries(FACETS)) {
    const values = Object.entries(counts.facets[facet] ?? {});
    const name = JSON.stringify(values.map(([value]) => value));
    let part = box.querySelector(`[data-facet-box="${facet}"]`);
    if (part?.dataset.values !== name) {
      const made = el("section", { class: "facet", "data-facet-box": facet, "data-values": name }, el("h3", { text: title }), ...values.map(([value]) => {
        const button = el("button", { type: "button", "data-facet": facet, "data-value": value }, el("span", { text: facet === "source" ? value : said_(value) }), el("b"));
        button.addEventListener("click", () => want({ [facet]: wanted[facet] === value ? undefined : value }));
        return button;
      }));
      made.hidden = values.length < 2;
      if (part) part.replaceWith(made); else box.append(made);
      part = made;
    }
    const nums = part.querySelectorAll("b");
    values.forEach(([, num], i) => { nums[i].textContent = count(num); nums[i].parentNode.classList.toggle("none", num === 0); });
  }
  showFilter();
}

// ---- the list ----
function lineNode(line) {
  const node = el("div", { class: "entry", role: "option", "data-id": line.id, "aria-selected": "false" });
  node.addEventListener("click", () => select(line.id));
  fillLine(node, line);
  return node;
}
function fillLine(node, line) {
  const said = JSON.stringify(line);
  if (node.dataset.said === said) return null;
  node.dataset.said = said;
  const dropped = line.outcome.startsWith("dropped");
  node.replaceChildren(
    el("span", { class: "step", text: line.step ?? "–", title: "step" }),
    el("span", { class: "lean", text: line.name }),
    el("span", { class: "said" }, el("span", { class: verdictClass(line.verdict), text: words(line.verdict) }),
      el("span", { class: "muted", text: dropped ? " · " : ` · ${words(line.ended)} · ` }),
      el("span", { class: outcomeClass(line.outcome) || "muted", text: line.outcome === "evaluated" ? line.source : said_(line.outcome) })),
    el("span", { class: "muted gain", title: "mean of log p teacher − log p student, nats", text: line.gain === null ? "" : signed(line.gain) }));
  return node;
}
function problem(error) {
  list.replaceChildren(el("p", { class: "notice", text: error.message }));
  lines = []; more = false;
}
function showLines(made = new Map()) {
  const none = Object.keys(wanted).length ? "No attempt matches." : "The ledger has no attempt yet.";
  list.replaceChildren(...(lines.length ? lines.map((line) => made.get(line.id) ?? lineNode(line)) : [el("p", { class: "muted empty", text: none })]));
}
async function load() {
  const mine = listed = JSON.stringify(wanted);
  list.setAttribute("aria-busy", "true");
  seen.mark = seen.now?.mark ?? null;
  try {
    const counting = ask("counts", wanted).then(showCounts).catch((error) => { if (!isGivenUp(error)) byId("matching").textContent = error.message; });
    const page = await ask("attempts", { ...wanted, limit: AT_ONCE });
    [lines, more] = [page.lines, page.more];
    showLines();
    list.scrollTop = 0;
    byId("newer").hidden = true;
    mark();
    list.setAttribute("aria-busy", "false");
    await counting;
  } catch (error) {
    if (isGivenUp(error)) return;
    list.setAttribute("aria-busy", "false");
    problem(error);
    if (mine === listed) listed = "";
  }
}
async function loadMore() {
  if (!more || loadMore.busy || !lines.length) return;
  loadMore.busy = true;
  const [of, before] = [listed, lines.at(-1).seq];
  try {
    const page = await ask("attempts", { ...wanted, before, limit: AT_ONCE }, "more");
    if (of === listed && before === lines.at(-1).seq) {
      lines.push(...page.lines);
      more = page.more;
      list.append(...page.lines.map(lineNode));
      mark();
    }
  } catch (error) {
    if (!isGivenUp(error)) showNotices([error.message]);
  } finally {
    loadMore.busy = false;
  }
}
// The row from which a page holds all that is on the screen; 0 where the newest page does.
function firstInView() {
  const at = Math.floor(list.scrollTop * lines.length / list.scrollHeight) || 0;
  return at < AT_ONCE / 2 ? 0 : at - AT_ONCE / 4;
}
// Bring what is looked at up to date without moving it: attempts that join the list wait behind a button, those that
// left it are dimmed. A list that nobody reads, at its top, follows the run.
async function refresh() {
  const [first, now] = [firstInView(), seen.now.mark], view = `${now} ${first}`;
  if (now === null || view === seen.view || list.getAttribute("aria-busy") === "true") return;
  if (listed === "") { if (now !== seen.mark) await load(); return; }
  const of = listed, before = first ? lines[first - 1].seq : Infinity;
  const pages = await Promise.all([
    ask("attempts", { ...wanted, limit: AT_ONCE }, "newest"),
    ...(first ? [ask("attempts", { ...wanted, before, limit: AT_ONCE }, "in view")] : [])]);
  if (of !== listed) return;
  if (now !== seen.mark) ask("counts", wanted).then(showCounts).catch(() => null);
  [seen.mark, seen.view] = [now, view];
  const known = new Map([...list.querySelectorAll(".entry")].map((node) => [node.dataset.id, node]));
  const joined = new Set(), left = new Set();
  pages.forEach((page, i) => {
    const ids = new Set(page.lines.map((line) => line.id)), [from, to] = [i ? before : Infinity, page.more ? page.lines.at(-1).seq : 0];
    for (const { id, seq } of lines) {
      if (seq >= from || seq < to) continue;
      if (!ids.has(id)) left.add(id);
      known.get(id).classList.toggle("left", left.has(id));
    }
    for (const line of page.lines) {
      if (!known.has(line.id)) joined.add(line.id);
      else if (fillLine(known.get(line.id), line) && line.id === selected) open(selected, true);
    }
  });
  const newest = pages[0], last = newest.more ? newest.lines.at(-1).seq : 0, gap = lines.length > 0 && last > lines[0].seq;
  const isRead = list.scrollTop > 0 || selected || list.matches(":hover");
  byId("newer").hidden = !isRead || !joined.size;
  byId("newer").textContent = `${count(joined.size)}${gap ? "+" : ""} new`;
  if (isRead || !(joined.size || left.size)) return;
  const older = gap ? [] : lines.filter((line) => line.seq < last);
  if (!older.length) more = newest.more;
  lines = [...newest.lines, ...older];
  showLines(known);
}
function mark() {
  for (const node of list.querySelectorAll(".entry")) node.setAttribute("aria-selected", String(node.dataset.id === selected));
}
function select(id) {
  selected = id;
  writeAddress("replaceState");
  mark();
  list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  open(id);
}
function move(by) {
  const at = lines.findIndex((line) => line.id === selected);
  const next = Math.min(lines.length - 1, Math.max(0, at < 0 ? 0 : at + by));
  if (lines[next] && lines[next].id !== selected) select(lines[next].id);
  if (next > lines.length - 10) loadMore();
}

// ---- one attempt ----
async function open(id, again = false) {
  document.body.classList.toggle("reading", Boolean(id));
  if (!id || (open.shown === id && !again)) return;
  const pane = byId("detail");
  try {
    const a = await ask("attempt", { id });
    const back = el("button", { type: "button", class: "back", text: "← list" });
    back.addEventListener("click", () => select(""));
    const same = el("button", { type: "button", class: "chip", text: "all attempts at this statement" });
    same.addEventListener("click", () => want({ name: a.name, words: undefined }));
    const line = el("p", { class: "headline" }, back, el("span", { class: verdictClass(a.verdict), text: words(a.verdict) }),
      ` ${words(a.end)} · ${a.outcome}${a.step === null ? "" : ` · step ${a.step}`}${a.gain === null ? "" : ` · gain ${signed(a.gain)} nats`} `, same);
    open.shown = id;
    pane.replaceChildren(line, ...detail(a));
    if (!again) pane.scrollTop = 0;
  } catch (error) {
    if (isGivenUp(error)) return;
    open.shown = "";
    pane.replaceChildren(el("p", { class: "notice", text: error.message }));
  }
}

// ---- what the user does ----
for (const link of document.querySelectorAll("[data-view]")) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    showView();
  });
}
addEventListener("popstate", showView);
document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") poll(); });
list.addEventListener("scroll", () => { if (list.scrollTop + list.clientHeight > list.scrollHeight - 600) loadMore(); });
byId("newer").addEventListener("click", load);
byId("clear").addEventListener("click", () => { wanted = {}; byId("words").value = byId("steps").value = ""; want({}); });
byId("search-form").addEventListener("submit", (event) => event.preventDefault());
const typed = (input, read) => input.addEventListener("input", () => {
  clearTimeout(input.timer);
  input.timer = setTimeout(() => { const change = read(input.value); if (change) want(change, Object.keys(change).some((key) => wanted[key]) ? "replaceState" : "pushState"); }, TYPING_MS);
});
typed(byId("words"), (text) => ({ words: text.trim() }));
typed(byId("steps"), (text) => {
  const found = text.trim().match(/^(\d{0,18})(?:\s*(-)\s*(\d{0,18}))?$/);
  byId("steps").setAttribute("aria-invalid", String(!found));
  return found && { first_step: found[1], last_step: found[2] ? found[3] : found[1] };
});
document.addEventListener("keydown", (event) => {
  if (view() !== "attempts" || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input");
  if (event.key === "Escape") { if (typing) typing.blur(); else if (selected) select(""); return; }
  if (typing) return;
  const inDetail = event.target.closest("#detail");
  const by = { j: 1, k: -1, ...(inDetail ? {} : { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
  if (by) { event.preventDefault(); move(by); }
  if (event.key === "Enter" && event.target === list) byId("detail").focus();
  if (event.key === "/") { event.preventDefault(); byId("words").focus(); }
});
if (matchMedia("(max-width: 760px)").matches) byId("facets-box").open = false;
showView();
poll();
