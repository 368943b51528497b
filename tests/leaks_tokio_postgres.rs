//! The built program between tokio-postgres and a real PostgreSQL: what a driver of the extended protocol sees of a reset, of COPY
//! and of a cancel.

#![allow(clippy::panic, reason = "tests say what they found")]

mod common;

use std::fs;
use std::future::Future;
use std::io::Read;
use std::net::TcpStream;
use std::pin::pin;
use std::process::{Child, Command};
use std::time::Duration;

use bytes::Bytes;
use common::pg::{Pg, free_port};
use futures_util::future::{join, join_all};
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, NoTls};

/// Generous: a busy machine must not fail a test, only a pgweir that never does it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Tries to find free ports.
const STARTS_MAX: usize = 5;

const TABLES: &str = "create table leak (id int); create table hot (id int primary key, n int not null);
    insert into hot select g, 0 from generate_series(1, 9) g";

/// PostgreSQL with pgweir in front of it; applications `leak*` are rolled back when they idle in a transaction. Both end when dropped.
struct Guarded {
    weir: Child,
    port: u16,
    home: tempfile::TempDir,
    pg: Pg,
}

impl Guarded {
    fn start() -> Self {
        let pg = Pg::start("");
        pg.run_psql(TABLES);
        let home = tempfile::tempdir().expect("a directory");
        for _ in 0..STARTS_MAX {
            // Somebody else may take a port in between: then pgweir ends, and others are tried.
            let (port, admin) = (free_port(), free_port());
            let file = home.path().join("pgweir.toml");
            fs::write(&file, configuration(port, admin, pg.port)).expect("written");
            let log = fs::File::create(home.path().join("log")).expect("a log");
            let mut weir = Command::new(env!("CARGO_BIN_EXE_pgweir"))
                .args(["run", "--config"])
                .arg(&file)
                .stdout(log.try_clone().expect("a log"))
                .stderr(log)
                .spawn()
                .expect("pgweir runs");
            if listens(&mut weir, port) {
                return Self { weir, port, home, pg };
            }
        }
        panic!("pgweir did not start:\n{}", fs::read_to_string(home.path().join("log")).unwrap_or_default());
    }

    /// A client that comes through pgweir.
    async fn connect(&self, application: &str) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        config.application_name(application);
        let (client, connection) = in_time(config.connect(NoTls)).await.expect("connected through pgweir");
        tokio::spawn(connection);
        client
    }

    /// Ids in the table `leak`, as PostgreSQL itself sees them.
    fn rows(&self) -> String {
        self.pg.run_psql("select coalesce(string_agg(id::text, ',' order by id), 'none') from leak")
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.weir.kill();
        let _ = self.weir.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.home.path().join("log")).unwrap_or_default());
        }
    }
}

fn configuration(port: u16, admin: u16, upstream: u16) -> String {
    format!(
        r#"[[listen]]
address = "127.0.0.1:{port}"
[admin]
address = "127.0.0.1:{admin}"
[upstream]
address = "127.0.0.1:{upstream}"
tls = "disable"
[limits]
max_resets_per_minute = 1000
[state]
directory = "state"
[[lane]]
name = "leak"
quota = 20
match = [{{ application = "leak*" }}]
# Longer than a busy machine pauses between two statements of a transaction.
idle_in_transaction = {{ warn = "1s", reset = "5s", when = "always", action = "rollback" }}
[[lane]]
name = "other"
default = true
quota = 20
"#
    )
}

