"""Odoo as PostgreSQL sees it: processes by their titles, their links, and the statements by which they are known; and pgweir with a shipped
configuration in front of them."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import tomllib

from .util import eventually, free_port
from .weir import ROOT

PROGRAM = pathlib.Path(__file__).with_name("odoo_process.py")
# Neither the virtual environment's nor a copy: it is run under other names, by other users.
PYTHON = "/usr/bin/python3" if pathlib.Path("/usr/bin/python3").exists() else shutil.which("python3")
SHAPES = ROOT / "tests" / "odoo-trace" / "shapes.txt"

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ"
COMMIT, ROLLBACK, DISCARD = "COMMIT", "ROLLBACK", "DISCARD ALL"
EXISTS = "SELECT datname FROM pg_database WHERE datname = 'odoo'"
DATABASES = ("select datname from pg_database where datdba=(select usesysid from pg_user where usename=current_user) and not datistemplate and"
             " datallowconn and datname not in ('postgres', 'template1', 'template0') order by datname")
NOTIFY = """SELECT "pg_notify"('imbus', '[["odoo","res.partner",3]]')"""
IN_RECOVERY = "SELECT pg_is_in_recovery()"
LISTEN_CRON, LISTEN_BUS, LISTEN_QUEUE = "LISTEN cron_trigger", "listen imbus", "LISTEN queue_job"
SIGNALING = ("SELECT base_registry_signaling.last_value, base_cache_signaling_default.last_value, base_cache_signaling_assets.last_value,"
             " base_cache_signaling_templates.last_value, base_cache_signaling_routing.last_value FROM base_registry_signaling,"
             " base_cache_signaling_default, base_cache_signaling_assets, base_cache_signaling_templates, base_cache_signaling_routing")
PAGE = [SIGNALING, "SELECT value FROM ir_config_parameter WHERE key = 'web.base.url'", "SELECT totp_secret FROM res_users WHERE id=2"]
LOAD = ["SET SESSION lock_timeout = 15000", SIGNALING]
RUNNER = ["SELECT 1 FROM pg_tables WHERE tablename='ir_module_module'", "SELECT pg_try_advisory_lock(2293787760715711918)", LISTEN_QUEUE,
          'DECLARE "select_jobs" CURSOR WITH HOLD FOR SELECT channel, uuid, id as seq, date_created, priority, EXTRACT(EPOCH FROM eta), state'
          " FROM queue_job WHERE state in ('pending', 'enqueued', 'started')"]
ENQUEUE = "UPDATE queue_job SET state='enqueued', date_enqueued=date_trunc('seconds', now() at time zone 'utc') WHERE uuid='job-1'"
JOB_MINE = "SELECT state FROM queue_job WHERE uuid='job-1' AND state='enqueued' FOR UPDATE"
JOB_ROW = "INSERT INTO queue_job_lock (id, queue_job_id) SELECT id, id FROM queue_job WHERE uuid = 'job-1' ON CONFLICT(id) DO NOTHING;"
JOB_HELD = ("SELECT * FROM queue_job_lock WHERE queue_job_id in ( SELECT id FROM queue_job WHERE uuid = 'job-1' AND state='started' )"
            " FOR UPDATE;")
# Not recorded: the shape is that of Odoo 15 to 19, and of 13 and 14.
CRON_ROW = "SELECT * FROM ir_cron WHERE active = true AND id = 1 ORDER BY priority LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"
CRON_ROW_14 = "SELECT * FROM ir_cron WHERE active AND id = 1 FOR UPDATE NOWAIT"
RECORDED = [BEGIN, COMMIT, ROLLBACK, DISCARD, EXISTS, DATABASES, NOTIFY, IN_RECOVERY, LISTEN_CRON, LISTEN_BUS, *PAGE, *LOAD, *RUNNER, ENQUEUE,
            JOB_MINE, JOB_ROW, JOB_HELD]

TABLES = """
create sequence base_registry_signaling; create sequence base_cache_signaling_default; create sequence base_cache_signaling_assets;
create sequence base_cache_signaling_templates; create sequence base_cache_signaling_routing;
create table ir_config_parameter (key text primary key, value text);
create table res_users (id int primary key, login text, totp_secret text);
insert into res_users values (2, 'admin', null);
create table res_partner (id int primary key, name text);
insert into res_partner select g, 'Partner ' || g from generate_series(1, 200) g;
create table ir_cron (id int primary key, active boolean, priority int, nextcall timestamp);
insert into ir_cron select g, true, 5, now() from generate_series(1, 5) g;
create table queue_job (id serial primary key, uuid text unique, state text, channel text, date_created timestamp, date_enqueued timestamp,
                        priority int, eta timestamp);
