//! The admin port over a real socket, with a control that records what it is told.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgweir::admin::command::Command;
use pgweir::admin::control::{CommandError, Control, Later, Leaks, Operator, Outcome, Reply};
use pgweir::admin::{self, AdminSettings, AdminUser};
use pgweir::lanes::settings::Disposition;
use pgweir::snapshot::*;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

#[derive(Default)]
struct Fake {
    told: Mutex<Vec<(Operator, Command)>>,
    clients: usize,
    upstream: Mutex<String>,
    draining: Mutex<bool>,
    reserves: String,
    growth: String,
    is_incident_open: bool,
}

fn lane_row(name: &str) -> LaneRow {
    LaneRow {
        lane: name.into(),
        state: LaneState::Open,
        priority: 5,
        quota: 8,
        reserve: 2,
        slots: 3,
        idle: 1,
        active: 1,
        idle_in_transaction: 1,
        waiting: 0,
        max_wait_ms: 0,
        admitted: 1 << 40,
        shed: 0,
        refused: 0,
        resets: 0,
        paused_by: String::new(),
        reason: String::new(),
    }
}

fn client_row(id: u64) -> ClientRow {
    ClientRow {
        id,
        lane: "web".into(),
        rule: "default".into(),
        application: "odoo-1".into(),
        user: "odoo".into(),
        database: "prod".into(),
        address: "127.0.0.1:1".into(),
        pid: id.is_multiple_of(2).then_some(100),
        process: String::new(),
        state: "idle",
        transaction_ms: 0,
        idle_in_transaction_ms: 0,
        wait_ms: 0,
        last_statement: "select ".repeat(20),
        ends: ClientEnds::default(),
    }
}

