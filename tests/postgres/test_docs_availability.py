"""docs/availability-of-pgweir.md: what clients see when pgweir dies, and two of them. `-s` prints what the page quotes."""

import threading
import time

import psycopg2
import pytest

from harness import Weir, background, eventually, free_port, lane

pytestmark = pytest.mark.weir


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


@pytest.fixture(scope="module", autouse=True)
def stock(cluster):
    cluster.sql("create table stock (id int primary key, n int); insert into stock select g, 0 from generate_series(1, 9) g;"
                "grant all on stock to public", dbname="odoo")


@pytest.fixture
def two(cluster):
    """Two pgweirs as on two hosts: one port, two addresses."""
    port, made = free_port(), []
    for address in ("127.0.0.1", "127.0.0.2"):
        made.append(Weir(cluster, lanes=[lane("admin", match=[{"user": "postgres"}], protected=True), lane("web", default=True, quota=30)],
                         listen=[{"address": f"{address}:{port}"}]))
        made[-1].port = port
        made[-1].start()
    yield made
    for weir in made:
        weir.close()


def connect(weirs, host="127.0.0.1,127.0.0.2", **more):
    """What Odoo does with `db_host = 127.0.0.1,127.0.0.2` and one db_port."""
    where = {"host": host, "port": weirs[0].port, "user": "odoo", "dbname": "odoo", "application_name": "odoo-1", "connect_timeout": 60, **more}
    return psycopg2.connect(**where)


def served_by(conn):
    """The address of the pgweir the connection goes through."""
    return conn.info.host


def told(conn, statement="select 1"):
    """What a client's next statement brings."""
    with pytest.raises(psycopg2.OperationalError) as failed:
        conn.cursor().execute(statement)
    assert conn.closed and failed.value.pgcode is None
    return str(failed.value).splitlines()[0]


def test_what_clients_see_when_pgweir_is_killed(two, cluster, tidy):
    first, _ = two
    idle, inside, running = (tidy(connect(two, application_name=f"odoo-{n}")) for n in ("idle", "inside", "running"))
    assert {served_by(conn) for conn in (idle, inside, running)} == {"127.0.0.1"}
    idle.commit()
    inside.cursor().execute("update stock set n = 1 where id = 1")
    running.autocommit = True
    # It lasts as long as this lock is held.
    lock = tidy(cluster.direct(dbname="odoo", app="lock"))
    lock.cursor().execute("select pg_advisory_lock(4711)")
    statement = background(told, running, "update stock set n = 1 where id = 2 and pg_advisory_lock(4711) is not null")
    eventually(lambda: cluster.activity("odoo-running", "state = 'active' and wait_event_type = 'Lock'"))
    began = time.monotonic()
    first.kill9()
    seen = {"running": statement.result(30), "noticed": time.monotonic() - began}
    eventually(lambda: not cluster.activity("odoo-inside"), what="the backend of a client in a transaction is gone")
    seen["rolled back"] = time.monotonic() - began
    seen["inside"], seen["idle"] = told(inside), told(idle)
    assert cluster.value("select n from stock where id = 1", dbname="odoo") == 0, "what was not committed is rolled back"
    # At once, that is: not when the network or a keepalive gives up.
    assert seen["noticed"] < 10 and seen["rolled back"] < 10
    # Nobody tells PostgreSQL, while it works, that its client has gone: the statement runs to its end, and commits.
    assert cluster.activity("odoo-running", "state = 'active'")
    lock.cursor().execute("select pg_advisory_unlock(4711)")
    eventually(lambda: not cluster.activity("odoo-running"))
    assert cluster.value("select n from stock where id = 2", dbname="odoo") == 1
    print("\nkilled:", seen)


def test_postgresql_looks_after_its_clients_where_it_is_told_to(two, cluster, tidy):
    cluster.sql("alter role odoo set client_connection_check_interval = '500ms'")
    try:
        running = tidy(connect(two, application_name="odoo-watched"))
        running.autocommit = True
        statement = background(told, running, "update stock set n = 1 where id = 3 and pg_sleep(600) is not null")
        eventually(lambda: cluster.activity("odoo-watched", "state = 'active'"))
        two[0].kill9()
        began = time.monotonic()
        statement.result(30)
        eventually(lambda: not cluster.activity("odoo-watched"), what="PostgreSQL noticed")
        print("\nPostgreSQL noticed after", time.monotonic() - began)
    finally:
        cluster.sql("alter role odoo reset client_connection_check_interval")
    assert cluster.value("select n from stock where id = 3", dbname="odoo") == 0


