"""The page at `/` in headless Chromium: what it shows under load is what the console says, and its buttons do what they say.

PGWEIR_SCREENSHOTS=DIRECTORY keeps pictures of it (docs/ has them).
"""

import os
import pathlib
import re
import time

import psycopg2
import pytest
import playwright.sync_api as playwright
from harness import background, eventually, lane
from harness.weir import ROOT

pytestmark = [pytest.mark.weir, pytest.mark.timeout(300)]
# A page hears of a change within a second, where the machine has one to spare.
playwright.expect.set_options(timeout=30_000)

PICTURES = os.environ.get("PGWEIR_SCREENSHOTS")
WIDE, PHONE = {"width": 1360, "height": 1000}, {"width": 390, "height": 844}
WARN = {"warn": "300ms", "action": "none"}
ATTACK = "<img src=x onerror=\"document.title='owned'\">"
TURNED = "web\u202egnp.exe \u05d0\u05d1\u05d2"
LONG = "x" * 63


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


@pytest.fixture
def weir(make_weir, tmp_path):
    (tmp_path / "viewer").write_text("look\n")
    (tmp_path / "viewer").chmod(0o600)
    return make_weir(
        lanes=[lane("web", quota=14, reserve=6, priority=0, match=[{"application": "odoo web*"}, {"application": "web*"}], idle_in_transaction=WARN),
               lane("queue", quota=3, priority=3, freeze=True, idle_in_transaction=WARN, wait_timeout="10m"),
               lane("cron", quota=4, priority=4, freeze=True, shed_above=75, shed_below=60, idle_in_transaction=WARN),
               lane("reports", quota=6, priority=5, freeze=True, shed_above=25, shed_below=15, shed_dwell="1s", on_pause="reject", idle_in_transaction=WARN),
               lane("safe", quota=4, priority=0, protected=True), lane("other", default=True, quota=12, priority=9, idle_in_transaction=WARN)],
        admin={"user": [{"name": "admin", "role": "operator"}, {"name": "viewer", "password_file": str(tmp_path / "viewer"), "role": "viewer"}]},
        exit={"hold_for": "10 min", "usage_below": 70, "critical_lanes": ["web"]})


