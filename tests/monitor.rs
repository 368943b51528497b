//! The monitor against a real PostgreSQL.

mod common;

use std::time::Duration;

use common::pg::Pg;
use pgweir::clock;
use pgweir::lanes::sample::{Sample, Session};
use pgweir::upstream::monitor::{
    Monitor, MonitorAddress, MonitorEvent, MonitorHandle, MonitorSettings, Whom,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::Receiver;

/// Generous: a busy machine must not fail a test, only a monitor that never does it.
const PATIENCE: Duration = Duration::from_secs(120);

fn settings(pg: &Pg, user: &str) -> MonitorSettings {
    MonitorSettings {
        tls: None,
        address: MonitorAddress::Tcp { host: "127.0.0.1".into(), port: pg.port },
        user: user.into(),
        password: None,
        database: "postgres".into(),
        interval: Duration::from_millis(100),
        connect_timeout: Duration::from_secs(5),
    }
}

fn spawn(settings: MonitorSettings) -> (MonitorHandle, Receiver<MonitorEvent>) {
    Monitor::spawn(settings, clock::now)
}

/// The first event that `pick` takes; the others are passed over.
async fn until<T>(events: &mut Receiver<MonitorEvent>, pick: impl Fn(&MonitorEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            let event = events.recv().await.expect("the monitor lives");
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("it happens in time")
}

fn any_sample(event: &MonitorEvent) -> Option<Sample> {
    if let MonitorEvent::Sample(sample) = event { Some(sample.clone()) } else { None }
}

fn session(sample: &Sample, pid: i32) -> Option<&Session> {
    sample.sessions.iter().find(|session| session.pid == pid).map(|session| &**session)
}

async fn pid_of(client: &tokio_postgres::Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.expect("a pid").get(0)
}

#[tokio::test]
async fn a_sample_shows_limits_leaks_blockers_and_advisory_locks() {
    let pg = Pg::start("max_connections = 23\nsuperuser_reserved_connections = 4");
    pg.run_psql("create table t (id int primary key); insert into t values (1)");
    let leak = pg.connect_as("postgres", "odoo-1").await;
    leak.batch_execute("begin; select pg_advisory_xact_lock(7); update t set id = 1").await.expect("locked");
    let waiter = pg.connect_as("postgres", "odoo-2").await;
    let (leak_pid, waiter_pid) = (pid_of(&leak).await, pid_of(&waiter).await);
    let blocked = tokio::spawn(async move { waiter.batch_execute("update t set id = 1").await });

    let started = clock::now();
    let (handle, mut events) = spawn(settings(&pg, "postgres"));
    let sample = until(&mut events, |event| {
        any_sample(event).filter(|s| {
            session(s, waiter_pid).is_some_and(|w| !w.blocked_by.is_empty() && &*w.wait_event.0 == "Lock")
        })
    })
    .await;

    assert_eq!((sample.max_connections, sample.reserved_connections), (23, 4));
    assert!(started <= sample.asked_at && sample.asked_at < sample.taken_at);
    let seen = session(&sample, leak_pid).expect("listed");
    assert_eq!((&*seen.application, &*seen.user, &*seen.database), ("odoo-1", "postgres", "postgres"));
    assert_eq!(
        (&*seen.state, sample.holds_lock(leak_pid), seen.walsender),
        ("idle in transaction", true, false)
    );
    assert_eq!((seen.address, seen.port), (None, None));
    assert!(seen.transaction_age.is_some_and(|age| age >= seen.state_age));
    assert!(seen.query.contains("pg_backend_pid"), "{}", seen.query);
    let held = session(&sample, waiter_pid).expect("listed");
    assert_eq!(held.blocked_by, [leak_pid]);
    assert_eq!((&*held.wait_event.0, sample.holds_lock(waiter_pid)), ("Lock", false));
    let own = session(&sample, sample.monitor_pid).expect("the monitor lists itself");
    assert_eq!(&*own.application, "pgweir monitor");
    assert!(own.address.is_some_and(|ip| ip.is_loopback()) && own.port.is_some());
    assert_eq!(handle.state(), "ok");

    leak.batch_execute("rollback").await.expect("rolled back");
    blocked.await.expect("no panic").expect("updated");
    let after = until(&mut events, |event| {
        any_sample(event).filter(|s| session(s, leak_pid).is_some_and(|l| &*l.state == "idle"))
    })
    .await;
    let seen = session(&after, leak_pid).expect("listed");
    assert_eq!((seen.transaction_age, after.holds_lock(leak_pid)), (None, false));
}

#[tokio::test]
async fn a_session_that_does_nothing_is_read_once_and_again_when_it_does_something() {
    let pg = Pg::start("");
    let leak = pg.connect_as("postgres", "odoo-1").await;
    leak.batch_execute("begin; select 'before'").await.expect("begun");
    let leak_pid = pid_of(&leak).await;
    leak.batch_execute("select 'before'").await.expect("selected");
    let (_handle, mut events) = spawn(settings(&pg, "postgres"));
    let carried = until(&mut events, |event| {
        any_sample(event).filter(|s| session(s, leak_pid).is_some_and(|l| l.seen_at < s.asked_at))
    })
    .await;
    let seen = session(&carried, leak_pid).expect("listed");
    assert_eq!((&*seen.application, &*seen.state), ("odoo-1", "idle in transaction"));
    assert_eq!(&*seen.query, "select 'before'");
    let (idle, transaction) = seen.ages(carried.taken_at);
    assert!(idle > seen.state_age && transaction.is_some_and(|transaction| transaction >= idle));

    leak.batch_execute("select pg_advisory_lock(7); commit; select 'after'").await.expect("committed");
    let spoke_at = clock::now();
    let after = until(&mut events, |event| any_sample(event).filter(|s| s.asked_at > spoke_at)).await;
    let seen = session(&after, leak_pid).expect("listed");
    assert_eq!((&*seen.state, seen.transaction_age), ("idle", None));
    assert!(seen.query.contains("'after'") && after.holds_lock(leak_pid));

    drop(leak);
    until(&mut events, |event| any_sample(event).filter(|s| session(s, leak_pid).is_none())).await;
}

#[tokio::test]
async fn it_survives_its_own_end_and_a_restart() {
    let mut pg = Pg::start("");
    let (handle, mut events) = spawn(settings(&pg, "postgres"));
    let first = until(&mut events, any_sample).await;

    pg.run_psql(&format!("select pg_terminate_backend({})", first.monitor_pid));
    let cause = until(&mut events, down).await;
    assert!(cause.contains("57P01"), "{cause}");
    let second = until(&mut events, any_sample).await;
    assert_ne!(second.monitor_pid, first.monitor_pid);

    pg.stop();
    until(&mut events, |event| down(event).filter(|cause| cause.contains("refused"))).await;
    assert!(handle.state().starts_with("down: "), "{}", handle.state());
    let error = handle.cancel_pid(Whom::anybody(1)).await.expect_err("not connected");
    assert!(error.contains("not connected"), "{error}");

    pg.start_again();
    until(&mut events, any_sample).await;
    assert_eq!(handle.state(), "ok");
}

fn down(event: &MonitorEvent) -> Option<String> {
    if let MonitorEvent::Down { cause, .. } = event { Some(cause.clone()) } else { None }
}

#[tokio::test]
async fn a_role_that_sees_only_itself_is_blind_and_may_not_signal_others() {
    let pg = Pg::start("");
    pg.run_psql("create role plain login; create role watcher login; grant pg_monitor to watcher");
    let (handle, mut events) = spawn(settings(&pg, "plain"));
    let first = tokio::time::timeout(PATIENCE, events.recv()).await.expect("in time");
    assert_eq!(first, Some(MonitorEvent::Blind));
    assert!(handle.state().starts_with("blind"), "{}", handle.state());

    let other = pg.connect_as("watcher", "other").await;
    let error = handle.terminate_pid(Whom::anybody(pid_of(&other).await)).await.expect_err("not allowed");
    assert!(error.contains("42501") && error.contains("grant pg_signal_backend to plain"), "{error}");

    let (_handle, mut events) = spawn(settings(&pg, "watcher"));
    until(&mut events, any_sample).await;
}

#[tokio::test]
async fn backends_are_cancelled_and_ended() {
    let pg = Pg::start("");
    let (handle, mut events) = spawn(settings(&pg, "postgres"));
    until(&mut events, any_sample).await;
    let client = pg.connect().await;
    let pid = pid_of(&client).await;

    let sleeper = tokio::spawn(async move {
        let cancelled = client.batch_execute("select pg_sleep(600)").await;
        (cancelled, client)
    });
    until(&mut events, |event| {
        any_sample(event).filter(|s| session(s, pid).is_some_and(|c| &*c.state == "active"))
    })
    .await;
    assert_eq!(handle.cancel_pid(Whom::anybody(pid)).await, Ok(true));
    let (cancelled, client) = sleeper.await.expect("no panic");
    assert_eq!(cancelled.expect_err("cancelled").code().map(|code| code.code()), Some("57014"));

    let seen = until(&mut events, |event| {
        any_sample(event).and_then(|s| session(&s, pid).filter(|c| &*c.state == "idle").cloned())
    })
    .await;
    // The same pid, but of a backend that began at another time, or one that has done something since.
    let another = Whom { started: Some(seen.started - 1), ..Whom::backend(&seen) };
    let before = Whom { changed: Some(seen.changed - 1), ..Whom::as_seen(&seen) };
    for whom in [another, before] {
        assert_eq!(handle.terminate_pid(whom).await, Ok(false), "{whom:?}");
    }
    assert_eq!(pid_of(&client).await, pid);
    assert_eq!(handle.terminate_pid(Whom::as_seen(&seen)).await, Ok(false), "it has answered since");
    assert_eq!(handle.terminate_pid(Whom::backend(&seen)).await, Ok(true));
    until(&mut events, |event| any_sample(event).filter(|s| session(s, pid).is_none())).await;
    // PostgreSQL takes it from its list before it closes it.
    let closed = async {
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("the client is told");
    assert_eq!(handle.terminate_pid(Whom::anybody(pid)).await, Ok(false));
}

#[tokio::test]
async fn a_sample_asked_for_comes_before_the_interval_is_over() {
    let pg = Pg::start("");
    let address = MonitorAddress::Unix { directory: pg.socket_dir.clone(), port: pg.port };
    let hourly =
        MonitorSettings { interval: Duration::from_secs(3600), address, ..settings(&pg, "postgres") };
    let (handle, mut events) = spawn(hourly);
    until(&mut events, any_sample).await;
    let asked = clock::now();
    handle.sample_now();
    let sample = until(&mut events, any_sample).await;
    assert!(sample.asked_at >= asked);
    let resting =
        "select state, xact_start is null from pg_stat_activity where application_name = 'pgweir monitor'";
    assert_eq!(pg.run_psql(resting), "idle|t", "no transaction stays open");
}

#[tokio::test]
async fn a_look_that_postgresql_gave_up_is_not_put_off_for_an_interval() {
    let pg = Pg::start("");
    let hourly = MonitorSettings { interval: Duration::from_secs(3600), ..settings(&pg, "postgres") };
    let (handle, mut events) = spawn(hourly);
    let first = until(&mut events, any_sample).await;
    let other = pg.connect().await;
    other.batch_execute("begin; lock table pg_authid in access exclusive mode").await.expect("locked");
    handle.sample_now();
    let cause = until(&mut events, down).await;
    assert!(cause.contains("55P03"), "{cause}");
    other.batch_execute("rollback").await.expect("unlocked");
    let second = until(&mut events, any_sample).await;
    assert_eq!(second.monitor_pid, first.monitor_pid, "the session lived");
}

#[tokio::test]
async fn a_backend_that_stops_answering_is_left_for_another() {
    let pg = Pg::start("");
    let (_handle, mut events) = spawn(settings(&pg, "postgres"));
    let first = until(&mut events, any_sample).await;
    let stuck = Pid::from_raw(first.monitor_pid).expect("a pid");
    kill_process(stuck, Signal::STOP).expect("stopped");
    let cause = until(&mut events, down).await;
    let second = until(&mut events, any_sample).await;
    kill_process(stuck, Signal::CONT).expect("goes on");
    assert!(cause.contains("did not answer within 3000 ms"), "{cause}");
    assert_ne!(second.monitor_pid, first.monitor_pid);
}

#[tokio::test]
async fn a_refused_login_is_down_with_its_sqlstate_until_there_is_room() {
    let pg = Pg::start("max_connections = 5\nsuperuser_reserved_connections = 3\nmax_wal_senders = 0");
    pg.run_psql("create role watcher login in role pg_monitor");
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(pg.connect_as("watcher", "other").await);
    }
    let (_handle, mut events) = spawn(settings(&pg, "watcher"));
    let cause = until(&mut events, down).await;
    assert!(cause.contains("53300"), "{cause}");
    others.clear();
    let sample = until(&mut events, any_sample).await;
    assert_eq!(sample.max_connections, 5);
}

#[tokio::test]
async fn a_statement_in_another_encoding_does_not_fail_the_sample() {
    let pg = Pg::start("");
    pg.run_psql("create database latin template template0 encoding 'LATIN1' locale 'C'");
    let mut config = tokio_postgres::Config::new();
    config.host_path(&pg.socket_dir).port(pg.port).user("postgres").dbname("latin");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("connected");
    tokio::spawn(connection);
    let pid = pid_of(&client).await;
    client.batch_execute("select 'caf\u{e9}'").await.expect("selected");

    // A monitor in a database without an encoding would have PostgreSQL refuse what is no UTF-8.
    pg.run_psql("create database ascii template template0 encoding 'SQL_ASCII' locale 'C'");
    for database in ["postgres", "ascii"] {
        let settings = MonitorSettings { database: database.into(), ..settings(&pg, "postgres") };
        let (_handle, mut events) = spawn(settings);
        let sample = until(&mut events, any_sample).await;
        assert_eq!(&*session(&sample, pid).expect("listed").query, "select 'caf\u{fffd}'");
    }
}

#[tokio::test]
async fn passwords_work_and_wrong_ones_are_named_not_shown() {
    let pg = Pg::start("");
    pg.run_psql("create role watcher login password 'secret-1' in role pg_monitor");
    pg.set_hba("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
    let right = MonitorSettings { password: Some("secret-1".to_owned().into()), ..settings(&pg, "watcher") };
    let (_handle, mut events) = spawn(right.clone());
    until(&mut events, any_sample).await;

    let wrong = MonitorSettings { password: Some("secret-2".to_owned().into()), ..right };
    let (_handle, mut events) = spawn(wrong);
    let cause = until(&mut events, down).await;
    assert!(cause.contains("28P01") && !cause.contains("secret"), "{cause}");
}

/// Forwards bytes to PostgreSQL but announces a pid of its own, as poolers do.
async fn pooler(listener: tokio::net::TcpListener, upstream: u16) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut server = tokio::net::TcpStream::connect(("127.0.0.1", upstream)).await.expect("connected");
        tokio::spawn(async move {
            let mut startup = vec![0; 4096];
            let len = client.read(&mut startup).await.expect("a startup packet");
            server.write_all(&startup[..len]).await.expect("sent");
            let mut reply = Vec::new();
            // AuthenticationOk … BackendKeyData, ReadyForQuery: the key's message is 13 bytes long, the last one 6.
            while !reply.ends_with(b"Z\0\0\0\x05I") {
                server.read_buf(&mut reply).await.expect("a reply");
            }
            let pid_at = reply.len() - 6 - 8;
            reply[pid_at..pid_at + 4].copy_from_slice(&77_i32.to_be_bytes());
            client.write_all(&reply).await.expect("sent");
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

#[tokio::test]
async fn a_pooler_is_found_out_before_the_first_sample() {
    let pg = Pg::start("");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(pooler(listener, pg.port));
    let address = MonitorAddress::Tcp { host: "127.0.0.1".into(), port };
    let (handle, mut events) = spawn(MonitorSettings { address, ..settings(&pg, "postgres") });
    let first = tokio::time::timeout(PATIENCE, events.recv()).await.expect("in time");
    assert!(
        matches!(first, Some(MonitorEvent::Pooler { what: ref text, .. }) if text.contains("77")),
        "{first:?}"
    );
    assert!(handle.state().starts_with("pooler"), "{}", handle.state());
}

#[tokio::test]
async fn an_upstream_that_accepts_and_says_nothing_is_down() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address =
        MonitorAddress::Tcp { host: "127.0.0.1".into(), port: listener.local_addr().expect("bound").port() };
    let (_handle, mut events) = spawn(MonitorSettings {
        tls: None,
        address,
        user: "nobody".into(),
        password: None,
        database: "postgres".into(),
        interval: Duration::from_millis(100),
        connect_timeout: Duration::from_millis(50),
    });
    let cause = until(&mut events, down).await;
    assert!(cause.contains("no login within 50 ms"), "{cause}");
}
