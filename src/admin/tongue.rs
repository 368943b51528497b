//! PgBouncer's tongue: tables whose names, columns and types are those of its console (1.18), so that its dashboards and exporters work.
//! Own columns follow. Pure.
//!
//! What the words mean here is in docs/pgbouncer.md; a test holds names and types against a real PgBouncer's.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::control::Control;
use super::view::{Column, Row, Value, count, int, table, text};
use crate::clock::WallMs;
use crate::snapshot::{ClientRow, ConfigRow, DatabaseRow, PoolRow, ServerRow, Work, utc_seconds};

/// The name of the database under which states are PgBouncer's words as well.
pub const DATABASE: &str = "pgbouncer";

/// SHOW STATS. `total_requests` is what PgBouncer before 1.8 had, and Debian's exporter still asks for.
pub const STATS: &[Column] = table![
    database: Text, total_xact_count: Numeric, total_query_count: Numeric, total_received: Numeric,
    total_sent: Numeric, total_xact_time: Numeric, total_query_time: Numeric, total_wait_time: Numeric,
    avg_xact_count: Numeric, avg_query_count: Numeric, avg_recv: Numeric, avg_sent: Numeric,
    avg_xact_time: Numeric, avg_query_time: Numeric, avg_wait_time: Numeric, total_requests: Numeric,
];
/// SHOW STATS_TOTALS.
pub const STATS_TOTALS: &[Column] = table![
    database: Text, xact_count: Numeric, query_count: Numeric, bytes_received: Numeric, bytes_sent: Numeric,
    xact_time: Numeric, query_time: Numeric, wait_time: Numeric,
];
/// SHOW POOLS.
pub const POOLS: &[Column] = table![
    database: Text, user: Text, cl_active: Int4, cl_waiting: Int4, cl_active_cancel_req: Int4,
    cl_waiting_cancel_req: Int4, sv_active: Int4, sv_active_cancel: Int4, sv_being_canceled: Int4, sv_idle: Int4,
    sv_used: Int4, sv_tested: Int4, sv_login: Int4, maxwait: Int4, maxwait_us: Int4, pool_mode: Text,
    idle_in_transaction: Int4,
];
/// SHOW DATABASES.
pub const DATABASES: &[Column] = table![
    name: Text, host: Text, port: Int4, database: Text, force_user: Text, pool_size: Int4, min_pool_size: Int4,
    reserve_pool: Int4, pool_mode: Text, max_connections: Int4, current_connections: Int4, paused: Int4,
    disabled: Int4,
];
/// SHOW LISTS.
pub const LISTS: &[Column] = table![list: Text, items: Int4];
/// SHOW CONFIG.
pub const CONFIG: &[Column] = table![key: Text, value: Text, default: Text, changeable: Text];
/// SHOW CLIENTS.
pub const CLIENTS: &[Column] = table![
    type: Text, user: Text, database: Text, state: Text, addr: Text, port: Int4, local_addr: Text, local_port: Int4,
    connect_time: Text, request_time: Text, wait: Int4, wait_us: Int4, close_needed: Int4, ptr: Text, link: Text,
    remote_pid: Int4, tls: Text, application_name: Text,
    id: Int8, lane: Text, rule: Text, application: Text, address: Text, pid: Int4, process: Text,
    transaction_ms: Int8, idle_in_transaction_ms: Int8, wait_ms: Int8, last_statement: Text,
];
/// SHOW SERVERS.
pub const SERVERS: &[Column] = table![
    type: Text, user: Text, database: Text, state: Text, addr: Text, port: Int4, local_addr: Text, local_port: Int4,
    connect_time: Text, request_time: Text, wait: Int4, wait_us: Int4, close_needed: Int4, ptr: Text, link: Text,
    remote_pid: Int4, tls: Text, application_name: Text,
    id: Int8, lane: Text, link_state: Text,
];

/// Where `state` stands among the columns of SHOW CLIENTS.
pub const CLIENT_STATE: usize = 3;
/// Sessions keep their connection until they end, whether or not it is pooled then.
const POOL_MODE: &str = "session";