def test_back_by_itself(two, cluster, tidy):
    """What systemd does after RestartSec."""
    first, _ = two
    first.admin("PAUSE LANE web HOLD REASON 'before it died'")
    first.kill9()
    began = time.monotonic()
    first.start()
    ready = time.monotonic() - began
    assert first.lane("web")["state"] == "paused" and "before it died" in first.lane("web")["reason"]
    first.admin("RESUME LANE web")
    tidy(connect(two, host="127.0.0.1")).cursor().execute("select 1")
    assert ready < 30
    print("\nstarted, and PostgreSQL seen, after", ready)


def test_the_second_takes_over_and_the_first_comes_back(two, cluster, tidy):
    first, second = two
    assert served_by(tidy(connect(two))) == "127.0.0.1"
    first.kill9()
    began = time.monotonic()
    conn = tidy(connect(two))
    took = time.monotonic() - began
    conn.cursor().execute("select 1")
    assert served_by(conn) == "127.0.0.2" and took < 10
    assert second.client("odoo-1")["lane"] == "web"
    first.start()
    assert served_by(tidy(connect(two))) == "127.0.0.1", "newcomers go to the first again"
    conn.cursor().execute("select 1")
    print("\nconnected through the second after", took)


def test_clients_that_work_all_the_time(two, cluster, tidy):
    """Six clients, each with short transactions over a connection it keeps; a lost one is opened anew, as Odoo's pool does."""
    stop, lost, again, gaps, done = threading.Event(), [], [], [], []

    def work(n):
        conn, last = None, time.monotonic()
        while not stop.is_set():
            try:
                conn = conn or connect(two, application_name=f"odoo-{n}")
                with conn.cursor() as cur:
                    cur.execute("update stock set n = n + 1 where id = %s", (n,))
                conn.commit()
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
                done.append(n)
            except psycopg2.Error:
                # In the instant it dies a connection is still taken and dropped; libpq does not go on to the next host for that.
                (lost if conn else again).append(n)
                conn = None
        if conn:
            conn.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4, 10)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(done) > 100)
    two[0].kill9()
    before = len(done)
    eventually(lambda: len(done) > before + 300)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert 1 <= len(lost) <= 6, "each lost at most the transaction it was in"
    assert max(gaps) < 15
    stored = cluster.value("select sum(n) from stock where id between 4 and 9", dbname="odoo")
    # A COMMIT whose answer was lost may have happened: one for each client that lost its connection.
    assert len(done) <= stored <= len(done) + len(lost)
    print("\nlost:", len(lost), "connected again:", len(again), "transactions of", len(done), "the slowest client's gap:", max(gaps))


def test_a_pgweir_that_shuts_down_sends_libpq_on(two, tidy):
    first, _ = two
    holder = tidy(connect(two, host="127.0.0.1"))
    holder.cursor().execute("select 1")
    first.process.terminate()
    eventually(lambda: first.http("/readyz")[0] != 200)
    conn = tidy(connect(two))
    assert served_by(conn) == "127.0.0.2"
    holder.rollback()
    first.process.wait(60)


def test_pauses_are_each_one_s_own(two, tidy):
    first, second = two
    first.admin("PAUSE LANE web REJECT REASON 'only here'")
    assert second.lane("web")["state"] == "open"
    # libpq takes 57P03 ("cannot connect now") for a reason to try the next host.
    assert served_by(tidy(connect(two))) == "127.0.0.2"
    # Debian's own libpq, too, which is older than the one psycopg2's wheel brings.
    done = first.psql("-c", "\\echo :HOST", f"host=127.0.0.1,127.0.0.2 port={first.port} user=odoo dbname=odoo")
    assert done.stdout.strip() == "127.0.0.2", done


def test_observing_lets_everybody_in_who_waits(two, tidy):
    """docs/inline.md: the softer way out."""
    first, _ = two
    idle = tidy(first.raw("web"))
    first.admin("PAUSE LANE web HOLD REASON 'nobody gets through'")
    newcomer = background(first.connect, "web")
    statement = background(idle.ok, "select 1")
    eventually(lambda: first.lane("web")["waiting"] == 2)
    first.write(mode="observe")
    first.reload()
    tidy(newcomer.result(30))
    assert statement.result(30) == [["1"]]


def test_each_counts_the_other_s_as_bypass(two, cluster, tidy):
    """Together they stay within PostgreSQL, as far as a sample (here 0.2 s) is old."""
    first, second = two
    for _ in range(5):
        tidy(connect(two, host="127.0.0.1"))
    eventually(lambda: (second.usage()["bypass"] or 0) >= 5)
    assert second.usage()["own_slots"] == 0 and first.usage()["own_slots"] == 5
