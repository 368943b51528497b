"""The drill against a real PostgreSQL: that it refuses what it must, counts what happened, and can fail."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib

import pytest

from harness import Weir, eventually, lane, rehearsal
from harness.weir import BINARY, ROOT, toml

pytestmark = [pytest.mark.weir, pytest.mark.timeout(400)]

HELD, NOT_HELD, REFUSED = 0, 1, 2

PHASES = """
title = "a test's"
[[phase]]
name = "steady"
duration = "2s"
steady = true
[[phase]]
name = "incident"
duration = "4s"
incident = true
[[phase]]
name = "recovery"
duration = "2s"
"""
# Longer by far than a machine stands still.
LONG = PHASES.replace('duration = "4s"', 'duration = "10s"')
WEB = '[[actor]]\nkind = "web"\nworkers = 4\nrate = 30\nhot = 0.3\n'
LEAK = '[[actor]]\nkind = "leak"\nphases = ["incident"]\ncount = 4\nhold = "10m"\ntimeout = "30m"\n'


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


@pytest.fixture(scope="module")
def staging(cluster):
    cluster.sql("comment on database odoo is 'copy for Staging'")


@pytest.fixture
def drill(cluster, tmp_path):
    """Plays a scenario's text; the process and, where it printed one, the object. What is not done when the schedule ends has `drain`: where
    somebody waits for ever all of it, else no longer than a machine needs that had stood still."""
    def play(text, *args, weir=None, timeout=180, user="odoo", drain="20s"):
        file = tmp_path / "scenario.toml"
        file.write_text(text)
        argv = [BINARY, "drill", file, "--target", f"postgres://{user}@127.0.0.1:{cluster.port}/odoo", "--json", "--drain", drain, *args]
        env = dict(os.environ)
        if weir:
            argv += ["--through", f"127.0.0.1:{weir.port}", "--admin", f"127.0.0.1:{weir.admin_port}"]
            env["PGWEIR_PASSWORD"] = weir.password
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, env=env, timeout=timeout)
        assert "panicked" not in done.stderr, done.stderr
        return done, json.loads(done.stdout) if done.stdout.startswith("{") else None
    return play


def schema(cluster):
    return cluster.sql("select 1 from pg_namespace where nspname = 'pgweir_drill'", dbname="odoo")


def weir_for(make_weir, **more):
    leaks = {"warn": "500ms", "reset": "1s", "action": "rollback"}
    return make_weir(lanes=[lane("web", match=[{"application": "odoo*"}], quota=20, idle_in_transaction=leaks),
                            lane("other", default=True, quota=10)], **more)


def test_refuses_what_does_not_say_it_is_staging(cluster, drill):
    done, _ = drill(PHASES + WEB)
    assert done.returncode == REFUSED and "--i-know-this-is-staging" in done.stderr
    assert not schema(cluster)


def test_refuses_a_schema_that_no_drill_made(cluster, drill, staging):
    cluster.sql("create schema pgweir_drill; create table pgweir_drill.precious (id int)", dbname="odoo")
    try:
        done, _ = drill(PHASES + WEB)
        assert done.returncode == REFUSED and "pgweir_drill" in done.stderr
        assert cluster.sql("select * from pgweir_drill.precious", dbname="odoo") == []
    finally:
        cluster.sql("drop schema pgweir_drill cascade", dbname="odoo")


def test_a_wrong_scenario_is_told_with_every_line(drill, staging):
    done, _ = drill(PHASES + WEB + "colour = 1\n[[actor]]\nkind = \"wombat\"\n")
    assert done.returncode == REFUSED
    assert "colour" in done.stderr and "wombat" in done.stderr


def test_the_same_seed_is_the_same_load_and_the_schema_is_gone(cluster, drill, staging):
    text = PHASES + WEB.replace("hot = 0.3", "hot = 0.0") + '[expect]\nrules = ["web.failures == 0", "lost.commits == 0"]\n'
    seen = [drill(text, "--seed", seed)[1]["runs"][0]["lanes"] for seed in (7, 7, 8)]
    counts = [(lanes["web"]["ok"], lanes["notify"]["ok"]) for lanes in seen]
    assert counts[0] == counts[1] != counts[2]
    assert not schema(cluster)


def test_the_object_has_the_contracts_shape(drill, staging):
    done, out = drill(PHASES + WEB + '[expect]\nrules = ["web.failures == 0"]\nrecover_within = "20s"\n')
    # How fast this machine is at the moment is not the question: a slow last second is no recovery.
    assert done.returncode == (HELD if all(rule["held"] for rule in out["expect"]) else NOT_HELD), done.stdout
    (run,) = out["runs"]
    assert run["through"] == "direct" and run["upstream_peak"] > 0
    # A bad second in the middle is recovered from.
    assert run["recovered_after_s"] is None or 0 <= run["recovered_after_s"] <= 30
    web = run["lanes"]["web"]
    assert {"attempts", "ok", "user_failures", "failures", "p50_ms", "p90_ms", "p99_ms", "max_ms", "wait_p99_ms"} <= set(web)
    assert web["attempts"] == web["ok"] + sum(web["failures"].values())
    assert run["details"]["orders_told_saved"] == web["ok"] and run["details"]["orders_lost"] == 0
    assert {"rule", "through", "held", "measured"} <= set(out["expect"][0])


def test_refusals_reach_the_user_as_odoo_shows_them(cluster, drill, staging):
    """Bypass fills PostgreSQL: a notification that is refused fails a request whose data is there."""
    text = LONG + WEB.replace("hot = 0.3", "notify = 1.0") + '[[actor]]\nkind = "bypass"\nphases = ["incident"]\ncount = 60\n'
    done, out = drill(text + '[expect]\nrules = ["web.failures == 0"]\n')
    assert done.returncode == NOT_HELD
    lanes = out["runs"][0]["lanes"]
    assert lanes["notify"]["failures"]["53300"] > 0 and lanes["web"]["user_failures"] > 0
    # 40 less 3 reserved and the drill's own two are 35; seen four times a second.
    assert 33 <= out["runs"][0]["upstream_peak"] <= 35


def test_connections_are_bounded_and_the_drill_says_that_it_was_the_bottleneck(drill, staging):
    text = PHASES + WEB + '[[actor]]\nkind = "hoard"\ncount = 30\n'
    _, out = drill(text, "--max-connections", 12, drain="1s")
    run = out["runs"][0]
    assert run["upstream_peak"] <= 12
    assert "--max-connections" in run["details"]["generator"]["bottleneck"]


def test_a_leak_is_reset_through_pgweir_and_not_in_observe_mode(make_weir, drill, staging):
    """The same expectation holds with the guard and fails without: the drill can fail."""
    text = LONG + WEB + LEAK + '[expect]\nrules = ["web.failures == 0", "locks.blocked <= 6s"]\n'
    done, out = drill(text, "--skip-direct", weir=weir_for(make_weir))
    assert done.returncode == HELD, out["verdict"]
    done, out = drill(text, "--skip-direct", weir=weir_for(make_weir, mode="observe"), drain="1s")
    assert done.returncode == NOT_HELD
    assert not any(verdict["held"] for verdict in out["expect"])


def test_the_operators_acts_reach_the_console(make_weir, drill, staging):
    weir = weir_for(make_weir)
    act = '[[action]]\nat = "1s"\nconsole = "{}"\n'
    done, out = drill(PHASES + WEB + act.format("NOTE 'from the drill'"), "--skip-direct", weir=weir)
    assert done.returncode == HELD and weir.timeline_has("from the drill")
    done, out = drill(PHASES + WEB + act.format("PAUSE LANE nosuch"), "--skip-direct", weir=weir)
    assert done.returncode == NOT_HELD and "nosuch" in out["verdict"]


def test_commands_need_permission(tmp_path, drill, staging):
    mark = tmp_path / "mark"
    text = PHASES + WEB + f"[[action]]\nat = \"1s\"\nrun = 'echo $DRILL_WAY > {mark}'\n"
    assert drill(text)[0].returncode == NOT_HELD and not mark.exists()
    assert drill(text, "--allow-commands")[0].returncode == HELD and mark.read_text() == "direct\n"


def test_killed_workers_leave_orphans_and_the_report_is_one_file(cluster, drill, staging, tmp_path):
    page = tmp_path / "report.html"
    text = PHASES + WEB + '[[actor]]\nkind = "killed"\nphases = ["incident"]\ncount = 3\nwork = "8s"\n'
    _, out = drill(text, "--report", page)
    assert out["runs"][0]["lanes"]["killed"]["ok"] == 3
    html = page.read_text()
    assert "web requests, direct" in html and "uPlot" in html and "src=" not in html.split("<script>")[0]
    looks_right_in_a_browser(page)
    eventually(lambda: cluster.count("odoo-%") == 0, timeout=60)


FRAME = """<!doctype html><iframe id="f" src="PAGE" style="width:390px;height:800px;border:0"></iframe><pre id="o"></pre><script>
document.getElementById("f").onload = () => setTimeout(() => {
  const w = document.getElementById("f").contentWindow, d = w.document;
  document.getElementById("o").textContent = [d.documentElement.scrollWidth, w.getComputedStyle(d.body).backgroundColor,
    d.querySelectorAll("canvas").length].join(" | ");
}, 1000);</script>"""


def looks_right_in_a_browser(page):
    """At the width of a phone nothing but its tables scrolls sideways, and it is as dark as the reader's system."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "script/setup test installs Chromium"
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("PAGE", page.name))
    grounds = []
    for scheme in (0, 1):
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={page.parent / 'chromium'}",
                 f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=4000", "--window-size=600,900", "--dump-dom"]

        def looked():
            dom = subprocess.run([browser, *flags, frame.as_uri()], capture_output=True, text=True, timeout=120).stdout
            return re.search(r'<pre id="o">(.+?)</pre>', dom)
        # Its time is not the machine's: now and then it is over before the page is there.
        width, ground, plots = eventually(looked, timeout=60)[1].split(" | ")
        assert int(width) <= 390 and int(plots) >= 3
        grounds.append(sum(int(part) for part in re.findall(r"\d+", ground)[:3]))
    assert grounds[0] < 150 and grounds[1] > 600, "dark, then light"


