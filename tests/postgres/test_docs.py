"""Every command of README.md and docs/ is run, page by page, as it stands there, and its output compared with the page's.

A page's commands run in order in a sandbox that means what the page means: `/etc/pgweir`, ports 6432, 6433 and 5432, systemctl, sudo. What
happens between two commands is a scene (`<!-- scene: NAME -->`), played below. What cannot run here is listed in docs_elsewhere.toml with what
runs it instead; a command that is neither is a failure. `DOCS_UPDATE=1` writes real outputs into the pages where they differ,
`DOCS_UPDATE=all` every output: then the figures of a page are of one run.
"""

import contextlib
import fnmatch
import json
import os
import re
import signal
import time
import tomllib

import pytest

from harness import docs, eventually, free_port
from harness.sandbox import PASSWORD, Sandbox, cmdline
from harness.weir import ROOT

pytestmark = pytest.mark.weir

PAGES = docs.pages()
ELSEWHERE = docs.elsewhere()


def name_of(path):
    return str(path.relative_to(ROOT))


def odoo_toml(**changes):
    """The shipped configuration, with some texts replaced."""
    text = (ROOT / "config" / "odoo.toml").read_text()
    for old, new in changes.get("replace", {}).items():
        assert old in text, old
        text = text.replace(old, new)
    return text