@pytest.fixture
def look(browser, weir):
    """Opens the page; at its end nothing was asked of other hosts, and the browser had nothing to complain about."""
    contexts, wrong = [], []

    def open_page(user="admin", viewport=WIDE, dark=False, expect_trouble=False):
        password = weir.password if user == "admin" else "look"
        context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light", reduced_motion="reduce",
                                      http_credentials={"username": user, "password": password})
        contexts.append(context)
        page = context.new_page()
        ours = f"http://127.0.0.1:{weir.admin_port}/"
        page.on("request", lambda request: None if request.url.startswith((ours, "data:")) else wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if not expect_trouble:
            page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.goto(ours)
        page.wait_for_selector("#link.live")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def busy(weir, cluster, tidy):
    """Leaks of every kind of name, somebody blocked, a full lane with two in its queue, a lane that sheds."""
    cluster.sql("create table if not exists stock (id int primary key, quantity int)")
    cluster.sql("grant all on stock to public; insert into stock values (1, 10) on conflict do nothing")
    leak = tidy(weir.connect("odoo web 4711"))
    leak.cursor().execute("update stock set quantity = quantity - 1 where id = 1")
    blocked = tidy(weir.connect("web checkout"))
    waiting = background(lambda: blocked.cursor().execute("update stock set quantity = 0 where id = 1"))
    for app in (ATTACK, TURNED, LONG):
        tidy(weir.connect(app)).cursor().execute("select 'literal'")
    for n in range(4):
        tidy(weir.connect(f"odoo web {n}", autocommit=True)).cursor().execute("select 1")
    for n in range(3):
        tidy(weir.connect(f"queue job {n}", autocommit=True)).cursor().execute("select 1")
    queued = [background(weir.connect, f"queue late {n}", connect_timeout=600) for n in range(2)]
    eventually(lambda: weir.lane("queue")["waiting"] == 2 and weir.lane("reports")["state"] == "shedding")
    # All four, so that no more comes by itself.
    eventually(lambda: len(weir.admin("SHOW LEAKS")) == 4 and len(weir.timeline_has("leak_warn")) >= 4)
    eventually(lambda: [row for row in weir.admin("SHOW LEAKS") if row["blocks"]])
    yield leak
    leak.rollback()
    waiting.result(60)
    weir.admin("RESUME LANE queue")
    weir.admin("SET LANE queue quota = 9")
    for connection in queued:
        connection.result(60).close()


def lane_row(page, name):
    return page.locator("li.lane", has=page.get_by_role("heading", name=name, exact=True))


def leak_row(page, text):
    return page.locator("li.leak", has_text=text)


def confirm(page, reason, **choices):
    """Fills the open dialog and confirms; what it said would happen."""
    dialog = page.get_by_role("dialog")
    for label, value in choices.items():
        dialog.get_by_label(label.replace("_", " ")).select_option(label=value)
    words = dialog.locator("#ask-words").inner_text()
    dialog.get_by_label("Reason").fill(reason)
    dialog.locator("#ask-yes").click()
    dialog.wait_for(state="hidden")
    return words


def is_wide(page):
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


# -- what it shows -----------------------------------------------------------------------------------------------

def test_under_load_it_shows_what_the_console_says(weir, look, busy):
    page = look()
    for name, row in weir.lanes().items():
        shown = lane_row(page, name)
        playwright.expect(shown.locator(".state")).to_have_text(row["state"])
        playwright.expect(shown.locator(".figures")).to_contain_text(f"{row['slots']} of {row['quota']}")
        for key, words in (("active", "active"), ("idle_in_transaction", "idle in transaction"), ("idle", "idle"), ("reserve", "reserve")):
            if row[key]:
                playwright.expect(shown.locator(".slots")).to_have_attribute("aria-label", re.compile(rf"\b{row[key]} {words}|{words} {row[key]}\b"))
    playwright.expect(lane_row(page, "queue")).to_contain_text("2 waiting")
    playwright.expect(lane_row(page, "reports").locator(".why")).to_contain_text("25")  # why it sheds

    def says(usage):
        assert page.locator("#percent").inner_text() == f"{round(usage['percent'])} %"
        assert f"{usage['connections']} of {usage['usable']}" in page.locator("#connections").inner_text()
        return True
    # The page's sample and the console's may be two.
    eventually(lambda: says(weir.usage()))
    leak = leak_row(page, "odoo web 4711")
    for words in ("update stock", "blocks 1 session", "odoo@postgres"):
        playwright.expect(leak).to_contain_text(words)
    playwright.expect(leak.locator(".blocks")).to_contain_text("web checkout")
    playwright.expect(page.locator("li.leak")).to_have_count(len(weir.admin("SHOW LEAKS")))
    for row in weir.admin("SHOW EXIT"):
        shown = page.locator("#exit li", has=page.get_by_text(row["criterion"].replace("_", " "), exact=True))
        playwright.expect(shown).to_contain_text(row["state"])
    eventually(lambda: page.locator("#timeline li").count() >= len(weir.timeline()) - 1)
    playwright.expect(page.locator("canvas")).to_have_count(1)
    playwright.expect(page.locator("#plot")).to_have_attribute("aria-label", re.compile("exit below"))


def test_mode_observe_is_told_as_what_would_have_been_done(weir, look, tidy):
    weir.write(mode="observe")
    weir.admin("RELOAD")
    weir.admin("FREEZE REASON 'a try'")
    tidy(weir.raw("reports 1"))
    page = look()
    page.get_by_text("Mode is observe: pgweir records what it would do").wait_for()
    lane_row(page, "reports").get_by_text("1 would have been refused").wait_for()
    page.get_by_text("would pause queue, cron, reports: a try").first.wait_for()
    playwright.expect(page.locator("#connections")).to_contain_text(", its own monitor's among them")


def test_names_of_clients_are_text(weir, look, busy):
    page = look()
    for name in (ATTACK, LONG):
        playwright.expect(leak_row(page, name).locator(".who")).to_contain_text(name)
    shown = leak_row(page, "\u05d0\u05d1\u05d2").locator("bdi", has_text="\u05d0").first
    told = [row["application"] for row in weir.admin("SHOW LEAKS") if "\u05d0" in row["application"]][0]
    assert shown.inner_text() == told.replace("\u202e", "⟨U+202E⟩"), "what turns text around is named"
    assert "\u202e" not in page.locator("body").inner_text()
    assert shown.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
    assert page.locator("img").count() == 0 and "owned" not in page.title()
    weir.admin(f"NOTE 'seen: {ATTACK.replace(chr(39), chr(39) * 2)}'")
    playwright.expect(page.locator("#timeline")).to_contain_text(f"seen: {ATTACK}")
    assert page.locator("img").count() == 0 and not is_wide(page)
    leak_row(page, ATTACK).get_by_role("button").click()
    playwright.expect(page.locator("#ask-words")).to_contain_text(ATTACK)
    assert page.locator("img").count() == 0


def test_scripts_never_make_markup_of_text():
    for file in [*(ROOT / "src/admin/http/dashboard").glob("*.js"), ROOT / "src/page/plots.js"]:
        found = re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|https?://(?!www\.w3\.org)", file.read_text())
        assert not found, (file, found)


@pytest.mark.parametrize("dark", [False, True])
def test_every_width_light_and_dark(weir, look, busy, dark):
    weir.admin("FREEZE FOR '30 min' REASON 'logins fail'")
    page = look(dark=dark)
    for viewport in (WIDE, {"width": 1001, "height": 800}, {"width": 700, "height": 800}, PHONE, {"width": 320, "height": 600}):
        page.set_viewport_size(viewport)
        # The plot follows in its own time.
        eventually(lambda: not is_wide(page), what=viewport)
    ground, ink = (page.evaluate(f"getComputedStyle(document.body).{key}") for key in ("backgroundColor", "color"))
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (light[0] < 150 and light[1] > 600) if dark else (light[0] > 600 and light[1] < 150)
    page.set_viewport_size(PHONE)
    page.locator("li.leak button").first.click()
    page.get_by_role("dialog").wait_for()
    eventually(lambda: not is_wide(page))
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


# -- what it does ------------------------------------------------------------------------------------------------

def test_buttons_do_what_the_console_sees(weir, look, busy):
    page = look()
    page.get_by_role("button", name="Freeze").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("#ask-yes").click()
    playwright.expect(dialog.get_by_role("alert")).to_contain_text("Say why")
    assert weir.lane("cron")["state"] == "open", "not without a reason"
    words = confirm(page, "logins fail", How_long="30 minutes")
    assert "Pauses queue, cron and reports" in words and "web, safe and other go on" in words and "reports is refused at once" in words
    assert {name for name, row in weir.lanes().items() if row["state"] == "paused"} == {"queue", "cron", "reports"}
    assert weir.timeline_has("freeze", "admin (browser)", "logins fail")
    playwright.expect(page.locator("#said")).to_contain_text("paused")
    playwright.expect(lane_row(page, "cron").locator(".state")).to_have_text("paused")
    playwright.expect(lane_row(page, "cron").locator(".why")).to_contain_text("logins fail")
    playwright.expect(page.locator("#incident")).to_contain_text("Incident 1 is open")

    lane_row(page, "cron").get_by_role("button", name="Resume").click()
    assert "at each step" in confirm(page, "it is over", How_fast="over 1 minute, in ten steps")
    assert weir.lane("cron")["state"] == "ramping"
    playwright.expect(lane_row(page, "cron").locator(".state")).to_have_text("ramping")
    assert weir.timeline_has("resume of lane cron: it is over")
    lane_row(page, "reports").get_by_role("button", name="Resume").click()
    confirm(page, "needed", How_fast="at once")
    assert weir.lane("reports")["state"] != "paused"

    lane_row(page, "other").get_by_role("button", name="Pause").click()
    assert "are refused at once" in confirm(page, "psql of the day", Meanwhile="those who come are refused at once, with the reason")
    assert weir.lane("other")["state"] == "paused" and weir.timeline_has("pause", "psql of the day")
    with pytest.raises(psycopg2.OperationalError, match="paused"):
        weir.connect("psql")
    assert lane_row(page, "safe").get_by_role("button").count() == 0, "protected"

    leak_row(page, "odoo web 4711").get_by_role("button", name="Reset").click()
    assert "rolled back" in confirm(page, "blocks the checkout")
    assert weir.timeline_has("reset of client", "blocks the checkout")
    eventually(lambda: weir.client("odoo web 4711")["state"] == "reset")
    eventually(lambda: weir.client("web checkout")["state"] != "active", what="nobody is blocked")


def test_a_refusal_is_shown_where_it_was_asked(weir, look, busy):
    page = look(expect_trouble=True)
    leak_row(page, "odoo web 4711").get_by_role("button").click()
    busy.rollback()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("too late")
    dialog.locator("#ask-yes").click()
    playwright.expect(dialog.get_by_role("alert")).to_contain_text("not idle in a transaction")
    dialog.get_by_role("button", name="Leave it").click()
    playwright.expect(leak_row(page, "odoo web 4711")).to_have_count(0)
    assert not weir.timeline_has("too late")


def test_a_viewer_sees_no_buttons(look, busy):
    page = look(user="viewer")
    playwright.expect(page.locator("#who")).to_contain_text("may look, not change")
    playwright.expect(lane_row(page, "web")).to_be_visible()
    playwright.expect(page.locator("li.leak")).to_have_count(4)
    assert page.get_by_role("button").count() == 0


def test_by_keyboard_alone(weir, look, busy):
    page = look()

    def press_until(wanted, key="Tab", most=40):
        for _ in range(most):
            page.keyboard.press(key)
            focused = page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()")
            if focused.startswith(wanted):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", "focus can be seen"
                return
        raise AssertionError(f"{wanted} cannot be reached")
    press_until("Skip to the lanes")
    press_until("Pause lane cron")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.press("Escape")
    eventually(lambda: page.evaluate("document.activeElement.getAttribute('aria-label')") == "Pause lane cron", what="the focus is back where it was")
    page.keyboard.press("Enter")
    page.keyboard.type("by hand")
    press_until("Pause it")
    page.keyboard.press("Enter")
    eventually(lambda: weir.lane("cron")["state"] == "paused")
    playwright.expect(lane_row(page, "cron").get_by_role("button", name="Resume")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("done")
    press_until("Resume it")
    page.keyboard.press("Space")
    eventually(lambda: weir.lane("cron")["state"] == "ramping")
    playwright.expect(lane_row(page, "cron").get_by_role("button", name="Resume")).to_be_focused()
    # Focus stays where it is while figures change.
    press_until("Reset client")
    before = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.wait_for_timeout(2500)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == before


# -- live --------------------------------------------------------------------------------------------------------

def test_it_says_that_it_is_cut_off_and_comes_back(weir, look):
    page = look(expect_trouble=True)
    weir.admin("NOTE 'before'")
    playwright.expect(page.locator("#timeline li").first).to_contain_text("before")
    weir.kill9()
    playwright.expect(page.locator("#link")).to_contain_text("disconnected: figures are of")
    playwright.expect(page.locator("body.stale")).to_have_count(1)
    page.get_by_role("button", name="Freeze").click()
    page.get_by_label("Reason").fill("nobody there")
    page.locator("#ask-yes").click()
    playwright.expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("does not answer")
    page.keyboard.press("Escape")
    weir.start()
    weir.admin("NOTE 'after'")
    playwright.expect(page.locator("#link.live")).to_be_visible(timeout=60000)
    playwright.expect(page.locator("#timeline")).to_contain_text("after")
    texts = page.locator("#timeline li").all_inner_texts()
    assert len(texts) == len(set(texts)) and page.locator("#timeline li", has_text="before").count() == 1
    playwright.expect(page.locator("body.stale")).to_have_count(0)


def test_a_stream_that_falls_silent_is_noticed(weir, look):
    page = look(expect_trouble=True)
    weir.signal(19)
    playwright.expect(page.locator("#link.broken")).to_be_visible()
    weir.signal(18)
    playwright.expect(page.locator("#link.live")).to_be_visible()


def test_the_past_is_there_when_the_page_is_opened(weir, look):
    eventually(lambda: weir.usage()["percent"] is not None)
    page = look()
    history = eventually(lambda: [row for row in page.evaluate("fetch('/api/v1/history').then(reply => reply.json())") if row["percent"] is not None])
    assert history[-1]["connections"] >= 1 and history[-1]["at"].endswith("Z")
    policy = page.evaluate("fetch('/api/v1/policy').then(reply => reply.json())")
    assert policy["may_change"] and policy["usage_below"] == 70
    assert [row["lane"] for row in policy["lanes"] if row["freeze"]] == ["queue", "cron", "reports"]


# -- pictures ----------------------------------------------------------------------------------------------------

def pictures(weir, look, cluster, tidy):
    """An incident as it comes: users, a report that leaks and blocks a checkout, an import beside pgweir, FREEZE."""
    cluster.sql("create table if not exists stock (id int primary key, quantity int)")
    cluster.sql("grant all on stock to public; insert into stock values (1, 10) on conflict do nothing")
    weir.config["lane"][2].update(shed_above=85, shed_below=75)
    weir.config["lane"][3].update(shed_above=75, shed_below=65)
    weir.reload()
    users = [tidy(weir.connect("odoo web", autocommit=True)) for _ in range(4)]

    def work(seconds):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for connection in users[:4]:
                connection.cursor().execute("select pg_sleep(0.05)")
            time.sleep(0.5)
    work(40)
    beside = []
    for _ in range(11):
        beside.append(tidy(cluster.direct(user="odoo", app="import", tcp=True)))
        work(4)
    users += [tidy(weir.connect("queue job", autocommit=True)) for _ in range(3)] + [tidy(weir.connect("cron", autocommit=True))]
    leak = tidy(weir.connect("odoo web report"))
    leak.cursor().execute("update stock set quantity = quantity - 1 where id = 1")
    blocked = tidy(weir.connect("odoo web checkout"))
    waiting = background(lambda: blocked.cursor().execute("update stock set quantity = 0 where id = 1"))
    tidy(weir.connect("odoo web quote")).cursor().execute("select 1")
    work(25)
    for _ in range(7):
        beside.append(tidy(cluster.direct(user="odoo", app="import", tcp=True)))
        work(3)
    weir.admin("FREEZE FOR '30 min' REASON 'checkout fails: imports stop until the leak is found'")
    queued = [background(weir.connect, "queue job", connect_timeout=300) for _ in range(2)]
    work(20)
    for connection in beside[:8]:
        connection.close()
        work(3)
    weir.admin("NOTE 'called the warehouse: the import is theirs'")
    work(12)
    weir.admin("RESUME LANE cron OVER '5 min'")
    work(8)
    for name, dark, viewport in (("light", False, {"width": 1280, "height": 1400}), ("dark", True, {"width": 1280, "height": 1400}), ("phone", False, {"width": 390, "height": 1500})):
        page = look(dark=dark, viewport=viewport)
        page.wait_for_timeout(2500)
        page.screenshot(path=str(pathlib.Path(PICTURES) / f"dashboard-{name}.png"))
    leak.rollback()
    waiting.result(20)
    weir.admin("RESUME LANE queue")
    weir.admin("SET LANE queue quota = 9")
    for connection in queued:
        connection.result(20).close()


if PICTURES:
    # Four minutes, for docs/.
    test_pictures = pytest.mark.timeout(900)(pictures)
