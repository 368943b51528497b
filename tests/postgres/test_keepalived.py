"""docs/availability-of-pgweir.md, two pgweir behind one address: two hosts, each with a real keepalived that runs the shipped file as it is.
Each host is a network namespace; so are the client's and PostgreSQL's. `-s` prints what the page quotes."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import psycopg2
import pytest

from harness import Cluster, Weir, background, docs, eventually, holds, lane
from harness.cluster import PASSWORD
from harness.hosts import Network
from harness.weir import ROOT

pytestmark = pytest.mark.weir

KEEPALIVED = shutil.which("keepalived") or "/usr/sbin/keepalived"
PAGE = ROOT / "docs" / "availability-of-pgweir.md"
# All of it is the page's, and the file's.
VIRTUAL, PORT, ADMIN = "10.0.0.10", 6432, 6433
ADDRESSES = {"first": "10.0.0.11", "second": "10.0.0.12", "database": "10.0.0.20", "client": "10.0.0.21"}
# Whatever becomes of the tests, nothing is left behind.
DIES_WITH_US = ["setpriv", "--pdeathsig", "TERM", "--"]
# Seconds in which keepalived has certainly decided: two runs of the script and three and a half without an advertisement are six.
DECIDED = 60


# Two hosts that hear nothing of each other for three and a half seconds part, and rightly so. Who sleeps this many seconds longer than
# asked is on a machine that stood still.
STANDSTILL_S = 1


class Standstill(threading.Thread):
    """Sees how long the machine stood still, while in a `with`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.longest, self.over = 0, threading.Event()

    def run(self):
        while not self.over.is_set():
            began = time.monotonic()
            time.sleep(0.05)
            self.longest = max(self.longest, time.monotonic() - began - 0.05)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def if_the_machine_goes_on(test):
    """A test that fails while the machine was seen to stand still says nothing of the address: nobody could send an advertisement."""
    @functools.wraps(test)
    def watched(*args, **kwargs):
        with Standstill() as seen:
            try:
                return test(*args, **kwargs)
            except (AssertionError, psycopg2.Error) as error:
                if seen.longest < STANDSTILL_S:
                    raise
                pytest.skip(f"this machine stood still for {seen.longest:.1f} s: {error}")
    return watched


def told(conn, statement="select 1"):
    """What a client's next statement brings, when its connection has ended."""
    with pytest.raises(psycopg2.OperationalError) as failed:
        conn.cursor().execute(statement)
    assert conn.closed
    return str(failed.value).splitlines()[0]