/// A row of SHOW STATS.
pub fn stats(row: &DatabaseRow) -> Row {
    let Work { transactions, transaction_us, queries, query_us, received, sent, wait_us } = row.recent;
    let per_second = |amount: u64| match row.recent_us {
        0 => int(0),
        us => count(u64::try_from(u128::from(amount) * 1_000_000 / u128::from(us)).unwrap_or(u64::MAX)),
    };
    let mean = |sum: u64, of: u64| count(sum.checked_div(of).unwrap_or(0));
    let mut cells = totals(row);
    cells.extend([
        per_second(transactions),
        per_second(queries),
        per_second(received),
        per_second(sent),
        mean(transaction_us, transactions),
        mean(query_us, queries),
        per_second(wait_us),
        count(row.total.queries),
    ]);
    cells
}

/// A row of SHOW STATS_TOTALS: the first columns of SHOW STATS too.
pub fn totals(row: &DatabaseRow) -> Row {
    let total = row.total;
    vec![
        text(Arc::clone(&row.name)),
        count(total.transactions),
        count(total.queries),
        count(total.received),
        count(total.sent),
        count(total.transaction_us),
        count(total.query_us),
        count(total.wait_us),
    ]
}

/// A row of SHOW POOLS.
pub fn pool(row: PoolRow) -> Row {
    vec![
        text(Arc::clone(&row.database)),
        text(Arc::clone(&row.user)),
        int(row.active),
        int(row.waiting),
        int(row.cancels),
        // Cancels are sent on at once, or dropped.
        int(0),
        int(row.linked),
        int(row.cancels),
        int(row.cancelled),
        int(row.idle),
        int(0),
        int(0),
        int(row.login),
        count(row.max_wait_us / 1_000_000),
        count(row.max_wait_us % 1_000_000),
        text(POOL_MODE),
        int(row.idle_in_transaction),
    ]
}

/// A row of SHOW DATABASES.
pub fn database(row: &DatabaseRow) -> Row {
    vec![
        text(Arc::clone(&row.name)),
        text(Arc::clone(&row.host)),
        int(row.port),
        text(Arc::clone(&row.name)),
        Value::Null,
        int(row.slots_max),
        int(0),
        int(row.reserved),
        text(POOL_MODE),
        // No limit on a database across lanes.
        int(0),
        int(row.slots),
        int(u8::from(row.paused)),
        int(u8::from(row.disabled)),
    ]
}

/// The rows of SHOW LISTS, in PgBouncer's order. Names are not resolved by pgweir itself, so that nothing is kept of DNS.
pub fn lists(control: &dyn Control) -> Vec<Row> {
    let (pools, lists) = (control.pools(), control.lists());
    let users: BTreeSet<&str> = pools.iter().map(|pool| &*pool.user).collect();
    let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let row = |name: &'static str, items: u32| vec![text(name), int(items)];
    vec![
        row("databases", len(control.databases().len())),
        row("users", len(users.len())),
        row("pools", len(pools.len())),
        row("free_clients", lists.free_clients),
        row("used_clients", lists.used_clients),
        row("login_clients", lists.login_clients),
        row("free_servers", lists.free_servers),
        row("used_servers", lists.used_servers),
        row("dns_names", 0),
        row("dns_zones", 0),
        row("dns_queries", 0),
        row("dns_pending", 0),
    ]
}

/// The rows of SHOW CONFIG: pgweir's settings under their own names, before them under PgBouncer's those that its tools read.
pub fn config(control: &dyn Control) -> Vec<Row> {
    let own = control.config();
    let clients = own
        .iter()
        .find(|row| row.key == "limits.max_clients")
        .map(|row| ConfigRow { key: "max_client_conn".to_owned(), ..row.clone() });
    let fixed = |key: &str, value: &str| ConfigRow {
        key: key.to_owned(),
        value: value.to_owned(),
        default: Some(value.to_owned()),
        changeable: false,
    };
    let theirs = clients.into_iter().chain([
        fixed("max_user_connections", "0"),
        fixed("max_db_connections", "0"),
        fixed("pool_mode", POOL_MODE),
        fixed("stats_period", "60"),
    ]);
    let cells = |row: ConfigRow| {
        let default = row.default.map_or(Value::Null, text);
        vec![text(row.key), text(row.value), default, text(if row.changeable { "yes" } else { "no" })]
    };
    theirs.chain(own).map(cells).collect()
}

