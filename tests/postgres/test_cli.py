"""The operator's commands: what they print, what they do, and with which status they end."""

import json

import psycopg2
import pytest

from harness import background, eventually, free_port, lane
from harness import wire

pytestmark = pytest.mark.weir

DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3


@pytest.fixture(scope="module")
def weir(make_module_weir, cluster):
    cluster.sql("create table cli (id int); grant all on cli to public")
    return make_module_weir(lanes=[lane("web", quota=5, priority=0), lane("cron", freeze=True),
                                   lane("reports", freeze=True, on_pause="reject"), lane("other", default=True, quota=20)])


@pytest.fixture(autouse=True)
def thawed(weir):
    """Nothing is left of the test before: its links have ended when its slots are free."""
    eventually(weir.drained)
    yield
    weir.admin("RESUME ALL")


def run(weir, *args, status=DONE, **more):
    done = weir.cli(*args, **more)
    assert done.returncode == status, f"{args}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "panicked" not in done.stderr
    return done


# -- reading -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("command", ["status", "lanes", "clients", "sessions", "leaks", "usage", "timeline"])
def test_tables_and_json(weir, tidy, command):
    tidy(weir.raw("web")).ok("begin")
    weir.admin("NOTE 'something to show'")
    text = run(weir, command).stdout
    assert text.strip() or command == "leaks"
    data = json.loads(run(weir, command, "--json").stdout)
    assert isinstance(data, (list, dict))


def test_lanes(weir, tidy):
    tidy(weir.raw("web"))
    text = run(weir, "lanes").stdout
    assert "web" in text and "cron" in text and "open" in text
    data = json.loads(run(weir, "lanes", "--json").stdout)
    rows = data if isinstance(data, list) else data["lanes"]
    web = next(r for r in rows if r["lane"] == "web")
    assert (web["slots"], web["quota"], web["state"]) == (1, 5, "open")


def test_status_opens_with_a_verdict_and_names_the_next_command(weir):
    calm = run(weir, "status").stdout
    assert calm.strip().splitlines()[0]
    weir.admin("FREEZE REASON 'the drill'")
    frozen = run(weir, "status").stdout
    assert "cron" in frozen and "pgweir resume" in frozen
    assert frozen.splitlines()[0] != calm.splitlines()[0]


def test_usage(weir):
    data = json.loads(run(weir, "usage", "--json").stdout)
    row = data[0] if isinstance(data, list) else data
    assert row["max_connections"] == weir.cluster.max_connections and 0 < row["percent"] < 100


def test_admin_address_and_password_from_the_environment(weir):
    done = weir.cli("lanes", "--admin", f"127.0.0.1:{weir.admin_port}", config=False, env={"PGWEIR_PASSWORD": weir.password})
    assert done.returncode == DONE, done.stderr
    done = weir.cli("lanes", "--admin", f"127.0.0.1:{weir.admin_port}", config=False, env={"PGWEIR_PASSWORD": "wrong"})
    assert done.returncode in (REFUSED, UNREACHABLE) and "password" in done.stderr


# -- doing -------------------------------------------------------------------------------------------------------

def test_freeze_and_resume(weir):
    run(weir, "freeze", "--reason", "by hand")
    assert weir.lane("cron")["state"] == weir.lane("reports")["state"] == "paused"
    assert weir.timeline_has("freeze", "by hand")
    run(weir, "resume", "cron")
    assert weir.lane("cron")["state"] == "open"
    run(weir, "resume", "reports", "--over", "10m")
    assert weir.lane("reports")["state"] == "ramping"
    run(weir, "pause", "reports")
    run(weir, "resume", "reports", "--over", "1s")
    eventually(lambda: weir.lane("reports")["state"] == "open")


def test_pause_and_drain(weir):
    run(weir, "pause", "web", "--for", "10m", "--reason", "why not")
    assert weir.lane("web")["state"] == "paused"
    run(weir, "resume", "web")
    client = weir.raw("reports")
    run(weir, "drain", "reports")
    assert client.error()["C"] == "57P01"


def test_set_note_reload(weir):
    run(weir, "set", "web", "quota=3")
    assert weir.lane("web")["quota"] == 3
    run(weir, "note", "seen at the console")
    assert weir.timeline_has("seen at the console")
    assert not weir.timeline_has("seen at the console", "--config"), "an option is no part of the note"
    run(weir, "reload")
    assert weir.lane("web")["quota"] == 5


def test_cancel_reset_kill(weir, cluster):
    client = weir.raw("web")
    number = str(weir.client("web")["id"])
    client.send(wire.query("select pg_sleep(60)"))
    eventually(lambda: cluster.activity("web", "wait_event = 'PgSleep'"))
    run(weir, "cancel", number)
    assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]
    client.ok("begin")
    client.ok("insert into cli values (1)")
    run(weir, "reset", number)
    eventually(lambda: cluster.activity("web", "state = 'idle in transaction (aborted)'"))
    assert wire.states(client.query("commit")) == [("E", "40001"), ("Z", "I")]
    run(weir, "kill", number)
    assert client.error()["C"] == "57P01"


