// Draws the drill's series with uPlot. One column a way, the same scales in each, so that they can be compared at a glance.
"use strict";
(function () {
  const drill = JSON.parse(document.getElementById("drill").textContent);
  const lanes = drill.lanes;
  const { COLOURS, colour, css, largest } = Plots;

  function marks(run) {
    return u => {
      const { ctx } = u, ratio = devicePixelRatio;
      for (const phase of drill.phases) {
        const x = u.valToPos(phase.start, "x", true);
        if (phase.incident) {
          const end = u.valToPos(phase.start + phase.length, "x", true);
          ctx.fillStyle = "rgba(200, 60, 40, .08)";
          ctx.fillRect(x, u.bbox.top, end - x, u.bbox.height);
        }
        ctx.fillStyle = css("--soft");
        ctx.textAlign = "left";
        ctx.fillText(phase.name, x + 3 * ratio, u.bbox.top + 10 * ratio);
      }
      Plots.numbered(u, run.events.map(([at]) => at));
    };
  }

  // One plot of a run: `series` is [{label, values, colour, dash, width}], over `x` in seconds.
  function plot(into, run, x, series, max, unit, log) {
    Plots.plot(into, { title: run.way, x, range: [0, drill.length], series, max, unit, log, sync: "drill", marks: marks(run) });
  }

  const times = run => run.lanes[lanes[0]].map((_, n) => (n + 0.5) * run.step);
  const column = (run, lane, n) => (run.lanes[lane] || []).map(point => point[n]);

  function each(id, make, max, unit) {
    const into = document.getElementById(id);
    for (const run of drill.runs) plot(into, run, times(run), make(run), max, unit);
  }

  // Requests a second, by lane.
  const rate = n => run => lanes.map((lane, i) => ({ label: lane, colour: colour(i), values: column(run, lane, n).map(v => v / run.step) }));
  for (const [id, n] of [["throughput", 0], ["failures", 1]]) {
    const max = largest(drill.runs.map(run => rate(n)(run).flatMap(s => s.values)));
    each(id, rate(n), max, "");
  }

  // Latency of one lane.
  const chosen = document.getElementById("lane");
  function latency() {
    const into = document.getElementById("latency");
    into.replaceChildren();
    const lane = chosen.value;
    const zero = v => v > 0 ? v : null;
    const max = largest(drill.runs.map(run => column(run, lane, 5)));
    for (const run of drill.runs) {
      plot(into, run, times(run), [[3, "p50", COLOURS[0]], [4, "p99", COLOURS[4]], [5, "slowest", COLOURS[1]]].map(
        ([n, label, stroke]) => ({ label, colour: stroke, values: column(run, lane, n).map(zero) })), max, " ms", true);
    }
  }
  for (const lane of lanes) chosen.add(new Option(lane));
  chosen.value = drill.first;
  chosen.onchange = latency;
  latency();

  // Connections at the target, against its limit.
  for (const run of drill.runs) {
    const x = run.upstream.map(p => p[0]);
    plot(document.getElementById("upstream"), run, x.length ? x : [0], [
      { label: "connections", colour: COLOURS[0], values: run.upstream.map(p => p[1]) },
      { label: "usable", colour: COLOURS[4], dash: [6, 4], values: x.map(() => run.usable) },
      { label: "max_connections", colour: COLOURS[1], dash: [2, 3], values: x.map(() => run.max_connections) },
    ], run.max_connections, "");
  }

  // pgweir's lanes: one bar a lane.
  const states = document.getElementById("states");
  for (const run of drill.runs.filter(run => Object.keys(run.states).length)) {
    Plots.strips(states, run.way, [0, drill.length], Object.entries(run.states).map(([lane, looks]) => [lane, looks.map(([at, state, slots, waiting], n) => (
      { from: at, to: n + 1 < looks.length ? looks[n + 1][0] : drill.length, state, title: `${at.toFixed(1)} s: ${state}, ${slots} slots, ${waiting} waiting` }))]));
  }
  if (!states.children.length) document.getElementById("states-section").hidden = true;
})();
