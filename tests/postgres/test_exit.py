"""When an incident begins and is over: criteria, probes, PostgreSQL's log, the record of it, and the report."""

import http.server
import json
import os
import re
import ssl
import subprocess
import threading
import time
import urllib.request

import psycopg2
import pytest

from harness import certs, eventually, free_port, holds, lane, wire
from harness.weir import BINARY

pytestmark = pytest.mark.weir

HOLD = "2s"
DONE, NOT_MET = 0, 1


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 25, "logging_collector": "on", "log_filename": "postgresql.log", "log_file_mode": "0644"}


def lanes(**web):
    return [lane("web", quota=15, priority=0, **web), lane("cron", freeze=True, quota=5), lane("other", default=True, quota=5)]


@pytest.fixture
def start(make_weir):
    """Starts a pgweir with an [exit]; a window of two seconds unless told otherwise."""
    def make(probes=(), **exit):
        rest = {key: exit.pop(key) for key in ("lanes", "monitor", "env", "mode") if key in exit}
        exit = {"usage_below": 75, "hold_for": HOLD, **exit}
        if probes:
            exit["probe"] = list(probes)
        return make_weir(lanes=rest.pop("lanes", lanes()), exit=exit, **rest)
    return make


def criteria(weir):
    return {row["criterion"]: row for row in weir.admin("SHOW EXIT")}


def state(weir, name):
    return criteria(weir)[name]["state"]


def incidents(weir):
    return weir.admin("SHOW INCIDENTS")


def became(weir, name, wanted, **more):
    return eventually(lambda: state(weir, name) == wanted and criteria(weir)[name], what=f"{name} {wanted}", **more)


def says(weir, name, words, state=None, **more):
    """The line of the checklist once it says so. One look that came too late on a busy machine says something else, and the next look is better."""
    def line():
        row = criteria(weir)[name]
        return words in row["reason"] and state in (None, row["state"]) and row
    return eventually(line, what=f"{name}: {words}", **more)


def hold_for(weir, hold):
    """Another window, from now on. One of an hour is never over while the test looks at what is open; one of a second is soon over."""
    weir.write(exit={**weir.config["exit"], "hold_for": hold})
    weir.admin("RELOAD")


