"""What lanes used, kept over restarts, and what `pgweir suggest` makes of it."""

import json
import time

import psycopg2
import pytest

from harness import eventually, lane
from harness.util import background

pytestmark = pytest.mark.weir

HOUR = 3600
LEAK = {"warn": "1s", "reset": "10m", "action": "rollback"}
LANES = [lane("web", quota=3, reserve=1, priority=0, wait_timeout="60s", idle_in_transaction=LEAK),
         lane("cron", quota=6, priority=5, shed_above=90, idle_in_transaction=LEAK),
         lane("other", default=True, quota=8, priority=9)]


def peaks(weir):
    rows = {row["lane"]: row for row in weir.admin("SHOW PEAKS")}
    assert rows[None]["bypass_peak"] is not None
    return rows


def week(weir, hours=170, usable=97, **lanes):
    """A file of a week, and of hours to spare should the next one begin, in which the lanes did the same in every hour."""
    now = int(time.time()) // HOUR
    names = list(lanes)
    cells = [{"lane": n, **figures} for n, figures in enumerate(lanes.values())]
    whole = {"seen_ms": 3_600_000, "own": 9, "bypass": 1, "usage_permille": 300, "of_max_permille": 290}
    text = {"version": 1, "names": names, "server": {"max_connections": usable + 3, "usable": usable},
            "hours": {str(now - ago): {"whole": whole, "lanes": cells} for ago in range(1, hours + 1)}}
    weir.state.mkdir(exist_ok=True)
    (weir.state / "peaks.json").write_text(json.dumps(text))


def talk(weir, name):
    """A connection whose transactions are the test's own: what is sent at once leaves no gap."""
    conn = weir.connect(name)
    conn.autocommit = True
    return conn


def say(conn, text):
    conn.cursor().execute(text)


def advice(found, lane, key):
    rows = next(row for row in found["lanes"] if row["lane"] == lane)["advice"]
    return next(row for row in rows if row["key"] == key)


def test_peaks_and_gaps_are_those_of_the_load_and_survive_a_restart(make_weir, tidy):
    weir = make_weir(lanes=LANES)
    first = [tidy(talk(weir, f"web-{n}")) for n in range(3)]
    # Two wait because the lane is full.
    waiting = [background(weir.connect, f"web-{n}") for n in (3, 4)]
    eventually(lambda: peaks(weir)["web"]["waiting_peak"] == 2)
    # One idles in its transaction for a while and goes on, one for longer and is hung up on.
    began = time.monotonic()
    for conn in first[:2]:
        say(conn, "begin; select 1")
    eventually(lambda: peaks(weir)["web"]["in_use_peak"] >= 2)
    time.sleep(2.2)
    say(first[0], "commit")
    gap_ms = 1000 * (time.monotonic() - began)
    time.sleep(1.3)
    first[1].close()
    first[2].close()
    for conn in waiting:
        tidy(conn.result(60)).close()

    def seen():
        row = peaks(weir)["web"]
        assert row["slots_peak"] == 3 and row["demand_peak"] == 5 and row["max_wait_ms"] >= 3000, row
        assert 2200 <= row["idle_in_transaction_ms"] <= gap_ms, row
        assert 3500 <= row["cut_ms"] <= 1000 * (time.monotonic() - began) and row["cuts"] == 1 and row["transactions"] == 2, row
        return row
    before = eventually(seen)
    assert peaks(weir)[None]["slots_peak"] >= 3 and before["idle_in_transaction_at"][13:] == ":00:00.000Z"
    told = weir.cli("suggest")
    assert told.returncode == 0 and "so far; mode enforce. That is too little" in told.stdout, told.stdout + told.stderr
    # In words for seconds: nothing of hours, and no setting without advice.
    assert told.stdout.endswith("lane web: 3 slots at most, 2 transactions\nNothing is suggested yet.\n"), told.stdout

    weir.stop()
    assert json.loads((weir.state / "peaks.json").read_text())["version"] == 1
    stopped = weir.cli("suggest")
    assert stopped.returncode == 3, stopped.stdout
    stopped = json.loads(weir.cli("suggest", "--state", "--json").stdout)
    assert stopped["suggestion"]["lanes"][0]["seen"]["gap_ms"]["value"] == before["idle_in_transaction_ms"]
    weir.start()
    # Another hour may have begun; what is usual changes with that.
    lasting = lambda row: {key: value for key, value in row.items() if key != "hours" and "usual" not in key}  # noqa: E731
    assert lasting(peaks(weir)["web"]) == lasting(before)


