#!/bin/sh
# Creates Odoo's database, once. Through pgweir, like everything.
set -eu

installed() {
    psql -h pgweir -p 6432 -U odoo -d odoo -Atqc \
        "select 1 from ir_module_module where name = 'base' and state = 'installed'" 2>/dev/null
}

if [ "$(installed || true)" = 1 ]; then
    echo "the database odoo is there"
    exit 0
fi
exec odoo --init=base --without-demo=all --no-http --workers=0 --max-cron-threads=0 --stop-after-init
