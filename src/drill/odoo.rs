//! Odoo's statements on tables of the same names, in the shapes a real Odoo 17 put on the wire. Pure.

use super::schedule::Arrival;

/// Partners, and rows of `bus_bus`.
pub const PARTNERS: u32 = 2_000;
/// Rows everybody wants: a leak holds one of them.
pub const HOT_ROWS: u32 = 20;
/// Cron jobs: more than run at once, so that two due jobs seldom meet at one row.
pub const CRON_JOBS: u64 = 1_000;
/// The schema of all tables.
pub const SCHEMA: &str = "pgweir_drill";
/// Its comment: what carries another is not ours.
pub const SCHEMA_MARK: &str = "made by pgweir drill; dropped at its end or its next start";

/// Odoo's transaction.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ";
/// The same where the way does not pass `options` on.
pub const BEGIN_WITH_PATH: &str =
    "BEGIN ISOLATION LEVEL REPEATABLE READ;SET LOCAL search_path TO pgweir_drill";
/// The registry's and caches' sequences, read at the start of each request.
pub const SIGNALING: &str = "SELECT base_registry_signaling.last_value, base_cache_signaling.last_value \
                             FROM base_registry_signaling, base_cache_signaling";
/// What a cron worker asks before it listens.
pub const IN_RECOVERY: &str = "SELECT pg_is_in_recovery()";
/// The bus's poll.
pub const BUS_POLL: &str = "SELECT \"bus_bus\".\"id\", \"bus_bus\".\"message\" FROM \"bus_bus\" WHERE ((\"bus_bus\".\"create_date\" > \
                            (now() AT TIME ZONE 'UTC') - interval '50 s')) ORDER BY \"bus_bus\".\"id\" LIMIT 20";
/// A bus notification.
pub const NOTIFY: &str = "SELECT \"pg_notify\"('imbus', '[[\"drill\",\"res.partner\",1]]')";

/// The database's objects, as one script.
pub fn tables(jobs: u64) -> String {
    format!(
        "CREATE SCHEMA {SCHEMA}; COMMENT ON SCHEMA {SCHEMA} IS '{SCHEMA_MARK}'; SET search_path TO {SCHEMA};
         CREATE SEQUENCE base_registry_signaling; CREATE SEQUENCE base_cache_signaling;
         CREATE TABLE res_partner (id int PRIMARY KEY, name text, email text, active bool);
         INSERT INTO res_partner SELECT g, 'Partner ' || g, 'p' || g || '@example.com', true FROM generate_series(1, {PARTNERS}) g;
         CREATE TABLE sale_order (id bigserial PRIMARY KEY, ref bigint, partner_id int, amount numeric);
         CREATE INDEX ON sale_order (ref);
         CREATE TABLE stock_quant (id int PRIMARY KEY, quantity int) WITH (fillfactor = 50);
         INSERT INTO stock_quant SELECT g, 1000000 FROM generate_series(1, {HOT_ROWS}) g;
         CREATE TABLE bus_bus (id serial PRIMARY KEY, create_date timestamp, message text);
         INSERT INTO bus_bus (create_date, message) SELECT now() AT TIME ZONE 'UTC', 'x' FROM generate_series(1, 50);
         CREATE TABLE ir_cron (id int PRIMARY KEY, nextcall timestamp) WITH (fillfactor = 50);
         INSERT INTO ir_cron SELECT g, now() FROM generate_series(1, {CRON_JOBS}) g;
         CREATE TABLE mail_mail (id int PRIMARY KEY, tries int) WITH (fillfactor = 50);
         INSERT INTO mail_mail SELECT g, 0 FROM generate_series(1, {CRON_JOBS}) g;
         CREATE TABLE queue_job (id bigint PRIMARY KEY, uuid text UNIQUE, state text);
         INSERT INTO queue_job SELECT g, 'job-' || g, 'enqueued' FROM generate_series(0, {jobs} - 1) g;
         CREATE TABLE queue_job_lock (id bigint PRIMARY KEY, queue_job_id bigint);
         CREATE TABLE product_import (id bigserial PRIMARY KEY, code text, price numeric);
         RESET search_path; ANALYZE;"
    )
}

/// A page's read: a partner and its neighbours.
pub fn page_read(partner: u32) -> String {
    format!(
        "SELECT \"res_partner\".\"id\", \"res_partner\".\"name\", \"res_partner\".\"email\" FROM \"res_partner\" WHERE \
         ((\"res_partner\".\"active\" = TRUE) AND (\"res_partner\".\"id\" IN ({partner}, {}, {})))",
        partner + 1,
        partner + 2
    )
}

