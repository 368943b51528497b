// Usage against the lines it may cross, over 15 minutes.

import { id, set, span } from "./dom.js";

const WINDOW = 900, STEP = 5;
const ACTS = new Set(["freeze", "pause", "resume", "incident_opened", "incident_closed", "too_many_clients", "start"]);
let points = [], lines = [], acts = [], u = null, drawn = 0;

const share = point => point.percent == null || !point.connections ? null : point.percent * point.bypass / point.connections;
const seconds = utc => Date.parse(utc) / 1e3;

// What pgweir remembers.
export function remember(rows) {
  points = rows.map(row => ({ ...row, x: seconds(row.at) }));
  draw();
}

// The lines: where lanes shed, and where an incident may be over.
export function thresholds(policy) {
  const at = new Map([[policy.usage_below, ["exit below"]]]);
  const sheds = new Map();
  for (const lane of policy.lanes) if (lane.shed_above != null) sheds.set(lane.shed_above, [...(sheds.get(lane.shed_above) ?? []), lane.lane]);
  for (const [percent, lanes] of sheds) {
    const some = lanes.length > 3 ? `${lanes.slice(0, 2).join(", ")} and ${lanes.length - 2} more` : lanes.join(", ");
    at.set(percent, [...(at.get(percent) ?? []), `shed ${some}`]);
  }
  lines = [...at].sort(([a], [b]) => a - b).map(([percent, words]) => ({ percent, text: `${percent} %: ${words.join("; ")}` }));
  u?.redraw();
}

export function act(entry) {
  if (!ACTS.has(entry.event)) return;
  acts.push({ x: seconds(entry.at), event: entry.event.replaceAll("_", " ") });
  acts = acts.slice(-100);
}

export function show({ at, usage, status }) {
  const known = usage.percent != null;
  set(id("percent"), known ? `${Math.round(usage.percent)} %` : "unknown");
  set(id("connections"), known ? `${usage.connections} of ${usage.usable} usable connections: ${usage.own_slots} through pgweir, ${usage.bypass} beside it${usage.bypass ? ", its own monitor's among them" : ""}`
    : `pgweir has ${usage.own_slots} connections of its own; PostgreSQL has not been seen`);
  const old = status.usage_stale === "true" && usage.sampled_ms_ago != null ? ` As of ${span(usage.sampled_ms_ago)} ago: stale.` : "";
  set(id("sampled"), known ? `PostgreSQL: ${usage.active} active, ${usage.idle_in_transaction} idle in transaction, ${usage.idle} idle; max_connections ${usage.max_connections}.${old}` : "");
  const fresh = known && status.usage_stale !== "true";
  const now = { x: seconds(at), percent: fresh ? usage.percent : null, connections: usage.connections, bypass: usage.bypass };
  const last = points[points.length - 1];
  if (!last || now.x - last.x >= STEP) points.push(now);
  else if (now.percent != null && !(last.percent >= now.percent)) Object.assign(last, now, { x: last.x });
  points = points.filter(point => point.x > now.x - WINDOW - STEP);
  if (!u || performance.now() - drawn > 1900 || !last || last.x !== points[points.length - 1].x) draw();
}

// The last point goes on to the present.
function columns() {
  const x = points.map(point => point.x), usage = points.map(point => point.percent), beside = points.map(share);
  // A pause of pgweir's, or of this page's, is a gap and no line across it.
  for (let n = x.length - 1; n > 0; n--) {
    if (x[n] - x[n - 1] <= 4 * STEP) continue;
    x.splice(n, 0, x[n - 1] + STEP);
    usage.splice(n, 0, null);
    beside.splice(n, 0, null);
  }
  return [x, usage, beside];
}

function range() {
  const end = points.length ? points[points.length - 1].x : Date.now() / 1e3;
  return [end - WINDOW, end];
}

function draw() {
  drawn = performance.now();
  const data = columns(), peak = Plots.largest([data[1]]);
  if (u) u.setData(data);
  else {
    const into = id("plot");
    u = Plots.plot(into, {
      title: "% of the usable connections, 15 minutes, UTC", x: data[0], range, unit: " %", time: true, sync: "usage", marks,
      reach: u => Math.max(105, Plots.largest([u.data[1]]) * 1.05),
      series: [
        { label: "usage", colour: Plots.colour(0), fill: "rgba(59, 125, 216, .15)", width: 2, values: data[1] },
        { label: "of it beside pgweir", colour: Plots.colour(3), dash: [4, 3], values: data[2] }],
    });
    into.setAttribute("role", "img");
  }
  id("plot").setAttribute("aria-label", `Usage over the last 15 minutes, highest ${Math.round(peak)} %. Lines: ${lines.map(line => line.text).join("; ")}.`);
}

// Dashed lines with their words, on the left: what is now is on the right.
function marks(u) {
  const { ctx } = u, ratio = devicePixelRatio;
  ctx.lineWidth = ratio;
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textBaseline = "bottom";
  ctx.textAlign = "left";
  happened(u);
  const { left, width } = u.bbox, row = 15 * ratio;
  const at = lines.map(line => u.valToPos(line.percent, "y", true)), lengths = lines.map(line => ctx.measureText(line.text).width);
  lines.forEach(({ percent, text }, n) => {
    ctx.setLineDash([6 * ratio, 4 * ratio]);
    ctx.strokeStyle = Plots.css(text.includes("exit") ? "--good" : "--bad");
    ctx.beginPath();
    ctx.moveTo(left, at[n]);
    ctx.lineTo(left + width, at[n]);
    ctx.stroke();
    // Where the next line is near, the words go below their own; where that has a neighbour too, behind both.
    const near = [at[n - 1] - at[n] < row, at[n] - at[n + 1] < row], length = lengths[n];
    const x = left + 4 * ratio + (near[0] && near[1] ? Math.max(lengths[n - 1], lengths[n + 1]) + 12 * ratio : 0), y = at[n] + (near[1] && !near[0] ? row + ratio : 0);
    label(ctx, text, x, y - 2 * ratio, length, "--ink");
  });
}

function label(ctx, text, x, y, length, colour) {
  const ratio = devicePixelRatio;
  ctx.globalAlpha = 0.75;
  ctx.fillStyle = Plots.css("--panel");
  ctx.fillRect(x - 2 * ratio, y - 12 * ratio, length + 4 * ratio, 12 * ratio);
  ctx.globalAlpha = 1;
  ctx.fillStyle = Plots.css(colour);
  ctx.fillText(text, x, y);
}

// What happened, as dotted lines; their words take the lowest row that is free, and are left out where three are taken.
function happened(u) {
  const { ctx } = u, ratio = devicePixelRatio, { left, top, width, height } = u.bbox, free = [0, 0, 0];
  for (const { x: at, event } of acts) {
    const x = u.valToPos(at, "x", true), length = ctx.measureText(event).width;
    if (x < left || x > left + width) continue;
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    ctx.strokeStyle = Plots.css("--soft");
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, top + height);
    ctx.stroke();
    const right = x + 6 * ratio + length > left + width, from = right ? x - length - 4 * ratio : x + 4 * ratio;
    const row = free.findIndex(end => from >= end);
    if (row < 0) continue;
    label(ctx, event, from, top + height - (2 + 13 * row) * ratio, length, "--soft");
    free[row] = from + length + 6 * ratio;
  }
}
