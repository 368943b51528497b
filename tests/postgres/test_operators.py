"""One incident and three operators: by CLI alone, by psql alone, by browser alone. After each step all three ways show the same figures."""

import json
import re
import subprocess
import threading

import psycopg2
import pytest

from harness import background, eventually, lane

pytestmark = [pytest.mark.weir, pytest.mark.timeout(400)]

REASON = "shop is slow"


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


@pytest.fixture
def weir(make_weir):
    idle = {"warn": "300ms", "action": "none"}
    return make_weir(lanes=[lane("cron", match=[{"application": "cron*"}], quota=4, priority=5, freeze=True, idle_in_transaction=idle),
                            lane("web", match=[{"application": "web*"}], quota=20, priority=0, idle_in_transaction=idle),
                            lane("other", default=True, quota=5)],
                     exit={"hold_for": "2s", "usage_below": 90, "critical_lanes": ["web"]})


class Cli:
    """What `pgweir` says and does."""

    def __init__(self, weir):
        self.weir = weir

    def table(self, command):
        done = self.weir.cli(command, "--json")
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    def figures(self):
        lanes = {row["lane"]: (row["state"], row["slots"], row["quota"], row["waiting"], row["reason"]) for row in self.table("lanes")}
        found = self.table("exit")
        criteria = found["criteria"] if isinstance(found, dict) else found
        return {"lanes": lanes, "leaks": sorted(row["id"] for row in self.table("leaks")),
                "exit": {row["criterion"]: row["state"] for row in criteria}}

    def act(self, *args):
        done = self.weir.cli(*args)
        assert done.returncode == 0, done.stdout + done.stderr

    def freeze(self):
        self.act("freeze", "--reason", REASON)

    def reset(self, client):
        self.act("reset", str(client))

    def resume(self, name):
        self.act("resume", name)

    def is_over(self):
        return self.weir.cli("exit").returncode == 0


