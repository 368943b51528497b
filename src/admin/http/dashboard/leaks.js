// Transactions that idle: who, for how long, with what, and whom they block.

import { count, id, keep, make, name, say, set, span } from "./dom.js";
import { get } from "./live.js";

const LOOK = 2000;
let sessions = new Map(), looked = -Infinity, looking = false;

// Names behind the blocked pids, asked for only where somebody is blocked.
async function look() {
  if (looking || performance.now() - looked < LOOK) return;
  looking = true;
  try {
    sessions = new Map((await get("/api/v1/sessions")).map(session => [String(session.pid), session]));
  } catch {
    // The pids alone will do.
  }
  looking = false;
  looked = performance.now();
}

export function leaks(rows, total, { act, mayChange }) {
  id("no-leaks").hidden = rows.length > 0;
  const more = id("more-leaks");
  more.hidden = total <= rows.length;
  set(more, `and ${total - rows.length} more: pgweir leaks`);
  if (rows.some(row => row.blocks)) look();
  keep(id("leaks"), rows, row => row.id == null ? `pid ${row.pid}` : `id ${row.id}`, row => create(row, act), (element, row) => update(element, row, mayChange));
}

export const who = row => [name(row.application), " · ", name(row.user), "@", name(row.database), ` · ${row.address}`];

function create(row, act) {
  const part = {
    idle: make("p", { class: "idle-for" }), who: make("p", { class: "who" }), statement: make("code"), blocks: make("p", { class: "blocks bad" }),
    locks: make("p", { class: "soft" }),
    verdict: make("p", { class: "soft verdict-of" }), reset: make("button", { type: "button" }, "Reset…"),
  };
  part.reset.setAttribute("aria-label", `Reset client ${row.id} of ${row.application}`);
  const element = make("li", { class: "leak" }, part.idle, make("div", { class: "middle" }, part.who, make("p", {}, part.statement), part.blocks, part.locks, part.verdict),
    make("div", { class: "buttons" }, part.reset));
  part.reset.onclick = () => act("reset", element.row);
  element.cells = part;
  return element;
}

function update(element, row, mayChange) {
  const { cells: part } = element;
  element.row = row;
  set(part.idle, span(Math.floor(row.idle_in_transaction_ms / 1000) * 1000));
  say(part.who, make("b", {}, name(row.lane)), " ", ...who(row), row.pid == null ? "" : ` · pid ${row.pid}`);
  say(part.statement, name(row.last_statement || "nothing yet"));
  const blocked = row.blocks ? row.blocks.split(",") : [];
  part.blocks.hidden = !blocked.length;
  say(part.blocks, `blocks ${count(blocked.length, "session")}: `, ...blocked.slice(0, 8).flatMap((pid, n) => {
    const session = sessions.get(pid);
    return [n ? ", " : "", ...(session ? [name(session.application), ` (pid ${pid})`] : [`pid ${pid}`])];
  }), blocked.length > 8 ? ` and ${blocked.length - 8} more` : "");
  part.locks.hidden = !row.locks;
  say(part.locks, "holds ", name(row.locks));
  set(part.verdict, `pgweir: ${row.verdict}`);
  part.reset.hidden = !(mayChange && row.id != null);
}
