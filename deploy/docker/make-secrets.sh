#!/bin/sh
# Generates the passwords of docker-compose.yml, once: one file per reader, readable by that reader only. A password that two
# services need (odoo's and the monitor's) exists twice.
set -eu

random() { # 160 bits in hexadecimal
    od -An -N20 -tx1 /dev/urandom | tr -d ' \n'
}

put() { # OWNER FILE PASSWORD
    umask 077
    printf '%s\n' "$3" > "$2.new"
    chown "$1" "$2.new"
    chmod 0400 "$2.new"
    mv "$2.new" "$2"
}

postgres=999:999     # of the image postgres (Debian)
pgweir=10001:10001   # of our Dockerfile
odoo=$(id -u odoo):$(id -g odoo)

# Volumes begin as root's.
chown "$postgres" /secrets/postgres
chown "$pgweir" /secrets/pgweir
chown "$odoo" /secrets/odoo
chmod 0700 /secrets/postgres /secrets/pgweir /secrets/odoo

# The last file written says that all are there: PostgreSQL takes the passwords at its first start only.
if [ ! -e /secrets/odoo/odoo ]; then
    password=$(random)
    put "$postgres" /secrets/postgres/superuser "$(random)"
    put "$postgres" /secrets/postgres/odoo "$password"
    monitor=$(random)
    put "$postgres" /secrets/postgres/monitor "$monitor"
    put "$pgweir" /secrets/pgweir/monitor "$monitor"
    put "$odoo" /secrets/odoo/odoo "$password"
fi