class Psql:
    """The console, by the program that everybody has."""

    def __init__(self, weir):
        self.weir = weir

    def rows(self, sql):
        done = subprocess.run(["psql", "-XAt", "-F", "\x1f", "-v", "ON_ERROR_STOP=1", "-P", "tuples_only=off", "-P", "footer=off", "-c", sql,
                               f"host=127.0.0.1 port={self.weir.admin_port} user=admin dbname=pgweir password={self.weir.password}"],
                              text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        lines = [line.split("\x1f") for line in done.stdout.splitlines()]
        return [dict(zip(lines[0], line)) for line in lines[1:]] if lines else []

    def figures(self):
        lanes = {row["lane"]: (row["state"], int(row["slots"]), int(row["quota"]), int(row["waiting"]), row["reason"]) for row in self.rows("SHOW LANES")}
        return {"lanes": lanes, "leaks": sorted(int(row["id"]) for row in self.rows("SHOW LEAKS")),
                "exit": {row["criterion"]: row["state"] for row in self.rows("SHOW EXIT")}}

    def freeze(self):
        self.rows(f"FREEZE REASON '{REASON}'")

    def reset(self, client):
        self.rows(f"RESET CLIENT {client}")

    def resume(self, name):
        self.rows(f"RESUME LANE {name}")

    def is_over(self):
        return all(row["state"] == "met" for row in self.rows("SHOW EXIT"))


class Browser:
    """The page, by what is to be read on it, and its buttons."""

    def __init__(self, weir, browser):
        self.context = browser.new_context(http_credentials={"username": "admin", "password": weir.password}, reduced_motion="reduce")
        self.page = self.context.new_page()
        self.page.goto(f"http://127.0.0.1:{weir.admin_port}/")
        self.page.wait_for_selector("#link.live")

    def close(self):
        self.context.close()

    def figures(self):
        lanes = {}
        for item in self.page.locator("li.lane").all():
            said = item.locator(".figures").inner_text()
            slots, quota = map(int, re.match(r"(\d+) of (\d+)", said).groups())
            waiting = re.search(r"(\d+) waiting", said)
            why = item.locator(".why")
            lanes[item.get_by_role("heading").inner_text()] = (
                item.locator(".state").inner_text(), slots, quota, int(waiting[1]) if waiting else 0, why.inner_text() if why.is_visible() else "")
        # In one look: a row may be gone before the next.
        names = self.page.locator("li.leak button").evaluate_all("buttons => buttons.map(button => button.getAttribute('aria-label'))")
        leaks = [int(re.search(r"client (\d+)", name)[1]) for name in names]
        criteria = {}
        for item in self.page.locator("#exit > li").all():
            criteria[item.locator("b").inner_text().replace(" ", "_", 2 if item.locator("b").inner_text().startswith("too") else 0)] = \
                re.match(r"(.*) for ", item.locator(".state-word").inner_text())[1]
        return {"lanes": lanes, "leaks": sorted(leaks), "exit": criteria}

    def confirm(self):
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill(REASON)
        dialog.locator("#ask-yes").click()
        dialog.wait_for(state="hidden")

    def freeze(self):
        self.page.locator("#freeze").click()
        self.confirm()

    def reset(self, client):
        self.page.get_by_role("button", name=re.compile(f"^Reset client {client} ")).click()
        self.confirm()

    def resume(self, name):
        self.page.get_by_role("button", name=f"Resume lane {name}", exact=True).click()
        self.page.get_by_label("How fast").select_option(label="at once")
        self.confirm()

    def is_over(self):
        return "No incident is open" in self.page.locator("#incident").inner_text()


@pytest.fixture
def ways(weir, browser):
    page = Browser(weir, browser)
    yield {"cli": Cli(weir), "psql": Psql(weir), "browser": page}
    page.close()


def same(ways):
    """The figures on which all three agree. The page hears of a change within a second, so what changes meanwhile is looked at again."""
    def look():
        one, two, three = (way.figures() for way in ways.values())
        for found in (one, two, three):
            # A reason has an age in it, and the page says who paused behind it: of that the first words must do.
            found["lanes"] = {name: (*row[:4], re.split(" since | for | by ", row[4])[0]) for name, row in found["lanes"].items()}
        assert one == two and one == three
        return one
    return eventually(look, timeout=60, what="the same figures everywhere")


@pytest.mark.parametrize("name", ["cli", "psql", "browser"])
def test_an_incident_by_one_way_alone(name, weir, ways, cluster, tidy):
    operator = ways[name]
    cluster.sql("create table if not exists operated (n int)")
    cluster.sql("grant all on operated to public")
    leak = tidy(weir.connect("web leak"))
    leak.cursor().execute("insert into operated values (1)")
    user = tidy(weir.connect("web user", autocommit=True))
    job = tidy(weir.connect("cron 1", autocommit=True))
    job.cursor().execute("select 1")
    (client,) = eventually(lambda: same(ways)["leaks"], timeout=60)

    operator.freeze()
    waits = background(weir.connect, "cron 2", connect_timeout=400)
    eventually(lambda: weir.lane("cron")["waiting"] == 1)
    seen = same(ways)["lanes"]["cron"]
    assert seen[0] == "paused" and seen[3] == 1 and REASON in seen[4]
    eventually(lambda: weir.timeline_has("freeze", "admin", REASON) and weir.timeline_has("incident_opened"))

    operator.reset(client)
    eventually(lambda: cluster.value("select count(*) from pg_locks where relation = 'operated'::regclass") == 0)
    # It is listed until it has been told.
    assert same(ways)["leaks"] == [client]
    with pytest.raises(psycopg2.errors.SerializationFailure):
        leak.cursor().execute("select 1")
    leak.rollback()
    eventually(lambda: same(ways)["leaks"] == [], timeout=60)
    assert cluster.value("select count(*) from operated") == 0

    operator.resume("cron")
    waits.result(60).close()
    eventually(lambda: same(ways)["lanes"]["cron"][:4] == ("open", 1, 4, 0), timeout=60)

    # Users go on, however long it takes to ask three ways: a lane without commits is not well.
    over = threading.Event()

    def works():
        while not over.wait(0.1):
            with user.cursor() as cursor:
                cursor.execute("begin; insert into operated values (2); commit")
    working = background(works)
    try:
        eventually(lambda: operator.is_over() and set(same(ways)["exit"].values()) == {"met"}, timeout=120, what="the criteria are met")
    finally:
        over.set()
        working.result(60)
    cluster.sql("truncate operated")
    eventually(lambda: weir.timeline_has("incident_closed"))