/// A row of SHOW CLIENTS.
pub fn client(row: ClientRow) -> Row {
    let ends = row.ends;
    let (local, local_port) = place(&ends.listener);
    let addr = match row.address.rsplit_once(':') {
        Some((host, _)) => host.trim_matches(['[', ']']).to_owned(),
        None => row.address.clone(),
    };
    vec![
        text("C"),
        text(row.user),
        text(row.database),
        text(row.state),
        text(addr),
        int(ends.port),
        text(local.to_owned()),
        int(local_port),
        moment(ends.connected_at),
        moment(ends.requested_at),
        count(ends.waiting_us / 1_000_000),
        count(ends.waiting_us % 1_000_000),
        int(0),
        text(client_name(row.id)),
        text(row.pid.map(server_name).unwrap_or_default()),
        int(ends.process_pid),
        text(ends.tls),
        text(Arc::clone(&row.application)),
        count(row.id),
        text(row.lane),
        text(row.rule),
        text(row.application),
        text(row.address),
        row.pid.map_or(Value::Null, int),
        text(row.process),
        count(row.transaction_ms),
        count(row.idle_in_transaction_ms),
        count(row.wait_ms),
        text(row.last_statement),
    ]
}

/// A client's state in PgBouncer's words: it knows whether a client has a connection, not what it does with it.
pub fn client_state(state: &str) -> &'static str {
    match state {
        "starting" | "waiting" | "login" | "held" => "waiting",
        _ => "active",
    }
}

/// A row of SHOW SERVERS.
pub fn server(row: ServerRow) -> Row {
    let has_client = !row.link_state.is_empty();
    vec![
        text("S"),
        text(row.user),
        text(row.database),
        text(row.state),
        text(row.host),
        int(row.port),
        row.local_address.map_or(Value::Null, text),
        int(row.local_port),
        moment(row.connected_at),
        moment(row.requested_at),
        int(0),
        int(0),
        int(u8::from(row.state == "closing")),
        text(row.pid.map(server_name).unwrap_or_default()),
        text(if has_client { client_name(row.link) } else { String::new() }),
        int(row.pid.unwrap_or(0)),
        text(if row.tls { "TLS" } else { "" }),
        text(row.application),
        if has_client { count(row.link) } else { Value::Null },
        text(row.lane),
        text(row.link_state),
    ]
}

/// Names by which `ptr` and `link` point at each other.
fn client_name(id: u64) -> String {
    format!("c{id}")
}

fn server_name(pid: i32) -> String {
    format!("s{pid}")
}

/// `2026-11-22 22:16:19 UTC`.
fn moment(at: WallMs) -> Value {
    text(utc_seconds(at))
}

/// Address and port of a listener as it is written; a Unix socket is "unix".
fn place(listener: &str) -> (&str, u16) {
    if listener.starts_with("unix:") {
        return ("unix", 0);
    }
    let (host, port) = listener.rsplit_once(':').unwrap_or((listener, ""));
    (host.trim_matches(['[', ']']), port.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_per_second_and_per_transaction() {
        let recent = Work {
            transactions: 120,
            transaction_us: 240_000,
            queries: 360,
            query_us: 180_000,
            received: 6_000,
            sent: 60_000,
            wait_us: 600,
        };
        let row =
            DatabaseRow { name: "odoo".into(), recent, recent_us: 60_000_000, ..DatabaseRow::default() };
        let figures = |row: &DatabaseRow| -> Vec<String> {
            stats(row)[8..15].iter().map(|value| value.text().unwrap_or_default()).collect()
        };
        assert_eq!(figures(&row), ["2", "6", "100", "1000", "2000", "500", "10"]);
        assert_eq!(figures(&DatabaseRow::default()), ["0"; 7]);
    }

    #[test]
    fn every_row_has_a_value_for_each_column() {
        let database = DatabaseRow::default();
        assert_eq!(stats(&database).len(), STATS.len());
        assert_eq!(totals(&database).len(), STATS_TOTALS.len());
        assert_eq!(super::database(&database).len(), DATABASES.len());
        assert_eq!(pool(PoolRow::default()).len(), POOLS.len());
        assert_eq!(CLIENTS[CLIENT_STATE].name, "state");
    }

    #[test]
    fn listeners_and_moments_are_told_as_pgbouncer_does() {
        assert_eq!(place("127.0.0.1:6432"), ("127.0.0.1", 6432));
        assert_eq!(place("[::1]:6432"), ("::1", 6432));
        assert_eq!(place("unix:/run/pgweir"), ("unix", 0));
        assert_eq!(moment(WallMs(951_782_400_999)), text("2000-02-29 00:00:00 UTC"));
    }
}
