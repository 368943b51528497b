"""Medians, ratios and the Markdown table."""

import random
import statistics
import sys

PEER, OURS = "PgBouncer", "pgweir"
MISSED = "**missed**"
# Of the bootstrap.
RESAMPLES = 2000


def note(text):
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def spread(values, decimals=2):
    """Median and, in brackets, quartiles where there are enough values for them."""
    text = f"{statistics.median(values):,.{decimals}f}"
    if len(values) >= 4:
        low, _, high = statistics.quantiles(values, n=4)
        text += f" ({low:,.{decimals}f}–{high:,.{decimals}f})"
    return text


def is_open(values, bound):
    """Whether the quartiles lie on both sides of the bound: the rounds do not decide it."""
    if len(values) < 4:
        return False
    low, _, high = statistics.quantiles(values, n=4)
    return low <= bound < high


def interval(values):
    """Where the median lies with 95 % confidence: bootstrap, the same draws each time."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


def decided(values, bound, strict=False):
    """met, missed, or open where the median's interval has the bound inside: more rounds would decide."""
    low, high = interval(values)
    between = f"(the median lies in {low:.3g}–{high:.3g} with 95 %)"
    if low <= bound < high:
        return f"open {between}"
    middle = statistics.median(values)
    met = middle < bound or middle == bound and not strict
    return f"{'met' if met else MISSED} {between}"


class Results:
    """Figures by row and target, one a round. A row is (load, metric)."""

    def __init__(self):
        self.rows = {}

    def add(self, load, target, figures):
        """Adds a round's figures of one target."""
        for metric, value in figures.items():
            self.rows.setdefault((load, metric), {}).setdefault(target, []).append(value)

    def as_json(self):
        """Everything, for --json."""
        return [{"load": load, "metric": metric, "rounds": by_target} for (load, metric), by_target in self.rows.items()]

    def derive(self):
        """Adds what a proxy adds to p50: the difference to the direct run of the same round."""
        for (load, metric), by_target in list(self.rows.items()):
            # With eight clients they wait for a core, not for the proxy: the difference would say nothing.
            if metric == "p50_us" and "direct" in by_target and load.endswith("1 client"):
                self.rows[(load, "added_p50_us")] = {
                    name: [a - b for a, b in zip(values, by_target["direct"])]
                    for name, values in by_target.items() if name != "direct"}


METRICS = {  # words, decimals
    "cpu_us": ("CPU µs each", 1),
    "added_p50_us": ("added p50, µs", 1),
    "p50_us": ("p50, µs", 0),
    "p99_us": ("p99, µs", 0),
    "tps": ("per second", 0),
    "system_calls": ("system calls each", 2),
    "cpu_s_gb": ("CPU s/GB", 2),
    "gb_s": ("GB/s", 2),
}


def words(metric):
    """A metric's words and decimals."""
    if metric.startswith("bytes_"):
        return f"bytes per link at {int(metric[6:]):,}", 0
    return METRICS[metric]


def goal(load, metric):
    """What the ratio to PgBouncer may be at most, or the figure itself; None without a goal."""
    if metric == "cpu_us" and not load.startswith("-S -C"):
        return "ratio", 1.0
    if metric == "added_p50_us" and load.endswith("1 client"):
        return "ratio", 1.0
    if metric == "cpu_s_gb":
        return "ratio", 0.95 if "narrow" in load else 0.5
    if metric.startswith("bytes_"):
        return "figure", 2500
    return None


def ratios(by_target, ours=OURS):
    """The rounds' ratios to PgBouncer: what disturbs a round disturbs both. Where its own figure is not above zero there is none."""
    return [a / b for a, b in zip(by_target.get(ours, []), by_target.get(PEER, [])) if b > 0]


def ratio(by_target, ours=OURS):
    """Their median."""
    found = ratios(by_target, ours)
    return statistics.median(found) if found else None


def ratio_cell(by_target, ours=OURS):
    """The median, and where half of the rounds lie."""
    found = ratios(by_target, ours)
    return spread(found) if found else "–"


def verdict(load, metric, by_target):
    """Goal and verdict. "open" where the quartiles lie on both sides of the goal: the rounds do not decide it."""
    wanted = goal(load, metric)
    if wanted is None or OURS not in by_target:
        return "", ""
    kind, bound = wanted
    figure = ratio(by_target) if kind == "ratio" else statistics.median(by_target[OURS])
    text = f"≤ {bound:.2f}×" if kind == "ratio" else f"≤ {bound:,}"
    found = ratios(by_target) if kind == "ratio" else []
    if is_open(found, bound):
        return text, "open"
    return text, "" if figure is None else "met" if figure <= bound else "**missed**"


def table(results, targets):
    """The Markdown table."""
    head = ["load", "figure", *targets, "ratio", "ratio, 1 worker", "goal", ""]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(targets) + 2) + " --- | --- |"]
    order = list(METRICS)
    loads = list(dict.fromkeys(load for load, _ in results.rows))
    for load in loads:
        mine = [metric for name, metric in results.rows if name == load and metric != "transactions"]
        for metric in sorted(mine, key=lambda m: order.index(m) if m in order else 99):
            lines.append(row(load, metric, results.rows[(load, metric)], targets))
    return "\n".join(lines)


def row(load, metric, by_target, targets):
    """One line of it."""
    text, decimals = words(metric)
    cells = [f"{statistics.median(by_target[t]):,.{decimals}f}" if t in by_target and (metric[:3] != "cpu" or t != "direct") else "–"
             for t in targets]
    cells += [ratio_cell(by_target), ratio_cell(by_target, "pgweir, workers = 1")]
    return "| " + " | ".join([load, text, *cells, *verdict(load, metric, by_target)]) + " |"


def all_rows(results):
    """CPU per transaction over all rows of pgbench that have a goal: each round's geometric mean of the ratios, and whether it is within it."""
    rows = [ratios(by) for (load, metric), by in results.rows.items() if metric == "cpu_us" and goal(load, metric)]
    means = [statistics.geometric_mean(of_round) for of_round in zip(*rows)]
    return f"CPU per transaction, geometric mean of the {len(rows)} rows: {spread(means)} of {PEER}'s; ≤ 1.00×: {decided(means, 1.0)}"


def noise(results):
    """How far the direct runs' rounds lie apart, for the reader's trust: the widest spread of tps in percent."""
    spreads = [100 * (max(v) - min(v)) / statistics.median(v)
               for (_, metric), by in results.rows.items() if metric == "tps" for v in [by.get("direct", [])] if len(v) > 1]
    return max(spreads, default=0.0)
