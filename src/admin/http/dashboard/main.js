// The dashboard: everything shown is what the console shows, everything done is a command of the console.

import { ask } from "./ask.js";
import { id, set } from "./dom.js";
import { lanes } from "./lanes.js";
import { leaks } from "./leaks.js";
import { follow, get } from "./live.js";
import * as log from "./log.js";
import * as usage from "./usage.js";

let policies = new Map(), mayChange = false, now = null, seq = 0;

const policy = lane => policies.get(lane);
const act = (kind, row) => ask(kind, { row, lanes: now?.lanes ?? [], policy, observe: now?.status.mode === "observe" });

async function learn() {
  const found = await get("/api/v1/policy");
  policies = new Map(found.lanes.map(lane => [lane.lane, lane]));
  mayChange = found.may_change;
  id("freeze").hidden = !mayChange;
  set(id("who"), mayChange ? found.operator : `${found.operator}: may look, not change`);
  usage.thresholds(found);
}

function entry(row) {
  if (row.seq <= seq) return;
  seq = row.seq;
  log.entry(row);
  usage.act(row);
  if (row.event === "reload" || row.event === "set") learn().catch(() => {});
}

// What a stream does not bring: the policy, the past, and the timeline up to now.
async function greet() {
  const [rows, past] = await Promise.all([get(`/api/v1/timeline?after=${seq}`), get("/api/v1/history"), learn()]);
  usage.remember(past);
  // A timeline that begins anew has smaller numbers.
  if (seq && !rows.length) {
    const all = await get("/api/v1/timeline");
    if (all.length && all[all.length - 1].seq < seq) {
      seq = 0;
      log.forget();
      all.forEach(entry);
    }
  }
  rows.forEach(entry);
  return seq;
}

function snapshot(data) {
  now = data;
  log.incident(data.incident, data.exit, data.usage);
  log.alerts(data);
  usage.show(data);
  lanes(id("lanes"), data.lanes, { act, policy, mayChange, observe: data.status.mode === "observe" });
  leaks(data.leaks, data.leaks_total, { act, mayChange });
  log.exit(data.exit);
  const percent = data.usage.percent == null ? "?" : Math.round(data.usage.percent);
  document.title = `${percent} %${data.incident ? " · incident" : ""} · pgweir`;
}

id("freeze").onclick = () => act("freeze", null);
follow({ greet, snapshot, entry });
