"""A pgweir with lanes for busy clients, a crowd that does nothing, and a storm; and what the crowd makes things cost."""

import contextlib
import os
import signal
import statistics
import time

from harness import Weir, eventually, lane
from harness.wire import TERMINATE, query

from . import fake, load, process

QUEUE_SLOTS = 5
WAITERS_MAX = 12_000
CLIENTS_MAX = 15_000
INTERVAL = "1s"
# Only to tell what a sample costs from what else goes on.
INTERVAL_SHORT = "100ms"
INTERVAL_NEVER = "1h"
SETTLE_S = 0.7
# Clients refused together, to tell CPU from noise.
REFUSALS = 50


class Side:
    """One pgweir before a fake PostgreSQL of its own, its monitor on a real one that lists the crowd's backends (`sampled`) in the
    database `postgres`, and in no other."""

    def __init__(self, sampled, database="postgres", more_lanes=0):
        self.sampled = sampled
        self.cluster = fake.FakeCluster(sampled.cluster.bin)
        lanes = [lane("busy", match=[{"application": load.APPLICATION}], quota=400, priority=1),
                 lane("live", quota=CLIENTS_MAX), lane("held", quota=CLIENTS_MAX),
                 lane("queue", quota=QUEUE_SLOTS, max_waiting=WAITERS_MAX, wait_timeout="1h"),
                 lane("storm", quota=1, wait_timeout="0"), *(lane(f"more{n:02}", quota=10) for n in range(more_lanes)),
                 lane("other", default=True, quota=10)]
        self.weir = Weir(self.cluster, lanes=lanes, upstream={"headroom": 0}, limits={"max_clients": CLIENTS_MAX, "max_logins": CLIENTS_MAX},
                         monitor={"address": f"127.0.0.1:{sampled.port}", "database": database, "interval": INTERVAL,
                                  "stale_after": "2h"}, env={"RUST_LOG": "error"})
        self.port = self.weir.port
        self.live, self.held, self.queued, self.others = [], [], [], []
        self.console = None

    def start(self):
        """Starts it, and fills the lane for the storm; itself."""
        self.cluster.start()
        self.weir.start()
        self.console = self.weir.admin_connection()
        self.others.append(fake.login(self.port, "storm"))
        return self

    def close(self):
        """Ends it and its clients."""
        for sock in [*self.live, *self.held, *self.queued, *self.others]:
            sock.close()
        self.weir.close()
        if self.cluster.process:
            self.cluster.close()

    def cpu_ns(self):
        """CPU time of all threads so far."""
        return process.cpu_ns(self.weir.pid)

    def control_ns(self):
        """CPU time of the first thread so far: accepting, console, monitor and sweep."""
        return process.thread_ns(self.weir.pid, self.weir.pid)

    @contextlib.contextmanager
    def stopped(self):
        """Its process gets no CPU time inside: another one is measured, undisturbed."""
        os.kill(self.weir.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.weir.pid, signal.SIGCONT)

    # -- the crowd -----------------------------------------------------------------------------------------------

    def grow(self, links):
        """Lets the crowd grow to so many: a third each live (every other one of those inside a transaction), held and queued."""
        third = links // 3
        self.command("RESUME ALL")
        while len(self.live) < third:
            self.live.append(fake.login(self.port, "live"))
            fake.ask(self.live[-1], "BEGIN" if len(self.live) % 2 else "SELECT 1")
        for sock in self.held:
            fake.until_ready(sock)
        while len(self.held) < third:
            self.held.append(fake.login(self.port, "held"))
        self.command("PAUSE LANE held")
        for sock in self.held:
            sock.sendall(query("SELECT 1"))
        while len(self.queued) < links - 2 * third:
            self.queued.append(fake.login(self.port, "queue", wait=len(self.queued) < QUEUE_SLOTS))
        waiting = {"queue": len(self.queued) - QUEUE_SLOTS, "held": third}
        eventually(lambda: {name: self.weir.lane(name)["waiting"] for name in waiting} == waiting, timeout=60, what=f"waiting: {waiting}")
        with self.console.cursor() as cursor:
            cursor.execute("SHOW CLIENTS")
            pid = [column.name for column in cursor.description].index("pid")
            self.sampled.list([row[pid] for row in cursor if row[pid]])

    def crowd(self):
        """What the lanes say of it."""
        return {name: {k: row[k] for k in ("slots", "waiting", "idle", "idle_in_transaction")} for name, row in self.weir.lanes().items()}

    # -- figures -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def unsampled(self):
        """No sample is taken inside."""
        self.interval(INTERVAL_NEVER)
        try:
            yield
        finally:
            self.interval(INTERVAL)

    def busy(self, clients, rate, seconds):
        """Busy clients at a fixed rate: the fake upstream is no match for more."""
        return load.busy(self, self.weir.base, clients, rate, seconds)

    def costs(self, rest_s):
        """What things cost beside the crowd as it is. Wall times are medians; CPU is the process' own less what it needs at rest."""
        rest = self.at_rest(rest_s)
        self.interval(INTERVAL_SHORT)
        often = self.at_rest(rest_s)
        self.interval(INTERVAL)
        more = often["samples_s"] - rest["samples_s"]
        quiet_ns = rest["cpu_ms_s"] * 1e6
        out = {"rest_ms_s": rest["cpu_ms_s"], "control_ms_s": rest["control_ms_s"], "sample_ms": (often["control_ms_s"] - rest["control_ms_s"]) / more}
        for name, what, times in (("login", self.login, 300), ("lanes", lambda: self.command("SHOW LANES"), 40),
                                  ("clients", lambda: self.command("SHOW CLIENTS"), 10)):
            out[f"{name}_ms"], out[f"{name}_cpu_ms"] = self.cost(what, times, quiet_ns)
        out["refusal_ms"], _ = self.cost(lambda: self.refusals(1), 20, quiet_ns)
        out["refusal_cpu_ms"] = self.cost(lambda: self.refusals(REFUSALS), 10, quiet_ns)[1] / REFUSALS
        return out | {"resident_mb": process.resident_bytes(self.weir.pid) / 1e6}

    def at_rest(self, seconds):
        """CPU ms per second of process and first thread, and samples per second, while nothing happens."""
        time.sleep(SETTLE_S)
        looks, cpu, control, began = self.sampled.looks(), self.cpu_ns(), self.control_ns(), time.monotonic()
        time.sleep(seconds)
        cpu, control, took, looks = self.cpu_ns() - cpu, self.control_ns() - control, time.monotonic() - began, self.sampled.looks() - looks
        return {"cpu_ms_s": cpu / 1e6 / took, "control_ms_s": control / 1e6 / took, "samples_s": looks / took}

    def interval(self, interval):
        """Changes the monitor's interval."""
        self.weir.write(monitor={**self.weir.config["monitor"], "interval": interval})
        self.command("RELOAD")

    def cost(self, what, times, quiet_ns):
        """Median ms of something that returns its own duration or None, and CPU ms of each; `quiet_ns` a second are not its."""
        took, cpu, began = [], self.cpu_ns(), time.monotonic()
        for _ in range(times):
            at = time.perf_counter()
            own = what()
            took.append(own if own is not None else time.perf_counter() - at)
        # What pgweir does after the answer is part of the cost.
        time.sleep(0.1)
        cpu = self.cpu_ns() - cpu - quiet_ns * (time.monotonic() - began)
        return statistics.median(took) * 1000, cpu / 1e6 / times

    def login(self):
        """One client comes, up to ReadyForQuery, and goes in an orderly way; the seconds until it was in."""
        began = time.perf_counter()
        sock = fake.login(self.port, "live-too")
        took = time.perf_counter() - began
        sock.sendall(TERMINATE)
        while sock.recv(4096):
            pass
        sock.close()
        return took

    def refusals(self, count):
        """So many clients at once are refused by the full lane."""
        socks = [fake.login(self.port, "storm", wait=False) for _ in range(count)]
        for sock in socks:
            answer = sock.recv(4096)
            assert answer[:1] == b"E" and b"C53300" in answer, answer
            sock.close()

    def command(self, sql):
        """A console command; its rows are received, not read."""
        with self.console.cursor() as cursor:
            cursor.execute(sql)