def test_what_a_crash_left_is_cleared_at_the_next_start(cluster, tmp_path, drill, staging):
    file = tmp_path / "crash.toml"
    file.write_text(PHASES + WEB)
    url = f"postgres://odoo@127.0.0.1:{cluster.port}/odoo"
    process = subprocess.Popen([str(BINARY), "drill", str(file), "--target", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: schema(cluster))
    process.kill()
    process.wait(10)
    assert schema(cluster)
    eventually(lambda: cluster.count("pgweir drill") == 0)
    assert drill(PHASES + WEB)[0].returncode == HELD
    assert not schema(cluster)

# -- each shipped scenario, short --------------------------------------------------------------------------------

SCENARIOS = sorted((ROOT / "config" / "drills").glob("*.toml"))
# What a guard must hold on any machine. How fast is for a quiet one: rules on times are loosened or left to the comparison in docs/drill.md.
TIMES = ("p99", "p90", "p50", "max")
SHORT = {"runbook": "24s", "leak": "16s"}
# A restart takes seconds, and is over before the recovery begins.
RESTART = {"steady": "2s", "incident": "16s", "recovery": "4s"}


@pytest.fixture(scope="module")
def ground():
    """A staging server of the size the shipped scenarios want, with hands on it, and a pgweir as a shipped configuration has it."""
    cluster = rehearsal.staging(**rehearsal.Hands.SETTINGS)
    hands = rehearsal.Hands(cluster)
    weirs = []

    def weir(config="odoo.toml", **more):
        weirs.append(Weir(cluster, **{**rehearsal.odoo_config(QUICK, config), **more}).start())
        return weirs[-1]

    try:
        yield cluster, hands, weir
    finally:
        hands.close()
        for one in weirs:
            one.close()
        cluster.close()


QUICK = {"warn": "500ms", "reset": "1s", "when": "harm", "cap": "10m", "action": "rollback"}


def shortened(path, tmp_path, rates=0.5):
    """The scenario for a slow machine: half the load, and no rule on percentiles."""
    scenario = tomllib.loads(path.read_text())
    for actor in scenario["actor"]:
        if "rate" in actor and actor["kind"] != "leak":
            # Each lane that a rule speaks of must have had something to do.
            actor["rate"] = max(0.8, actor["rate"] * rates)
    rules = [rule for rule in scenario["expect"]["rules"] if not any(f".{figure}" in rule for figure in TIMES)]
    # Nor on recovery, which a busy machine's last second decides. A reset comes after 1 s here: five are left for the machine.
    scenario["expect"] = {"rules": [rule.replace("locks.late <= 1s", "locks.late <= 6s") for rule in rules]}
    rules = scenario["expect"]["rules"]
    if path.stem == "upstream-restart":
        for phase in scenario["phase"]:
            phase["duration"] = RESTART[phase["name"]]
        scenario["action"][0]["after"] = "1s"
    if any("locks.late" in rule for rule in rules):
        scenario["expect"]["reset"] = QUICK["reset"]
    file = tmp_path / path.name
    file.write_text(toml(scenario))
    return file, rules


def rehearse(file, cluster, *args, env=None, weir=None, drain="30s"):
    argv, env = rehearsal.drill(file, cluster, "--json", "--drain", drain, "--allow-commands", *args, weir=weir, env=env)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=180)
    assert "panicked" not in done.stderr and done.stdout.startswith("{"), done.stderr
    return done.returncode, json.loads(done.stdout)


