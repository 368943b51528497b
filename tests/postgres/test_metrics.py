"""Metrics: names, bounds, cost, and the shipped alert rules and dashboard, held against a real Prometheus."""

import json
import re
import resource
import shutil
import socket
import statistics
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
from harness import wire
from harness.util import eventually, free_port
from harness.weir import ROOT, lane

pytestmark = pytest.mark.weir

ALERTS = ROOT / "config" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "config" / "grafana" / "pgweir.json"
needs = {name: pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed") for name in ("promtool", "prometheus")}


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


@pytest.fixture(scope="module")
def weir(make_module_weir):
    return make_module_weir(
        lanes=[lane("web", quota=2, reserve=1, priority=0, max_waiting=1, wait_timeout="300ms", idle_in_transaction={"warn": "100ms", "action": "none"}),
               lane("cron", freeze=True, on_pause="reject"), lane("other", default=True, quota=20)],
        applications=[{"match": "web*", "name": "webs", "quota": 9}])


def exposed(weir, accept=None):
    """The text of /metrics."""
    request = urllib.request.Request(f"http://127.0.0.1:{weir.admin_port}/metrics", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.headers["Content-Type"], reply.read().decode()


def families(text):
    """Types by name, from the older format."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)", text, re.M))


def samples(text):
    """Names of samples, without values."""
    return {line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}


@pytest.fixture(scope="module")
def busy(weir):
    """A pgweir in which everything has happened at least once."""
    client = weir.raw("web1")
    client.ok("begin; select 1; commit")
    client.ok("begin")
    weir.admin("PAUSE LANE cron REJECT")
    with pytest.raises(Exception, match="pgweir: the lane is paused"):
        weir.connect("cron")
    weir.admin("RESUME LANE cron")
    eventually(lambda: weir.metric("pgweir_leaks", lane="web") == 1)
    yield weir
    client.close()


def test_every_metric_is_documented_with_its_type_and_labels(busy):
    _, text = exposed(busy)
    found = families(text)
    table = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(pgweir_\w+)` \| (\w+) \| (.*?) \|", table, re.M)
    assert {name: kind for name, kind, _ in rows} == found
    labels = {}
    for sample in samples(text):
        name, _, rest = sample.partition("{")
        name = re.sub(r"_(bucket|sum|count)$", "", name) if name not in found else name
        labels.setdefault(name, set()).update(set(re.findall(r'(\w+)="', rest)) - {"le"})
    for name, _, told in rows:
        assert labels.get(name, set()) <= set(re.findall(r"\w+", told)), name
        assert name in labels or name == "pgweir_process_lookups_failed_total", name


def test_both_formats_say_the_same(busy):
    kind, older = exposed(busy)
    assert kind.startswith("text/plain; version=0.0.4")
    kind, newer = exposed(busy, "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert kind.startswith("application/openmetrics-text; version=1.0.0") and newer.endswith("# EOF\n")

    def normal(text):
        return {(name, tuple(sorted(re.findall(r'(\w+="[^"]*")', rest)))) for name, _, rest in (s.partition("{") for s in samples(text))}
    assert normal(older) == normal(newer)


def test_figures_are_the_consoles(busy):
    rows, usage = busy.lanes(), busy.usage()
    for name, row in rows.items():
        assert busy.metric("pgweir_lane_quota", lane=name) == row["quota"]
        assert busy.metric("pgweir_lane_slots", lane=name) == row["slots"]
        assert busy.metric("pgweir_idle_in_transaction", lane=name) == row["idle_in_transaction"]
        assert busy.metric("pgweir_lane_refused_total", lane=name) == row["refused"]
        assert busy.metric("pgweir_lane_admitted_total", lane=name) == row["admitted"]
        assert [busy.metric("pgweir_lane_state", lane=name, state=state) for state in ("open", "paused", "shedding", "ramping", "over")] == \
            [float(row["state"] == state) for state in ("open", "paused", "shedding", "ramping", "over")]
    assert busy.metric("pgweir_max_connections") == usage["max_connections"] == 40
    assert busy.metric("pgweir_refusals_total", lane="cron", reason="paused") == rows["cron"]["refused"] >= 1
    assert busy.metric("pgweir_application_slots", application="webs") == 1 and busy.metric("pgweir_application_quota", application="webs") == 9


def test_clients_cannot_add_series(weir, busy):
    before = samples(exposed(weir)[1])
    for n in range(60):
        client = weir.raw(f"nobody-{n}\"}}\n", user="odoo")
        client.ok("select 1")
        client.close()
    for n in range(20):
        try:
            weir.raw("web", user=f"nobody{n}").close()
        except Exception:  # noqa: BLE001 - no such role
            pass
    after = samples(exposed(weir)[1])
    assert after - before <= {s for s in after if s.startswith("pgweir_refusals_total") and "nobody" not in s}
    assert not [s for s in after if "nobody" in s]


# -- promtool ----------------------------------------------------------------------------------------------------

def run(*argv, **more):
    done = subprocess.run([str(a) for a in argv], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, **more)
    assert done.returncode == 0, done.stdout
    return done.stdout


@needs["promtool"]
def test_the_rules_are_rules_and_their_tests_pass():
    assert "SUCCESS" in run("promtool", "check", "rules", ALERTS)
    assert "SUCCESS" in run("promtool", "test", "rules", ALERTS.with_name("alerts_test.yml"))
    named = set(re.findall(r"alert: (\w+)", ALERTS.read_text()))
    tested = set(re.findall(r"alertname: (\w+)", ALERTS.with_name("alerts_test.yml").read_text()))
    assert named == tested, "every alert has a test"


@needs["promtool"]
def test_promtool_finds_nothing_wrong_with_the_metrics(busy):
    assert run("promtool", "check", "metrics", input=exposed(busy)[1]) == ""


def used(expressions):
    """Metrics named in PromQL."""
    return {name for text in expressions for name in re.findall(r"\bpgweir_\w+", text)}


def exported(text):
    """Names that a query may use."""
    out = set()
    for name, kind in families(text).items():
        out |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return out


def expressions():
    """Every expression of the dashboard, with variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [e.replace("$instance", ".*").replace("$lane", ".*").replace("$__rate_interval", "1m") for e in found], board


def test_dashboard_and_rules_use_metrics_that_are_there(busy):
    there = exported(exposed(busy)[1])
    found, board = expressions()
    assert used(found) - there == set()
    assert used(re.findall(r"expr: (.*)", ALERTS.read_text())) - there == set()
    variables = [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    assert used(variables) - there == set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and all(panel["targets"] for panel in board["panels"])
    places = [p["gridPos"] for p in board["panels"]]
    for n, a in enumerate(places):
        assert a["x"] + a["w"] <= 24
        for b in places[n + 1:]:
            apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
            assert apart, "panels overlap"


# -- a real Prometheus -------------------------------------------------------------------------------------------

class Prometheus:
    """A Prometheus that scrapes one pgweir every second."""

    def __init__(self, base, weir):
        self.port = free_port()
        config = base / "prometheus.yml"
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "pgweir", "static_configs": [{"targets": [f"127.0.0.1:{weir.admin_port}"]}]}]}))
        self.log = base / "prometheus.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(["prometheus", f"--config.file={config}", f"--storage.tsdb.path={base / 'data'}",
                                             f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log)

    def api(self, path, **query):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expression):
        try:
            return self.api("query", query=expression)["result"]
        except OSError:
            return []

    def close(self):
        self.process.terminate()
        self.process.wait(60)