impl Control for Fake {
    fn lane_names(&self) -> Vec<Arc<str>> {
        vec!["web".into(), "cron".into()]
    }
    fn lanes_and_applications(&self) -> Later<'_, (Vec<LaneRow>, Vec<ApplicationRow>)> {
        Box::pin(async { (vec![lane_row("web"), lane_row("cron")], vec![]) })
    }
    fn clients(&self) -> Box<dyn Iterator<Item = ClientRow> + Send> {
        Box::new((0..self.clients as u64).map(client_row))
    }
    fn sessions(&self) -> Vec<SessionRow> {
        vec![]
    }
    fn leaks(&self) -> Later<'_, Leaks> {
        Box::pin(async { Box::new(std::iter::empty()) as Leaks })
    }
    fn usage(&self) -> UsageRow {
        UsageRow { max_connections: 40, percent: Some(37.5), ..UsageRow::default() }
    }
    fn history(&self) -> Vec<HistoryRow> {
        vec![]
    }
    fn policy(&self) -> PolicyRow {
        PolicyRow { usage_below: 75.0, lanes: vec![] }
    }
    fn timeline(&self) -> Vec<TimelineEntry> {
        vec![]
    }
    fn exit(&self) -> Vec<ExitRow> {
        let row = |(criterion, state): &(&str, &'static str)| ExitRow {
            criterion: (*criterion).into(),
            state,
            since: 0,
            since_ms: 0,
            measured: String::new(),
            wanted: String::new(),
            reason: String::new(),
        };
        [("usage", "not met"), ("refusals", "met"), ("probe a, b", "unknown")].iter().map(row).collect()
    }
    fn incidents(&self) -> Vec<IncidentRow> {
        let row = |(id, closed_at)| IncidentRow {
            id,
            opened_at: 951_782_400_000,
            closed_at,
            duration_ms: 1,
            trigger: "freeze".into(),
            cause: "FREEZE by admin: sale".into(),
            peak_percent: None,
            events: 1,
        };
        let open = self.is_incident_open.then_some((2, None));
        [(1, Some(951_782_400_001))].into_iter().chain(open).map(row).collect()
    }
    fn incident(&self, id: u64) -> Option<String> {
        (id == 7).then(|| "{}".into())
    }
    fn peaks(&self) -> Vec<PeaksRow> {
        let web = PeaksRow {
            lane: Some("web".into()),
            of_lane: Some(PeaksOfLane::default()),
            ..PeaksRow::default()
        };
        vec![web, PeaksRow { slots_peak: 9, bypass_peak: Some(3), ..PeaksRow::default() }]
    }
    fn suggestion(&self) -> String {
        "{}".into()
    }
    fn timeline_after(&self, _: u64) -> Vec<TimelineEntry> {
        vec![]
    }
    fn timeline_changed(&self) -> tokio::sync::watch::Receiver<u64> {
        tokio::sync::watch::Sender::new(0).subscribe()
    }
    fn config(&self) -> Vec<ConfigRow> {
        vec![ConfigRow { key: "mode".into(), value: "enforce".into(), default: None, changeable: true }]
    }
    fn databases(&self) -> Vec<DatabaseRow> {
        vec![DatabaseRow { name: "prod".into(), ..DatabaseRow::default() }]
    }
    fn pools(&self) -> Vec<PoolRow> {
        vec![]
    }
    fn servers(&self) -> Vec<ServerRow> {
        vec![]
    }
    fn lists(&self) -> ListsRow {
        ListsRow::default()
    }
    fn upstreams(&self) -> Vec<UpstreamRow> {
        Vec::new()
    }
    fn headroom(&self) -> Later<'_, Vec<HeadroomRow>> {
        Box::pin(async { vec![] })
    }
    fn process(&self) -> ProcessRow {
        ProcessRow {
            state: if *self.draining.lock().unwrap() { "draining" } else { "running" },
            reserves: self.reserves.clone(),
            growth: self.growth.clone(),
            upstream: self.upstream.lock().unwrap().clone(),
            ..ProcessRow::default()
        }
    }
    fn metrics(&self) -> Later<'_, String> {
        Box::pin(async { "pgweir_usage_percent 37.5\n# EOF\n".into() })
    }
    fn execute<'a>(&'a self, who: &'a Operator, command: Command) -> Reply<'a> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.told.lock().unwrap().push((who.clone(), command.clone()));
            match command {
                Command::Drain { lane } if lane != "web" => Err(CommandError::UnknownLane(lane)),
                Command::KillClient { id } => Err(CommandError::UnknownClient(id)),
                Command::Reload => Err(CommandError::Refused("line 3: no default lane".into())),
                _ => Ok(Outcome { lines: vec!["cron: 3 running transactions finish".into()] }),
            }
        })
    }
}

fn settings() -> AdminSettings {
    let user = |name, password, may_change| AdminUser::new(name, password, may_change).unwrap();
    AdminSettings {
        users: vec![user("admin", "pa ss'wörd", true), user("viewer", "look", false)],
        ..AdminSettings::default()
    }
}

/// Runs a test against a served port, on the kind of runtime the application uses.
fn with_port<F: Future<Output = ()>>(fake: Fake, test: impl FnOnce(SocketAddr, Arc<Fake>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Arc::new(fake);
        let serving = tokio::spawn(admin::serve(listener, settings(), Arc::clone(&fake) as Arc<dyn Control>));
        tokio::time::timeout(Duration::from_secs(60), test(address, fake)).await.expect("no test hangs");
        assert!(!serving.is_finished());
    });
}

