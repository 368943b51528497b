#!/bin/sh
# Run by the postgres image when it creates the cluster: the role of Odoo, and the role pgweir samples with.
set -eu

psql -v ON_ERROR_STOP=1 --username postgres --dbname postgres \
    -v odoo_password="$(cat /run/secrets-postgres/odoo)" \
    -v monitor_password="$(cat /run/secrets-postgres/monitor)" <<'SQL'
create role odoo login createdb password :'odoo_password';
create role pgweir login connection limit 3 password :'monitor_password';
grant pg_monitor to pgweir;
-- For TERMINATE PID, and [bypass] action = "terminate".
grant pg_signal_backend to pgweir;
SQL
