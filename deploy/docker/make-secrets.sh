#!/bin/sh
# Generates the passwords of docker-compose.yml: one file per reader, readable by that reader only. A password that two services
# need (odoo's and the monitor's) exists twice. What is there stays: PostgreSQL takes passwords at its first start only.
set -eu

known() { # FILE: its password, or a new one of 160 bits in hexadecimal
    cat "$1" 2>/dev/null || od -An -N20 -tx1 /dev/urandom | tr -d ' \n'
}

put() { # OWNER FILE TEXT
    umask 077
    printf '%s\n' "$3" > "$2.new"
    chown "$1" "$2.new"
    chmod 0400 "$2.new"
    mv "$2.new" "$2"
}

postgres=999:999     # of the image postgres (Debian)
pgweir=10001:10001   # of our Dockerfile
grafana=472:0        # of the image grafana/grafana
odoo=$(id -u odoo):$(id -g odoo)

# Volumes begin as root's.
chown "$postgres" /secrets/postgres
chown "$pgweir" /secrets/pgweir
chown "$odoo" /secrets/odoo
chown "$grafana" /secrets/grafana
chmod 0700 /secrets/postgres /secrets/pgweir /secrets/odoo /secrets/grafana

# PostgreSQL's first: should this be interrupted, the others follow from them the next time.
superuser=$(known /secrets/postgres/superuser)
put "$postgres" /secrets/postgres/superuser "$superuser"
odoo_password=$(known /secrets/postgres/odoo)
put "$postgres" /secrets/postgres/odoo "$odoo_password"
monitor=$(known /secrets/postgres/monitor)
put "$postgres" /secrets/postgres/monitor "$monitor"

put "$pgweir" /secrets/pgweir/monitor "$monitor"
admin=$(known /secrets/pgweir/admin)
put "$pgweir" /secrets/pgweir/admin "$admin"
dashboards=$(known /secrets/grafana/admin)
put "$grafana" /secrets/grafana/admin "$dashboards"
# libpq's own form of a password file.
put "$odoo" /secrets/odoo/pgpass "pgweir:6432:*:odoo:$odoo_password"