async fn try_connect(
    at: SocketAddr,
    user: &str,
    password: &str,
    database: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(at.port())
        .user(user)
        .password(password)
        .dbname(database)
        .application_name("test");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn connect(at: SocketAddr) -> Client {
    try_connect(at, "admin", "pa ss'wörd", "pgweir").await.unwrap()
}

async fn code(client: &Client, sql: &str) -> SqlState {
    client.simple_query(sql).await.expect_err(sql).code().expect(sql).clone()
}

#[test]
fn a_table_has_its_types_in_binary_format() {
    with_port(Fake::default(), async |at, _| {
        let client = connect(at).await;
        let rows = client.query("SHOW LANES", &[]).await.unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].get::<_, &str>("lane"), "web");
        assert_eq!((rows[0].get::<_, i64>("quota"), rows[0].get::<_, i64>("admitted")), (8, 1 << 40));
        let usage = client.query_one("SHOW USAGE", &[]).await.unwrap();
        assert_eq!(usage.get::<_, Option<f64>>("percent"), Some(37.5));
        assert_eq!(usage.get::<_, Option<f64>>("percent_of_max"), None);
        assert_eq!(client.query_one("select 1", &[]).await.unwrap().get::<_, i32>(0), 1);
        assert!(!client.query_one("select pg_is_in_recovery()", &[]).await.unwrap().get::<_, bool>(0));
        assert_eq!(client.execute("BEGIN", &[]).await.unwrap(), 0);
        assert!(client.query("SHOW LANES WEB", &[]).await.is_err());
        assert_eq!(client.query("SHOW APPLICATIONS", &[]).await.unwrap().len(), 0);
    });
}

#[test]
fn every_show_answers_in_both_protocols() {
    with_port(Fake { clients: 3, ..Fake::default() }, async |at, _| {
        let client = connect(at).await;
        for what in [
            "LANES",
            "APPLICATIONS",
            "CLIENTS",
            "SESSIONS",
            "LEAKS",
            "USAGE",
            "TIMELINE",
            "PEAKS",
            "SUGGESTION",
            "CONFIG",
            "VERSION",
            "HELP",
            "STATUS",
        ] {
            let sql = format!("SHOW {what}");
            let extended = client.query(&sql, &[]).await.expect(what).len();
            let simple = client.simple_query(&sql).await.expect(what);
            assert!(matches!(simple[0], SimpleQueryMessage::RowDescription(_)), "{what}");
            let rows = simple.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count();
            assert_eq!(rows, extended, "{what}");
        }
    });
}

#[test]
fn status_tells_of_reserves_and_growth() {
    let reserves = "reserves 40, budget 34";
    let growth = "connections of lane cron: from 2 to 8 in 15 min";
    let fake = Fake { reserves: reserves.into(), growth: growth.into(), ..Fake::default() };
    with_port(fake, async |at, _| {
        let rows = connect(at).await.query("SHOW STATUS", &[]).await.unwrap();
        let value = |name: &str| {
            let row = rows.iter().find(|row| row.get::<_, &str>("name") == name);
            row.map(|row| row.get::<_, String>("value"))
        };
        assert_eq!(value("reserves").as_deref(), Some(reserves));
        assert_eq!(value("growth").as_deref(), Some(growth));
    });
}

#[test]
fn status_tells_of_the_open_incident_and_of_no_other() {
    for is_incident_open in [true, false] {
        with_port(Fake { is_incident_open, ..Fake::default() }, async |at, _| {
            let rows = connect(at).await.query("SHOW STATUS", &[]).await.unwrap();
            let told = rows.iter().filter(|row| row.get::<_, &str>("name").starts_with("incident"));
            let told: Vec<(String, String)> = told.map(|row| (row.get("name"), row.get("value"))).collect();
            let told: Vec<(&str, &str)> = told.iter().map(|(name, value)| (&**name, &**value)).collect();
            let open = ["2", "2000-02-29T00:00:00.000Z", "FREEZE by admin: sale", "usage, probe a, b"];
            let values = if is_incident_open { open } else { [""; 4] };
            let names = ["incident", "incident_since", "incident_cause", "incident_not_met"];
            assert_eq!(told, names.into_iter().zip(values).collect::<Vec<_>>());
        });
    }
}