def test_an_observe_week_becomes_a_configuration_that_passes(make_weir, cluster, tmp_path):
    weir = make_weir(lanes=LANES, mode="observe", applications=[{"match": "cron*", "name": "crons", "quota": 6}])
    weir.stop()
    week(weir, web={"slots": 6, "demand": 6, "in_use": 4, "gap_ms": 5000, "transactions": 500},
         cron={"slots": 2, "demand": 2, "in_use": 1, "gap_ms": 90000, "transactions": 500},
         gone={"slots": 2, "transactions": 1})
    weir.start()
    found = json.loads(weir.cli("suggest", "--json").stdout)
    assert found["ok"] and found["written"] is None
    found = found["suggestion"]
    assert (found["mode"], found["evidence"]) == ("observe", "week") and found["hours_seen"] >= 167
    assert found["room"]["max_connections"] == cluster.max_connections, "as it is now"
    quota = advice(found, "web", "quota")
    assert (quota["present"], quota["suggested"]) == (3, 8) and "ask for 6, a quarter more is 8" in quota["why"], quota
    assert advice(found, "web", "reserve")["suggested"] == 5
    assert advice(found, "cron", "quota")["suggested"] == 3
    assert advice(found, "cron", "idle_in_transaction.reset")["suggested"] == "5m"
    assert any("gone" in note for note in found["notes"]), found["notes"]

    text = weir.cli("suggest")
    assert text.returncode == 0 and "quota                     3 → 8 " in text.stdout and "mode observe. A week." in text.stdout, text.stdout
    new = weir.base / "new.toml"
    weir.config_file.write_text("# ours\n" + weir.config_file.read_text())
    done = weir.cli("suggest", "--write", str(new))
    assert done.returncode == 0 and f"Written: {new}" in done.stdout, done.stdout + done.stderr
    assert new.read_text().startswith("# ours\n") and 'reset = "5m"' in new.read_text()
    checked = weir.cli("check", "--config", str(new), config=False)
    assert checked.returncode == 0, checked.stdout
    again = weir.cli("suggest", "--write", str(new))
    assert again.returncode == 1 and "exists. Hint: name another FILE, or --force" in again.stderr, again.stderr
    assert weir.cli("suggest", "--write", str(weir.config_file), "--force").returncode == 0
    assert weir.config_file.read_text() == new.read_text()

    # The file is ahead of what runs now: pgweir says so rather than mix the two.
    mixed = weir.cli("suggest", "--write", str(new), "--force")
    assert mixed.returncode == 1 and "lane web quota is 8, and 3 in the running pgweir. Hint: pgweir reload" in mixed.stderr, mixed.stderr
    assert weir.cli("reload").returncode == 0
    assert weir.lane("web")["quota"] == 8
    nothing = weir.cli("suggest", "--admin", f"127.0.0.1:{weir.admin_port}", "--write", str(new), config=False,
                       env={"PGWEIR_PASSWORD": weir.password})
    assert nothing.returncode == 2 and "--state and --write need the configuration file" in nothing.stderr, nothing.stderr


def test_a_file_that_is_not_ours_is_put_aside_and_begun_anew(make_weir, tidy):
    weir = make_weir(lanes=LANES)
    weir.stop()
    kept = weir.state / "peaks.json"
    kept.write_text('{"version": 7}')
    told = weir.cli("suggest", "--state")
    assert told.returncode == 1 and "peaks.json: is not what pgweir wrote" in told.stderr, told.stderr
    weir.start()
    aside = list(weir.state.glob("peaks.json.unreadable-*"))
    assert [path.read_text() for path in aside] == ['{"version": 7}'] and str(aside[0]) in weir.log()
    assert "the peaks for pgweir suggest begin anew" in weir.log()
    tidy(weir.connect("web-1"))
    eventually(lambda: peaks(weir)["web"]["slots_peak"] == 1)
    weir.stop()
    assert json.loads(kept.read_text())["names"] == ["web"]
    kept.unlink()
    told = weir.cli("suggest", "--state")
    assert told.returncode == 1 and "no pgweir with this configuration has seen anything yet" in told.stderr, told.stderr


def test_a_reset_is_a_cut_and_what_idles_for_a_living_is_neither(make_weir, tidy):
    leak = {"warn": "1s", "reset": "1500ms", "when": "always", "action": "rollback", "exempt": ["*for a living*"]}
    weir = make_weir(lanes=[lane("web", quota=9, idle_in_transaction=leak), lane("other", default=True, quota=8)])
    silent, exempt = tidy(talk(weir, "web-1")), tidy(talk(weir, "web-2"))
    say(exempt, "begin; select 'for a living'")
    began = time.monotonic()
    say(silent, "begin; select 1")

    def cut():
        row = peaks(weir)["web"]
        return row["cuts"] == 1 and row
    row = eventually(cut)
    assert 1500 <= row["cut_ms"] <= 1000 * (time.monotonic() - began) and row["idle_in_transaction_ms"] == 0, row
    say(exempt, "commit")
    with pytest.raises(psycopg2.Error):
        say(silent, "select 2")
    say(silent, "rollback")
    eventually(lambda: peaks(weir)["web"]["transactions"] == 2)
    row = peaks(weir)["web"]
    assert (row["cuts"], row["idle_in_transaction_ms"]) == (1, 0), row


def test_a_client_that_speaks_right_after_its_reset_has_not_gone_on_by_itself(make_weir, tidy):
    """Before the next look at all links it has its error, has rolled back, and begun anew."""
    leak = {"warn": "1s", "reset": "1500ms", "when": "always", "action": "rollback"}
    weir = make_weir(lanes=[lane("web", quota=9, idle_in_transaction=leak), lane("other", default=True, quota=8)])
    silent = tidy(talk(weir, "web-1"))
    for round in range(1, 6):
        say(silent, "begin; select 1")
        eventually(lambda: weir.metric("pgweir_resets_total", lane="web", action="rollback") == round, interval=0.005)
        with pytest.raises(psycopg2.Error):
            say(silent, "select 2")
        say(silent, "rollback")
    eventually(lambda: peaks(weir)["web"]["transactions"] == 5)

    def told():
        row = peaks(weir)["web"]
        return row["cuts"] == 5 and row
    assert eventually(told)["idle_in_transaction_ms"] == 0


def test_what_cannot_even_be_read_is_put_aside_too(make_weir):
    weir = make_weir(lanes=LANES)
    weir.stop()
    (weir.state / "peaks.json").unlink()
    (weir.state / "peaks.json").mkdir()
    (weir.state / "peaks.json" / "mine").write_text("x")
    weir.start()
    weir.stop()
    assert [(path / "mine").read_text() for path in weir.state.glob("peaks.json.unreadable-*")] == ["x"]
    assert (weir.state / "peaks.json").is_file()
