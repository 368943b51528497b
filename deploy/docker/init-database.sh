#!/bin/sh
# Creates Odoo's database, once. Through pgweir, like everything.
set -eu

PGPASSWORD=$(cat "$PASSWORD_FILE")
export PGPASSWORD

installed() {
    psql -h "$HOST" -p "$PORT" -U "$USER" -d "$ODOO_DATABASE" -Atqc \
        "select 1 from ir_module_module where name = 'base' and state = 'installed'" 2>/dev/null
}

if [ "$(installed || true)" = 1 ]; then
    echo "database $ODOO_DATABASE is there"
    exit 0
fi
exec /entrypoint.sh odoo --database="$ODOO_DATABASE" --init=base --without-demo=all --no-http --workers=0 --max-cron-threads=0 --stop-after-init