@needs["prometheus"]
@pytest.mark.timeout(300)
def test_a_real_prometheus(busy, tmp_path, tidy):
    prometheus = tidy(Prometheus(tmp_path, busy))
    eventually(lambda: prometheus.query('up{job="pgweir"} == 1'), timeout=100)

    def healthy():
        # A scrape has a second, which a busy machine may need.
        (target,) = prometheus.api("targets")["activeTargets"]
        return target["health"] == "up" and not target["lastError"]
    eventually(healthy, what="a scrape without an error")

    def all_there():
        missing = exported(exposed(busy)[1]) - {"pgweir_process_lookups_failed_total"} - set(prometheus.api("label/__name__/values"))
        assert missing == set()
        return True
    eventually(all_there)
    types = eventually(lambda: {name: entries[0]["type"] for name, entries in prometheus.api("metadata").items()})
    assert types["pgweir_wait_seconds"] == "histogram" and types["pgweir_usage_percent"] == "gauge"
    # Prometheus files a counter of OpenMetrics under its family's name.
    assert types.get("pgweir_transactions", types.get("pgweir_transactions_total")) == "counter"
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    eventually(lambda: all(rule["health"] == "ok" for group in prometheus.api("rules")["groups"] for rule in group["rules"]), timeout=60)
    assert len(rules) == ALERTS.read_text().count("alert: ")
    # Another of the lane's two places.
    eventually(lambda: busy.lane("web")["slots"] == 1)
    tidy(busy.raw("web1")).ok("select 1")

    def all_show():
        # Rates want two scrapes.
        empty = {e for e in expressions()[0] if not prometheus.query(e)}
        assert empty == set(), "every panel shows something"
        return True
    eventually(all_show, timeout=60)
    # A pause is seen by a rule.
    busy.admin("PAUSE LANE cron")
    eventually(lambda: [a for a in prometheus.api("alerts")["alerts"] if a["labels"]["alertname"] == "PgweirLanePaused" and a["labels"]["lane"] == "cron"],
               timeout=60)
    busy.admin("RESUME LANE cron")


# -- what it costs -----------------------------------------------------------------------------------------------

@pytest.mark.timeout(300)
def test_5000_clients_and_20_lanes(make_weir, tidy):
    """/metrics costs 50 ms at most, and SHOW CLIENTS and the API with all of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 6000, "5,000 clients want as many descriptors"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 6000) if soft != resource.RLIM_INFINITY else soft, hard))
    lanes = [lane(f"lane{n:02}-", quota=2, max_waiting=1000, wait_timeout="5m") for n in range(19)]
    weir = make_weir(lanes=[*lanes, lane("other", default=True, quota=2, max_waiting=5000, wait_timeout="5m")],
                     limits={"max_clients": 6000, "startup_timeout": "60s"})
    for n in range(5000):
        sock = tidy(socket.create_connection(("127.0.0.1", weir.port), timeout=30))
        sock.sendall(wire.startup_packet("odoo", "postgres", app=f"lane{n % 20:02}-{n}"))
    eventually(lambda: weir.metric("pgweir_lane_waiting") > 4900, timeout=100)
    scrapes = 40
    took, spent = [], weir.cpu_seconds()
    for _ in range(scrapes):
        began = time.perf_counter()
        _, text = exposed(weir)
        took.append((time.perf_counter() - began) * 1e3)
    spent = (weir.cpu_seconds() - spent) / scrapes * 1e3
    # What it costs is its processor time; how long it waits for a processor is the machine's.
    assert spent < 50 and statistics.median(took) < 500, (spent, took)
    assert len(samples(text)) < 3000
    assert len(weir.clients()) >= 4900
    request = urllib.request.Request(f"http://127.0.0.1:{weir.admin_port}/api/v1/clients", headers={"Authorization": f"Bearer {weir.password}"})
    with urllib.request.urlopen(request, timeout=20) as reply:
        assert len(json.load(reply)) >= 4900
