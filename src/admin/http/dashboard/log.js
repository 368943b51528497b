// Timeline, exit criteria, the incident, and what else needs attention.

import { attribute, clock, id, keep, make, name, say, set, span } from "./dom.js";

// Entries shown; the console has more.
const SHOWN = 200;
const MARKS = { met: "✓", "not met": "✗", unknown: "?" };

export function entry(row) {
  const list = id("timeline");
  list.prepend(make("li", { class: row.who === "pgweir" ? "" : "act" },
    make("time", { datetime: row.at, title: row.at }, clock(row.at)), " ", make("b", {}, row.event.replaceAll("_", " ")), " ",
    ...(row.lane ? [make("span", { class: "of" }, name(row.lane)), " "] : []), make("span", {}, name(row.text)),
    ...(row.who === "pgweir" ? [] : [" ", make("span", { class: "soft" }, "by ", name(row.who))])));
  while (list.children.length > SHOWN) list.lastChild.remove();
}

export function forget() {
  id("timeline").replaceChildren();
}

export function exit(rows) {
  set(id("exit-head"), `Exit criteria: ${rows.filter(row => row.state === "met").length} of ${rows.length} met`);
  keep(id("exit"), rows, row => row.criterion, row => {
    const part = { mark: make("span", { class: "mark", "aria-hidden": "true" }), state: make("span", { class: "state-word" }), reason: make("p"), };
    const element = make("li", {}, part.mark, make("div", {}, make("b", {}, name(row.criterion.replaceAll("_", " "))), " ", part.state, part.reason));
    element.cells = part;
    return element;
  }, (element, row) => {
    attribute(element, "class", row.state.replace(" ", "-"));
    set(element.cells.mark, MARKS[row.state] ?? "?");
    set(element.cells.state, `${row.state} for ${span(Math.floor(row.since_ms / 1000) * 1000)}`);
    set(element.cells.reason, row.reason);
  });
}

export function incident(open, criteria, usage) {
  const box = id("incident");
  attribute(box, "class", open ? "verdict broken" : "verdict");
  // Announced when it changes, not when a clock does: what ticks stands elsewhere.
  if (open) say(box, `Incident ${open.id} is open since ${clock(open.opened_at)} UTC: `, name(open.cause), open.peak_percent == null ? "." : `. Peak ${Math.round(open.peak_percent)} %.`);
  else if (usage.percent == null) say(box, "No incident is open; usage is unknown.");
  else say(box, "No incident is open.");
}

export function alerts(status) {
  const found = [];
  if (status.mode === "observe") found.push("observe", "Mode is observe: pgweir records what it would do, and holds or refuses nothing.");
  if (status.state !== "running") found.push("state", `pgweir is ${status.state}.`);
  if (status.upstream !== "up") found.push("upstream", `PostgreSQL is ${status.upstream}.`);
  if (status.monitor !== "ok") found.push("monitor", `The monitor is ${status.monitor}.`);
  if (status.reserves) found.push("reserves", `Reserves cannot all be kept: ${status.reserves}.`);
  if (status.growth) found.push("growth", `Grew most: ${status.growth}.`);
  if (status.too_many_clients !== "0") found.push("full", `PostgreSQL has said "too many clients" ${status.too_many_clients} times since pgweir started.`);
  if (status.panics !== "0") found.push("panics", `${status.panics} links were ended by a bug of pgweir: see its log.`);
  const rows = [];
  for (let n = 0; n < found.length; n += 2) rows.push({ kind: found[n], text: found[n + 1] });
  keep(id("alerts"), rows, row => row.kind, row => make("li", { class: row.kind }), (element, row) => set(element, row.text));
}
