"""The report of an incident as a page, in headless Chromium: wide and on a phone, light and dark, from a record with everything in it.

PGWEIR_SCREENSHOTS=DIRECTORY keeps pictures of it.
"""

import datetime
import json
import math
import os
import pathlib

import playwright.sync_api as playwright
import pytest

from harness import lane

pytestmark = [pytest.mark.weir, pytest.mark.timeout(300)]

PICTURES = os.environ.get("PGWEIR_SCREENSHOTS")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Half an hour ago: what is still open goes on until now.
BEGAN = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=1805)
LANES = ["web", "live", "queue", "cron", "reports", "imports", "a_lane_whose_name_is_as_long_as_somebody_liked"]
ATTACK = "<img src=https://elsewhere.example/x onerror=alert(1)>"
CONTRAST = 4.5
# Of every text that is shown: how it stands out from what is behind it, by WCAG.
FAINT = """wanted => {
  const parse = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return { rgb: [r, g, b], a }; };
  const light = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) { const { rgb, a } = parse(getComputedStyle(at).backgroundColor); if (a > .99) return rgb; }
    return [255, 255, 255];
  };
  const faint = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility() || parent.closest("script, style")) continue;
    seen++;
    const [a, b] = [light(parse(getComputedStyle(parent).color).rgb), light(ground(parent))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < wanted) faint.add(`${ratio.toFixed(2)} ${node.data.trim().slice(0, 40)}`);
  }
  return { seen, faint: [...faint] };
}"""


def at(seconds):
    return (BEGAN + datetime.timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lane_figures(number, minute):
    """What a lane did: imports fill it up, cron and imports are stopped, all goes well again."""
    name, load = LANES[number], math.exp(-((minute - 8) / 5) ** 2)
    stopped = name in ("cron", "imports", "queue") and 9 < minute < 20
    state = "paused" if stopped else "ramping" if name == "queue" and 20 <= minute < 25 else "shedding" if load > 0.7 and number > 1 else "open"
    failed = round(14 * load) if name in ("web", "reports") else 0
    return {"state": state, "slots": round(4 + (20 - 2 * number) * load), "waiting": round(30 * load) if number < 4 else 0,
            "committed": 0 if stopped else 600 - 40 * number - round(200 * load), "failed": failed}


def record(closed=True):
    rows = [{"at": at(5 * n), "usage": round(45 + 52 * math.exp(-((n / 12 - 8) / 6) ** 2), 1) if n not in range(40, 46) else None,
             "connections": 18 + round(20 * math.exp(-((n / 12 - 8) / 6) ** 2)), "bypass": 6 if n < 150 else 2,
             "lanes": [lane_figures(number, n / 12) for number in range(len(LANES))], "probes": [max(0, 900 - 3 * n), 0.25]} for n in range(360)]
    events = [{"seq": n + 1, "at": at(9 * n - 60), "who": "pgweir", "event": "leak_warn", "lane": LANES[n % 7], "client": n, "usage": 80.5,
               "text": f"application odoo-{4000 + n}, idle in transaction for 15 s, last statement: update stock_quant set quantity = ? where id in (?)"} for n in range(60)]
    acts = [(40, "freeze", "", "imports, queue and cron are paused for 30 min: checkout fails: imports stop until the leak is found"),
            (95, "note", "", "called the warehouse: the import is theirs, it was started twice. " + "They look into it. " * 12),
            (300, "reset", "web", f"client 4711 was rolled back, application {ATTACK}"), (620, "note", "", "x" * 300),
            (1200, "resume", "queue", "over 5 min, in ten steps"), (1260, "resume", "a_lane_whose_name_is_as_long_as_somebody_liked", "at once")]
    events += [{"seq": 1000 + n, "at": at(when), "who": "admin (alice, from the laptop of the duty)", "event": event, "lane": where, "client": None, "usage": 97.5,
                "text": text} for n, (when, event, where, text) in enumerate(acts)]
    events.sort(key=lambda event: event["at"])
    said = [{"at": at(1795), "criterion": name, "state": state, "measured": measured, "wanted": "below 75 % for 15 min", "reason": reason}
            for name, state, measured, reason in (("usage", "met", "45.0 %, at most 61.0 %", "below 75 % for 15 min 3 s"), ("too_many_clients", "met", "none", "quiet for 21 min"),
                                                  ("lane web", "not met" if not closed else "met", "12,000 committed, 3 failed", "0.02 % of 12,003 failed"),
                                                  ("probe the depth of the queue of jobs", "unknown" if not closed else "met", "18", "https://shop.example/" + "login/" * 40))]
    changes = [{**said[n % 4], "at": at(60 * n), "state": ("not met", "unknown", "met")[n % 3]} for n in range(12)]
    return {"id": 1, "opened_at": at(0), "trigger": "usage", "cause": "usage 81.5 %, from 75 % on", "closed_at": at(1800) if closed else None, "peak_percent": 97.5,
            "hold_for_ms": 900_000, "next_seq": 2000, "events": events, "events_left_out": 12, "changes": changes, "criteria": said,
            "figures": {"lanes": LANES, "probes": ["the depth of the queue of jobs", "login page"], "every_ms": 5000, "rows": rows}}


@pytest.fixture
def report(make_weir, tmp_path):
    """Makes the page of a record."""
    def make(kept):
        weir = make_weir(start=False, lanes=[lane("web", quota=5), lane("other", default=True, quota=5)], exit={"hold_for": "1h"})
        (weir.state / "incidents").mkdir(parents=True)
        (weir.state / "incidents" / "1.json").write_text(json.dumps(kept))
        weir.start()
        page = tmp_path / "report.html"
        done = weir.cli("report", "--incident", "1", "--format", "html", "--output", str(page))
        assert done.returncode == 0, done.stderr
        return page
    return make


@pytest.mark.parametrize("closed", [True, False], ids=["over", "open"])
def test_the_page_can_be_read_everywhere(report, browser, closed):
    file = report(record(closed))
    for dark in (False, True):
        for name, viewport in (("wide", WIDE), ("phone", PHONE)):
            context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
            page, wrong, asked = context.new_page(), [], []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
            page.on("dialog", lambda dialog: wrong.append("a text became a script"))
            page.goto(file.as_uri())
            page.wait_for_selector("canvas")
            if PICTURES:
                page.screenshot(path=str(pathlib.Path(PICTURES) / f"report-{'over' if closed else 'open'}-{name}-{'dark' if dark else 'light'}.png"), full_page=True)
            assert asked == [file.as_uri()] and not wrong, "it loads nothing, and the browser has nothing to complain about"
            playwright.expect(page.locator("canvas")).to_have_count(8, timeout=30_000)
            assert page.locator("img").count() == 0
            assert page.get_by_text(ATTACK).count() > 0, "shown as it was written"
            width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert width[0] <= width[1], (name, width)
            cut = page.evaluate("[...document.querySelectorAll('.plot')].filter(box => (box.querySelector('.u-wrap')?.getBoundingClientRect().right ?? 0)"
                                " > box.getBoundingClientRect().right).map(box => box.innerText)")
            assert cut == [], "every plot is whole"
            hidden = page.evaluate("[...document.querySelectorAll('.wide:has(.log)')].filter(box => box.scrollWidth > box.clientWidth).length")
            assert hidden == 0, "no text has to be scrolled to"
            found = page.evaluate(FAINT, CONTRAST)
            assert found["seen"] > 500 and found["faint"] == [], (name, dark)
            context.close()
