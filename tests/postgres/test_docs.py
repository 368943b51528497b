"""Every command of README.md and docs/ is run, page by page, as it stands there, and its output compared with the page's.

A page's commands run in order in a sandbox that means what the page means: `/etc/pgweir`, ports 6432, 6433 and 5432, systemctl, sudo. What
happens between two commands is a scene (`<!-- scene: NAME -->`), played below. What cannot run here is listed in docs_elsewhere.toml with what
runs it instead; a command that is neither is a failure. `DOCS_UPDATE=1` writes real outputs into the pages.
"""

import json
import os
import re
import signal
import tomllib

import pytest

from harness import docs, eventually, free_port
from harness.docs import UPDATE
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


def web(n, *do, **more):
    """An HTTP worker."""
    return {"title": f"odoo: WorkerHTTP {n}", "application": f"odoo-{n}", "database": "odoo", "do": do, **more}


def cron(n, *do, **more):
    """A cron worker."""
    return {"title": f"odoo: WorkerCron {n}", "application": f"odoo-{n}", "database": "postgres", "do": do or ["LISTEN cron_trigger"], **more}


class Untouched(Page):
    """Nothing is installed yet: the repository, a PostgreSQL without a role for pgweir, and an odoo.conf that leads to it."""

    def setup(self):
        self.box.checkout()
        self.box.odoo_conf()
        self.box.places["db.example"] = "127.0.0.1"
        self.box.places["db.example:5432"] = f"127.0.0.1:{self.cluster.port}"
        self.box.refresh()
        self.cluster.sql("drop owned by pgweir")
        self.cluster.sql("drop role pgweir")
        self.cluster.sql(f"alter role odoo password '{PASSWORD}'")

    def scene_wait_for_pgweir(self):
        """It was started in the background."""
        eventually(lambda: self.box.run("target/release/pgweir usage")[0] == 0, what="pgweir up")


class Runbook(Page):
    """An incident on a small Odoo: a nightly BI job holds what it can get, requests leak transactions, cron piles up."""

    replace = {'hold_for = "15m"': 'hold_for = "6s"', 'warn = "15s", reset = "60s", when': 'warn = "1s", reset = "60s", when'}

    def setup(self):
        self.cluster.sql("create table if not exists stock_quant (id int primary key, quantity int); insert into stock_quant values (1, 10), (2, 5)"
                         " on conflict do nothing; grant all on stock_quant to public", dbname="odoo")
        super().setup()

    def scene_saturate(self):
        """82 % of PostgreSQL are in use, two requests sit idle in transaction, one of them on a row somebody wants, cron waits."""
        self.box.cast([
            *(web(2101 + n, "SELECT 1") for n in range(8)), *(cron(3101 + n) for n in range(3)),
            web(2117, "BEGIN", "update stock_quant set quantity = quantity - 1 where id = 1"), web(2118, "BEGIN", "select quantity from stock_quant"),
        ])
        self.box.cast([web(2119, "BEGIN", "update stock_quant set quantity = 0 where id = 1", "COMMIT", waits=True)])
        self.nightly = [self.bypass("bi-nightly") for _ in range(62)]
        self.box.must("until pgweir lanes --json | grep -q shedding; do sleep 0.05; done")
        self.box.cast([cron(3201 + n, waits=True) for n in range(3)])
        self.box.must("until pgweir leaks --json | jq -e 'length == 2 and .[0].blocks != \"\"' > /dev/null; do sleep 0.1; done; sleep 1")

    def scene_nightly_ends(self):
        """Somebody has stopped the BI job."""
        for conn in self.nightly:
            conn.close()
        self.box.must("until pgweir usage --json | jq -e '(if type == \"array\" then .[0] else . end).percent < 60' > /dev/null; do sleep 0.1; done")


class Inline(Page):
    """A live Odoo on one host with PostgreSQL; pgweir is installed and has not been started. Passwords over TCP, as Debian has it."""

    def setup(self):
        cluster = self.cluster
        cluster.sql("drop owned by pgweir")
        cluster.sql("drop role pgweir")
        cluster.sql(f"alter role odoo password '{PASSWORD}'")
        hba = cluster.data / "pg_hba.conf"
        hba.write_text("".join(f"host all {role} 127.0.0.1/32 scram-sha-256\n" for role in ("odoo", "pgweir")) + hba.read_text())
        cluster.sql("select pg_reload_conf()")
        cluster.sql("create table if not exists sale_order (id int); grant all on sale_order to public", dbname="odoo")
        self.box.odoo_conf()
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
        nightly = [self.bypass("bi-nightly") for _ in range(76)]
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
        eventually(lambda: word in self.box.run("pgweir timeline")[1], timeout=20, what=word)


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
    """A pgweir that runs."""

    def scene_a_slip_in_the_file(self):
        self.box.must("sed -i 's/^quota = 40/qouta = 40/' /etc/pgweir/pgweir.toml")

    def scene_the_slip_is_mended(self):
        self.box.must("sed -i 's/^qouta = 40/quota = 40/' /etc/pgweir/pgweir.toml")


STAGES = {
    "README.md": Untouched, "docs/capacity.md": Untouched, "docs/runbook.md": Runbook, "docs/commands.md": Runbook, "docs/inline.md": Inline,
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
    if step.output is None:
        return
    real = text.rstrip("\n").splitlines()
    fault = docs.differs(step.output, real)
    if fault and UPDATE:
        updates.put(step, real)
    else:
        assert not fault, f"{where}{fault}\n-- printed:\n{text}-- the page:\n" + "\n".join(step.output)


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


def test_what_runs_elsewhere_is_there_and_runs():
    """No row without a command on its page, none whose program is gone, and none where nobody runs it."""
    pages = {name_of(path): path for path in PAGES}
    for row in ELSEWHERE:
        if "*" not in row.page and row.page not in pages:
            continue
        texts = [part.text for page, path in pages.items() if docs.found_elsewhere([row], page, "*") or page == row.page or "*" in row.page
                 for part in docs.script(path) if isinstance(part, docs.Command)]
        spoken = [text for text in texts if docs.found_elsewhere([row], row.page, text)]
        assert spoken, f"{row.page}: no command is like {row.command!r} any more"
        assert row.why.strip(), row
        runner = row.by.split()[0]
        assert runner == "people" or os.access(ROOT / runner, os.R_OK), f"{row.command!r}: there is no {row.by}"
        for text in spoken:
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