/// The order a request saves; `reference` tells afterwards whether it is there.
pub fn save_order(reference: u64, partner: u32) -> String {
    format!(
        "INSERT INTO \"sale_order\" (\"ref\", \"partner_id\", \"amount\") VALUES ({reference}, {partner}, 10.0) RETURNING \"id\""
    )
}

/// The update of a much wanted row.
pub fn take_stock(row: u32) -> String {
    format!("UPDATE \"stock_quant\" SET \"quantity\" = \"quantity\" - 1 WHERE id IN ({row})")
}

/// Tells a leak's statement from others in pg_stat_activity: behind a pooler application_name may be anybody's.
pub const LEAK_MARK: &str = "/* leak of the drill */";

/// The same by one who then forgets its transaction.
pub fn take_stock_and_leak(row: u32) -> String {
    format!("{} {LEAK_MARK}", take_stock(row))
}

/// The cron cursor's row lock, held while the job runs.
pub fn lock_cron(arrival: &Arrival) -> String {
    let id = arrival.index % CRON_JOBS + 1;
    format!("SELECT * FROM ir_cron WHERE id = {id} ORDER BY id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED")
}

/// The cron cursor's last statement.
pub fn reschedule_cron(arrival: &Arrival) -> String {
    format!("UPDATE ir_cron SET nextcall=now() WHERE id={}", arrival.index % CRON_JOBS + 1)
}

/// What a cron job writes.
pub fn cron_job(arrival: &Arrival) -> String {
    format!(
        "UPDATE \"mail_mail\" SET \"tries\" = \"tries\" + 1 WHERE id IN ({})",
        arrival.index % CRON_JOBS + 1
    )
}

/// The first transaction of a queue job: the job is mine. The last statement is the lock.
pub fn start_job(job: u64) -> [String; 3] {
    [
        format!("SELECT state FROM queue_job WHERE uuid='job-{job}' AND state='enqueued' FOR UPDATE"),
        format!(
            "INSERT INTO queue_job_lock (id, queue_job_id) SELECT id, id FROM queue_job WHERE uuid = 'job-{job}' ON CONFLICT(id) DO NOTHING;"
        ),
        format!("UPDATE \"queue_job\" SET \"state\" = 'started' WHERE uuid IN ('job-{job}')"),
    ]
}

/// The lock a job holds while it works.
pub fn hold_job(job: u64) -> String {
    format!(
        "SELECT * FROM queue_job_lock WHERE queue_job_id in ( SELECT id FROM queue_job WHERE uuid = 'job-{job}' AND state='started' ) FOR UPDATE;"
    )
}

/// A job's new state.
pub fn set_job(job: u64, state: &str) -> String {
    format!("UPDATE \"queue_job\" SET \"state\" = '{state}' WHERE uuid IN ('job-{job}')")
}

/// A long read, of about so many seconds: nearly all of it waiting, so that a drill measures connections rather than
/// the machine's processors.
pub fn long_read(seconds: f64) -> String {
    format!("SELECT count(*), max(md5(g::text)), pg_sleep({seconds:.3}) FROM generate_series(1, 2000) g")
}

/// A statement that takes so many seconds and no work at all.
pub fn pause(seconds: f64) -> String {
    format!("SELECT pg_sleep({seconds:.3})")
}

/// A hundred imported rows, as inserts.
pub fn import_rows(first: u64) -> String {
    let rows: Vec<String> = (0..100).map(|n| format!("('code-{}', {n}.5)", first + n)).collect();
    format!(
        "INSERT INTO \"product_import\" (\"code\", \"price\") VALUES {} RETURNING \"id\"",
        rows.join(", ")
    )
}

/// The import's COPY.
pub const IMPORT_COPY: &str = "COPY product_import (code, price) FROM STDIN";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cron_and_queue_statements_are_what_rules_for_odoo_look_for() {
        let arrival = Arrival { at: std::time::Duration::ZERO, index: 7 };
        let cron = lock_cron(&arrival).to_lowercase();
        assert!(cron.contains("from ir_cron") && cron.ends_with("for no key update skip locked"));
        let [first, ..] = start_job(3);
        let first = first.to_lowercase();
        assert!(first.starts_with("select state from queue_job where uuid") && first.ends_with("for update"));
    }
}
