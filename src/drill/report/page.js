// Draws the drill's series with uPlot. One column a way, the same scales in each, so that they can be compared at a glance.
"use strict";
(function () {
  const drill = JSON.parse(document.getElementById("drill").textContent);
  const lanes = drill.lanes;
  const COLOURS = ["#3b7dd8", "#d1603d", "#2f9e6e", "#a05bc4", "#c79a1b", "#2aa3b8", "#c2477f", "#7a8290", "#7b9c2c", "#8a5a3b"];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = i => COLOURS[i % COLOURS.length];
  const plots = [];

  function marks(run) {
    return u => {
      const { ctx } = u, ratio = devicePixelRatio;
      ctx.save();
      ctx.font = `${10 * ratio}px sans-serif`;
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
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.strokeStyle = ctx.fillStyle = css("--ink");
      ctx.textAlign = "center";
      let labelled = -Infinity;
      run.events.forEach(([at], n) => {
        const x = u.valToPos(at, "x", true);
        ctx.beginPath();
        ctx.moveTo(x, u.bbox.top + 14 * ratio);
        ctx.lineTo(x, u.bbox.top + u.bbox.height);
        ctx.stroke();
        // Events close together share the first one's number: the list below has them all.
        if (x - labelled > 14 * ratio) {
          ctx.fillText(n + 1, x, u.bbox.top + 22 * ratio);
          labelled = x;
        }
      });
      ctx.restore();
    };
  }

  // One plot: `series` is [{label, values, colour, dash, width}], over `x` in seconds.
  function plot(into, run, x, series, max, unit, log) {
    const box = document.createElement("div");
    box.className = "plot";
    box.innerHTML = "<h3></h3>";
    box.firstChild.textContent = run.way;
    into.append(box);
    const axis = { stroke: () => css("--soft"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line") } };
    const show = v => v == null ? "–" : (v >= 100 ? v.toFixed(0) : v.toPrecision(3) / 1) + unit;
    const u = new uPlot({
      width: Math.max(240, box.clientWidth - 16), height: 220,
      scales: { x: { time: false, range: [0, drill.length] },
        y: log ? { distr: 3, range: [0.1, Math.max(1, max) * 1.3] } : { range: [0, Math.max(1, max) * 1.1] } },
      axes: [{ ...axis, values: (_, v) => v.map(s => s + " s") }, { ...axis, size: 78, values: (_, v) => v.map(n => n == null ? "" : show(n)) }],
      series: [{ value: (_, v) => v == null ? "–" : v.toFixed(1) + " s" }].concat(series.map(s => (
        { label: s.label, stroke: s.colour, width: s.width || 1.5, dash: s.dash, spanGaps: false, points: { show: false }, value: (_, v) => show(v) }))),
      cursor: { sync: { key: "drill" } },
      hooks: { draw: [marks(run)] },
    }, [x].concat(series.map(s => s.values)), box);
    plots.push([u, box]);
  }

  const largest = (lists) => lists.flat().reduce((a, b) => Math.max(a, b || 0), 0);
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
    const box = document.createElement("div");
    box.className = "plot";
    box.innerHTML = "<h3></h3><div class=strip></div>";
    box.firstChild.textContent = run.way;
    for (const [lane, looks] of Object.entries(run.states)) {
      const name = document.createElement("span"), bar = document.createElement("div");
      name.textContent = lane;
      bar.className = "bar";
      looks.forEach(([at, state, slots, waiting], n) => {
        const end = n + 1 < looks.length ? looks[n + 1][0] : drill.length, part = document.createElement("i");
        part.style.left = 100 * at / drill.length + "%";
        part.style.width = Math.max(0.2, 100 * (end - at) / drill.length) + "%";
        part.style.background = `var(--${["open", "paused", "shedding", "ramping", "over"].includes(state) ? state : "line"})`;
        part.title = `${at.toFixed(1)} s: ${state}, ${slots} slots, ${waiting} waiting`;
        bar.append(part);
      });
      box.lastChild.append(name, bar);
    }
    states.append(box);
  }
  if (!states.children.length) document.getElementById("states-section").hidden = true;

  addEventListener("resize", () => plots.forEach(([u, box]) => box.isConnected && u.setSize({ width: Math.max(240, box.clientWidth - 16), height: 220 })));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(([u]) => u.redraw()));
})();
