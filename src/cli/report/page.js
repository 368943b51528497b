// Draws an incident's figures.
"use strict";
(function () {
  const incident = JSON.parse(document.getElementById("incident").textContent);
  const { rows, step } = incident;
  const x = rows.map(row => row.at);
  const last = rows.length ? x[x.length - 1] + step : incident.begin + 1;
  const range = [Math.min(incident.begin, x[0] ?? incident.begin), Math.max(last, incident.end ?? last)];
  const marks = u => Plots.numbered(u, incident.acts);
  const id = name => document.getElementById(name);
  const plot = (into, title, series, unit) => Plots.plot(id(into), {
    title, x, range, series, max: Plots.largest(series.map(s => s.values)), unit, time: true, sync: "incident", marks });
  const line = (label, i, values) => ({ label, colour: Plots.colour(i), values });
  const byLane = n => incident.lanes.map((lane, i) => line(lane, i, rows.map(row => row.lanes[i] ? row.lanes[i][n] : null)));
  // The last row may be shorter than the others: it has no rate.
  const rate = n => byLane(n).map(s => ({ ...s, values: s.values.map((v, i) => v == null || i + 1 === rows.length ? null : v / step) }));

  plot("usage", "usage, % of the usable connections (highest)", [line("usage", 0, rows.map(row => row.usage))], " %");
  plot("usage", "connections at PostgreSQL (most)", [
    line("all", 0, rows.map(row => row.connections)), line("bypass pgweir", 1, rows.map(row => row.bypass))], "");
  Plots.strips(id("states"), "state of each lane", range, incident.lanes.map((lane, i) => [lane, rows.map((row, n) => {
    const [state, slots, waiting] = row.lanes[i] || ["", 0, 0], to = n + 1 < rows.length ? rows[n + 1].at : last;
    return { from: row.at, to, state, title: `${new Date(row.at * 1e3).toISOString().slice(11, 19)}: ${state}, ${slots} slots, ${waiting} waiting` };
  })]));
  plot("lanes", "slots", byLane(1), "");
  plot("lanes", "waiting", byLane(2), "");
  plot("lanes", "committed a second", rate(3), "");
  plot("lanes", "failed a second", rate(4), "");
  incident.probes.forEach((name, i) => plot("probes", name, [line(name, i, rows.map(row => row.probes[i] ?? null))], ""));
  if (!incident.probes.length) id("probes-section").hidden = true;
})();