@pytest.mark.parametrize("args", [("pause", "nosuch"), ("resume", "nosuch"), ("drain", "nosuch"), ("kill", "999999999"), ("reset", "999999999"),
                                  ("cancel", "999999999"), ("set", "nosuch", "quota=1")], ids=" ".join)
def test_refused(weir, args):
    done = run(weir, *args, status=REFUSED)
    assert args[1] in done.stderr + done.stdout


@pytest.mark.parametrize("args", [("nosuch",), (), ("pause",), ("kill", "x"), ("resume", "web", "--over", "soon"), ("lanes", "--nosuch"),
                                  ("set", "web", "quota=x")], ids=lambda a: " ".join(a) or "nothing")
def test_usage_errors(weir, args):
    done = weir.cli(*args, config=bool(args) and args[0] != "nosuch")
    assert done.returncode == USAGE, (done.returncode, done.stderr)
    assert done.stderr.strip()


def test_unreachable(weir):
    done = weir.cli("lanes", "--admin", f"127.0.0.1:{free_port()}", config=False, env={"PGWEIR_PASSWORD": "x"})
    assert done.returncode == UNREACHABLE and done.stderr.strip()


def test_no_configuration_file(weir):
    done = weir.cli("lanes", "--config", "/nonexistent/pgweir.toml", config=False)
    assert done.returncode in (USAGE, UNREACHABLE) and "/nonexistent/pgweir.toml" in done.stderr


# -- check -------------------------------------------------------------------------------------------------------

def test_check_of_a_good_file(weir):
    run(weir, "check")


def test_check_names_everything_wrong_at_once(make_weir):
    weir = make_weir(start=False, lanes=[
        lane("web", quota=3, reserve=5, shed_above=60, shed_below=70, colour="red"),
        lane("web", quota=1, match=[{"application": "again*"}]),
        lane("catchall", match=[{"application": "*"}]),
        lane("late", match=[{"application": "late*"}], priority=99),
    ], applications=[{"match": "*", "name": "all", "quota": 0}], nonsense=True)
    weir.write()
    done = run(weir, "check", status=REFUSED)
    text = done.stdout + done.stderr
    for word in ("nonsense", "colour", "reserve", "shed_below", "priority", "default"):
        assert word in text, f"{word} is not reported:\n{text}"
    source = weir.config_file.read_text().splitlines()
    line = next(i for i, row in enumerate(source, 1) if row.startswith("colour"))
    assert str(line) in text, f"line {line} is not named:\n{text}"


@pytest.mark.parametrize("change, word", [
    ({"lanes": [lane("web"), lane("other", default=True), lane("more", default=True)]}, "default"),
    ({"lanes": [lane("catchall", match=[{"application": "*"}]), lane("web"), lane("other", default=True)]}, "web"),
    ({"applications": [{"match": "web*", "name": "app", "quota": 2}], "lanes": [lane("web", reserve=5), lane("other", default=True)]}, "reserve"),
    ({"lanes": [lane("web", wait_timeout="soon"), lane("other", default=True)]}, "wait_timeout"),
    ({"lanes": [lane("web", match=[{"colour": "red"}]), lane("other", default=True)]}, "colour"),
    ({"lanes": [lane("web", match=[{"address": "127.0.0.0/99"}]), lane("other", default=True)]}, "address"),
    ({"mode": "maybe"}, "mode"),
    ({"limits": {"max_clients": -1}}, "max_clients"),
])
def test_run_refuses_what_check_refuses(make_weir, change, word):
    weir = make_weir(start=False, **change)
    weir.write()
    assert word in "".join((run(weir, "check", status=REFUSED).stdout, weir.cli("check").stderr))
    done = weir.cli("run", timeout=60)
    assert done.returncode != 0 and word in done.stderr + done.stdout


def test_check_of_no_toml_at_all(make_weir):
    weir = make_weir(start=False)
    weir.config_file.write_text("this is [not\ntoml")
    assert "1" in run(weir, "check", status=REFUSED).stderr + weir.cli("check").stdout


def test_reserves_beyond_the_budget(make_weir, cluster):
    """Only PostgreSQL knows the budget: `check` asks it where it can."""
    weir = make_weir(start=False, lanes=[lane("web", quota=500, reserve=400), lane("other", default=True)])
    weir.write()
    done = weir.cli("check")
    assert "reserve" in done.stdout + done.stderr


def test_commands_wait_for_nobody(weir, tidy):
    for _ in range(5):
        tidy(weir.raw("web"))
    waiting = background(weir.connect, "web")
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    run(weir, "status", timeout=25)
    row = next(row for row in weir.clients("web") if row["state"] == "idle")
    run(weir, "kill", str(row["id"]))
    conn = waiting.result(60)
    assert isinstance(conn, psycopg2.extensions.connection)
    conn.close()
