"""The dashboard in headless Chromium beside a crowd: when it can be used, how soon it shows what it is told, what it keeps busy and holds."""

import shutil
import statistics
import time

from harness import eventually

from . import fake

# What clients may call themselves, to whom the page must not listen.
HOSTILE = ["live <img src=x onerror=alert(1)>", "live \u202egnp.exe \u05d0\u05d1\u05d2", "live " + "x" * 58, "live </script><b>'\"&amp;"]
LEAKS = 100
VIEWPORT = {"width": 1360, "height": 1000}
# Counts from within, before the page's own scripts: the first lane's bar on the screen, each snapshot until the frame behind it, long tasks.
WATCH = """() => {
  const seen = window.seen = { usable: null, shown: [], long: [] };
  const painted = then => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => then(performance.now());
    channel.port2.postMessage(0);
  });
  const look = () => {
    const bar = document.querySelector("li.lane .slots");
    if (bar && bar.getBoundingClientRect().width > 0) painted(at => { seen.usable = at; });
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
  const listen = EventSource.prototype.addEventListener;
  EventSource.prototype.addEventListener = function (kind, what, ...more) {
    return listen.call(this, kind, kind !== "snapshot" ? what : event => {
      const began = performance.now();
      what(event);
      painted(at => seen.shown.push(at - began));
    }, ...more);
  };
  new PerformanceObserver(list => seen.long.push(...list.getEntries().map(entry => entry.duration))).observe({ type: "longtask", buffered: true });
}"""


def invite(side):
    """Lets a hundred in with names of all kinds, each in a transaction: before the crowd, so that the page, which shows the oldest, shows them."""
    for number in range(LEAKS):
        side.others.append(fake.login(side.port, HOSTILE[number % len(HOSTILE)]))
        fake.ask(side.others[-1], "BEGIN")


def leak(side):
    """Whoever of the live ones is in a transaction is a leak from now on."""
    for lane in side.weir.config["lane"]:
        if lane["name"] == "live":
            lane["idle_in_transaction"] = {"warn": "1s", "action": "none"}
    side.weir.write()
    side.command("RELOAD")
    eventually(lambda: len(side.weir.admin("SHOW LEAKS")) > LEAKS, timeout=60, what="leaks")


def measure(weir, seconds, picture=None):
    """Opens the page, stays for so long, and tells; `picture` is a file for what it looks like then."""
    from playwright import sync_api as playwright
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        try:
            context = browser.new_context(viewport=VIEWPORT, http_credentials={"username": "admin", "password": weir.password})
            context.add_init_script(f"({WATCH})()")
            page = context.new_page()
            wrong = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("dialog", lambda dialog: wrong.append("a name became a script"))
            page.goto(f"http://127.0.0.1:{weir.admin_port}/")
            # No function to wait for: the page allows no text to become a script, and that is one.
            page.wait_for_selector("li.leak", timeout=120_000)
            eventually(lambda: page.evaluate("window.seen.usable"), timeout=60, what="a bar on the screen")
            session = context.new_cdp_session(page)
            session.send("Performance.enable")
            before, loading = held(session), page.evaluate("window.seen.long.splice(0)")
            began, busy = time.monotonic(), metrics(session)["TaskDuration"]
            page.wait_for_timeout(seconds * 1000)
            busy = (metrics(session)["TaskDuration"] - busy) / (time.monotonic() - began)
            seen = page.evaluate("window.seen")
            after = held(session)
            lanes, leaks = (page.locator(rows).count() for rows in ("li.lane", "li.leak"))
            if picture:
                page.screenshot(path=picture)
            assert not wrong and page.get_by_text(HOSTILE[0]).count() > 0, wrong or "a name is not shown as it is"
            return {"usable_ms": seen["usable"], "shown_ms": seen["shown"], "loading_ms": loading, "long_ms": seen["long"], "busy": busy,
                    "mb": (before / 1e6, after / 1e6), "lanes": lanes, "leaks": leaks}
        finally:
            browser.close()


def metrics(session):
    """What Chromium counts of the page."""
    return {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}


def held(session):
    """Bytes of the page's JavaScript that are in use."""
    session.send("HeapProfiler.collectGarbage")
    return metrics(session)["JSHeapUsedSize"]


def told(figures, seconds):
    """The Markdown table, and what was on the page."""
    shown, loading = figures["shown_ms"], figures["loading_ms"]
    rows = {
        "the first lane's bar is on the screen after": f"{figures['usable_ms']:,.0f} ms",
        f"a snapshot is on the screen after it came: median; slowest of {len(shown)}": f"{statistics.median(shown):.0f}; {max(shown):.0f} ms",
        f"tasks of its thread over 50 ms in {seconds} s; the longest while it loads": f"{len(figures['long_ms'])}; {max(loading, default=0):.0f} ms",
        "its thread is busy": f"{100 * figures['busy']:.1f} %",
        f"JavaScript holds at first; after {seconds} s": f"{figures['mb'][0]:.1f}; {figures['mb'][1]:.1f} MB",
    }
    lines = "\n".join(f"| {words} | {figure} |" for words, figure in rows.items())
    return f"| | |\n| --- | ---: |\n{lines}\n\n{figures['lanes']} lanes and {figures['leaks']} leaks are on the page."