# Every scenario with the configuration that rehearsals take, and those in which lanes matter most without pooling too.
PLAYED = [pytest.param(path, config, id=f"{path.stem}-{config.removesuffix('.toml')}")
          for path in SCENARIOS for config in ("odoo.toml", "odoo-pooled.toml")
          if config == "odoo-pooled.toml" or path.stem in ("cron-storm", "leak", "runbook")]


@pytest.mark.parametrize("path, config", PLAYED)
def test_every_shipped_scenario_holds_through_pgweir(path, config, ground, tmp_path):
    cluster, hands, make = ground
    file, rules = shortened(path, tmp_path)
    weir = make(config)
    duration = [] if path.stem == "upstream-restart" else ["--duration", SHORT.get(path.stem, "10s")]
    status, out = rehearse(file, cluster, "--skip-direct", *duration, env=hands.commands, weir=weir)
    (run,) = out["runs"]
    assert status == HELD, (out["verdict"], run)
    assert {verdict["rule"] for verdict in out["expect"]} >= set(rules)
    # The soak's leaks are too rare for so short a run.
    if path.stem != "soak" and any(actor["kind"] == "leak" for actor in tomllib.loads(file.read_text())["actor"]):
        assert run["details"]["leak_lock_held_s"] > 0, "the leaks were seen, whatever PostgreSQL calls them"
    assert run["lanes"]["web"]["ok"] > 50 and all(act["outcome"] == "done" for act in run["details"]["actions"])
    if path.stem == "upstream-restart":
        assert hands.restarts == 1
    weir.close()


