"""Clients that live and die in ways of their own, and the operators and bypassers around them: for the storm and the soak."""

import collections
import random
import threading

import psycopg2

from . import wire
from .cluster import PASSWORD
from .wire import ServerError

STORM = ("short", "short", "short", "pause at login", "kill active", "cancel", "leak", "hang up", "password", "idle", "limit", "stall")
SOAK = (*STORM, "transaction", "transaction", "transaction", "prepared", "prepared", "copy in", "copy out", "listen", "kill in transaction")
USERS = {"pause at login": "u_md5", "limit": "limited"}
COPY_ROWS = 2_000


class Actor:
    """One client at a time, of one application. `leak_s` bounds how long it sits idle in transaction, `pause_s` is the mean time between
    two lives."""

    def __init__(self, weir, name, seed, stop, kinds=STORM, leak_s=0.6, pause_s=0.0):
        self.weir, self.name, self.stop = weir, name, stop
        self.kinds, self.leak_s, self.pause_s = kinds, leak_s, pause_s
        self.random = random.Random(seed)
        self.lives = 0
        self.crossed = []
        self.ends = collections.Counter()

    def run(self):
        """Lives until told to stop."""
        while not self.stop.is_set():
            kind = self.random.choice(self.kinds)
            end = "well"
            try:
                self.live(kind)
            except (ServerError, psycopg2.Error, OSError, EOFError, AssertionError) as error:
                end = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or type(error).__name__
                if "crossed" in str(error):
                    self.crossed.append(f"{kind}: {error}")
            self.lives += 1
            self.ends[kind, end] += 1
            if self.pause_s:
                self.stop.wait(self.random.expovariate(1 / self.pause_s))

    def live(self, kind):
        """One life, ended by FIN or RST."""
        if kind == "password":
            conn = self.weir.connect(self.name, user="u_scram", password=self.random.choice([PASSWORD, "wrong"]))
            conn.close()
            return
        client = self.weir.socket(timeout=8)
        try:
            if kind in ("hang up", "pause at login"):
                self.strange(kind, client)
            else:
                client.startup(USERS.get(kind, "odoo"), app=self.name)
                getattr(self, kind.replace(" ", "_"))(client, self.random)
        finally:
            client.reset() if self.random.random() < 0.5 else client.close()

    def strange(self, kind, client):
        """Ends before it is logged in."""
        packet = wire.startup_packet(USERS.get(kind, "odoo"), "postgres", app=self.name)
        if kind == "hang up":
            client.send(packet[:self.random.randint(0, len(packet))])
            return
        client.send(packet)
        client.receive()
        self.stop.wait(self.random.random() * 0.3)

    def short(self, client, rnd):
        """A few statements, each with its own answer, and Terminate."""
        for _ in range(rnd.randint(1, 10)):
            tag = rnd.randint(0, 1 << 30)
            same(client.ok(f"select {tag}"), [[str(tag)]])
        client.send(wire.TERMINATE)

    limit = short

    def kill_active(self, client, rnd):
        """Gone while its query runs."""
        client.send(wire.query("select pg_sleep(30)"))
        self.stop.wait(rnd.random() * 0.1)

    def cancel(self, client, rnd):
        """Cancels its query."""
        client.send(wire.query("select pg_sleep(5)"))
        self.stop.wait(0.02)
        client.cancel(wait=rnd.random() < 0.5)
        client.until("Z")

    def leak(self, client, rnd):
        """Idle in transaction, perhaps for too long."""
        client.ok("begin")
        self.stop.wait(rnd.random() * self.leak_s)
        client.query("select 1")
        client.query("rollback")

    def idle(self, client, rnd):
        """Does nothing."""
        self.stop.wait(rnd.random() * 0.5)

    def stall(self, client, rnd):
        """A pipeline without Sync."""
        client.send(wire.extended("select 1", sync=False), wire.FLUSH)
        client.until("C")
        self.stop.wait(rnd.random() * 0.4)

    # -- only in the soak, which has made the table `soak` --------------------------------------------------------

    def transaction(self, client, rnd):
        """As pgbench does: a few transactions on a few rows."""
        for _ in range(rnd.randint(1, 8)):
            row = rnd.randint(1, 1000)
            client.ok("begin")
            client.ok(f"update soak set n = n + 1 where id = {row}")
            same(client.ok(f"select id from soak where id = {row}"), [[str(row)]])
            client.ok("commit")
        client.send(wire.TERMINATE)

    def prepared(self, client, rnd):
        """A named statement, executed again and again, now and then in a pipeline."""
        well(client.ask(wire.parse("select $1::int8", "s"), wire.SYNC))
        for _ in range(rnd.randint(1, 20)):
            tags = [str(rnd.randint(0, 1 << 30)) for _ in range(rnd.choice([1, 1, 5]))]
            seen = well(client.ask(*(wire.bind("", "s", [tag]) + wire.execute() for tag in tags), wire.SYNC))
            same([m.values[0] for m in seen if m.tag == "D"], tags)
        client.ask(wire.close("S", "s"), wire.SYNC)
        client.send(wire.TERMINATE)

    def copy_in(self, client, rnd):
        """COPY FROM STDIN, one in four failed by the client; nothing of it stays."""
        client.ok("create temp table c (n int, t text)")
        client.send(wire.query("copy c from stdin"))
        client.until("G")
        rows = b"".join(b"%d\t%s\n" % (n, b"x" * 100) for n in range(COPY_ROWS))
        client.send(*(wire.packet("d", rows[at:at + 8192]) for at in range(0, len(rows), 8192)))
        failed = rnd.random() < 0.25
        client.send(wire.packet("f", b"no\0") if failed else wire.COPY_DONE)
        client.until("Z") if failed else well(client.until("Z"))
        same(client.ok("select count(*) from c"), [["0" if failed else str(COPY_ROWS)]])
        client.send(wire.TERMINATE)

    def copy_out(self, client, rnd):
        """COPY TO STDOUT, one in four left in the middle."""
        client.send(wire.query(f"copy (select repeat('x', 500) from generate_series(1, {COPY_ROWS})) to stdout"))
        client.until("H")
        if rnd.random() < 0.25:
            client.until("d")
            return
        same(sum(m.tag == "d" for m in well(client.until("Z"))), COPY_ROWS)

    def listen(self, client, rnd):
        """Listens, and hears itself."""
        client.ok("listen soak")
        self.stop.wait(rnd.random() * 2)
        tag = str(rnd.randint(0, 1 << 30))
        client.send(wire.query(f"notify soak, '{tag}'"))
        heard = []
        while f"soak\0{tag}\0".encode() not in heard:
            message = client.receive()
            if message.tag == "E":
                raise ServerError(message.fields)
            heard += [message.body[4:]] if message.tag == "A" else []

    def kill_in_transaction(self, client, rnd):
        """Gone with a row locked."""
        client.ok("begin")
        client.ok(f"update soak set n = n + 1 where id = {rnd.randint(1, 1000)}")
        self.stop.wait(rnd.random() * 0.2)


