"""Odoo-shaped clients. Each actor is a process of its own, as in Odoo: a pool per process, DISCARD ALL on borrowing, REPEATABLE
READ, retries on serialization failures, and short nested connections for bus notifications."""

import random
import re
import signal
import threading
import time

import psycopg2
import psycopg2.extensions

RETRIED = {"40001", "40P01", "55P03"}  # what Odoo's retrying() repeats, at most five times
TRIES = 5
HOT_ROWS = 40


class Record:
    """What one process saw; handed to the parent at the end."""

    def __init__(self):
        self.lock = threading.Lock()
        self.done = []  # (lane, sqlstate or None, milliseconds)
        self.running = {}  # thread → (lane, since)
        self.retries = 0
        self.told = []  # orders that the user was told are saved

    def begin(self, lane):
        with self.lock:
            self.running[threading.get_ident(), lane] = (lane, time.monotonic())

    def end(self, lane, sqlstate=None):
        with self.lock:
            _, since = self.running.pop((threading.get_ident(), lane))
            self.done.append((lane, sqlstate, (time.monotonic() - since) * 1000))

    def result(self):
        with self.lock:
            now = time.monotonic()
            unfinished = [(lane, "unfinished", (now - since) * 1000) for lane, since in self.running.values()]
            return {"done": self.done + unfinished, "retries": self.retries, "told": self.told}


def sqlstate(error):
    """The SQLSTATE of an error; libpq gives none for a refused connection, so its text must do."""
    if error.pgcode:
        return error.pgcode
    text = str(error)
    if re.search(r"too many|remaining connection slots|quota|limit|nearly full|used up", text):
        return "53300"
    if re.search(r"paused|shutting down|starting up|cannot be reached", text):
        return "57P03"
    return "08006"


class Process:
    """One client process: `run` until told to stop, then report what happened."""

    def __init__(self, name, dsn, seed):
        self.app, self.dsn, self.seed = name, dsn, seed

    def main(self, start, stop, results):
        """Entry of the child process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.random = random.Random(self.seed)
        self.record = Record()
        self.stop = stop
        start.wait()
        self.began = time.monotonic()
        threads = [threading.Thread(target=target, daemon=True) for target in self.targets()]
        for thread in threads:
            thread.start()
        stop.wait()
        deadline = time.monotonic() + 3
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        results.put(self.record.result())
        results.close()
        results.join_thread()

    def connect(self, dbname="odoo"):
        return psycopg2.connect(dbname=dbname, application_name=self.app, **self.dsn)

    def sleep(self, seconds):
        return self.stop.wait(max(0.0, seconds))

    def wait_until(self, second):
        """Waits for a moment of the play; whether it is over before that."""
        return self.sleep(self.began + second - time.monotonic())


class Web(Process):
    """An HTTP worker with two users."""

    def targets(self):
        return [self.users, self.users]

    def users(self):
        link, rnd = None, random.Random(self.random.random())
        while not self.sleep(rnd.uniform(0.05, 0.15)):
            if link and rnd.random() < 0.08:  # the worker is recycled, or the pool closed it
                link.close()
                link = None
            self.record.begin("web")
            try:
                link = self.request(link, rnd)
                self.record.end("web")
            except psycopg2.Error as error:
                self.record.end("web", sqlstate(error))
                if link and link.closed:
                    link = None

    def request(self, link, rnd):
        order = f"{self.app}-{rnd.getrandbits(48):x}"
        for attempt in range(1, TRIES + 1):
            link = self.borrow(link)
            try:
                self.work(link, rnd, order, nested=rnd.random() < 0.25)
                with self.record.lock:
                    self.record.told.append(order)
                return link
            except psycopg2.Error as error:
                if not link.closed:
                    link.rollback()
                if sqlstate(error) not in RETRIED or attempt == TRIES or link.closed:
                    raise
                with self.record.lock:
                    self.record.retries += 1
                self.sleep(rnd.uniform(0, 2 ** attempt))
        raise AssertionError("unreachable")

    def borrow(self, link):
        if link is not None:
            try:
                link.rollback()
                link.autocommit = True
                link.cursor().execute("DISCARD ALL")
            except psycopg2.Error:  # a pool replaces a dead link unseen
                link.close()
                link = None
        if link is None:
            link = self.connect()
        link.autocommit = False
        link.set_session(isolation_level=psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ)
        return link

    def work(self, link, rnd, order, nested):
        with link.cursor() as cur:
            cur.execute("select sum(amount) from res_partner where id between %s and %s + 50", (rnd.randint(1, 900),) * 2)
            cur.execute("insert into sale_order (ref) values (%s)", (order,))
            if rnd.random() < 0.15:
                cur.execute("update stock set quantity = quantity - 1 where id = %s", (rnd.randint(1, HOT_ROWS),))
        link.commit()
        if nested:
            self.notify()

    def notify(self):
        """A bus notification: a short connection to `postgres` while the worker still holds its own."""
        self.record.begin("notify")
        try:
            conn = self.connect("postgres")
            conn.autocommit = True
            conn.cursor().execute("select pg_notify('imbus', 'x')")
            conn.close()
            self.record.end("notify")
        except psycopg2.Error as error:
            self.record.end("notify", sqlstate(error))
            raise


class Cron(Process):
    """A cron worker: listens, locks its job's row for the whole job, works on a second link."""

    def targets(self):
        return [self.jobs]

    def jobs(self):
        rnd = random.Random(self.random.random())
        while not self.sleep(rnd.uniform(0.1, 0.3)):
            self.record.begin("cron")
            links = []
            try:
                links.append(self.connect("postgres"))
                links[0].autocommit = True
                links[0].cursor().execute("LISTEN cron_trigger")
                for _ in range(8):
                    self.job(links, rnd)
                    self.record.end("cron")
                    if self.sleep(rnd.uniform(0.1, 0.4)):
                        return
                    self.record.begin("cron")
                self.record.end("cron")
            except psycopg2.Error as error:  # the worker exits and is forked again
                self.record.end("cron", sqlstate(error))
                self.sleep(0.5)
            finally:
                for link in links:
                    link.close()

    def job(self, links, rnd):
        cron = self.connect()
        links.append(cron)
        with cron.cursor() as cur:
            cur.execute("select id from ir_cron where id = %s for no key update skip locked", (rnd.randint(1, 20),))
            if cur.fetchone() is not None:
                job = self.connect()
                links.append(job)
                job.cursor().execute("update mail_queue set tries = tries + 1 where id = %s", (rnd.randint(1, 200),))
                job.cursor().execute("select pg_sleep(%s)", (rnd.uniform(0.1, 0.5),))
                job.commit()
                job.close()
        cron.commit()
        cron.close()