def test_strangers_take_no_reserve_that_is_kept_open(ground, tmp_path):
    """Notifications are connections of their own, and wait where nothing is open: here until transactions of 10 s give links back."""
    cluster, _, make = ground
    scenario = tomllib.loads((ROOT / "config" / "drills" / "bypass.toml").read_text())
    for actor in scenario["actor"]:
        actor.update({"work": "10s"} if "work" in actor else {"notify": 1.0, "rate": 6} if actor["kind"] == "web" else {})
    scenario["expect"] = {"rules": ["notify.failures == 0", "notify.max <= 4500ms"]}
    file = tmp_path / "bypass.toml"
    file.write_text(toml(scenario))
    for config, expected in (("odoo.toml", [True, False]), ("odoo-pooled.toml", [True, True])):
        weir = make(config)
        _, out = rehearse(file, cluster, "--skip-direct", "--duration", "30s", weir=weir)
        weir.close()
        assert [verdict["held"] for verdict in out["expect"]] == expected, (config, out["expect"])


# -- that a drill can fail ---------------------------------------------------------------------------------------

FILL = PHASES.replace('duration = "4s"', 'duration = "6s"') + """
[[actor]]
kind = "web"
workers = 6
rate = 20
notify = 1.0
[[actor]]
kind = "storm"
phases = ["incident"]
workers = 150
work = "2s"
"""
# Users that want one of twenty rows seldom meet each other there, and each leak now and then: without a guard both workers wait in the end.
# The longest a user may wait where leaks are reset after 1 s leaves room for Odoo's sleeps between tries and for a machine that stands still;
# where they are not, it is until the end.
LOCK = PHASES.replace('duration = "4s"', 'duration = "12s"').replace('name = "recovery"\nduration = "2s"', 'name = "recovery"\nduration = "6s"') \
    + WEB.replace("workers = 4", "workers = 2").replace("0.3", "0.1") + LEAK.replace("count = 4", "count = 8")