class Balancer:
    """A host with pgweir and keepalived."""

    def __init__(self, host, cluster, place):
        self.host, self.name, self.place = host, host.name, place
        (place / "etc").mkdir()
        self.keepalived = None
        self.weir = Weir(cluster, lanes=[lane("admin", match=[{"user": "postgres"}], protected=True), lane("web", default=True, quota=30)],
                         listen=[{"address": f"0.0.0.0:{PORT}"}], upstream={"address": f"{ADDRESSES['database']}:{cluster.port}"},
                         admin={"address": f"127.0.0.1:{ADMIN}"}, limits={"tcp_keepalive": "3s"}, prefix=DIES_WITH_US)
        self.weir.port, self.weir.admin_port = PORT, ADMIN

    def own(self, *argv):
        """The command line for which /etc/keepalived is this host's."""
        return ["unshare", "--mount", "sh", "-c", f'mount --bind "{self.place}/etc" /etc/keepalived && exec "$0" "$@"', *argv]

    def run(self, command):
        """Runs a command of the page on this host, in the repository; what it printed."""
        with self.host.on():
            done = subprocess.run(self.own("bash", "-c", command), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def start_weir(self, anyway=True):
        """Starts pgweir, unless it runs, and waits until it is ready."""
        with self.host.on():
            if anyway or self.weir.process.poll() is not None:
                self.weir.start()

    def start_keepalived(self):
        """As Debian's unit does. The files in /run are its own."""
        files = [f"--{which}={self.place}/{which}" for which in ("pid", "vrrp_pid")]
        argv = self.own(KEEPALIVED, "--dont-fork", "--log-console", "--log-detail", *files)
        with self.host.on(), open(self.place / "log", "ab") as log:
            self.keepalived = subprocess.Popen([*DIES_WITH_US, *argv], stdout=log, stderr=log, cwd="/")

    def stop_keepalived(self):
        """As systemd does."""
        self.keepalived.terminate()
        try:
            self.keepalived.wait(30)
        except subprocess.TimeoutExpired:
            self.keepalived.kill()
            self.keepalived.wait(30)

    def log(self):
        """What keepalived has written."""
        return (self.place / "log").read_text(errors="replace")

    def has_address(self):
        """Whether it is the master."""
        return VIRTUAL in self.host.addresses()

    def is_well(self):
        """What its track script said last: its priority depends on it."""
        said = re.findall(r"VRRP_Script\(pgweir\) (succeeded|failed)", self.log())
        return said[-1:] == ["succeeded"]

    def applications(self):
        """Whose links it has."""
        with self.host.on():
            return {row["application"] for row in self.weir.clients()}

    def close(self):
        """Ends both."""
        if self.keepalived:
            self.stop_keepalived()
        self.weir.close()


class Site:
    """All of it."""

    def __init__(self, network, cluster, balancers):
        self.network, self.cluster, self.balancers = network, cluster, balancers

    def connect(self, application, host=VIRTUAL, timeout=60):
        """A connection from the client's host."""
        with self.network["client"].on():
            return psycopg2.connect(host=host, port=PORT, user="odoo", password=PASSWORD, dbname="odoo", application_name=application,
                                    connect_timeout=timeout)

    def psql(self, command):
        """Runs a psql of the page on the client's host, and compares."""
        with self.network["client"].on():
            done = subprocess.run(["bash", "-c", command.text], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
                                  env={**os.environ, "PGPASSWORD": PASSWORD, "PGSSLMODE": "disable"})
        assert done.stdout.splitlines() == command.output

    def settled(self):
        """Both are well, and one has the address: it, and the other."""
        for one in self.balancers:
            one.start_weir(anyway=False)
        eventually(lambda: all(one.is_well() for one in self.balancers), timeout=DECIDED, what="both scripts succeed")
        (master,) = eventually(lambda: len(found := [one for one in self.balancers if one.has_address()]) == 1 and found, timeout=DECIDED,
                               what="one has the address")
        (backup,) = [one for one in self.balancers if one is not master]
        return master, backup

    def served(self):
        """A connection through the address, as soon as there is one again."""
        def attempt():
            try:
                conn = self.connect("odoo-new", timeout=5)
                conn.cursor().execute("select 1")
                return conn
            except psycopg2.Error:
                return None
        return eventually(attempt, timeout=DECIDED, interval=0.05, what="a connection through the address")

    def moved(self, tidy, master, backup, began):
        """Waits until newcomers are served by the other one; the seconds since `began`."""
        conn = tidy(self.served())
        took = time.monotonic() - began
        assert backup.has_address() and "odoo-new" in backup.applications()
        eventually(lambda: not master.has_address(), timeout=DECIDED, what="the address has left the other host")
        conn.cursor().execute("select 1")
        return round(took, 1)

    def raised(self, tidy, row):
        """When a row that somebody has locked has been changed."""
        conn = tidy(self.connect("odoo-other"))
        conn.cursor().execute("update stock set n = n + 1 where id = %s", (row,))
        when = time.monotonic()
        conn.commit()
        return when

    def stays(self, balancer, seconds):
        """The address is on this host and on no other, all the time."""
        holds(lambda: [one for one in self.balancers if one.has_address()] == [balancer], seconds, interval=0.2, what=f"the address at {balancer.name}")


@pytest.fixture(scope="module")
def site(template, tmp_path_factory):
    """Two pgweir, two keepalived, one of them with the address."""
    assert os.access(KEEPALIVED, os.X_OK), "script/setup test installs keepalived"
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(contextlib.closing(Network(**ADDRESSES)))
        # It notices within five seconds that a client's host is gone.
        patience = {"tcp_keepalives_idle": "3", "tcp_keepalives_interval": "1", "tcp_user_timeout": "5000"}
        cluster = Cluster(template=template, port=5432, listen_addresses=ADDRESSES["database"], **patience)
        stack.callback(cluster.close)
        with network["database"].on():
            cluster.start()
        cluster.sql(f"alter role odoo password '{PASSWORD}'")
        cluster.sql("create table stock (id int primary key, n int); insert into stock select g, 0 from generate_series(1, 9) g;"
                    "grant all on stock to public", dbname="odoo")
        cluster.rule("host all odoo 10.0.0.0/24 scram-sha-256\nhost all pgweir 10.0.0.0/24 trust")
        balancers = []
        for name in ("first", "second"):
            one = stack.enter_context(contextlib.closing(Balancer(network[name], cluster, tmp_path_factory.mktemp(name))))
            balancers.append(one)
            one.start_weir()
            (install,) = docs.steps("docs/availability-of-pgweir.md", "install -m 644 deploy/keepalived/*")
            one.run(install.text)
            one.start_keepalived()
        # Both at once.
        stack.callback(lambda: [one.keepalived.terminate() for one in balancers])
        yield Site(network, cluster, balancers)


@pytest.fixture(autouse=True)
def logs(request):
    """What both hosts wrote is shown with a failure."""
    before = request.session.testsfailed
    yield
    site = request.node.funcargs.get("site")
    for one in site.balancers if site and request.session.testsfailed > before else ():
        print(f"-- keepalived, {one.name}:\n{one.log()}\n-- pgweir, {one.name}:\n{one.weir.log()[-4000:]}")


def test_the_page_shows_the_file_that_is_shipped():
    (shown,) = [part for part in docs.parts(PAGE) if isinstance(part, docs.Block) and any("vrrp_instance" in line for line in part.lines)]
    assert "\n".join(shown.lines) + "\n" == (ROOT / "deploy" / "keepalived" / "keepalived.conf").read_text()


@if_the_machine_goes_on
def test_one_has_the_address_and_clients_work_through_it(site, tidy):
    master, backup = site.settled()
    for one in (master, backup):
        assert not re.search(r"WARNING(?! - keepalived was)|SECURITY|Unknown|disabl|No such", one.log()), one.log()
    (question,) = docs.steps("docs/availability-of-pgweir.md", "*/readyz*")
    assert question.text in (master.place / "etc" / "keepalived.conf").read_text().replace("/usr/bin/", ""), "the script is the page's command"
    master.run(question.text)
    (through,) = docs.steps("docs/availability-of-pgweir.md", "psql 'host=10.0.0.10 *")
    site.psql(through)
    conn = tidy(site.connect("odoo-1"))
    conn.cursor().execute("update stock set n = n + 1 where id = 1")
    conn.commit()
    assert "odoo-1" in master.applications() and "odoo-1" not in backup.applications()


@if_the_machine_goes_on
def test_killed_it_moves_and_stays_there(site, tidy):
    master, backup = site.settled()
    idle, inside = tidy(site.connect("odoo-idle")), tidy(site.connect("odoo-inside"))
    inside.cursor().execute("update stock set n = 100 where id = 2")
    master.weir.kill9()
    began = time.monotonic()
    assert "closed the connection unexpectedly" in told(idle) and told(inside)
    took = site.moved(tidy, master, backup, began)
    assert site.cluster.value("select n from stock where id = 2", dbname="odoo") == 0
    conn = tidy(site.connect("odoo-2"))
    master.start_weir()
    # Longer than it takes a host to take the address from one that is not as well.
    site.stays(backup, 5)
    assert site.settled() == (backup, master)
    conn.cursor().execute("select 1")
    print("\nkilled: newcomers are served after", took)


@if_the_machine_goes_on
def test_killed_and_back_at_once_it_stays_and_libpq_s_list_goes_on(site, tidy):
    """What systemd does, after RestartSec."""
    master, _ = site.settled()
    first, _ = site.balancers
    by_list = docs.steps("docs/availability-of-pgweir.md", "psql 'host=10.0.0.11,10.0.0.12 *")
    assert len(by_list) == 2
    site.psql(by_list[0])
    first.weir.kill9()
    site.psql(by_list[1])
    site.stays(master, 1)
    first.start_weir()
    site.psql(by_list[0])
    # Two runs of the script: what it had begun is off.
    site.stays(master, 2)
    assert all(one.is_well() for one in site.balancers)


@if_the_machine_goes_on
def test_without_its_link_a_host_loses_it(site, tidy):
    master, backup = site.settled()
    inside = tidy(site.connect("odoo-inside"))
    inside.cursor().execute("update stock set n = 100 where id = 3")
    master.host.cable(False)
    try:
        began = time.monotonic()
        # It waits: nobody answers it, until the other host does.
        heard = background(lambda: told(inside) and time.monotonic() - began)
        took = site.moved(tidy, master, backup, began)
        # PostgreSQL has not been told; its keepalive finds out.
        free = site.raised(tidy, 3) - began
        heard = heard.result(DECIDED)
    finally:
        master.host.cable(True)
    assert site.cluster.value("select n from stock where id = 3", dbname="odoo") == 1
    assert site.settled() == (backup, master)
    site.stays(backup, 1.5)
    print("\nno link: newcomers are served after", took, "the waiting client heard after", round(heard, 1), "the row was free after", round(free, 1))


@if_the_machine_goes_on
def test_stopped_it_moves_while_transactions_finish(site, tidy):
    master, backup = site.settled()
    inside, left = tidy(site.connect("odoo-inside")), tidy(site.connect("odoo-left"))
    for conn, row in ((inside, 4), (left, 5)):
        conn.cursor().execute(f"update stock set n = 1 where id = {row}")
    master.weir.signal(signal.SIGTERM)
    began = time.monotonic()
    try:
        eventually(lambda: not master.is_well(), timeout=DECIDED, what="its script fails")
        assert master.has_address()
        inside.commit()
        took = site.moved(tidy, master, backup, began)
        assert told(left), "connections do not move with the address"
    finally:
        master.weir.kill9()
    print("\nstopped: newcomers are served after", took)
    assert site.settled() == (backup, master)


@if_the_machine_goes_on
def test_keepalived_stopped_first_it_moves_at_once(site, tidy):
    master, backup = site.settled()
    left = tidy(site.connect("odoo-left"))
    left.cursor().execute("update stock set n = 1 where id = 6")
    master.keepalived.terminate()
    began = time.monotonic()
    try:
        took = site.moved(tidy, master, backup, began)
        assert told(left)
        # Its pgweir cannot answer, nor be told: `tcp_keepalive`, here 3 s, finds out.
        free = site.raised(tidy, 6) - began
    finally:
        master.stop_keepalived()
        master.start_keepalived()
    assert site.settled() == (backup, master)
    print("\nkeepalived stopped: newcomers are served after", took, "the row was free after", round(free, 1))


@if_the_machine_goes_on
def test_without_postgresql_it_stays(site, tidy):
    master, backup = site.settled()
    site.cluster.stop()
    try:
        eventually(lambda: not master.is_well() and not backup.is_well(), timeout=DECIDED, what="neither is ready")
        site.stays(master, 1.5)
    finally:
        with site.network["database"].on():
            site.cluster.start()
    tidy(site.served())
    assert site.settled() == (master, backup)