#[test]
fn commands_reach_the_control_with_who_asked() {
    with_port(Fake::default(), async |at, fake| {
        let client = connect(at).await;
        client.batch_execute("FREEZE FOR '30 min' REASON 'sale'; PAUSE LANE CRON REJECT").await.unwrap();
        client.execute("SET LANE web quota = 5", &[]).await.unwrap();
        let told = fake.told.lock().unwrap().clone();
        assert_eq!(told[0].0, Operator { name: "admin (test)".into(), may_change: true });
        let freeze = Command::Freeze { duration: Some(Duration::from_secs(1800)), reason: "sale".into() };
        assert_eq!(told[0].1, freeze);
        let how = Some(Disposition::Reject);
        // Typed in capitals, and only one lane can be meant.
        assert_eq!(
            told[1].1,
            Command::Pause { lane: "cron".into(), how, duration: None, reason: String::new() }
        );
        assert_eq!(told[2].1, Command::SetQuota { lane: "web".into(), quota: 5 });
    });
}

#[test]
fn outcomes_are_notices() {
    with_port(Fake::default(), async |at, _| {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(at.port()).user("admin").password("pa ss'wörd").dbname("pgbouncer");
        let (client, mut connection) = config.connect(NoTls).await.unwrap();
        let (sender, mut notices) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
                if let Ok(AsyncMessage::Notice(notice)) = message {
                    sender.send(notice.message().to_owned()).unwrap();
                }
            }
        });
        client.batch_execute("FREEZE").await.unwrap();
        assert_eq!(notices.recv().await.as_deref(), Some("cron: 3 running transactions finish"));
        client.batch_execute("BEGIN; RESUME ALL").await.unwrap();
        notices.recv().await.unwrap();
        assert!(notices.recv().await.unwrap().contains("ROLLBACK does not undo"));
    });
}

#[test]
fn what_goes_wrong_is_typed_and_the_session_goes_on() {
    with_port(Fake::default(), async |at, fake| {
        let client = connect(at).await;
        for (sql, want) in [
            ("SHOW LANE", SqlState::SYNTAX_ERROR),
            // PgBouncer has these, and nobody's tools want them.
            ("SHOW FDS", SqlState::SYNTAX_ERROR),
            ("PAUSE odoo", SqlState::SYNTAX_ERROR),
            ("FREEZE; SHOW LANE", SqlState::SYNTAX_ERROR),
            ("FREEZE FOR '30'", SqlState::INVALID_PARAMETER_VALUE),
            ("DRAIN LANE wbe", SqlState::UNDEFINED_OBJECT),
            ("KILL CLIENT 5", SqlState::UNDEFINED_OBJECT),
            ("RELOAD", SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE),
            ("SET client_encoding = 'LATIN1'", SqlState::INVALID_PARAMETER_VALUE),
            ("DEALLOCATE nosuch", SqlState::INVALID_SQL_STATEMENT_NAME),
        ] {
            assert_eq!(code(&client, sql).await, want, "{sql}");
        }
        let error = client.simple_query("DRAIN LANE wbe").await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert!(
            error.message().starts_with("pgweir: ") && error.hint().unwrap().ends_with("web"),
            "{error:?}"
        );
        // A string with a mistake in it does nothing at all.
        let froze =
            fake.told.lock().unwrap().iter().any(|(_, command)| matches!(command, Command::Freeze { .. }));
        assert!(!froze);
        let error = client.query("SELECT $1::int4", &[&1_i32]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::SYNTAX_ERROR));
        assert_eq!(client.query("SHOW VERSION", &[]).await.unwrap().len(), 1);
    });
}

#[test]
fn a_viewer_may_look_only() {
    with_port(Fake::default(), async |at, fake| {
        let client = try_connect(at, "viewer", "look", "pgweir").await.unwrap();
        assert_eq!(code(&client, "NOTE 'x'").await, SqlState::INSUFFICIENT_PRIVILEGE);
        assert_eq!(client.query("SHOW LANES", &[]).await.unwrap().len(), 2);
        assert!(fake.told.lock().unwrap().is_empty());
    });
}