def well(messages):
    """The messages, if there is no ERROR among them: an operator may have cancelled anything."""
    for message in messages:
        if message.tag == "E":
            raise ServerError(message.fields)
    return messages


def same(got, wanted):
    """An answer must be that of the question asked; an ERROR is raised before this is called."""
    assert got == wanted, f"crossed {got} {wanted}"


def operator(weir, stop, seed, pause_s=0.4):
    """Freezes, resumes, sets quotas, kills and resets, all the time; in the end everybody may go on."""
    rnd = random.Random(seed)
    while not stop.wait(rnd.random() * pause_s):
        try:
            ids = [row["id"] for row in weir.clients()] or [0]
            weir.admin(rnd.choice(["FREEZE", "RESUME ALL", "RESUME ALL", "RESUME LANE cron OVER '1 s'", "PAUSE LANE batch REJECT FOR '200 ms'",
                                   f"SET LANE web quota = {rnd.randint(5, 15)}", f"KILL CLIENT {rnd.choice(ids)}", f"RESET CLIENT {rnd.choice(ids)}",
                                   f"CANCEL CLIENT {rnd.choice(ids)}", "RELOAD", "DRAIN LANE batch"]))
        except psycopg2.Error:
            pass
    weir.admin("RESUME ALL")


def bypass(cluster, stop, seed, pause_s=0.5):
    """Direct connections swing usage over the thresholds and back."""
    rnd = random.Random(seed)
    held = []
    while not stop.wait(rnd.random() * pause_s):
        if rnd.random() < 0.5 and len(held) < 25:
            for _ in range(rnd.randint(1, 6)):
                try:
                    held.append(cluster.direct(user="batch", app="bypass"))
                except psycopg2.OperationalError:
                    break
        else:
            for conn in held[:rnd.randint(1, 12)]:
                conn.close()
                held.remove(conn)
    for conn in held:
        conn.close()


class Crowd:
    """Threads that stop together."""

    def __init__(self):
        self.stop = threading.Event()
        self.threads = []

    def add(self, what, *args):
        """Starts a thread."""
        self.threads.append(threading.Thread(target=what, args=args, daemon=True))
        self.threads[-1].start()

    def end(self, timeout=30):
        """Stops them and waits; those that do not end are an error."""
        self.stop.set()
        for thread in self.threads:
            thread.join(timeout)
        left = [thread for thread in self.threads if thread.is_alive()]
        assert not left, f"{len(left)} of {len(self.threads)} actors do not end"