# Requests that wait 2 s for somebody outside, and go on.
HURT = LONG + WEB.replace("0.3", "0.0") + LEAK.replace("count = 4", "count = 20").replace('"10m"', '"2s"')
# The same without an end, and workers enough that it is the work that takes long and not the wait for a worker.
STUCK = LONG + WEB.replace("workers = 4", "workers = 8").replace("rate = 30", "rate = 10").replace("0.3", "1.0") + LEAK.replace("count = 4", "count = 8")
# Each kind of rule, on the incident it is about.
MUST_FAIL = {
    "upstream.peak": (FILL, "upstream.peak <= 70"),
    "upstream.peak_percent": (FILL, "upstream.peak_percent < 75"),
    "errors": (LOCK, "web.errors <= 40"),
    "ok": (LOCK, "web.ok in recovery >= 60"),
    "wait_p99": (LOCK, "web.wait_p99 in incident <= 7s"),
    "locks.late": (LOCK, "locks.late <= 7s"),
    # A leak that is reset is repeated by its client; left alone it just commits.
    "retries": (HURT, "leak.retries >= 4"),
    "attempts": (HURT, "leak.attempts >= 24"),
    "service_p99": (STUCK, "web.service_p99 in incident <= 6s"),
    "failures": (LOCK, "web.failures == 0"),
    "failures in a phase": (LOCK, "web.failures in incident == 0"),
    "max": (LOCK, "web.max in incident <= 8s"),
    "p99": (LOCK, "web.p99 in incident <= 7s"),
    "times steady": (LOCK, "web.p50 <= 30 * steady"),
    "unfinished": (LOCK, "web.unfinished == 0"),
    "locks.held": (LOCK, "locks.held <= 8s"),
    "locks.blocked": (LOCK, "locks.blocked <= 7s"),
    "recover_within": (LOCK, None),
}


def test_each_kind_of_rule_is_among_them():
    """But `lost.commits`, which no guard can help: see below. And percentiles are one kind."""
    source = (ROOT / "src" / "drill" / "expect.rs").read_text()
    figures = re.findall(r'\("(\w+)", Figure', source) + [".".join(pair) for pair in re.findall(r'\("(\w+)", "(\w+)", Figure', source)]
    assert len(figures) > 15 and set(figures) - set(MUST_FAIL) == {"p50", "p90", "lost.commits"}


def is_slow(run):
    """Whether some user had to wait though none was failed."""
    return run["lanes"]["web"]["user_failures"] == 0 and run["lanes"]["web"]["max_ms"] > 250


