const FULL_COLOUR_NATS = 3;

// Each token on the colour of log p teacher - log p student; what the model did not sample has none.
function tokens(attempt, from, to) {
  const box = el("div", { class: "tokens" });
  const [texts, deltas] = attempt.tokens;
  for (let i = from; i < to; i += 1) {
    const span = el("span", { text: texts[i] });
    const delta = deltas[i];
    if (delta === null) span.className = "muted";
    else {
      span.dataset.delta = delta;
      const choices = attempt.choices[i];
      if (choices) span.dataset.choices = choices.map(([text, share]) => `${JSON.stringify(text)} ${number(share, "share")}`).join(", ");
      const strength = Math.min(Math.abs(delta) / FULL_COLOUR_NATS, 1) * 0.75;
      if (strength > 0.01) {
        paint(span, "background", `rgb(var(${delta > 0 ? "--teacher" : "--student"}) / ${strength.toFixed(2)})`);
      }
    }
    box.append(span);
  }
  return box;
}

// One attempt, from its statement to its verdict.
function detail(a) {
  const heading = (text, ...more) => el("h4", {}, text, ...more);
  const nodes = [heading(`Statement  ${a.name}`), el("pre", { text: a.statement })];
  if (a.feedback) {
    const asked = a.feedback.asked > 1 ? `, asked ${a.feedback.asked} times` : "";
    const usd = a.feedback.usd ? `, $${a.feedback.usd.toFixed(4)}` : "";
    nodes.push(heading(`Feedback by ${a.feedback.by}${asked}${usd}`), el("pre", { class: "feedback", text: a.feedback.text || "(empty)" }));
  }
  if (a.tokens) {
    nodes.push(heading("log p teacher − log p student of each token", el("span", { class: "scale" }, "student prefers", el("i"), "teacher prefers")));
  }
  for (const turn of a.turns) {
    const tool = turn.role === "tool";
    nodes.push(heading(tool ? `Tool result  ${turn.tool}` : "Model", tool && !turn.ok ? el("span", { class: "odd", text: "error" }) : null));
    nodes.push(a.tokens && !tool ? tokens(a, turn.start, turn.end) : el("pre", { class: turn.role, text: turn.text }));
  }
  const judged = [`${a.verdict}${a.reason ? `: ${a.reason}` : ""}`, a.output].filter(Boolean).join("\n");
  nodes.push(heading(`Verdict${a.backend ? ` by ${a.backend}` : ""}`), el("pre", { text: judged }));
  const versions = a.versions.length ? `weight version ${a.versions.join(", ")} · ` : "";
  nodes.push(el("p", { class: "muted", text: `${a.id} · ${versions}${a.num_sampled} sampled of ${a.num_tokens} tokens · ${a.seconds} s` }));
  return nodes;
}

