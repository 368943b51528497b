"""Fixtures: one cluster a module, any number of pgweirs a test, and their logs when a test fails."""

import pathlib
import shutil
import sys
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from harness import DIRECT, Cluster, Weir  # noqa: E402
from harness import certs, wire  # noqa: E402
from harness import cluster as clusters  # noqa: E402
from harness.weir import BINARY  # noqa: E402

LOG_TAIL = 12_000
LONGEST = ["test_drill"]


def pytest_report_header():
    return f"direct against PostgreSQL: {DIRECT}; pgweir: {BINARY}; PostgreSQL: {clusters.bindir()}"


def pytest_collection_modifyitems(items):
    # Beside each other the longest go first, so that none is left alone at the end.
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if DIRECT:
        for item in items:
            if item.get_closest_marker("weir"):
                item.add_marker(pytest.mark.skip(reason="needs pgweir itself"))
    elif not BINARY.exists():
        raise pytest.UsageError(f"{BINARY} is not built: cargo build --release, or PGWEIR_DIRECT=1")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        for weir in LIVE:
            report.sections.append((f"pgweir on port {weir.port}", weir.log()[-LOG_TAIL:]))


LIVE = []


@pytest.fixture(autouse=True)
def watchdog(request):
    """Kills every pgweir shortly before the test's timeout: a driver that waits inside C hears no signal, but an EOF. One that
    died in an earlier test of the module is started again, so that one failure stays one."""
    for weir in LIVE:
        if weir.process and weir.process.poll() is not None:
            weir.start()
    marker = request.node.get_closest_marker("timeout")
    limit = marker.args[0] if marker else float(request.config.getoption("timeout") or request.config.getini("timeout"))

    def bark():
        for weir in LIVE:
            if weir.process and weir.process.poll() is None:
                weir.process.kill()
        print("the watchdog killed pgweir: the test took too long", file=sys.stderr)

    timer = threading.Timer(max(1.0, limit - 5), bark)
    timer.start()
    yield
    timer.cancel()


@pytest.fixture(scope="session")
def template():
    """A stopped cluster with the suite's roles."""
    cluster = clusters.template()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def cluster_settings():
    """Overridden by a module that needs another max_connections and the like."""
    return {}


@pytest.fixture(scope="module")
def cluster(template, cluster_settings):
    """The module's cluster, running."""
    cluster = Cluster(template=template, **cluster_settings)
    if wire.TLS in ("upstream", "both"):
        cluster.settings.update(certs.for_postgres(cluster, certs.suite()))
    try:
        yield cluster.start()
    finally:
        cluster.close()


@pytest.fixture
def nobody_is_left(cluster):
    """Of the test before: it would count, or be at a limit."""
    cluster.clear()


def make_weirs(cluster):
    made = []

    def make(start=True, wait=True, **config):
        weir = Weir(cluster, **config)
        made.append(weir)
        LIVE.append(weir)
        return weir.start(wait=wait) if start else weir

    yield make
    for weir in made:
        weir.close()
        LIVE.remove(weir)


@pytest.fixture
def make_weir(cluster):
    """Starts pgweirs that end with the test."""
    yield from make_weirs(cluster)


@pytest.fixture(scope="module")
def make_module_weir(cluster):
    """Starts pgweirs that end with the module."""
    yield from make_weirs(cluster)


@pytest.fixture
def tidy():
    """Closes what is put into it, whatever happens."""
    things = []
    yield _Keeper(things)
    for thing in reversed(things):
        try:
            thing.close()
        except Exception:  # noqa: BLE001 - it may be broken on purpose
            pass


class _Keeper:
    def __init__(self, things):
        self.things = things

    def __call__(self, thing):
        self.things.append(thing)
        return thing


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright import sync_api as playwright
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "script/setup test installs Chromium"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"], timeout=180_000)
        yield browser
        browser.close()
