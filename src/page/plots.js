// Plots with uPlot, the same in every report: colours by order, light and dark by the page's style, cursors that move together.
"use strict";
const Plots = (function () {
  const COLOURS = ["#3b7dd8", "#d1603d", "#2f9e6e", "#a05bc4", "#c79a1b", "#2aa3b8", "#c2477f", "#7a8290", "#7b9c2c", "#8a5a3b"];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = i => COLOURS[i % COLOURS.length];
  const HEIGHT = 220;
  const plots = [];
  const width = box => Math.max(240, box.clientWidth - 16);

  // Numbered dashed lines at moments of x; moments close together share the first one's number: a list beside the plots has them all.
  function numbered(u, moments) {
    const { ctx } = u, ratio = devicePixelRatio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    ctx.strokeStyle = ctx.fillStyle = css("--ink");
    ctx.textAlign = "center";
    let labelled = -Infinity;
    moments.forEach((at, n) => {
      const x = u.valToPos(at, "x", true);
      if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) return;
      ctx.beginPath();
      ctx.moveTo(x, u.bbox.top + 14 * ratio);
      ctx.lineTo(x, u.bbox.top + u.bbox.height);
      ctx.stroke();
      if (x - labelled > 14 * ratio) {
        ctx.fillText(n + 1, x, u.bbox.top + 11 * ratio);
        labelled = x;
      }
    });
  }

  function titled(title) {
    const box = document.createElement("div"), head = document.createElement("h3");
    box.className = "plot";
    head.textContent = title;
    box.append(head);
    return box;
  }

  // `series` is [{label, values, colour, dash, width}] over `x`; `time` says that x is seconds since 1970, shown in UTC, else seconds.
  // `marks(u)` draws over it. A live one gives `range` as a function, `reach(u)` for the top of y, and `setData` to what is returned.
  function plot(into, { title, x, range, series, max, reach, unit, log, time, sync, marks }) {
    const box = titled(title);
    into.append(box);
    const axis = { stroke: () => css("--soft"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line") } };
    const show = v => v == null ? "–" : (v >= 100 ? v.toFixed(0) : v.toPrecision(3) / 1) + unit;
    const clock = v => new Date(v * 1e3).toISOString().slice(11, 19);
    const u = new uPlot({
      width: width(box), height: HEIGHT,
      // Ticks on whole minutes of UTC.
      tzDate: at => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC"),
      scales: { x: { time: !!time, range },
        y: log ? { distr: 3, range: [0.1, Math.max(1, max) * 1.3] } : { range: reach ? u => [0, reach(u)] : [0, Math.max(1, max) * 1.1] } },
      axes: [{ ...axis, space: time ? 70 : 50, values: (_, v) => v.map(s => time ? clock(s) : s + " s") },
        { ...axis, size: 78, values: (_, v) => v.map(n => n == null ? "" : show(n)) }],
      series: [{ value: (_, v) => v == null ? "–" : time ? clock(v) : v.toFixed(1) + " s" }].concat(series.map(s => (
        { label: s.label, stroke: s.colour, fill: s.fill, width: s.width || 1.5, dash: s.dash, spanGaps: false, points: { show: false }, value: (_, v) => show(v) }))),
      cursor: { sync: { key: sync } },
      hooks: { draw: [u => {
        u.ctx.save();
        u.ctx.font = `${10 * devicePixelRatio}px sans-serif`;
        marks(u);
        u.ctx.restore();
      }] },
    }, [x].concat(series.map(s => s.values)), box);
    plots.push([u, box]);
    sizes.observe(box);
    return u;
  }

  // One bar a row: `rows` is [[label, [{from, to, state, title}]]], over `range`.
  function strips(into, title, range, rows) {
    const box = titled(title), strip = document.createElement("div");
    strip.className = "strip";
    box.append(strip);
    const length = Math.max(1e-9, range[1] - range[0]);
    for (const [label, parts] of rows) {
      const name = document.createElement("span"), bar = document.createElement("div");
      name.textContent = name.title = label;
      bar.className = "bar";
      for (const { from, to, state, title } of parts) {
        const part = document.createElement("i");
        part.style.left = 100 * (from - range[0]) / length + "%";
        part.style.width = Math.max(0.2, 100 * (to - from) / length) + "%";
        part.style.background = `var(--${["open", "paused", "shedding", "ramping", "over", "good", "bad"].includes(state) ? state : "line"})`;
        part.title = title;
        bar.append(part);
      }
      box.lastChild.append(name, bar);
    }
    into.append(box);
  }

  // A plot is made as wide as its box is then: what comes beside it later makes that narrower, as a window does.
  const sizes = new ResizeObserver(() => plots.forEach(([u, box]) => {
    if (box.isConnected && u.width !== width(box)) u.setSize({ width: width(box), height: HEIGHT });
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(([u]) => u.redraw()));
  const largest = lists => lists.flat().reduce((a, b) => Math.max(a, b || 0), 0);
  return { COLOURS, colour, css, largest, numbered, plot, strips };
})();