#[test]
fn logins_that_fail_say_why_and_no_more() {
    with_port(Fake::default(), async |at, _| {
        let attempt = async |user, password, database| {
            let error = try_connect(at, user, password, database).await.map(drop).expect_err("refused");
            let error = error.as_db_error().expect("an error of the server").clone();
            (error.code().code().to_owned(), error.message().to_owned(), error.severity().to_owned())
        };
        let wrong = attempt("admin", "wrong", "pgweir").await;
        assert_eq!((wrong.0.as_str(), wrong.2.as_str()), ("28P01", "FATAL"));
        assert_eq!(attempt("nobody", "wrong", "pgweir").await, wrong);
        assert_eq!(
            attempt("nobody", "look", "nowhere").await,
            wrong,
            "the database is not told before the password"
        );
        assert_eq!(attempt("viewer", "look", "nowhere").await.0, "3D000");
    });
}

#[test]
fn transactions_of_drivers_are_kept_as_a_state() {
    with_port(Fake::default(), async |at, _| {
        let mut client = connect(at).await;
        let transaction = client.transaction().await.unwrap();
        assert_eq!(transaction.query("SHOW LANES", &[]).await.unwrap().len(), 2);
        assert_eq!(
            transaction.simple_query("nonsense").await.unwrap_err().code(),
            Some(&SqlState::SYNTAX_ERROR)
        );
        assert_eq!(transaction.query("SHOW LANES", &[]).await.unwrap().len(), 2);
        transaction.commit().await.unwrap();
        let rows = client.simple_query("SET application_name = 'x y'; SHOW application_name").await.unwrap();
        let SimpleQueryMessage::Row(row) = &rows[2] else { panic!("{rows:?}") };
        assert_eq!(row.get(0), Some("x y"));
    });
}

#[test]
fn portals_give_their_rows_in_portions() {
    with_port(Fake { clients: 10, ..Fake::default() }, async |at, _| {
        let mut client = connect(at).await;
        let transaction = client.transaction().await.unwrap();
        let portal = transaction.bind("SHOW CLIENTS", &[]).await.unwrap();
        for (limit, want) in [(4, 4), (4, 4), (4, 2)] {
            assert_eq!(transaction.query_portal(&portal, limit).await.unwrap().len(), want);
        }
    });
}

#[test]
fn ten_thousand_clients_are_shown_and_others_served_meanwhile() {
    with_port(Fake { clients: 10_000, ..Fake::default() }, async |at, _| {
        let (one, other) = (connect(at).await, connect(at).await);
        let (many, few) = tokio::join!(one.query("SHOW CLIENTS", &[]), other.query("SHOW LANES", &[]));
        let many = many.unwrap();
        assert_eq!((many.len(), few.unwrap().len()), (10_000, 2));
        assert_eq!(many[9999].get::<_, i64>("id"), 9999);
        assert_eq!(
            (many[0].get::<_, Option<i32>>("pid"), many[1].get::<_, Option<i32>>("pid")),
            (Some(100), None)
        );
    });
}

