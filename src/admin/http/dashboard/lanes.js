// Each lane as a bar: slots by state within its quota, those who wait behind it, its reserve below.

import { attribute, count, make, name, keep, say, set, span } from "./dom.js";

const PARTS = [["active", "active"], ["stuck", "idle in transaction"], ["idle", "idle"], ["other", "logging in or closing"]];

function parts(row) {
  const [active, stuck, idle] = [row.active, row.idle_in_transaction, row.idle].map((n, i, all) => (
    // Held links keep their slot; the sum never exceeds what there is.
    Math.min(n, Math.max(0, row.slots - all.slice(0, i).reduce((a, b) => a + b, 0)))));
  return { active, stuck, idle, other: row.slots - active - stuck - idle };
}

// `act(what, row)` opens a dialog; `policy` says what a lane is.
export function lanes(list, rows, { act, policy, mayChange, observe }) {
  keep(list, rows, row => row.lane, row => create(row, act), (element, row) => update(element, row, policy(row.lane), mayChange, observe));
}

function create(row, act) {
  const element = make("li", { class: "lane" });
  const part = {
    name: make("h3", {}, name(row.lane)), state: make("span", { class: "state" }), why: make("p", { class: "why" }),
    figures: make("p", { class: "figures" }), more: make("p", { class: "soft more" }),
    bar: make("div", { class: "slots", role: "img" }), track: make("div", { class: "track" }), queue: make("i", { class: "queue" }),
    reserve: make("i", { class: "reserve" }), pause: make("button", { type: "button" }), resume: make("button", { type: "button" }),
  };
  for (const [kind] of PARTS) part.track.append(part[`is_${kind}`] = make("i", { class: kind }));
  part.track.append(part.reserve);
  part.bar.append(part.track, part.queue);
  set(part.pause, "Pause…");
  set(part.resume, "Resume…");
  attribute(part.pause, "aria-label", `Pause lane ${row.lane}`);
  attribute(part.resume, "aria-label", `Resume lane ${row.lane}`);
  part.pause.onclick = () => act("pause", element.row);
  part.resume.onclick = () => act("resume", element.row);
  element.append(make("div", { class: "head" }, part.name, part.state), part.figures, make("div", { class: "middle" }, part.bar, part.why, part.more),
    make("div", { class: "buttons" }, part.resume, part.pause));
  element.cells = part;
  return element;
}

function update(element, row, policy, mayChange, observe) {
  const { cells: part } = element, now = parts(row), room = Math.max(row.quota, row.slots, 1), queue = Math.min(row.waiting, room);
  element.row = row;
  attribute(part.state, "class", `state ${row.state}`);
  set(part.state, row.state);
  for (const [kind] of PARTS) part[`is_${kind}`].style.width = `${100 * now[kind] / room}%`;
  part.reserve.style.width = `${100 * Math.min(row.reserve, room) / room}%`;
  part.track.style.flexGrow = room;
  part.queue.style.flexGrow = queue;
  part.queue.hidden = !queue;
  const waiting = row.waiting ? `${row.waiting} waiting, longest ${span(row.max_wait_ms)}` : "";
  attribute(part.bar, "aria-label", [`${row.slots} of ${row.quota} slots`, ...PARTS.filter(([kind]) => now[kind]).map(([kind, words]) => `${now[kind]} ${words}`),
    row.reserve ? `reserve ${row.reserve}` : "", waiting].filter(Boolean).join(", "));
  say(part.figures, make("b", {}, String(row.slots)), ` of ${row.quota}`, ...(waiting ? [" ", make("span", { class: "bad" }, waiting)] : []));
  const why = [row.reason, row.paused_by && !row.reason.includes(row.paused_by) ? `by ${row.paused_by}` : ""].filter(Boolean).join(" ");
  set(part.why, why);
  part.why.hidden = !why;
  // What was only recorded was done to nobody.
  const would = observe ? "would have been " : "";
  set(part.more, [policy?.protected ? "protected" : "", row.reserve ? `reserve ${row.reserve}` : "", row.shed ? `${row.shed} ${would}shed` : "",
    row.refused ? `${row.refused} ${would}refused` : "", row.resets ? count(row.resets, "reset") : ""].filter(Boolean).join(" · "));
  part.more.hidden = !part.more.textContent;
  const stopped = row.state === "paused" || row.state === "ramping" || row.paused_by !== "";
  const pausable = mayChange && !policy?.protected && row.state !== "paused" && !(row.paused_by && row.state !== "ramping");
  // A button that goes away while it has the focus hands it on.
  const held = [part.resume, part.pause].find(button => button === document.activeElement);
  part.resume.hidden = !(mayChange && stopped);
  part.pause.hidden = !pausable;
  if (held?.hidden) [part.resume, part.pause].find(button => !button.hidden)?.focus();
}
