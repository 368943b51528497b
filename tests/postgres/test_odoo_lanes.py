"""Odoo's traffic told apart, with each configuration that is shipped for it: processes with Odoo's titles send Odoo's startup packets and
statements, and SHOW CLIENTS tells in which lane each link is."""

import os
import shutil
import subprocess

import pytest

from harness import odoo_actors as odoo
from harness.odoo_actors import BEGIN, COMMIT, ROLLBACK, Process, shipped

pytestmark = pytest.mark.weir

NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def erp(cluster):
    """Odoo's tables."""
    odoo.tables(cluster)
    cluster.sql("create database first_tenant owner odoo")
    cluster.sql("create database second_tenant owner odoo")


@pytest.fixture
def spawn(tidy):
    """Starts processes that end with the test."""
    return lambda *args, **kwargs: tidy(Process(*args, **kwargs))


def command(*args):
    """A command line without setproctitle."""
    return ["python3", *args]


def page(process, link, lane="web"):
    """A request: its transaction, and inside it a notification over a short link of its own."""
    process.run(link, BEGIN, *odoo.PAGE)
    process.in_lane(link, lane)
    process.short("notification", odoo.NOTIFY).in_lane("notification", "notify").run("notification", COMMIT)
    process.hang_up("notification")
    process.run(link, COMMIT)


def cron(process, job, row=odoo.CRON_ROW, job_lane="cron"):
    """A cron worker: LISTEN, the job's row for as long as the job takes, and the job on a link with its master's name."""
    process.short("trigger", odoo.IN_RECOVERY, odoo.LISTEN_CRON).run("trigger", COMMIT)
    process.in_lane("trigger", "cron")
    process.open("row").run("row", BEGIN, row)
    process.in_lane("row", "cron")
    process.open("job", name=job).run("job", BEGIN, "update res_partner set name = name where id = 1")
    process.in_lane("job", job_lane)
    process.run("job", COMMIT)
    process.run("row", COMMIT)


def queue_job(process, link, lane, between):
    """A job of queue_job in whichever process: one transaction to take it, one to do it; `between` is where the link is outside."""
    process.run(link, "update queue_job set state = 'enqueued' where uuid = 'job-1'", BEGIN, odoo.JOB_MINE, odoo.JOB_ROW)
    process.in_lane(link, lane)
    process.run(link, "update queue_job set state = 'started' where uuid = 'job-1'", COMMIT, odoo.SIGNALING)
    process.in_lane(link, between)
    process.run(link, BEGIN, odoo.JOB_HELD, "select 'work that takes a while'")
    process.in_lane(link, lane)
    process.run(link, "update queue_job set state = 'done' where uuid = 'job-1'", COMMIT, odoo.SIGNALING)
    process.in_lane(link, between)


def test_what_the_actors_send_is_what_odoo_sent():
    recorded = set(odoo.SHAPES.read_text().splitlines())
    sent = {odoo.shape(sql) for sql in odoo.RECORDED}
    assert sent == recorded, f"not recorded: {sent - recorded}; not sent: {recorded - sent}"


@pytest.mark.parametrize("unix", [True, False], ids=["socket", "loopback"])
def test_one_host_by_processes(make_weir, cluster, spawn, unix):
    """Nothing is changed in Odoo but db_host; HTTP workers and the cron job's link have the master's name."""
    weir = shipped(make_weir, "odoo.toml")
    master = spawn(weir, command("odoo", "--config", "/etc/odoo/odoo.conf"), unix=unix)
    master.short("look", odoo.EXISTS).in_lane("look", "notify").run("look", ROLLBACK)
    master.open("registry").run("registry", BEGIN, *odoo.LOAD)
    master.in_lane("registry", "web")
    worker = spawn(weir, "odoo: WorkerHTTP 824", unix=unix).open("request")
    page(worker, "request")
    assert worker.row("request")["rule"] == '{ user = "odoo*", process = "odoo: WorkerHTTP*" }'
    queue_job(worker, "request", "queue", "web")
    cron(spawn(weir, "odoo: WorkerCron 836 odoo", "odoo-836", unix=unix), job="odoo-1000")
    spawn(weir, "odoo: WorkerCron 837", "odoo-837", unix=unix).short("which", odoo.DATABASES).in_lane("which", "cron")
    for program in ("odoo", "odoo-bin"):
        gevent = spawn(weir, command(program, "gevent", "--config", "/etc/odoo/odoo.conf"), "odoo-840", unix=unix)
        gevent.short("bus", odoo.LISTEN_BUS).run("bus", COMMIT)
        gevent.in_lane("bus", "live").open("session").in_lane("session", "live")
        spawn(weir, command(program, "shell", "-d", "odoo"), "odoo-900", unix=unix).open("shell").in_lane("shell", "other")
        upgrade = spawn(weir, command(program, "-c", "odoo.conf", "-u", "all", "-d", "odoo", "--stop-after-init"), "odoo-901", unix=unix)
        upgrade.open("upgrade").in_lane("upgrade", "other")
    runner = spawn(weir, "odoo: WorkerJobRunner 22326", "odoo-22326", unix=unix).open("runner").run("runner", *odoo.RUNNER)
    assert runner["status"] == "I"
    # Odoo 19 takes its name from PGAPPNAME, which programs that it starts inherit.
    dump = subprocess.Popen([cluster.bin / "psql", "-XAt"], stdin=subprocess.PIPE, env=weir.libpq_env("odoo-web", dbname="odoo", unix=unix))
    try:
        assert weir.client("odoo-web")["lane"] == "other"
    finally:
        dump.communicate(timeout=30)


