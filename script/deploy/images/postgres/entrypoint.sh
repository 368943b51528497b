#!/bin/sh
# At the first start: a cluster with the superuser's password, logins from elsewhere by password only, and the mounted scripts, run
# while the server listens on its socket only. Then the server.
set -eu

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" --auth=trust --encoding=UTF8 --locale=C.UTF-8
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    pg_ctl start --wait --options="-c listen_addresses=''"
    for script in /docker-entrypoint-initdb.d/*.sh; do
        "$script"
    done
    pg_ctl stop --wait --mode=fast
fi
exec "$@"