/// Sends bytes and reads until the port closes.
async fn raw(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    [&u32::try_from(8 + body.len()).unwrap().to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

fn has(answer: &[u8], part: &str) -> bool {
    answer.windows(part.len()).any(|window| window == part.as_bytes())
}

const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
const V3: u32 = 3 << 16;
const STARTUP: &[u8] = b"user\0admin\0database\0pgweir\0\0";

#[test]
fn ugly_bytes_get_a_clear_end() {
    with_port(Fake::default(), async |at, _| {
        let malformed = "C08P01\0Mpgweir: malformed message\0";
        let ssl_twice = [packet(SSL, b""), packet(SSL, b"")];
        for (what, bytes, want) in [
            ("bytes behind SSLRequest", [packet(SSL, b""), packet(V3, STARTUP)].concat(), malformed),
            (
                "an oversized startup packet",
                vec![0, 0, 0x40, 0, 0, 3, 0, 0],
                "C08P01\0Mpgweir: message too large\0",
            ),
            ("a startup packet that is too short", vec![0, 0, 0, 5, 0], malformed),
            ("protocol 2", packet(2 << 16, b"x"), "unsupported protocol"),
            ("no user", packet(V3, b"database\0pgweir\0\0"), "C28000"),
            ("no terminator", packet(V3, b"user\0admin"), malformed),
            (
                "a query before the password",
                [packet(V3, STARTUP), b"Q\0\0\0\x08FOO\0".to_vec()].concat(),
                "a password message was expected",
            ),
            (
                "an oversized password",
                [packet(V3, STARTUP), b"p\0\x01\0\0".to_vec()].concat(),
                "message too large",
            ),
            ("bytes of no protocol", b"hello\r\n".to_vec(), malformed),
        ] {
            let answer = raw(at, &bytes).await;
            assert!(has(&answer, want), "{what}: {:?}", String::from_utf8_lossy(&answer));
        }
        assert_eq!(raw(at, &packet(80_877_102, &[0; 8])).await, b"", "a cancel gets no answer");
        assert_eq!(raw(at, b"\x16\x03\x01\0\x05hello").await, [0x15, 3, 3, 0, 2, 2, 40], "TLS gets an alert");
        let mut stream = TcpStream::connect(at).await.unwrap();
        let mut byte = [0];
        for asked in [packet(GSS, b""), ssl_twice[0].clone()] {
            stream.write_all(&asked).await.unwrap();
            stream.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, *b"N");
        }
        stream.write_all(&ssl_twice[1]).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(has(&rest, malformed), "a second SSLRequest");
    });
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &u32::try_from(4 + body.len()).unwrap().to_be_bytes(), body].concat()
}

async fn next_message(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.unwrap();
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.unwrap();
    (head[0], body)
}

/// A session by bare bytes, up to its first ReadyForQuery.
async fn raw_login(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&packet(V3, STARTUP)).await.unwrap();
    next_message(&mut stream).await;
    let mut scram = ScramSha256::new("pa ss'wörd".as_bytes(), ChannelBinding::unsupported());
    let first = scram.message().to_vec();
    let len = u32::try_from(first.len()).unwrap().to_be_bytes();
    stream.write_all(&message(b'p', &[b"SCRAM-SHA-256\0", &len[..], &first].concat())).await.unwrap();
    scram.update(&next_message(&mut stream).await.1[4..]).unwrap();
    stream.write_all(&message(b'p', scram.message())).await.unwrap();
    scram.finish(&next_message(&mut stream).await.1[4..]).unwrap();
    while next_message(&mut stream).await.0 != b'Z' {}
    stream
}

/// Types of the messages that answer `bytes`, with the SQLSTATE of errors: up to the last ReadyForQuery, or the end.
async fn exchange(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = raw_login(at).await;
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let mut rest = &answer[..];
    let mut seen = String::new();
    while let Some((head, _)) = rest.split_first_chunk::<5>() {
        let end = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        seen.push(head[0].into());
        if head[0] == b'E' {
            let text = String::from_utf8_lossy(&rest[5..end]).into_owned();
            seen.push_str(&format!("({})", &text.split('\0').nth(2).unwrap()[1..]));
        }
        rest = &rest[end..];
    }
    seen
}

