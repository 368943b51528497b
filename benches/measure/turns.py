"""One load that never stops, and something beside it in every other window: what both windows of a pair saw differs by that something alone,
not by how a new run's processes were placed on the cores, which is worth ten times as much."""

import collections
import glob
import subprocess
import tempfile
import time

from . import load

# Of each window, at its beginning: what the last one began is over.
MARGIN_S = 0.5


class Load:
    """pgbench at a fixed rate against `target` for as long as the windows take, each transaction logged."""

    def __init__(self, target, script, clients, rate, seconds):
        self.target = target
        self.logs = tempfile.TemporaryDirectory()
        argv = [target.cluster.bin / "pgbench", "-n", "-f", script, "-R", rate, "-M", "simple", "-c", clients, "-j", min(clients, 2), "-T", int(seconds) + 1, "--log"]
        self.process = subprocess.Popen([str(a) for a in argv], env=load.libpq_env(target.port), cwd=self.logs.name, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.windows = []

    def window(self, key, seconds):
        """One window, which begins now; `key` says what was beside it. Only what comes after MARGIN_S counts."""
        time.sleep(MARGIN_S)
        began, cpu = time.time(), self.target.cpu_ns()
        time.sleep(seconds)
        self.windows.append((key, began, time.time(), self.target.cpu_ns() - cpu))

    def figures(self):
        """Of each window, in order: its key, p50 and p99 and the mean in µs, and the proxy's CPU µs per transaction."""
        _, errors = self.process.communicate()
        if self.process.returncode != 0 or "error" in errors.lower():
            raise RuntimeError(f"pgbench: {errors[-2000:]}")
        histograms = [collections.Counter() for _ in self.windows]
        for path in glob.glob(f"{self.logs.name}/pgbench_log.*"):
            self.sort(path, histograms)
        self.logs.cleanup()
        return [(key, summary(histogram, cpu_ns)) for (key, _, _, cpu_ns), histogram in zip(self.windows, histograms)]

    def sort(self, path, histograms):
        """Each transaction of one thread's log into the window it ended in. The log is in order of time, or nearly."""
        number = 0
        with open(path) as log:
            for line in log:
                fields = line.split()
                at = int(fields[4]) + int(fields[5]) / 1e6
                while number < len(self.windows) and at >= self.windows[number][2]:
                    number += 1
                if number == len(self.windows):
                    return
                if at >= self.windows[number][1]:
                    histograms[number][int(fields[2]) - int(fields[6])] += 1

    def close(self):
        """Ends it if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.logs.cleanup()


def summary(histogram, cpu_ns):
    """The figures of one window."""
    count = sum(histogram.values())
    return {"p50_us": load.percentile(histogram, 0.5), "p99_us": load.percentile(histogram, 0.99), "transactions": count,
            "mean_us": sum(value * times for value, times in histogram.items()) / count, "cpu_us": cpu_ns / 1000 / count}
