"""What Odoo does besides requests and jobs: one process for everything, the database manager, upgrades, shells, dumps, long imports. With the
shipped configuration, its times of idleness divided."""

import contextlib
import os
import subprocess

import psycopg2
import pytest

from harness import background, eventually, holds, odoo_actors as odoo
from harness.odoo_actors import BEGIN, COMMIT, DISCARD, Process, shipped

pytestmark = pytest.mark.weir

# A user's leak may be reset after 60 s / 300 = 200 ms if it blocks somebody, others' after 2 s.
FASTER = 300
PAST_ALL_RESETS_S = 2.4


def long_cap(lanes):
    """Who blocks nobody has as long as it is shipped with: between two of a test's statements there may be seconds."""
    lanes["web"]["idle_in_transaction"]["cap"] = "10m"


TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid != pg_backend_pid()"


@pytest.fixture(scope="module", autouse=True)
def erp(cluster):
    """Odoo's tables."""
    odoo.tables(cluster)


@pytest.fixture
def spawn(tidy):
    """Starts processes that end with the test."""
    return lambda *args, **kwargs: tidy(Process(*args, **kwargs))


def command(*args):
    """A command line without setproctitle."""
    return ["python3", *args]


def worker(weir, spawn):
    """An HTTP worker with a link to its database."""
    return spawn(weir, "odoo: WorkerHTTP 824", unix=True).open("request")