@pytest.mark.parametrize("scenario", [FILL, LOCK, HURT, STUCK], ids=["full", "locked", "hurt", "stuck"])
def test_each_kind_of_rule_holds_in_enforce_and_fails_in_observe(scenario, ground, tmp_path):
    cluster, _, make = ground
    rules = [rule for of, rule in MUST_FAIL.values() if of is scenario and rule]
    file = tmp_path / "must-fail.toml"
    within = 'recover_within = "6s"\n' if scenario is LOCK else ""
    reset = 'reset = "1s"\n' if scenario is LOCK else ""
    file.write_text(scenario + f"[expect]\nrules = {json.dumps(rules)}\n{within}{reset}")
    for mode in ("enforce", "observe"):
        # Left alone, a leak that does no harm has its victim later, perhaps in the run's last second.
        weir = make(mode=mode, limits={"max_resets_per_minute": 60}, lanes=rehearsal.odoo_config({**QUICK, "when": "always"})["lanes"])
        status, out = rehearse(file, cluster, "--skip-direct", "--max-connections", 300, weir=weir, drain="30s" if mode == "enforce" else "3s")
        weir.close()
        seen = {verdict["rule"]: (verdict["held"], verdict["measured"]) for verdict in out["expect"]}
        assert len(seen) == len(rules) + bool(within)
        wrong = {rule: measured for rule, (held, measured) in seen.items() if held != (mode == "enforce")}
        if mode == "enforce" and within and is_slow(out["runs"][0]):
            # What a quarter of a second is too slow for is no recovery; that is the machine's.
            wrong.pop('recover_within = "6s"', None)
        assert not wrong, mode
        assert status == (HELD if all(held for held, _ in seen.values()) else NOT_HELD)


class Liar:
    """Passes everything on, but for COMMIT, of which it sends ROLLBACK on and tells the client that it worked."""

    TO_SERVER = (b"Q\0\0\0\x0bCOMMIT\0", b"Q\0\0\0\x0dROLLBACK\0")
    TO_CLIENT = (b"C\0\0\0\x0dROLLBACK\0", b"C\0\0\0\x0bCOMMIT\0")

    def __init__(self, port):
        self.to = port
        self.door = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self.door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.door.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                for ends in ((client, server, self.TO_SERVER), (server, client, self.TO_CLIENT)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    @staticmethod
    def _pass(source, sink, lie):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data.replace(*lie))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_commits_that_users_were_told_of_and_that_are_not_there_are_found(cluster, drill, staging):
    liar = Liar(cluster.port)
    text = PHASES + WEB.replace("hot = 0.3", "notify = 0.0") + '[expect]\nrules = ["web.failures == 0", "lost.commits == 0"]\n'
    try:
        done, out = drill(text, "--through", f"liar=127.0.0.1:{liar.port}", "--skip-direct")
    finally:
        liar.door.close()
    assert done.returncode == NOT_HELD
    assert [verdict["held"] for verdict in out["expect"]] == [True, False], out["expect"]
    details = out["runs"][0]["details"]
    assert details["orders_lost"] == details["orders_told_saved"] > 50


def test_the_rehearsals_object_is_all_that_is_printed_or_goes_to_a_file(tmp_path):
    """`script/demo` is the same program. Which figures it measured is not the question here."""
    rehearse_py = [sys.executable, ROOT / "script" / "rehearse.py", "steady", "--duration", "2s", "--report", tmp_path / "r.html"]
    env = {**os.environ, "PGWEIR_BINARY": str(BINARY)}
    done = subprocess.run([*rehearse_py, "--json"], capture_output=True, text=True, timeout=180, env=env)
    assert [run["through"] for run in json.loads(done.stdout)["runs"]] == ["direct", "pgweir"], done.stderr
    file = tmp_path / "{scenario}.json"
    done = subprocess.run([*rehearse_py, "--json", file], capture_output=True, text=True, timeout=180, env=env)
    told = json.loads((tmp_path / "steady.json").read_text())
    assert done.stdout.splitlines()[:2] == [told["sentence"], told["verdict"]]