class Page:
    """What a page takes for granted, and its scenes: a pgweir with the shipped configuration in front of PostgreSQL, nothing going on."""

    replace = {'hold_for = "15m"': 'hold_for = "3s"'}
    # What a command asks at the terminal, by what it contains.
    answers = {"createuser": f"{PASSWORD}\n{PASSWORD}\n", "read -rs": f"{PASSWORD}\n"}

    def __init__(self, sandbox):
        self.box = sandbox
        self.cluster = sandbox.cluster
        self.setup()

    def setup(self):
        """Before the first command."""
        self.box.configure(odoo_toml(replace=self.replace))
        self.box.must("systemctl start pgweir")
        self.box.env["PGWEIR_PASSWORD"] = (self.box.base / "var/lib/pgweir/admin.password").read_text().strip()

    def scene(self, name):
        """Plays one."""
        getattr(self, "scene_" + re.sub(r"\W", "_", name))()

    def stdin(self, command):
        """What is typed while the command runs."""
        return next((typed for part, typed in self.answers.items() if part in command), "")

    def scene_an_incident(self):
        """FREEZE opens one; users work all the while."""
        self.scene_users_work()
        self.box.must("pgweir resume all")
        self.box.must("pgweir freeze --reason 'an import runs wild'; until pgweir status --json | jq -e .incident > /dev/null; do sleep 0.02; done")

    def scene_the_incident_closes(self):
        """It does within a second of the last criterion."""
        self.box.must("while pgweir status --json | jq -e .incident > /dev/null; do sleep 0.05; done")

    def scene_users_work(self):
        """A web worker commits five times a second until the page is over."""
        self.box.cast([web(2150, again=["SELECT 1"])])

    def bypass(self, app, user="batch", database="postgres"):
        """A session that bypasses pgweir."""
        return self.box.keep(self.cluster.direct(user=user, dbname=database, app=app, tcp=True))

    def crowd(self, app, count):
        """So many at once: pgweir stands still meanwhile, or a sample in between would have it shed one lane before another."""
        pid = int((self.box.base / "pgweir.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            # An answer that is on its way has been given by then.
            return [self.bypass(app) for _ in range(count)]
        finally:
            os.kill(pid, signal.SIGCONT)

    def rows(self, command):
        """What a command of pgweir's lists."""
        listed = json.loads(self.box.must(f"pgweir {command} --json"))
        return listed if isinstance(listed, list) else next(value for value in listed.values() if isinstance(value, list))

    def told(self, words, count=1):
        """Whether the timeline has a line with these words so many times."""
        return self.box.must("pgweir timeline --last 500").count(words) == count


def web(n, *do, **more):
    """An HTTP worker."""
    return {"title": f"odoo: WorkerHTTP {n}", "application": f"odoo-{n}", "database": "odoo", "do": do, **more}


def cron(n, *do, **more):
    """A cron worker."""
    return {"title": f"odoo: WorkerCron {n}", "application": f"odoo-{n}", "database": "postgres", "do": do or ["LISTEN cron_trigger"], **more}


class Untouched(Page):
    """Nothing is installed yet: a PostgreSQL without a role for pgweir, and an odoo.conf that leads to it."""

    def setup(self):
        self.box.odoo_conf()
        self.nobody()

    def nobody(self):
        """No role for pgweir; Odoo's has a password."""
        self.cluster.sql("drop owned by pgweir")
        self.cluster.sql("drop role pgweir")
        self.cluster.sql(f"alter role odoo password '{PASSWORD}'")


class Runbook(Page):
    """An incident on a small Odoo: a nightly BI job holds what it can get, requests leak transactions, cron piles up."""

    replace = {'hold_for = "15m"': 'hold_for = "12s"', 'warn = "15s", reset = "60s", when': 'warn = "1s", reset = "60s", when'}

    def setup(self):
        self.cluster.sql("create table if not exists stock_quant (id int primary key, quantity int); insert into stock_quant values (1, 10), (2, 5)"
                         " on conflict do nothing; grant all on stock_quant to public", dbname="odoo")
        super().setup()

    def scene_a_week_was_seen(self):
        """A pgweir that is stopped has left peaks.json: on most days the same, and one night cron ran wild."""
        self.box.must("systemctl stop pgweir")
        now, lanes = int(time.time()) // 3600, ("web", "cron", "notify")
        hours = {}
        for ago in range(1, 168):
            wild = ago == 75
            cells = [{"lane": 0, "slots": 31, "demand": 31, "in_use": 14, "gap_ms": 2100, "transactions": 9000},
                     {"lane": 1, "slots": 16 if wild else 12, "demand": 17 if wild else 12, "in_use": 5, "waiting": int(wild), "wait_ms": 1840 * wild, "gap_ms": 2300 if wild else 1100,
                      "transactions": 250},
                     {"lane": 2, "slots": 4, "demand": 4, "in_use": 3, "gap_ms": 5, "transactions": 400}]
            whole = {"seen_ms": 3_600_000, "own": 61 if wild else 47, "bypass": 2, "usage_permille": 660 if wild else 515, "of_max_permille": 630 if wild else 500}
            hours[str(now - ago)] = {"whole": whole, "lanes": cells}
        week = {"version": 1, "names": lanes, "server": {"max_connections": 100, "usable": 97}, "hours": hours}
        (self.box.base / "var/lib/pgweir/peaks.json").write_text(json.dumps(week))

    def scene_saturate(self):
        """82 % of PostgreSQL are in use, two requests sit idle in transaction, one of them on a row somebody wants, cron waits."""
        self.box.must("systemctl start pgweir")
        self.box.cast([*(web(2101 + n, "SELECT 1") for n in range(8)), *(cron(3101 + n) for n in range(3))])
        self.nightly = self.crowd("bi-nightly", 62)
        eventually(lambda: self.told(" shed ", 4) and self.told(" incident_opened "), what="pressure")
        # Only now, so that pgweir's warnings come behind that.
        self.box.cast([web(2117, "BEGIN", "update stock_quant set quantity = quantity - 1 where id = 1"), web(2118, "BEGIN", "select quantity from stock_quant")])
        self.box.cast([web(2119, "update stock_quant set quantity = 0 where id = 1", waits=True)])
        eventually(lambda: any(row["lane"] == "web" and row["slots"] == 11 for row in self.rows("lanes")), what="it waits for the row")
        self.box.cast([cron(3201 + n, waits=True) for n in range(3)])
        eventually(lambda: any(row["lane"] == "cron" and row["waiting"] == 3 for row in self.rows("lanes")), what="cron waits")
        eventually(lambda: self.told(" leak_warn ", 2) and len(leaks := self.rows("leaks")) == 2 and leaks[0]["blocks"], what="two leaks, one of which blocks")

    def scene_somebody_asks_for_too_much(self):
        """At psql, as Odoo's role: it sleeps until it is cancelled."""
        self.box.cast([{"title": "psql", "application": "psql", "database": "odoo", "do": ["select * from stock_quant, pg_sleep(600)"], "waits": True}])
        self.box.must("until pgweir clients --json | jq -e 'any(.[]; .application == \"psql\" and .state == \"active\")' > /dev/null; do sleep 0.05; done")

    def scene_nightly_ends(self):
        """Somebody has stopped the BI job, and pgweir has seen it: nothing but its own monitor bypasses it, and no lane is shed any more."""
        for conn in self.nightly:
            conn.close()
        self.box.must("until pgweir usage --json | jq -e '(if type == \"array\" then .[0] else . end).bypass == 1' > /dev/null; do sleep 0.1; done")
        eventually(lambda: self.told(" unshed ", 4), what="no lane is shed")


class Incidents(Page):
    """An incident stays open for as long as its page looks at it."""

    replace = {'hold_for = "15m"': 'hold_for = "15s"'}


class Live(Untouched):
    """A live Odoo on one host with a PostgreSQL that knows nothing of pgweir. Passwords over TCP, as Debian has it."""

    def setup(self):
        super().setup()
        hba = self.cluster.data / "pg_hba.conf"
        hba.write_text("".join(f"host all {role} 127.0.0.1/32 scram-sha-256\n" for role in ("odoo", "pgweir")) + hba.read_text())
        self.cluster.sql("select pg_reload_conf()")
        self.box.must("systemctl start odoo")
        self.scene_odoo_is_direct()

    def odoo_links(self):
        """Lanes of Odoo's links; none where pgweir does not run or has none."""
        status, text = self.box.run("pgweir clients --json")
        return sorted(row["lane"] for row in json.loads(text) if row["application"].startswith("odoo-21")) if status == 0 else []

    def scene_odoo_is_through_pgweir(self):
        eventually(lambda: self.odoo_links() == ["cron", "web", "web"], what="Odoo's links, each in its lane")

    def scene_odoo_is_direct(self):
        eventually(lambda: self.cluster.count("odoo-21%") == 3 and not self.odoo_links(), what="Odoo's links, past pgweir")


class FirstSteps(Live):
    """Nothing of pgweir is there but the repository."""

    answers = {**Page.answers, "psql -h": f"{PASSWORD}\n"}

    def setup(self):
        super().setup()
        self.box.checkout()
        self.box.places |= {"db.example": "127.0.0.1", "db.example:5432": f"127.0.0.1:{self.cluster.port}",
                            f"unix:{self.box.home}/data/run": f"unix:{self.box.home}/data/run:{self.box.port}"}
        self.box.refresh()

    def scene_nothing_is_there_yet(self):
        """pgweir and its role are gone again; Odoo is where it was."""
        for group in self.box.groups:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGTERM)
        eventually(lambda: not self.cluster.count("pgweir%"), what="pgweir gone")
        self.nobody()

    def scene_pgweir_runs_with_that(self):
        assert self.box.must("target/release/pgweir check").splitlines()[0].endswith(": ok")
        self.box.must("target/release/pgweir run > pgweir.log 2>&1 &")
        eventually(lambda: "Mode observe" in self.box.run("target/release/pgweir status")[1], what="pgweir up")
        status, text = self.box.run("psql -h $PWD/data/run -p 6432 -U odoo odoo -c 'select 1'", f"{PASSWORD}\n")
        assert status == 0, text


class Inline(Live):
    """pgweir is installed and has not been started."""

    def setup(self):
        self.cluster.sql("create table if not exists sale_order (id int); grant all on sale_order to public", dbname="odoo")
        super().setup()

    def scene_odoo_goes_through_pgweir_again(self):
        step = next(step for step in docs.script(ROOT / "docs/inline.md") if isinstance(step, docs.Command) and "db_host = /run" in step.text)
        self.box.must(step.text)
        self.box.must("systemctl restart odoo")
        self.scene_odoo_is_through_pgweir()

    def scene_a_busy_day(self):
        """Batch comes while PostgreSQL is nearly full, and a request forgets its transaction. In a second, for the test's sake."""
        config = self.box.base / "etc/pgweir/pgweir.toml"
        as_written = config.read_text()
        config.write_text(re.sub(r'(name = "web".*\n(?:.*\n)*?idle_in_transaction = ).*', r'\1{ warn = "300ms", reset = "600ms", when = "always" }', as_written))
        self.box.must("pgweir reload")
        where = {"password": PASSWORD}
        self.box.cast([web(2103, "BEGIN", "select * from sale_order where id = 7", where=where)])
        self.timeline("would_reset")
        nightly = self.crowd("bi-nightly", 76)
        self.timeline(" shed ")
        self.box.cast([cron(3101, where=where)])
        self.timeline("would hold")
        for conn in nightly:
            conn.close()
        config.write_text(as_written)
        self.box.must("pgweir reload")
        self.timeline("unshed")

    def timeline(self, word):
        """Waits until the timeline has it."""
        eventually(lambda: word in self.box.run("pgweir timeline")[1], timeout=60, what=word)


class Two(Page):
    """pgweir on two hosts: here on two addresses of one, with one port."""

    def setup(self):
        box = self.box
        box.places |= {"10.0.0.11": "127.0.0.1", "10.0.0.12": "127.0.0.2"}
        box.ports["6443"] = free_port()
        box.refresh()
        self.replace = {**self.replace, '[[listen]]\naddress = "unix:/run/pgweir"': "#"}
        super().setup()
        second = odoo_toml(replace=self.replace).replace("127.0.0.1:6432", "127.0.0.2:6432").replace("6433", "6443")
        for place in ("/run/pgweir", "/var/lib/pgweir", "/etc/pgweir"):
            second = second.replace(place, place + "-b")
            (box.base / f"{place}-b".lstrip("/")).mkdir()
        box.configure(second, place="etc/pgweir-b")
        box.must("systemctl start pgweir-b")

    def scene_the_first_is_killed(self):
        pid = int((self.box.base / "pgweir.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not cmdline(pid), what="it is dead")

    def scene_the_first_is_back(self):
        self.box.must("systemctl start pgweir")


class Upgrading(Page):
    """A pgweir that runs; the new program, not installed yet, is in the page's directory."""

    def setup(self):
        super().setup()
        (self.box.home / "pgweir").symlink_to(self.box.base / "bin" / "pgweir")

    def scene_a_slip_in_the_file(self):
        self.box.must("sed -i 's/^quota = 40/qouta = 40/' /etc/pgweir/pgweir.toml")

    def scene_the_slip_is_mended(self):
        self.box.must("sed -i 's/^qouta = 40/quota = 40/' /etc/pgweir/pgweir.toml")


STAGES = {
    "README.md": FirstSteps, "docs/capacity.md": Untouched, "docs/runbook.md": Runbook, "docs/commands.md": Runbook, "docs/inline.md": Inline,
    "docs/incidents.md": Incidents,
    "docs/availability-of-pgweir.md": Two, "docs/upgrading.md": Upgrading,
}


@pytest.fixture
def sandbox(cluster):
    """A page's sandbox; the cluster is given back as it was."""
    hba = (cluster.data / "pg_hba.conf").read_text()
    box = Sandbox(cluster)
    yield box
    box.close()
    (cluster.data / "pg_hba.conf").write_text(hba)
    cluster.sql("select pg_reload_conf()")
    if not cluster.value("select count(*) from pg_roles where rolname = 'pgweir'"):
        cluster.sql("create role pgweir login")
    cluster.sql("alter role pgweir password null")
    cluster.sql("alter role odoo password null")
    cluster.sql("grant pg_monitor, pg_signal_backend to pgweir")


def here(path):
    """The page's scenes and those of its commands that run here."""
    page = name_of(path)
    return [part for part in docs.script(path)
            if isinstance(part, docs.Scene) or not docs.found_elsewhere(ELSEWHERE, page, part.text)]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_s_commands_do_what_it_says(path, sandbox):
    steps = here(path)
    if not any(isinstance(step, docs.Command) for step in steps):
        return
    page, updates = STAGES.get(name_of(path), Page)(sandbox), docs.Updates(path)
    try:
        for step in steps:
            page.scene(step.name) if isinstance(step, docs.Scene) else play(page, step, updates, name_of(path))
    finally:
        updates.write()


def play(page, step, updates, name):
    """Runs a command and compares."""
    text = step.text if step.lang != "sql" else f"sudo -u postgres psql -X -q -v ON_ERROR_STOP=1 <<'SQL'\n{step.text}\nSQL"
    status, text = page.box.run(text, page.stdin(step.text))
    where = f"{name}:{step.line}: {step.text}\n"
    assert status == step.status, f"{where}exit status {status}, promised {step.status}:\n{text}\n{page.box.log()[-3000:]}"
    fault = docs.fault(step, text, updates)
    assert not fault, where + fault


# -- the pages themselves ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_blocks_say_what_they_are(path):
    for part in docs.parts(path):
        if isinstance(part, docs.Block):
            assert part.lang in docs.COMMANDS + docs.OTHERS, f"{name_of(path)}:{part.line}: a block of {part.lang or 'no language'}"
            if part.lang == "toml":
                tomllib.loads("\n".join(part.lines))
            if part.lang in ("text", "ini"):
                assert not any(line.startswith("$ ") for line in part.lines), f"{name_of(path)}:{part.line}: commands belong into a console block"


def known_keys():
    """The table *Every key* of docs/configuration.md, which is the program's own."""
    text = (ROOT / "docs/configuration.md").read_text().split("<!-- every key: begin")[1].split("<!-- every key: end")[0]
    return set(re.findall(r"^\| `([\w.]+)` \|", text, re.M))


def keys_of(value, path=()):
    """Dotted keys of a TOML document; items of lists of tables count as their table."""
    for key, inner in value.items():
        here = (*path, key)
        tables = [inner] if isinstance(inner, dict) else inner if isinstance(inner, list) and inner and isinstance(inner[0], dict) else None
        if tables is None:
            yield ".".join(here)
        for table in tables or ():
            yield from keys_of(table, here)


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "drill.md"], ids=name_of)
def test_toml_in_the_pages_has_keys_that_exist(path):
    for part in docs.parts(path):
        if isinstance(part, docs.Block) and part.lang == "toml":
            # What is commented out is a key as well.
            text = "\n".join(re.sub(r"^# (?=\w+ = )", "", line) for line in part.lines)
            unknown = set(keys_of(tomllib.loads(text))) - known_keys()
            assert not unknown, f"{name_of(path)}:{part.line}: {unknown}"


# How a runner takes commands from a page: all that are like a glob, or all.
TAKES = re.compile(r"""docs\.(?:commands|steps)\("([^"]+)"(?:, (?:"([^"]+)"|'([^']+)'))?\)""")


def runs(runner, page, text):
    """Whether what is said to run a command does: it takes it from the page, it has it in so many words, or it is that program itself. Of a
    page with measurements, whose options are shortened, the program is enough."""
    told = runner.read_text().replace(" --quiet ", " ")
    if any(page == taken and fnmatch.fnmatchcase(docs.uncommented(text), glob or other or "*") for taken, glob, other in TAKES.findall(told)):
        return True
    program = re.sub(r"\w+=\S*|\.venv/bin/python", "", text).split()[0]
    if docs.uncommented(text) in told or program == name_of(runner):
        return True
    return "docs.script(" in told and page.rpartition("/")[2] in told and "/" in program and program in told


def test_what_runs_elsewhere_is_there_and_runs():
    """No row without a command on its page, none whose program is gone, and none whose runner is gone or knows nothing of it."""
    pages = {name_of(path): path for path in PAGES}
    for row in ELSEWHERE:
        if "*" not in row.page and row.page not in pages:
            continue
        texts = [part.text for page, path in pages.items() if docs.found_elsewhere([row], page, "*") or page == row.page or "*" in row.page
                 for part in docs.script(path) if isinstance(part, docs.Command)]
        spoken = [text for text in texts if docs.found_elsewhere([row], row.page, text)]
        assert spoken, f"{row.page}: no command is like {row.command!r} any more"
        assert row.why.strip(), row
        assert os.access(ROOT / row.by, os.R_OK), f"{row.command!r}: there is no {row.by}"
        for text in spoken:
            assert runs(ROOT / row.by, row.page, text), f"{row.by} neither takes {text!r} from {row.page} nor has it"
            for program in re.findall(r"(?:^|\s)((?:script|benches)/[\w./-]+)", text):
                assert (ROOT / program).exists(), f"{text!r}: there is no {program}"


LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def anchor(heading):
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    text = path.read_text()
    for target, fragment in LINK.findall(text):
        there = (path.parent / target).resolve()
        assert there.exists(), f"{name_of(path)}: {target}"
        if fragment and there.suffix == ".md":
            headings = [anchor(line.lstrip("#")) for line in there.read_text().splitlines() if line.startswith("#")]
            assert fragment[1:] in headings, f"{name_of(path)}: {target}{fragment}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for path in PAGES:
        if path.parent.name == "docs" and path.name != "README.md":
            assert f"({path.name})" in index, f"docs/README.md does not mention {path.name}"