def test_one_host_by_statements_where_setproctitle_is_missing(make_weir, spawn):
    """All workers look alike. Statements tell LISTEN links and locks; a cron job's own link passes for a user's."""
    weir = shipped(make_weir, "odoo.toml")
    alike = command("odoo", "--config", "/etc/odoo/odoo.conf")
    worker = spawn(weir, alike, unix=True).open("request")
    page(worker, "request")
    queue_job(worker, "request", "queue", "web")
    for row in (odoo.CRON_ROW, odoo.CRON_ROW_14):
        cron(spawn(weir, alike, "odoo-836", unix=True), job="odoo-1000", row=row, job_lane="web")
    runner = spawn(weir, alike, "odoo-22326", unix=True).open("runner")
    runner.run("runner", *odoo.RUNNER)
    runner.in_lane("runner", "queue")


def test_one_host_with_names_for_some_services(make_weir, spawn):
    weir = shipped(make_weir, "odoo.toml")
    for name, lane in (("odoo-reports-77", "reports"), ("odoo-imports-78", "imports"), ("odoo-queue-79", "queue"), ("odoo-cron-80", "cron")):
        service = spawn(weir, "odoo: WorkerHTTP 77", name, unix=True).open("request").in_lane("request", lane)
        # Whoever nests a short link inside a request finds room for it outside the request's lane; cron keeps room of its own.
        service.short("notification", odoo.NOTIFY).in_lane("notification", "cron" if lane == "cron" else "notify")


def test_compose_by_names(make_weir, spawn):
    """A service each, over TCP, pids and command lines unknown."""
    weir = shipped(make_weir, "odoo-compose.toml")
    service = lambda name: spawn(weir, command("odoo"), name)  # noqa: E731
    web = service("odoo-web-1").open("request")
    page(web, "request")
    queue_job(web, "request", "queue", "web")
    web.short("bus", odoo.LISTEN_BUS).in_lane("bus", "live")
    service("odoo-live-1").open("session").in_lane("session", "live")
    cron_service = service("odoo-cron-1")
    cron(cron_service, job="odoo-cron-1")
    cron_service.short("notification", odoo.NOTIFY).in_lane("notification", "notify")
    queue = service("odoo-queue-1").open("runner")
    queue.run("runner", *odoo.RUNNER)
    queue.in_lane("runner", "queue")
    queue.open("job").in_lane("job", "queue").run("job", *odoo.PAGE)
    for name, lane in (("odoo-reports-1", "reports"), ("odoo-imports-1", "imports"), ("odoo-shell", "other"), ("odoo-upgrade", "other"),
                       ("odoo-init", "other"), ("psql", "other"), ("odoo", "web")):
        service(name).open("link").in_lane("link", lane)