def waiting(weir):
    """`pgweir exit --wait`, once it has looked and does wait."""
    process = subprocess.Popen([str(BINARY), "exit", "--wait", "--config", str(weir.config_file)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith("NOT OVER: ")
    return process


def opened(weir, trigger):
    rows = eventually(lambda: [row for row in incidents(weir) if row["trigger"] == trigger], what=f"an incident by {trigger}")
    return rows[-1]


def record(weir, number):
    return json.loads(weir.admin(f"SHOW INCIDENT {number}")[0]["incident"])


def fill(cluster, tidy, usable):
    """Takes PostgreSQL's connections beside pgweir until `usable` are left for others than superusers."""
    taken, refused = [], 0

    def full():
        nonlocal refused
        if usable and cluster.value("select count(*) from pg_stat_activity where backend_type = 'client backend'") - 1 >= 25 - 3 - usable:
            return True
        try:
            taken.append(tidy(cluster.direct(user="odoo", app="bypass", tcp=True)))
            refused = 0
        except psycopg2.OperationalError:
            refused += 1
        # A backend that is ending still has its place for a moment: full is what stays full.
        return refused >= 5
    eventually(full, interval=0.05, what="PostgreSQL is full")
    return taken


# -- incidents ---------------------------------------------------------------------------------------------------

def test_freeze_opens_an_incident_that_survives_kill_9_and_ends_when_all_is_met(start):
    weir = start(hold_for="1h")
    assert incidents(weir) == [] and weir.admin("SHOW INCIDENT 1") == []
    weir.admin("FREEZE REASON 'the sale is on'")
    row = incidents(weir)[0]
    assert row["trigger"] == "freeze", "whoever waits for its end from now on must not hear that all is over"
    assert (row["state"], row["closed_at"]) == ("open", None) and "the sale is on" in row["cause"]
    assert weir.timeline_has("incident_opened", "FREEZE by admin")
    # It is told before the disk has it.
    eventually((weir.state / "incidents" / "1.json").exists, what="saved")

    def held():
        found = re.search(r"for (\d+) s of 60 min so far", reason := criteria(weir)["refusals"]["reason"])
        assert found, reason
        return int(found[1])
    eventually(lambda: held() >= 3, what="it is quiet for a while")
    weir.kill9()
    began = time.monotonic()
    weir.start()
    assert incidents(weir)[0]["state"] == "open", "a restart loses no incident"
    eventually(lambda: held() >= 0, what="it is looked at")
    assert held() <= time.monotonic() - began, "what was before proves nothing"
    weir.admin("NOTE 'called the carrier'")
    hold_for(weir, "1s")
    closed = eventually(lambda: incidents(weir)[0]["closed_at"], what="closed")
    assert closed > row["opened_at"]
    assert weir.timeline_has("incident_closed", "every criterion was met for 1 s", "still paused: cron")
    events = [event["event"] for event in record(weir, 1)["events"]]
    after = events[events.index("incident_opened"):]
    assert events.index("freeze") < events.index("incident_opened") and after.index("start") < after.index("note")
    eventually(lambda: json.loads((weir.state / "incidents" / "1.json").read_text())["closed_at"], what="saved")
    weir.kill9()
    weir.start()
    assert [row["state"] for row in incidents(weir)] == ["closed"] and record(weir, 1)["criteria"], "kept"
    weir.admin("FREEZE")
    eventually(lambda: [row["id"] for row in incidents(weir)] == [1, 2], what="another one, with a number of its own")


def test_usage_opens_one_by_crossing_the_lowest_threshold(start, cluster, tidy):
    weir = start(lanes=lanes(shed_above=60, shed_below=50))
    eventually(lambda: weir.usage()["percent"] is not None, what="a sample")
    assert incidents(weir) == []
    taken = fill(cluster, tidy, usable=2)
    row = opened(weir, "usage")
    assert "from 60 % on" in row["cause"] and row["peak_percent"] >= 60
    taken += fill(cluster, tidy, usable=0)
    usage = eventually(lambda: "not below 75 %" in (row := criteria(weir)["usage"])["reason"] and row, what="usage is seen")
    assert usage["state"] == "not met" and usage["wanted"] == "below 75 % for 2 s"
    holds(lambda: incidents(weir)[-1]["state"] == "open", 3, what="open as long as usage is high")
    for connection in taken:
        connection.close()
    eventually(lambda: incidents(weir)[-1]["state"] == "closed", what="closed")
    assert record(weir, row["id"])["figures"]["rows"][0]["connections"] > 10


def test_a_true_53300_opens_one_even_without_a_monitor(start, cluster, tidy):
    weir = start(monitor={"user": None})
    fill(cluster, tidy, usable=0)
    # It waits, and pgweir dials again and again.
    client = tidy(weir.socket())
    client.send(wire.startup_packet("odoo", "postgres", app="web"))
    assert opened(weir, "too_many_clients")
    became(weir, "too_many_clients", "not met")
    usage = criteria(weir)["usage"]
    assert usage["state"] == "unknown" and "not known" in usage["reason"]
    client.close()
    became(weir, "too_many_clients", "met")
    holds(lambda: incidents(weir)[-1]["state"] == "open", 3, what="what is not known is not met")


def test_a_reload_changes_the_criteria_and_keeps_the_incident(start):
    weir = start(hold_for="1h")
    weir.admin("FREEZE")
    opened(weir, "freeze")
    weir.write(exit={"hold_for": "1s", "usage_below": 80, "critical_lanes": ["web"]})
    weir.admin("RELOAD")
    assert criteria(weir)["usage"]["wanted"] == "below 80 % for 1 s"
    became(weir, "usage", "met")
    assert state(weir, "lane web") == "not met" and incidents(weir)[0]["state"] == "open"
    connection = weir.connect("web")

    def commit():
        with connection, connection.cursor() as cur:
            cur.execute("select 1")
        return incidents(weir)[0]["state"] == "closed"
    eventually(commit, what="closed once web commits")
    connection.close()


def test_a_critical_lane_that_fails_is_not_met(start):
    weir = start(critical_lanes=["web"], failures_below=10)
    connection = weir.connect("web", autocommit=True)

    def work(bad):
        with connection.cursor() as cur:
            for n in range(10):
                try:
                    cur.execute("select 1 / %s", (0 if bad and n < 5 else 1,))
                except psycopg2.Error:
                    pass
        return criteria(weir)["lane web"]
    row = eventually(lambda: (row := work(True)) and "not below 10 %" in row["reason"] and row, what="failures are seen")
    assert row["state"] == "not met" and "% of" in row["reason"]
    eventually(lambda: work(False)["state"] == "met", what="met again")
    connection.close()


# -- probes ------------------------------------------------------------------------------------------------------

class Site:
    """A little web server: what it answers can be changed."""

    def __init__(self, pair=None):
        site = self
        self.status, self.body, self.seen = 200, b"<h1>Log in</h1>", []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.seen.append((self.path, self.headers["User-Agent"]))
                self.send_response(site.status)
                self.send_header("Content-Length", str(len(site.body)))
                self.end_headers()
                self.wfile.write(site.body)

            def log_message(self, *args):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.certificate, pair.key)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http{'s' if pair else ''}://127.0.0.1:{self.server.server_port}/web/login"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tidy):
    return tidy(Site())


def test_http_probes(start, site):
    weir = start([{"name": "login", "http": site.url, "contains": "Log in", "interval": "1s", "timeout": "1s"},
                  {"name": "dead", "http": f"http://127.0.0.1:{free_port()}/", "interval": "1s", "timeout": "1s"}])
    became(weir, "probe login", "met")
    assert site.seen[0][0] == "/web/login" and site.seen[0][1].startswith("pgweir/")
    says(weir, "probe dead", "refused", "not met")
    site.body = b"<h1>Sorry</h1>"
    says(weir, "probe login", "is not in the page", "not met")
    site.status = 503
    says(weir, "probe login", "503", "not met")
    site.status, site.body = 303, b"Log in"
    became(weir, "probe login", "met")


def test_https_probes_trust_whom_the_system_trusts(start, tidy):
    authority, stranger = certs.Authority(), certs.Authority("a stranger")
    sites = [tidy(Site(one.issue("site", san="IP:127.0.0.1"))) for one in (authority, stranger)]
    weir = start([{"name": name, "http": site.url, "interval": "1s", "timeout": "1s"} for name, site in zip(("known", "strange"), sites)],
                 env={"SSL_CERT_FILE": str(authority.file), "SSL_CERT_DIR": "/nonexistent"})
    became(weir, "probe known", "met")
    says(weir, "probe strange", "certificate", "not met")


def test_command_probes(start, tmp_path):
    tmp_path.chmod(0o755)
    figure = tmp_path / "figure"
    figure.write_text("3\n")
    mark = tmp_path / "alive"
    slow = f"sleep 30; touch {mark}"
    weir = start([{"name": "true", "command": ["true"], "interval": "1s", "timeout": "1s"},
                  {"name": "false", "command": ["sh", "-c", "echo out of paper >&2; exit 3"], "interval": "1s", "timeout": "1s"},
                  {"name": "few", "command": ["cat", str(figure)], "expect": "< 10", "interval": "1s", "timeout": "1s"},
                  {"name": "slow", "command": ["sh", "-c", slow], "interval": "1s", "timeout": "500ms"},
                  {"name": "loud", "command": ["sh", "-c", "head -c 1000000 /dev/zero; echo"], "interval": "1s", "timeout": "1s"},
                  {"name": "absent", "command": ["/no/such/program"], "interval": "1s", "timeout": "1s"},
                  {"name": "bare", "command": ["sh", "-c", "test -z \"$PGWEIR_SECRET\""], "interval": "1s", "timeout": "1s"}])
    for name in ("true", "few", "loud", "bare"):
        became(weir, f"probe {name}", "met")
    assert "out of paper" in says(weir, "probe false", "exit status: 3")["reason"]
    says(weir, "probe slow", "no answer within 500 ms")
    says(weir, "probe absent", "cannot run /no/such/program")
    figure.write_text("10")
    assert says(weir, "probe few", "10 is not below", "not met")["reason"] == "10 is not below 10"
    figure.write_text("many")
    says(weir, "probe few", "no number", "unknown")
    # By now many were begun; one may be there, and one that was killed this moment.
    children = lambda: [line for line in os.popen("ps -eo args").read().splitlines() if slow in line]  # noqa: E731
    eventually(lambda: len(children()) <= 2, timeout=10, what="what takes too long is killed with its children")


def test_sql_probes_leave_no_connection_and_let_their_database_be_dropped(start, cluster):
    cluster.sql("create database shop owner odoo")
    cluster.sql("create table queue (n int); grant select on queue to pgweir, odoo; insert into queue values (1000000)", dbname="shop")
    every = {"database": "shop", "interval": "1s", "timeout": "1s"}
    weir = start([{"name": "queue", "sql": "select n from queue", **every},
                  {"name": "no rows", "sql": "select n from queue where n < 0", "expect": "empty", **every},
                  {"name": "few", "sql": "select n from queue", "expect": "< 2000000", "user": "odoo", **every},
                  {"name": "text", "sql": "select 'x'", "expect": "== 0", **every},
                  {"name": "rows", "sql": "select generate_series(1, 1000000)", "expect": "empty", **every},
                  {"name": "writes", "sql": "insert into queue values (1) returning 0", "expect": "empty", "user": "odoo", **every},
                  {"name": "slow", "sql": "select pg_sleep(30)::text", "expect": "empty", **every}])
    for name in ("no rows", "few"):
        became(weir, f"probe {name}", "met", timeout=60)
    says(weir, "probe queue", "does not go down")

    def falls():
        cluster.sql("update queue set n = n - 1", dbname="shop")
        time.sleep(0.2)
        return state(weir, "probe queue") == "met"
    eventually(falls, timeout=60, what="decreasing")
    says(weir, "probe text", "no number")
    says(weir, "probe rows", "more than one row")
    eventually(lambda: re.search("read-only|denied", criteria(weir)["probe writes"]["reason"]), what="it does not write")
    became(weir, "probe slow", "unknown")
    eventually(lambda: cluster.value("select count(*) from pg_stat_activity where query like 'select pg_sleep(30)%%'") <= 1, timeout=15, what="they are ended")

    def dropped():
        # PostgreSQL waits five seconds for sessions to leave: no probe stays that long, but on a machine that stands still.
        try:
            cluster.sql("drop database shop")
        except psycopg2.errors.ObjectInUse as error:
            raise AssertionError(error) from error
        return True
    eventually(dropped, timeout=20, what="the probes let go of their database")
    says(weir, "probe few", "does not exist", "unknown")
    slots = {name: row["slots"] for name, row in weir.lanes().items()}
    assert slots == {"web": 0, "cron": 0, "other": 0}, "probes cost no lane a slot"


# -- PostgreSQL's log --------------------------------------------------------------------------------------------

def test_the_log_tells_of_those_who_bypass_pgweir_and_is_followed_through_rotation(start, cluster, tidy):
    log = cluster.data / "log" / "postgresql.log"
    fill(cluster, tidy, usable=0)
    weir = start(log_file=str(log), monitor={"user": None}, hold_for="1s")
    became(weir, "log", "met")
    assert incidents(weir) == [], "what was in the log before is history"
    hold_for(weir, "1h")

    def refused():
        with pytest.raises(psycopg2.OperationalError, match="too many clients|remaining connection slots"):
            cluster.direct(user="odoo", tcp=True)
    refused()
    assert opened(weir, "log")
    counted = lambda number: eventually(  # noqa: E731
        lambda: f", {number} in all" in (row := criteria(weir)["log"])["measured"] and row["state"] == "not met", what=f"{number} in all")
    counted(1)
    assert weir.timeline_has("log_too_many_clients", "bypass")
    log.rename(log.with_suffix(".1"))
    cluster.sql("select pg_rotate_logfile()")
    eventually(log.exists, what="a new log")
    became(weir, "log", "not met")
    refused()
    counted(2)
    for _ in range(4):
        refused()
    counted(6)
    # It is shorter now than what was read of it, also with one more line: whenever it is looked at, that can be seen.
    os.truncate(log, 0)
    refused()
    counted(7)
    hold_for(weir, "1s")
    became(weir, "log", "met")


def test_a_log_that_cannot_be_read_is_unknown(start, tmp_path):
    weir = start(log_file=str(tmp_path / "absent.log"))
    row = eventually(lambda: "No such file" in (row := criteria(weir)["log"])["reason"] and row, what="the reason")
    assert row["state"] == "unknown" and "absent.log" in row["reason"]
    assert weir.cli("exit").returncode == NOT_MET


# -- the command line --------------------------------------------------------------------------------------------

def test_exit_says_not_over_until_it_is_and_waits(start):
    weir = start(hold_for="1h")
    weir.admin("FREEZE REASON 'x'")
    opened(weir, "freeze")
    eventually(lambda: all("so far" in row["reason"] for row in criteria(weir).values()), what="all is well, for a moment")
    done = weir.cli("exit")
    assert done.returncode == NOT_MET and done.stdout.startswith("NOT OVER: "), done.stdout
    assert "incident 1" in done.stdout and "usage" in done.stdout and "so far" in done.stdout
    data = json.loads(weir.cli("exit", "--json").stdout)
    assert data["met"] is False and data["incident"]["id"] == 1
    assert {row["criterion"] for row in data["criteria"]} == {"usage", "too_many_clients", "refusals"}
    done = weir.cli("exit", "--wait", "--timeout", "1s")
    assert done.returncode == NOT_MET and "not over within the time given" in done.stdout
    process = waiting(weir)
    hold_for(weir, "1s")
    out, err = process.communicate(timeout=60)
    assert process.returncode == DONE, out + err
    # What it waited for is over in the list of incidents, too.
    assert out.splitlines()[-1] == "OVER: 3 of 3 criteria met; no incident is open" and "usage: met" in out
    assert [row["state"] for row in incidents(weir)] == ["closed"]
    report = weir.cli("report").stdout
    assert "It was over" in report, "as it ended, not as the disk still has it"
    assert weir.cli("exit").returncode == DONE
    assert weir.cli("exit", "--timeout", "1s").returncode == 2, "without --wait there is nothing to time"


def test_waiting_outlives_a_restart_of_pgweir(start):
    weir = start(hold_for="1h")
    process = waiting(weir)
    weir.kill9()
    weir.start()
    hold_for(weir, "1s")
    out, err = process.communicate(timeout=60)
    assert process.returncode == DONE and "OVER: 3 of 3 criteria met" in out, out + err
    assert json.loads(weir.cli("exit", "--wait", "--json").stdout)["met"] is True


def test_the_report_tells_who_did_what_in_both_formats(start, tmp_path):
    weir = start(probes=[{"name": "yes", "command": ["echo", "0"], "expect": "empty", "interval": "1s", "timeout": "1s"}], hold_for="1h")
    assert weir.cli("report").returncode == 1, "nothing to report"
    weir.admin("FREEZE REASON '<b>sale</b> | now'")
    opened(weir, "freeze")
    open_report = weir.cli("report", "--incident", "latest").stdout
    assert "It is still open" in open_report
    weir.admin("NOTE 'called the carrier'")
    weir.admin("RESUME ALL")
    hold_for(weir, "1s")
    eventually(lambda: incidents(weir)[0]["state"] == "closed", what="closed")
    text = weir.cli("report").stdout
    for part in ("# Incident 1", "called the carrier", "freeze", "resume", "incident_opened", "every criterion was met", "probe yes",
                 "&lt;b>sale", "| web |", "## Who did what"):
        assert part in text, f"{part}\n{text}"
    page = tmp_path / "report.html"
    done = weir.cli("report", "--incident", "1", "--format", "html", "--output", str(page))
    assert done.returncode == DONE, done.stderr
    html = page.read_text()
    for part in ("called the carrier", "&lt;b&gt;sale", "resume", "uPlot", "probe yes"):
        assert part in html
    assert "<b>sale" not in html and "src=" not in html and "http://" not in html.split("<script")[0]
    assert weir.cli("report", "--incident", "9").returncode == 1


def test_in_mode_observe_everything_is_told_as_what_would_have_been_done(start, tmp_path):
    weir = start(hold_for="3s", mode="observe")
    weir.admin("FREEZE REASON 'a try'")
    opened(weir, "freeze")
    assert weir.timeline_has("freeze", "would pause cron"), weir.timeline()
    said = weir.cli("status").stdout
    assert "mode observe: it would hold or refuse them, and lets them in" in said.splitlines()[0], said
    for format in ("md", "html"):
        text = weir.cli("report", "--format", format).stdout
        assert "what it would have done; it did none of it" in text and "did by itself" not in text, text
    weir.admin("RESUME ALL")
    done = weir.cli("exit", "--wait")
    assert done.returncode == DONE, done.stdout


# -- where else it is told ---------------------------------------------------------------------------------------

def test_status_names_the_open_incident_everywhere_alike(start):
    weir = start(hold_for="1h", critical_lanes=["web"])
    assert json.loads(weir.cli("status", "--json").stdout)["incident"] is None and "INCIDENT" not in weir.cli("status").stdout
    weir.admin("FREEZE REASON 'the sale is on'")
    row = opened(weir, "freeze")
    open_criteria = ", ".join(name for name, row in criteria(weir).items() if row["state"] != "met")
    assert "usage" in open_criteria and "lane web" in open_criteria
    told = {"id": row["id"], "since": row["opened_at"], "cause": row["cause"], "not_met": open_criteria}
    data = json.loads(weir.cli("status", "--json").stdout)
    assert data["incident"] == told
    line = next(line for line in weir.cli("status").stdout.splitlines() if line.startswith("INCIDENT: "))
    for part in (f"{row['id']}, since {row['opened_at']}", "the sale is on", f"not met yet: {open_criteria}", "pgweir exit"):
        assert part in line
    shown = {row["name"]: row["value"] for row in weir.admin("SHOW STATUS")}
    request = urllib.request.Request(f"http://127.0.0.1:{weir.admin_port}/api/v1/status", headers={"Authorization": f"Bearer {weir.password}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        served = json.load(reply)
    keys = {"incident": str(told["id"]), "incident_since": told["since"], "incident_cause": told["cause"], "incident_not_met": told["not_met"]}
    for answer in (shown, served, data["process"]):
        assert {key: answer[key] for key in keys} == keys
