// The stream of events. A browser reconnects by itself where the connection broke, and gives up where it was answered with an error:
// then, and where nothing comes, this opens a new one. Whoever looks is told how old the figures are.

import { attribute, clock, id, set, span } from "./dom.js";

// A snapshot comes once a second.
const STALE = 4000;
// No word for so long: the connection is dead, even if nobody said so.
const DEAD = 20000;
const AGAIN = 2000;

let source = null, last = null, at = "", began = performance.now(), after = null, opening = false, open = false;

export async function get(path) {
  const reply = await fetch(path, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(15000) });
  if (!reply.ok) throw new Error(`${path}: ${reply.status}`);
  return reply.json();
}

// `greet` is awaited before each stream; it gives the number of the last entry known. The others take what comes.
export function follow({ greet, snapshot, entry }) {
  const start = async () => {
    if (opening) return;
    opening = true;
    began = performance.now();
    source?.close();
    source = null;
    try {
      after = await greet();
      source = new EventSource(`/api/v1/events?after=${after}`);
    } catch {
      setTimeout(start, AGAIN);
      return;
    } finally {
      opening = false;
    }
    source.onopen = () => {
      // The browser's own way back: what changed meanwhile beside the stream is asked for again.
      if (open === false && last !== null) greet().catch(() => {});
      open = true;
    };
    source.onerror = () => {
      open = false;
      if (source?.readyState === EventSource.CLOSED) setTimeout(start, AGAIN);
      tell();
    };
    source.addEventListener("snapshot", event => {
      const data = JSON.parse(event.data);
      [last, at, open] = [performance.now(), data.at, true];
      snapshot(data);
      tell();
    });
    source.addEventListener("timeline", event => entry(JSON.parse(event.data)));
  };
  setInterval(() => {
    if (source && performance.now() - Math.max(last ?? 0, began) > DEAD) start();
    tell();
  }, 1000);
  start();
}

function tell() {
  const link = id("link"), age = last === null ? null : performance.now() - last;
  const stale = age === null || age > STALE;
  document.body.classList.toggle("stale", stale && last !== null);
  attribute(link, "class", `link ${stale ? last === null ? "waiting" : "broken" : "live"}`);
  if (!stale) set(link, "live");
  else if (last === null) set(link, performance.now() - began > STALE ? "pgweir does not answer; trying again" : "connecting …");
  // Said once, not every second: a screen reader would never stop.
  else set(link, `disconnected: figures are of ${clock(at)} UTC; trying again`);
  set(id("age"), stale && last !== null ? `${span(Math.floor(age / 1000) * 1000)} old` : "");
}
