"""A real PostgreSQL for the monitor of a pgweir whose upstream is the fake one: pg_stat_activity also lists the fake's backends."""

import psycopg2.extras

from harness import Cluster
from harness import cluster as clusters

# What the view shows of a backend that is none. Every other column is NULL.
COLUMNS = {
    "datname": "'bench'", "pid": "c.pid", "usename": "'odoo'", "application_name": "'live'", "client_addr": "'127.0.0.1'",
    "backend_start": "c.since", "state_change": "c.since", "xact_start": "case when c.in_transaction then c.since end",
    "state": "case when c.in_transaction then 'idle in transaction' else 'idle' end", "wait_event_type": "'Client'",
    "wait_event": "'ClientRead'", "query": "'SELECT 1'", "backend_type": "'client backend'",
}


class Sampled:
    """Start it, put the monitor on `port`, and tell it who is there. It counts how often it was looked at."""

    def __init__(self, connections):
        template = clusters.template()
        try:
            # Locks are reserved per connection: the default would cost hundreds of MB.
            self.cluster = Cluster(max_connections=connections, template=template, max_locks_per_transaction="10")
        finally:
            template.close()
        self.port = self.cluster.port
        self.conn = None

    def start(self):
        """Starts the server and widens the view; itself."""
        self.cluster.start()
        self.conn = self.cluster.direct(app="suite")
        self._run("create table crowd (pid int, in_transaction bool, since timestamptz default clock_timestamp()); create sequence looks; grant usage on sequence looks to pgweir;"
                  " set allow_system_table_mods = on")
        shown = ", ".join(f"({COLUMNS.get(name, 'null')})::{kind}" for name, kind in self._columns())
        old = self._value("select pg_get_viewdef('pg_catalog.pg_stat_activity'::regclass)").rstrip().rstrip(";")
        self._run(f"create or replace view pg_catalog.pg_stat_activity as {old} union all select {shown} from public.crowd c"
                  " where (select nextval('public.looks')) > 0")
        return self

    def list(self, pids):
        """Lists these pids as backends, every other one in a transaction."""
        self._run("truncate crowd")
        with self.conn.cursor() as cur:
            psycopg2.extras.execute_values(cur, "insert into crowd (pid, in_transaction) values %s", [(pid, n % 2 == 1) for n, pid in enumerate(pids)] or [(0, False)])
        self._run("analyze crowd")

    def looks(self):
        """How many samples were taken so far."""
        return self._value("select last_value from looks")

    def close(self):
        """Ends it."""
        if self.conn:
            self.conn.close()
        self.cluster.close()

    def _columns(self):
        with self.conn.cursor() as cur:
            cur.execute("select attname, format_type(atttypid, atttypmod) from pg_attribute"
                        " where attrelid = 'pg_catalog.pg_stat_activity'::regclass and attnum > 0 order by attnum")
            return cur.fetchall()

    def _run(self, sql):
        with self.conn.cursor() as cur:
            cur.execute(sql)

    def _value(self, sql):
        with self.conn.cursor() as cur:
            cur.execute(sql)
            return cur.fetchone()[0]