#[test]
fn messages_of_a_session_are_answered_in_order_or_end_it() {
    with_port(Fake::default(), async |at, fake| {
        let parse = |sql: &str| message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat());
        let bind = message(b'B', b"\0\0\0\0\0\0\0\0");
        let describe = message(b'D', b"P\0");
        let run = message(b'E', b"\0\0\0\0\0");
        let sync = message(b'S', b"");
        let show = [parse("SHOW LANES"), bind.clone(), describe, run.clone()].concat();
        let query = |sql: &str| message(b'Q', &[sql.as_bytes(), b"\0"].concat());
        for (what, bytes, want) in [
            ("a portal", [&show[..], &sync].concat(), "12TDDCZ"),
            ("Flush without Sync", [&show[..], &message(b'H', b"")].concat(), "12TDDC"),
            (
                "skipping to Sync",
                [parse("oops"), show.clone(), query("SHOW LANES"), sync.clone()].concat(),
                "E(42601)Z",
            ),
            (
                "a cycle after a failed one",
                [parse("oops"), sync.clone(), show.clone(), sync.clone()].concat(),
                "E(42601)Z12TDDCZ",
            ),
            ("an empty statement", [parse(" ; "), bind.clone(), run.clone(), sync.clone()].concat(), "12IZ"),
            ("an empty query", query(""), "IZ"),
            ("a failure in a string", query("SHOW LANES; DRAIN LANE x; SHOW LANES"), "TDDCE(42704)Z"),
            ("two statements prepared", [parse("FREEZE; FREEZE"), sync.clone()].concat(), "E(42601)Z"),
            ("no such statement", [message(b'D', b"Sx\0"), sync.clone()].concat(), "E(26000)Z"),
            ("no such portal", [message(b'E', b"x\0\0\0\0\0"), sync.clone()].concat(), "E(34000)Z"),
            ("closing what is not there", [message(b'C', b"Sx\0"), sync.clone()].concat(), "3Z"),
            (
                "a parameter",
                [parse("SHOW LANES"), message(b'B', b"\0\0\0\0\0\x01\0\0\0\x01x\0\0"), sync.clone()].concat(),
                "1E(08P01)Z",
            ),
            ("a function call", message(b'F', b"\0\0\0\0"), "E(0A000)Z"),
            ("bytes that are not UTF-8", message(b'Q', b"NOTE '\xff'\0"), "E(22021)Z"),
            ("COPY left over", [message(b'c', b""), query("")].concat(), "IZ"),
            ("Terminate", [message(b'X', b""), query("")].concat(), ""),
            ("an unknown message", message(b'!', b""), "E(08P01)"),
            ("a query without an end", message(b'Q', b"SHOW LANES"), "E(08P01)"),
            ("bytes behind a query", message(b'Q', b"SHOW LANES\0x"), "E(08P01)"),
            ("a Bind cut short", message(b'B', b"\0\0\0\x09"), "E(08P01)"),
            ("a length below 4", b"Q\0\0\0\0".to_vec(), "E(08P01)"),
            ("an oversized query", b"Q\0\x01\0\x05".to_vec(), "E(08P01)"),
        ] {
            assert_eq!(exchange(at, &bytes).await, want, "{what}");
        }
        let told = || fake.told.lock().unwrap().len();
        let before = told();
        let freeze = [parse("FREEZE"), bind, run.clone(), run, sync].concat();
        assert_eq!(exchange(at, &freeze).await, "12NCE(55000)Z");
        assert_eq!(told(), before + 1, "a portal's command is carried out once");
    });
}

#[test]
fn newer_protocols_and_options_are_negotiated_down() {
    with_port(Fake::default(), async |at, _| {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let startup = b"user\0admin\0database\0pgweir\0_pq_.new\0on\0\0";
        stream.write_all(&packet(V3 | 9999, startup)).await.unwrap();
        let mut answer = [0; 22];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"v\0\0\0\x15\0\x03\0\x02\0\0\0\x01_pq_.new\0");
        stream.read_exact(&mut answer[..10]).await.unwrap();
        assert_eq!(&answer[..9], b"R\0\0\0\x17\0\0\0\x0a");
    });
}