fn listens(weir: &mut Child, port: u16) -> bool {
    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        if weir.try_wait().is_ok_and(|end| end.is_some()) {
            return false;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    let _ = weir.kill();
    let _ = weir.wait();
    false
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

/// Waits until PostgreSQL lists exactly one session for which `condition`, on pg_stat_activity, holds.
async fn until(observer: &Client, condition: &str) {
    let sql = format!("select count(*) from pg_stat_activity where {condition}");
    let seen = async {
        while observer.query_one(&sql, &[]).await.expect("counted").get::<_, i64>(0) != 1 {
            tokio::time::sleep(PAUSE).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, seen).await.is_ok(), "never seen: {condition}");
}

/// Waits until this application's transaction was rolled back behind its back.
async fn until_reset(observer: &Client, application: &str) {
    let gone = "state = 'idle in transaction (aborted)' and backend_xid is null and backend_xmin is null";
    until(observer, &format!("application_name = '{application}' and {gone}")).await;
}

async fn pid_of(client: &Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.expect("a pid").get(0)
}

/// The error is pgweir's, and tells the client to repeat the whole transaction.
#[track_caller]
fn assert_gone<T>(result: Result<T, Error>, what: &str) {
    let error = result.err().unwrap_or_else(|| panic!("{what} succeeded in a transaction that is gone"));
    assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{what}: {error:?}");
    let message = error.as_db_error().expect("the server's").message();
    assert!(message.starts_with("pgweir: "), "{what}: {message}");
}

#[tokio::test]
async fn a_leak_is_rolled_back_for_whom_it_blocks_and_its_commit_fails() {
    let guarded = Guarded::start();
    let observer = guarded.pg.connect().await;
    observer.batch_execute("select pg_advisory_lock(1)").await.expect("locked");
    let mut leaker = guarded.connect("leak-1").await;
    let pid = pid_of(&leaker).await;
    let update = leaker.prepare("update hot set n = n + $1 where id = $2").await.expect("prepared");
    let blocked = guarded.connect("waiter").await;

    let transaction = leaker.transaction().await.expect("begun");
    transaction.execute("insert into leak values ($1)", &[&1]).await.expect("inserted");
    assert_eq!(transaction.execute(&update, &[&1, &1]).await.expect("updated"), 1);
    let waiting =
        tokio::spawn(async move { blocked.execute("update hot set n = n + 10 where id = 1", &[]).await });
    // It is busy, and so no leak, until the other is seen to wait for its row.
    let busy = transaction.batch_execute("select pg_advisory_xact_lock(1)");
    let until_both_wait = async {
        until(&observer, "application_name = 'leak-1' and wait_event = 'advisory'").await;
        until(&observer, &format!("application_name = 'waiter' and pg_blocking_pids(pid) = '{{{pid}}}'"))
            .await;
        observer.batch_execute("select pg_advisory_unlock(1)").await.expect("unlocked");
    };
    in_time(join(busy, until_both_wait)).await.0.expect("it got the lock");
    assert_eq!(in_time(waiting).await.expect("no panic").expect("the other proceeds"), 1);

    for _ in 0..3 {
        assert_gone(transaction.execute(&update, &[&1, &2]).await, "a prepared statement");
        assert_gone(transaction.query("select n from hot where id = $1", &[&1]).await, "a new statement");
    }
    assert_gone(in_time(transaction.commit()).await, "COMMIT");
    assert_eq!(guarded.rows(), "none");
    assert_eq!(guarded.pg.run_psql("select n from hot where id in (1, 2) order by id"), "10\n0");

    assert_eq!(pid_of(&leaker).await, pid, "another backend");
    let again = leaker.transaction().await.expect("begun");
    again.execute("insert into leak values ($1)", &[&2]).await.expect("inserted");
    assert_eq!(again.execute(&update, &[&1, &1]).await.expect("prepared before the reset"), 1);
    again.commit().await.expect("committed");
    assert_eq!(guarded.rows(), "2");
    assert_eq!(guarded.pg.run_psql("select n from hot where id = 1"), "11");
}

#[tokio::test]
async fn every_query_of_a_pipeline_fails_until_rollback() {
    let guarded = Guarded::start();
    let observer = guarded.pg.connect().await;
    let mut client = guarded.connect("leak-2").await;
    let pid = pid_of(&client).await;
    let insert = client.prepare("insert into leak values ($1)").await.expect("prepared");

    let transaction = client.transaction().await.expect("begun");
    transaction.execute(&insert, &[&1]).await.expect("inserted");
    until_reset(&observer, "leak-2").await;

    let (prepared, fresh) = in_time(join(
        join_all((0..20).map(|_| transaction.execute(&insert, &[&2]))),
        join_all((0..5).map(|_| transaction.query("select 1", &[]))),
    ))
    .await;
    assert_eq!((prepared.len(), fresh.len()), (20, 5));
    prepared.into_iter().for_each(|result| assert_gone(result, "a prepared statement"));
    fresh.into_iter().for_each(|result| assert_gone(result, "a new statement"));
    assert_gone(transaction.simple_query("select 1").await, "a simple query");
    assert_gone(transaction.copy_in::<_, Bytes>("copy leak from stdin").await.map(drop), "COPY");
    transaction.rollback().await.expect("rolled back");

    assert_eq!(pid_of(&client).await, pid, "another backend");
    let numbers: Vec<i32> = (0..50).collect();
    let echo = client.prepare("select $1::int").await.expect("prepared");
    let answers =
        in_time(join_all(numbers.iter().map(async |number| {
            client.query_one(&echo, &[number]).await.expect("answered").get::<_, i32>(0)
        })))
        .await;
    assert_eq!(answers, numbers, "each reply answers its own query");
    client.execute(&insert, &[&3]).await.expect("the statement outlived the reset");
    assert_eq!(guarded.rows(), "3");
}

#[tokio::test]
async fn a_commit_inside_a_pipeline_fails_too() {
    let guarded = Guarded::start();
    let observer = guarded.pg.connect().await;
    let client = guarded.connect("leak-3").await;
    let insert = client.prepare("insert into leak values ($1)").await.expect("prepared");
    let commit = client.prepare("commit").await.expect("prepared");
    client.batch_execute("begin isolation level repeatable read").await.expect("begun");
    client.execute(&insert, &[&1]).await.expect("inserted");
    until_reset(&observer, "leak-3").await;

    let (inserted, committed) =
        in_time(join(client.execute(&insert, &[&2]), client.execute(&commit, &[]))).await;
    assert_gone(inserted, "an insert");
    assert_gone(committed, "a prepared COMMIT");
    client.execute(&insert, &[&3]).await.expect("the transaction is over");
    assert_eq!(guarded.rows(), "3");
}

#[tokio::test]
async fn copy_goes_through_both_ways() {
    const CHUNKS: i32 = 200;
    const LINES: i32 = 500;
    let guarded = Guarded::start();
    let mut client = guarded.connect("copy").await;
    let transaction = client.transaction().await.expect("begun");
    let sink = transaction.copy_in::<_, Bytes>("copy leak from stdin").await.expect("COPY");
    let mut sink = pin!(sink);
    for chunk in 0..CHUNKS {
        let text: String = (0..LINES).map(|line| format!("{}\n", chunk * LINES + line)).collect();
        in_time(sink.send(Bytes::from(text))).await.expect("sent");
    }
    let rows = u64::try_from(CHUNKS * LINES).expect("positive");
    assert_eq!(in_time(sink.finish()).await.expect("copied"), rows);
    transaction.commit().await.expect("committed");
    assert_eq!(guarded.pg.run_psql("select count(distinct id) from leak"), rows.to_string());

    let stream = client.copy_out("copy (select id from leak order by id) to stdout").await.expect("COPY");
    let back: Vec<Bytes> = in_time(stream.try_collect()).await.expect("copied");
    let expected: String = (0..CHUNKS * LINES).map(|id| format!("{id}\n")).collect();
    assert!(back.concat() == expected.as_bytes(), "other bytes came back");
}

#[tokio::test]
async fn a_copy_that_falls_silent_is_disconnected() {
    let guarded = Guarded::start();
    let observer = guarded.pg.connect().await;
    let mut client = guarded.connect("leak-copy").await;
    let pid = pid_of(&client).await;
    let transaction = client.transaction().await.expect("begun");
    let sink = transaction.copy_in::<_, Bytes>("copy leak from stdin").await.expect("COPY");
    let mut sink = pin!(sink);
    sink.send(Bytes::from_static(b"1\n")).await.expect("sent");
    // A COPY cannot be rolled back from outside: the link goes.
    until(
        &observer,
        &format!("pid = pg_backend_pid() and not exists (select from pg_stat_get_activity({pid}))"),
    )
    .await;
    let error = in_time(sink.finish()).await.expect_err("the link is gone");
    // The driver has seen the end of the connection, or only the last words before it.
    let told = error.code() == Some(&SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT);
    assert!(error.is_closed() || told, "{error:?}");
    assert_eq!(guarded.rows(), "none");
}

#[tokio::test]
async fn a_cancel_hits_its_own_running_query_and_nothing_else() {
    let guarded = Guarded::start();
    let observer = guarded.pg.connect().await;
    observer.batch_execute("select pg_advisory_lock(7)").await.expect("locked");
    let (hit, spared) = (guarded.connect("hit").await, guarded.connect("spared").await);
    let (hit_token, pid) = (hit.cancel_token(), pid_of(&hit).await);
    let wait = "select pg_advisory_lock_shared(7)";
    let hit_query = async {
        let result = hit.batch_execute(wait).await;
        result.expect_err("cancelled")
    };
    let spared_query = tokio::spawn(async move { spared.batch_execute(wait).await });
    let cancel = async {
        for application in ["hit", "spared"] {
            until(&observer, &format!("application_name = '{application}' and wait_event = 'advisory'"))
                .await;
        }
        hit_token.cancel_query(NoTls).await.expect("sent");
    };
    let (error, ()) = in_time(join(hit_query, cancel)).await;
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error:?}");
    until(&observer, "application_name = 'spared' and wait_event = 'advisory'").await;

    // Too late for the query it meant: the next one is spared, on the same connection.
    cancel_and_wait(&guarded, &hit_token).await;
    assert_eq!(pid_of(&hit).await, pid);
    hit.batch_execute("begin; select pg_sleep(0.1); commit").await.expect("not cancelled");

    observer.batch_execute("select pg_advisory_unlock(7)").await.expect("unlocked");
    in_time(spared_query).await.expect("no panic").expect("the neighbour got the lock");
}

/// Sends a cancel request and waits until pgweir closes its socket, as libpq does.
async fn cancel_and_wait(guarded: &Guarded, token: &tokio_postgres::CancelToken) {
    let stream = TcpStream::connect(("127.0.0.1", guarded.port)).expect("connected");
    let mut same = stream.try_clone().expect("another handle");
    stream.set_nonblocking(true).expect("non-blocking");
    let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
    token.cancel_query_raw(stream, NoTls).await.expect("sent");
    let closed = tokio::task::spawn_blocking(move || {
        // The handles share their flags, and tokio's is gone.
        same.set_nonblocking(false)?;
        same.set_read_timeout(Some(PATIENCE))?;
        same.read(&mut [0])
    });
    assert_eq!(closed.await.expect("no panic").expect("closed in time"), 0, "a cancel has no answer");
}