class Reports(Process):
    """Heavy reports, a connection each."""

    def targets(self):
        return [self.reports, self.reports]

    def reports(self):
        rnd = random.Random(self.random.random())
        while not self.sleep(rnd.uniform(0.2, 0.8)):
            self.record.begin("reports")
            try:
                conn = self.connect()
                with conn.cursor() as cur:
                    cur.execute("select pg_sleep(%s), count(*) from generate_series(1, 200000)", (rnd.uniform(0.5, 1.5),))
                conn.commit()
                conn.close()
                self.record.end("reports")
            except psycopg2.Error as error:
                self.record.end("reports", sqlstate(error))


class Leak(Process):
    """A web request that calls a carrier inside its transaction, with a much wanted row locked."""

    def targets(self):
        return [self.carrier]

    def carrier(self):
        if self.wait_until(6):
            return
        self.record.begin("leak")
        try:
            conn = self.connect()
            conn.cursor().execute("update stock set quantity = quantity - 1 where id <= 2")
            self.wait_until(26)
            conn.commit()
            conn.close()
            self.record.end("leak")
        except psycopg2.Error as error:
            self.record.end("leak", sqlstate(error))


class Storm(Process):
    """An import gone wild: connections that come again at once when they are refused."""

    def targets(self):
        return [self.importer] * 45

    def importer(self):
        rnd = random.Random(self.random.random())
        if self.wait_until(10 + rnd.uniform(0, 1)):
            return
        while time.monotonic() < self.began + 22 and not self.stop.is_set():
            self.record.begin("imports")
            try:
                conn = self.connect()
                with conn.cursor() as cur:
                    for _ in range(5):
                        cur.execute("select pg_sleep(0.3)")
                conn.commit()
                conn.close()
                self.record.end("imports")
            except psycopg2.Error as error:
                self.record.end("imports", sqlstate(error))
                self.sleep(rnd.uniform(0.1, 0.4))


def cast(dsn):
    """Everybody on the stage."""
    people = [Web(f"odoo-web-{n}", dsn, n) for n in range(5)]
    people += [Cron(f"odoo-cron-{n}", dsn, 100 + n) for n in range(4)]
    people += [Reports(f"odoo-reports-{n}", dsn, 200 + n) for n in range(3)]
    people += [Leak("odoo-web-carrier", dsn, 300), Storm("import-products", dsn, 400)]
    return people