insert into queue_job (uuid, state) values ('job-1', 'pending'), ('job-2', 'pending');
create table queue_job_lock (id int primary key, queue_job_id int);
create table product_import (id serial primary key, code text, price numeric);
"""


def shape(sql):
    """A statement as it was recorded: without literals, cut."""
    text = re.sub(r"'(?:[^']|'')*'", "?", sql)
    text = re.sub(r"(?<!\w)\d+\b", "?", text)
    return re.sub(r"\(\?(?:, \?)+\)", "(?…)", text)[:200]


def tables(cluster, database="odoo"):
    """Makes Odoo's tables, as Odoo's own role."""
    conn = cluster.direct(user="odoo", dbname=database, app="suite")
    conn.cursor().execute(TABLES)
    conn.close()


class Process:
    """One of Odoo's processes. `title` is what setproctitle makes of its command line, or the command line itself as a list, in which
    "odoo" and "odoo-bin" are programs that exist. `name` is its links' application_name."""

    def __init__(self, weir, title, name="odoo-1000", unix=False, port=None, account=None, prefix=()):
        self.weir, self.name = weir, name
        self.where = {"path": f"{weir.unix_dir}/.s.PGSQL.{weir.port_of(True)}"} if unix else {"host": "127.0.0.1", "port": port or weir.port}
        self.backends = {}
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="odoo-"))
        self.place.chmod(0o755)
        ours, theirs = socket.socketpair()
        env = {"PATH": "/usr/bin:/bin", "ODOO_CHANNEL": str(theirs.fileno())}
        user = {"user": account, "group": account, "extra_groups": []} if account is not None else {}
        self.process = subprocess.Popen([*prefix, "/bin/bash", "-c", 'exec -a "$0" "$@"', *self._command(title)], env=env, pass_fds=[theirs.fileno()],
                                        stdin=subprocess.PIPE, cwd="/", start_new_session=True, **user)
        if isinstance(title, str):
            # Python reads what it shall do from its input: its command line is the title and nothing else.
            self.process.stdin.write(PROGRAM.read_bytes())
        self.process.stdin.close()
        theirs.close()
        self.socket, self.channel = ours, ours.makefile("rw")

    def _command(self, title):
        if isinstance(title, str):
            return [title, PYTHON]
        words = [title[0], PYTHON]
        for word in title[1:]:
            if word in ("odoo", "odoo-bin"):
                shutil.copy(PROGRAM, self.place / word)
                (self.place / word).chmod(0o755)
                word = str(self.place / word)
            words.append(word)
        return words

    def _order(self, what, link, **more):
        self.channel.write(json.dumps({"do": what, "link": link, **more}) + "\n")
        self.channel.flush()
        answer = self.channel.readline()
        assert answer, f"the process ended: {self.process.poll()}"
        return json.loads(answer)

    def open(self, link, database="odoo", user="odoo", name=None):
        """Opens a link; itself."""
        answer = self.attempt(link, database, user, name)
        assert answer["error"] is None, answer
        return self

    def attempt(self, link, database="odoo", user="odoo", name=None):
        """The answer to the start of a link that may be refused."""
        name = self.name if name is None else name
        params = {"user": user, "database": database, **({"application_name": name} if name else {})}
        answer = self._order("open", link, where=self.where, params=params)
        self.backends[link] = answer.get("pid")
        return answer

    def send(self, link, sql):
        """Sends a statement and does not wait."""
        self._order("send", link, sql=sql)

    def receive(self, link, copy=""):
        """The answer to what was sent."""
        return self._order("receive", link, copy=copy)

    def ask(self, link, sql, copy=""):
        """Sends a statement; the answer, whatever it is."""
        self.send(link, sql)
        return self.receive(link, copy)

    def run(self, link, *statements):
        """Sends statements one after the other, each of which must succeed; the last one's answer."""
        for sql in statements:
            answer = self.ask(link, sql)
            assert answer["error"] is None and answer["status"] != "closed", (sql, answer)
        return answer

    def short(self, link, *statements):
        """A link to `postgres` as Odoo opens them for a moment; open still."""
        self.open(link, "postgres")
        self.run(link, BEGIN, *statements)
        return self

    def hang_up(self, link):
        """Terminate."""
        self._order("close", link)

    def row(self, link):
        """The link's row of SHOW CLIENTS, or none."""
        return next((row for row in self.weir.clients() if row["pid"] == self.backends[link]), None)

    def lane(self, link):
        """The lane it is in now."""
        row = self.row(link)
        return row and row["lane"]

    def in_lane(self, link, lane):
        """Waits until it is in that lane: what SHOW CLIENTS tells is a moment old."""
        eventually(lambda: self.lane(link) == lane, what=f"{self.name} {link} in {lane}, not {self.row(link)}")
        return self

    def close(self):
        """Kills it."""
        self.socket.close()
        self.channel.close()
        self.process.kill()
        self.process.wait(30)
        shutil.rmtree(self.place, ignore_errors=True)


def shipped(make_weir, file, faster=1, change=None, **more):
    """A pgweir with a shipped configuration, its addresses replaced by free ones: `ports` has those of its listeners by their shipped
    address. Times of `idle_in_transaction` are divided by `faster`. `change` may alter the lanes, by name, before it starts."""
    config = tomllib.loads((ROOT / "config" / file).read_text())
    weir = make_weir(start=False, lanes=config["lane"], applications=config.get("application", []), exit=config["exit"],
                     upstream={"headroom": config["upstream"]["headroom"]}, **more)
    weir.ports, listen = {}, []
    for each in config["listen"]:
        unix = each["address"].startswith("unix:")
        port = free_port() if weir.ports.get("first") else weir.port
        address = f"unix:{weir.unix_dir}" if unix else f"127.0.0.1:{port}"
        if not unix:
            weir.ports["first"] = True
            weir.ports[int(each["address"].rpartition(":")[2])] = port
        listen.append({**each, "address": address})
        for rule in (rule for lane in config["lane"] for rule in lane.get("match", [])):
            if rule.get("listener") == each["address"]:
                rule["listener"] = address
    weir.config["listen"] = listen
    for lane in config["lane"]:
        leaks = lane.get("idle_in_transaction", {})
        leaks.update({key: shorter(leaks[key], faster) for key in ("warn", "reset", "cap") if key in leaks})
    if change:
        change({lane["name"]: lane for lane in config["lane"]})
    return weir.start()


def shorter(duration, faster):
    """A duration of the configuration, divided."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", duration).groups()
    ms = int(number) * {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}[unit]
    return f"{max(1, ms // faster)}ms"