def tool(weir, cluster, *argv, application=None, timeout=60):
    """Runs one of PostgreSQL's programs as Odoo does: by its environment, over pgweir's socket."""
    env = weir.libpq_env(dbname="postgres", unix=True)
    env.pop("PGAPPNAME")
    if application:
        env["PGAPPNAME"] = application
    return subprocess.run([str(cluster.bin / argv[0]), *map(str, argv[1:])], env=env, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def is_idle_in_transaction(process, link):
    """As SHOW CLIENTS tells, which is a moment old."""
    return process.row(link)["state"] == "idle_in_transaction"


# -- one process for everything -----------------------------------------------------------------------------------

def test_workers_0_a_statement_tells_the_lane_of_a_transaction(make_weir, spawn):
    weir = shipped(make_weir, "odoo.toml")
    one = spawn(weir, command("odoo", "--config", "/etc/odoo/odoo.conf"), unix=True)
    one.short("cron listens", odoo.IN_RECOVERY, odoo.LISTEN_CRON).short("bus listens", odoo.LISTEN_BUS)
    one.in_lane("cron listens", "cron").in_lane("bus listens", "live")
    # The same pooled connection serves cron now and users next.
    one.open("pooled").run("pooled", BEGIN, odoo.CRON_ROW)
    one.in_lane("pooled", "cron").run("pooled", COMMIT, DISCARD, BEGIN, *odoo.PAGE)
    one.in_lane("pooled", "web").run("pooled", COMMIT)
    # Cron's job is a user to pgweir: nothing on the wire tells it.
    one.run("pooled", BEGIN, odoo.CRON_ROW)
    one.open("job").run("job", BEGIN, "update res_partner set name = name where id = 1")
    one.in_lane("job", "web").short("notification", odoo.NOTIFY).in_lane("notification", "notify")


def test_workers_0_a_crons_row_is_kept_and_a_users_leak_is_not(make_weir, spawn):
    def change(lanes):
        long_cap(lanes)
        # By which the row's link would be reset, were it not exempt.
        lanes["cron"]["idle_in_transaction"].update(reset="1s", when="always")
    weir = shipped(make_weir, "odoo.toml", FASTER, change)
    one = spawn(weir, command("odoo", "--config", "/etc/odoo/odoo.conf"), unix=True)
    one.open("row").run("row", BEGIN, odoo.CRON_ROW)
    one.open("leak").run("leak", BEGIN, "update res_partner set name = name where id = 1")
    one.open("other user").run("other user", BEGIN)
    one.send("other user", "update res_partner set name = name where id = 1")
    assert one.receive("other user")["error"] is None, "the leak blocked it, and was rolled back"
    answer = one.ask("leak", "select 1")
    assert answer["error"]["C"] == "40001" and answer["status"] == "E"
    holds(lambda: one.row("row"), PAST_ALL_RESETS_S, what="the job's row is held by its link")
    # In one message: behind another statement than the row's lock it is nobody to be spared.
    assert one.run("row", "update ir_cron set nextcall = now() where id = 1; COMMIT")["status"] == "I"


# -- people and upgrades ------------------------------------------------------------------------------------------

def test_a_shell_may_think_as_long_as_it_likes(make_weir, spawn):
    """It is warned of and listed, also while it blocks users; who wants it gone says RESET CLIENT."""
    weir = shipped(make_weir, "odoo.toml", FASTER, long_cap)
    shell = spawn(weir, command("odoo-bin", "shell", "-d", "odoo"), "odoo-900", unix=True).open("shell")
    shell.run("shell", BEGIN, "update res_partner set name = name where id = 2")
    user = worker(weir, spawn)
    user.run("request", BEGIN)
    user.send("request", "update res_partner set name = name where id = 2")
    eventually(lambda: is_idle_in_transaction(shell, "shell"))
    holds(lambda: is_idle_in_transaction(shell, "shell"), PAST_ALL_RESETS_S, what="the shell is left alone")
    eventually(lambda: [row["application"] for row in weir.admin("SHOW LEAKS")] == ["odoo-900"], what="it is listed")
    eventually(lambda: weir.timeline_has("leak_warn", "other"), what="it is warned of")
    # The console waits two seconds for PostgreSQL's answer, and says so; what it was told to do is done all the same.
    with contextlib.suppress(psycopg2.errors.ObjectNotInPrerequisiteState):
        weir.admin(f"RESET CLIENT {shell.row('shell')['id']}")
    assert user.receive("request")["error"] is None
    assert shell.ask("shell", "select 1")["error"]["C"] == "40001"


def test_an_upgrade_is_one_long_transaction_beside_users_and_cron(make_weir, spawn):
    """-u all: it holds tables while Python loads modules, and a freeze does not reach it."""
    weir = shipped(make_weir, "odoo.toml", FASTER, long_cap)
    upgrade = spawn(weir, command("odoo", "-c", "odoo.conf", "-u", "all", "-d", "odoo", "--stop-after-init"), "odoo-901", unix=True)
    upgrade.open("upgrade").run("upgrade", BEGIN, *odoo.LOAD, "alter table res_partner add column comment text")
    upgrade.in_lane("upgrade", "other")
    cron = spawn(weir, "odoo: WorkerCron 836 odoo", "odoo-836", unix=True).short("trigger", odoo.LISTEN_CRON)
    cron.run("trigger", COMMIT)
    user = worker(weir, spawn)
    user.run("request", BEGIN)
    user.send("request", "select count(*) from res_partner")
    weir.admin("FREEZE REASON 'an upgrade'")
    eventually(lambda: is_idle_in_transaction(upgrade, "upgrade"))
    holds(lambda: is_idle_in_transaction(upgrade, "upgrade"), PAST_ALL_RESETS_S, what="the upgrade is left alone")
    upgrade.run("upgrade", "create index on res_partner (name)", COMMIT)
    assert user.receive("request")["rows"] == [["200"]]
    assert cron.lane("trigger") == "cron", "a frozen lane keeps whom it has"
    weir.admin("RESUME ALL")


def test_a_long_import_is_one_transaction_and_ends_through_a_freeze(make_weir, cluster, spawn):
    weir = shipped(make_weir, "odoo.toml")
    service = spawn(weir, "odoo: WorkerHTTP 78", "odoo-imports-70", unix=True).open("import").in_lane("import", "imports")
    rows = ", ".join(f"('code-{n}', {n}.5)" for n in range(100))
    insert = f'INSERT INTO "product_import" ("code", "price") VALUES {rows} RETURNING "id"'
    service.run("import", BEGIN, *[insert] * 40)
    weir.admin("FREEZE REASON 'too many clients'")
    service.run("import", *[insert] * 40)
    copied = service.ask("import", "COPY product_import (code, price) FROM STDIN", copy="".join(f"copy-{n}\t1.5\n" for n in range(10_000)))
    assert copied["tags"] == ["COPY 10000"] and copied["error"] is None
    assert service.run("import", COMMIT)["tags"] == ["COMMIT"]
    assert cluster.value("select count(*) from product_import", dbname="odoo") == 18_000
    # The next one is told so at once: held, its requests would fill the service's workers.
    assert service.ask("import", BEGIN)["error"]["C"] == "57P03"
    weir.admin("RESUME ALL")
    service.open("again").in_lane("again", "imports").run("again", BEGIN, insert, COMMIT)


# -- the database manager -----------------------------------------------------------------------------------------

def test_the_database_manager_duplicates_and_drops_under_open_links(make_weir, cluster, spawn):
    """As Odoo does: terminate whoever is connected, then CREATE DATABASE … TEMPLATE or DROP DATABASE, over a link to `postgres`."""
    weir = shipped(make_weir, "odoo.toml")
    user, runner = worker(weir, spawn), spawn(weir, "odoo: WorkerJobRunner 9", "odoo-9", unix=True).open("runner")
    runner.run("runner", *odoo.RUNNER)
    user.open("in transaction").run("in transaction", BEGIN, *odoo.PAGE)
    manager = spawn(weir, "odoo: WorkerHTTP 825", unix=True).open("manager", "postgres").in_lane("manager", "notify")
    manager.run("manager", TERMINATE.format("odoo"), 'CREATE DATABASE "copy" ENCODING \'unicode\' TEMPLATE "odoo"')
    for process, link in ((user, "request"), (user, "in transaction"), (runner, "runner")):
        answer = process.receive(link)
        assert answer["status"] == "closed" and answer["error"]["C"] == "57P01", answer
    eventually(lambda: weir.lane("web")["slots"] == 0 and weir.lane("queue")["slots"] == 0, what="their slots are free")
    assert user.open("new").run("new", BEGIN, *odoo.PAGE)["status"] == "T", "Odoo opens a new one, unseen"

    user.open("copy", "copy").run("copy", BEGIN, *odoo.PAGE)
    manager.run("manager", TERMINATE.format("copy"), 'DROP DATABASE "copy"')
    assert user.receive("copy")["status"] == "closed"
    assert user.attempt("gone", "copy")["error"]["C"] == "3D000", "PostgreSQL's own words: the database is not there"
    assert cluster.value("select count(*) from pg_database where datname = 'copy'") == 0


def test_createdb_copies_as_soon_as_the_last_link_is_closed(make_weir, cluster, spawn):
    """What has been closed lingers nowhere; what is open is in the way, as it is without pgweir."""
    weir = shipped(make_weir, "odoo.toml")
    user = worker(weir, spawn)
    done = tool(weir, cluster, "createdb", "-T", "odoo", "twin")
    assert done.returncode == 1 and "being accessed by other users" in done.stdout, done.stdout
    user.hang_up("request")
    done = tool(weir, cluster, "createdb", "-T", "odoo", "twin")
    assert done.returncode == 0, done.stdout
    done = tool(weir, cluster, "dropdb", "twin")
    assert done.returncode == 0, done.stdout


def test_the_database_manager_backs_up_and_restores(make_weir, cluster, tmp_path):
    """pg_dump and psql are programs that Odoo starts: with Odoo 19 they inherit its name, and are no users for all that."""
    weir = shipped(make_weir, "odoo.toml")
    script = tmp_path / "dump.sql"
    done = tool(weir, cluster, "pg_dump", "--no-owner", f"--file={script}", "odoo", application="odoo-web-1")
    assert done.returncode == 0, done.stdout
    assert tool(weir, cluster, "createdb", "restored").returncode == 0
    done = tool(weir, cluster, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, "restored", application="odoo-web-1")
    assert done.returncode == 0, done.stdout
    assert cluster.value("select count(*) from res_partner", dbname="restored") == 200
    lanes = weir.lanes()
    assert lanes["other"]["admitted"] == 2 and lanes["web"]["admitted"] == 0, "neither was taken for a user"
    assert tool(weir, cluster, "dropdb", "restored").returncode == 0


def gated(cluster, database):
    """Makes a database of Odoo's, four tables of which can be read only when what is returned has been called: whoever copies one stands still
    before its first row."""
    cluster.sql(f"create database {database} owner odoo")
    odoo.tables(cluster, database)
    owner = cluster.direct(user="odoo", dbname=database, app="suite")
    with owner.cursor() as cur:
        cur.execute("create function gate() returns boolean language plpgsql as"
                    " 'begin perform pg_catalog.pg_advisory_xact_lock_shared(4); return true; end'")
        for table in ("res_partner", "res_users", "ir_cron", "queue_job"):
            cur.execute(f"create policy gate on {table} using (gate()); alter table {table} enable row level security;"
                        f"alter table {table} force row level security")
        cur.execute("select pg_advisory_lock(4)")
    return owner.close


def test_a_parallel_dump_fits_its_lane_and_comes_back(make_weir, cluster, tmp_path):
    """-j 4 is five connections, each in a transaction to the end; the leader's idles."""
    weir = shipped(make_weir, "odoo.toml", FASTER)
    os.chmod(tmp_path, 0o755)
    place = tmp_path / "dump"
    open_gate = gated(cluster, "wide")
    dump = background(tool, weir, cluster, "pg_dump", "-j", 4, "-Fd", "--enable-row-security", "-f", place, "wide")
    eventually(lambda: len(cluster.activity("pg_dump", "wait_event = 'advisory'")) == 4 or dump.done(), what="each of the four has a table")
    assert not dump.done(), dump.result()

    def all_there():
        rows = cluster.activity("pg_dump", "xact_start is not null")
        lane = weir.lane("other")
        return sorted(row["state"] for row in rows) == ["active"] * 4 + ["idle in transaction"] and (lane["slots"], lane["refused"]) == (5, 0)
    eventually(all_there)
    holds(all_there, PAST_ALL_RESETS_S, what="five, and the leader is left alone")
    open_gate()
    assert dump.result(60).returncode == 0, dump.result().stdout
    assert tool(weir, cluster, "createdb", "parallel").returncode == 0
    done = tool(weir, cluster, "pg_restore", "--no-owner", "-j", 4, "-d", "parallel", place)
    assert done.returncode == 0, done.stdout
    assert cluster.value("select count(*) from res_partner", dbname="parallel") == 200
    assert tool(weir, cluster, "dropdb", "parallel").returncode == 0


def test_a_dump_wider_than_its_lane_is_told_why(make_weir, cluster, tmp_path):
    """-j 8 is nine connections, the lane has six: it ends with pgweir's words, and leaves nothing behind."""
    def hasty(lanes):
        # Long enough for those that fit to log in, one after the other.
        lanes["other"]["wait_timeout"] = "5s"
    weir = shipped(make_weir, "odoo.toml", change=hasty)
    done = tool(weir, cluster, "pg_dump", "-j", 8, "-Fd", "-f", tmp_path / "dump", "odoo")
    assert done.returncode == 1 and "pgweir: the lane's connection quota is used up" in done.stdout, done.stdout
    eventually(weir.drained, what="nothing is left of it")


# -- what a long transaction is beside ----------------------------------------------------------------------------

def test_a_request_that_waits_for_a_lock_of_an_honest_import_is_no_leak(make_weir, spawn):
    """Who waits is active, not idle: nobody resets it, and the import in its own lane has minutes, not seconds."""
    def change(lanes):
        long_cap(lanes)
        # Divided by less than users': what they are reset after, or ten times that, is over while the test waits; what is shipped is not.
        imports = lanes["imports"]["idle_in_transaction"]
        imports["reset"] = f"{10 * int(imports['reset'].removesuffix('ms'))}ms"
    weir = shipped(make_weir, "odoo.toml", FASTER, change)
    service = spawn(weir, "odoo: WorkerHTTP 78", "odoo-imports-70", unix=True).open("import")
    service.run("import", BEGIN, "select name from res_partner where id = 3 for update")
    user = worker(weir, spawn)
    user.run("request", BEGIN)
    waiting = background(user.ask, "request", "select name from res_partner where id = 3 for update")
    # Users' leaks are reset after 200 ms if they block; the import's only after 20 s.
    eventually(lambda: user.row("request")["state"] == "active")
    holds(lambda: not waiting.done(), 2.4, what="the import is left alone")
    service.run("import", COMMIT)
    assert waiting.result(30)["error"] is None
    assert weir.lane("web")["resets"] == weir.lane("imports")["resets"] == 0