@pytest.mark.parametrize("name", ["odoo-1000", ""], ids=["named", "odoo-13-14"])
def test_hosts_by_ports(make_weir, spawn, name):
    """A port for each role: the name says nothing, and Odoo 13 and 14 send none."""
    weir = shipped(make_weir, "odoo-hosts.toml")
    service = lambda port: spawn(weir, command("odoo"), name, port=weir.ports[port])  # noqa: E731
    web = service(6432).open("request")
    page(web, "request")
    web.short("bus", odoo.LISTEN_BUS).in_lane("bus", "live")
    cron(service(6434), job=name, row=odoo.CRON_ROW_14)
    for port, lane in ((6435, "queue"), (6436, "reports"), (6437, "imports")):
        service(port).open("request").in_lane("request", lane).short("notification", odoo.NOTIFY).in_lane("notification", "notify")
    queue_job(service(6435).open("job"), "job", "queue", "queue")
    for tool in ("psql", "pg_dump", "odoo-shell"):
        service(6432).open(tool, name=tool).in_lane(tool, "other")


def test_many_databases_share_by_tenant(make_weir, spawn):
    """One tenant has a lane of its own; of the others none takes more than its part, and another's users are let in beside it."""
    def narrow(lanes):
        lanes["web"].update(per_database=3, wait_timeout="300ms")
    weir = shipped(make_weir, "odoo-databases.toml", change=narrow)
    worker = spawn(weir, "odoo: WorkerHTTP 824", unix=True).open("first", "first_tenant").in_lane("first", "web-first")
    for n in range(3):
        worker.open(f"second {n}", "second_tenant").in_lane(f"second {n}", "web")
    refused = worker.attempt("one more", "second_tenant")
    assert refused["error"]["C"] == "53300" and "limit per database" in refused["error"]["M"], refused
    page(worker.open("third", "odoo"), "third")
    # Who has no session yet asks which databases there are.
    worker.short("which", odoo.DATABASES).in_lane("which", "notify")
    job = spawn(weir, "odoo: WorkerCron 836 second_tenant", "odoo-836", unix=True)
    job.short("trigger", odoo.LISTEN_CRON).open("job", "second_tenant", name="odoo-1000").in_lane("job", "cron").in_lane("trigger", "cron")


# -- what can be seen of the process -------------------------------------------------------------------------------

root_only = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to become others")
# What is left of root under the shipped unit; see script/check-deploy for the unit itself.
SANDBOX = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--no-new-privs"]
NOTHING = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
PTRACE = ["--inh-caps=-all,+sys_ptrace", "--ambient-caps=-all,+sys_ptrace", "--bounding-set=-all,+sys_ptrace"]


@root_only
@pytest.mark.parametrize("capability, unix, seen", [(NOTHING, True, True), (PTRACE, True, True), (PTRACE, False, True), (NOTHING, False, False)],
                         ids=["socket-without", "socket", "loopback", "loopback-without"])
def test_processes_of_another_user(make_weir, spawn, capability, unix, seen):
    """The socket tells without any right; the owner of a loopback connection is told to who has CAP_SYS_PTRACE."""
    weir = shipped(lambda **more: sandboxed(make_weir, [*SANDBOX, *capability], **more), "odoo.toml")
    worker = spawn(weir, "odoo: WorkerCron 836", unix=unix, account=NOBODY)
    worker.open("link").in_lane("link", "cron" if seen else "web")
    assert ("WorkerCron" in (worker.row("link")["process"] or "")) == seen
    failures = {row["name"]: row["value"] for row in weir.admin("SHOW STATUS")}.get("lookups_failed.denied", "0")
    assert (int(failures) > 0) == (not seen)


def sandboxed(make_weir, prefix, **more):
    """A pgweir that runs as an account of its own."""
    weir = make_weir(prefix=prefix, **more)
    os.chown(weir.base, 65533, 65533)
    return weir


@root_only
def test_a_container_is_seen_through_and_from_within_one_nothing_is(make_weir, spawn):
    weir = shipped(make_weir, "odoo.toml")
    container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    inside = spawn(weir, "odoo: WorkerCron 7", "odoo-7", unix=True, prefix=container)
    inside.open("link").in_lane("link", "cron")
    assert inside.row("link")["process"].endswith("odoo: WorkerCron 7"), "by its pid out here"

    contained = shipped(lambda **more: make_weir(prefix=container, **more), "odoo.toml")
    outside = spawn(contained, "odoo: WorkerCron 8", "odoo-8", unix=True)
    outside.open("link").in_lane("link", "web")
    status = {row["name"]: row["value"] for row in contained.admin("SHOW STATUS")}
    assert int(status["lookups_failed.not_local"]) >= 1, status
    assert contained.metric("pgweir_process_lookups_failed_total", cause="not_local") >= 1
