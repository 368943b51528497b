"""Stands in for an Odoo: processes with the titles, names, statements and parameters of its own, each with a link.

    odoo.py ODOO.CONF         two HTTP workers and a cron worker, where odoo.conf leads; a link that is lost is opened anew
    odoo.py --cast FILE.json  the roles of FILE, one process after the other: see `play`
"""

import configparser
import ctypes
import json
import os
import pathlib
import signal
import sys
import time
import traceback

import psycopg2


def title(text):
    """Shows `text` as this process's command line, as setproctitle does for Odoo."""
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    assert len(text) < end - start, "there is no room for the title: it would be cut"
    ctypes.memmove(start, text.encode()[:end - start - 1].ljust(end - start, b"\0"), end - start)


def die_with_parent(parent=None):
    """Nobody is left behind when whoever started this is killed, were it before this was said."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def connect(role):
    """A link; each statement is a message of its own."""
    conn = psycopg2.connect(dbname=role["database"], application_name=role["application"], connect_timeout=60, **role["where"])
    conn.autocommit = True
    return conn


def play(role, ready):
    """A role: `do` once, `again` five times a second, over one link. `ready` is told when the first is done; errors end nothing."""
    title(role["title"])
    conn = None
    while True:
        try:
            if conn is None:
                conn = connect(role)
                for statement in role.get("do", ()):
                    conn.cursor().execute(statement)
            os.write(ready, b".")
            while role.get("again"):
                time.sleep(0.2)
                for statement in role["again"]:
                    conn.cursor().execute(statement)
            signal.pause()
        except psycopg2.Error as error:
            print(f"{role['application']}: {str(error).strip()}", file=sys.stderr, flush=True)
            if not role.get("again"):
                os.write(ready, b".")
                signal.pause()
            conn = None
            time.sleep(0.1)


def start(roles, children):
    """A process for each, in their order; the next one begins when the one before is ready, unless that one is to wait. Their pids go into
    `children`."""
    parent = os.getpid()
    for role in roles:
        told, ready = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                die_with_parent(parent)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.close(told)
                play(role, ready)
            except BaseException:  # noqa: BLE001 - its parent's end is none of its business
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
        if not role.get("waits"):
            os.read(told, 1)
        # Both ends stay open here, so that a child's later words hit no closed pipe.


def of_conf(path):
    """The roles of an odoo.conf."""
    parser = configparser.RawConfigParser()
    parser.read(path)
    conf = parser["options"]
    where = {name: conf[f"db_{name}"] for name in ("host", "port", "user", "password") if conf.get(f"db_{name}", "False") != "False"}
    roles = [{"title": f"odoo: WorkerHTTP {n}", "application": f"odoo-{n}", "database": conf["db_name"], "where": where,
              "again": ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1", "COMMIT"]} for n in (2101, 2102)]
    cron = {"title": "odoo: WorkerCron 2110", "application": "odoo-2110", "database": "postgres", "where": where,
            "do": ["LISTEN cron_trigger"], "again": ["SELECT 1"]}
    return [*roles, cron]


def main():
    """Until SIGTERM, whenever that comes."""
    if sys.argv[1] == "--cast":
        die_with_parent()
    roles = json.loads(pathlib.Path(sys.argv[2]).read_text()) if sys.argv[1] == "--cast" else of_conf(sys.argv[1])
    children = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        start(roles, children)
        print("ready", flush=True)
        while True:
            time.sleep(0.05)
    finally:
        # Not by SIGTERM: a child may not be ready for it yet.
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