#[test]
fn http_answers_monitoring_without_a_password() {
    with_port(Fake::default(), async |at, fake| {
        let get = async |path: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            String::from_utf8(raw(at, request.as_bytes()).await).unwrap()
        };
        let metrics = get("/metrics").await;
        assert!(
            metrics.starts_with("HTTP/1.1 200") && metrics.contains("pgweir_usage_percent 37.5"),
            "{metrics}"
        );
        assert!(metrics.contains("text/plain; version=0.0.4") && !metrics.contains("# EOF"), "{metrics}");
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                       accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n\r\n";
        let newer = raw(at, request.as_bytes()).await;
        assert!(has(&newer, "application/openmetrics-text; version=1.0.0") && newer.ends_with(b"# EOF\n"));
        assert!(get("/healthz").await.ends_with("\r\n\r\nok\n"));
        *fake.upstream.lock().unwrap() = "down: connection refused".into();
        let unready = get("/readyz").await;
        assert!(
            unready.starts_with("HTTP/1.1 503") && unready.contains("is down: connection refused"),
            "{unready}"
        );
        // Full is when clients queue, and blind when nobody can say how full: neither is a reason to send clients away.
        for ready in ["up", "full: PostgreSQL has no connection left", "unknown: monitor stale", ""] {
            *fake.upstream.lock().unwrap() = ready.into();
            assert!(get("/readyz").await.starts_with("HTTP/1.1 200"), "{ready}");
        }
        *fake.draining.lock().unwrap() = true;
        assert!(get("/readyz").await.starts_with("HTTP/1.1 503"));
        let foreign = get("/api/v1/lanes").await;
        assert!(foreign.starts_with("HTTP/1.1 403") && foreign.contains("application/json"), "{foreign}");
        let unknown =
            raw(at, b"GET /api/v1/lanes HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        assert!(unknown.starts_with(b"HTTP/1.1 401") && has(&unknown, "www-authenticate: Basic"));
        assert!(raw(at, b"GARBAGE\r\n\r\n").await.starts_with(b"HTTP/1.1 400"));
        let huge = [&b"GET / HTTP/1.1\r\nx: "[..], &[b'a'; 200_000], b"\r\n\r\n"].concat();
        let mut stream = TcpStream::connect(at).await.unwrap();
        // The port may close before all of it is written.
        let _ = stream.write_all(&huge).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 431");
    });
}

#[test]
fn a_command_is_finished_when_who_asked_hangs_up() {
    with_port(Fake::default(), async |at, fake| {
        let request = "POST /api/v1/lanes/web/pause HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic \
                       YWRtaW46cGEgc3Mnd8O2cmQ=\r\ncontent-type: application/json\r\ncontent-length: 29\r\n\r\n\
                       {\"on\":\"hold\",\"reason\":\"sale\"}";
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        drop(stream);
        while fake.told.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let told = fake.told.lock().unwrap().clone();
        assert_eq!(told[0].0, Operator { name: "admin (http)".into(), may_change: true });
        let how = Some(Disposition::Hold);
        let want = Command::Pause { lane: "web".into(), how, duration: None, reason: "sale".into() };
        assert_eq!(told[0].1, want);
    });
}

#[test]
fn connections_are_bounded_and_who_asks_for_nothing_gives_way() {
    with_port(Fake::default(), async |at, _| {
        let health = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut silent = Vec::new();
        for n in 0..2 * admin::CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all([&b"\0"[..], b"G", b"\x16", b"GET /healthz HTTP/1.1\r\n"][n % 4]).await.unwrap();
            silent.push(stream);
        }
        assert!(raw(at, health).await.starts_with(b"HTTP/1.1 200"));
        assert_eq!(connect(at).await.query("SHOW LANES", &[]).await.unwrap().len(), 2);
        // Whoever has shown a password keeps its place.
        let mut readers = Vec::new();
        for _ in 0..admin::HTTP_MAX {
            let mut stream = TcpStream::connect(at).await.unwrap();
            let request =
                b"GET /api/v1/usage HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer look\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
            readers.push(stream);
        }
        assert!(raw(at, health).await.starts_with(b"HTTP/1.1 503"));
        let mut consoles = Vec::new();
        // The one that was refused just now may still be leaving its place.
        while consoles.len() < admin::CONNECTIONS_MAX - admin::HTTP_MAX {
            consoles.extend(try_connect(at, "admin", "pa ss'wörd", "pgweir").await.ok());
        }
        let refused = try_connect(at, "admin", "x", "pgweir").await.map(drop).expect_err("refused");
        assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
        assert_eq!(consoles[0].query("SHOW LANES", &[]).await.unwrap().len(), 2);
    });
}
