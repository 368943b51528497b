//! The CLI against a console that is played by a thread: what it sends, what it makes of the answers, how it ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pgweir::auth::scram::{ITERATIONS, MECHANISM, Mock, Server, Verifier};
use pgweir::reason::{Severity, SqlState};
use pgweir::wire::reply;

/// A column: name and type (OID of pg_type).
type Column = (&'static str, u32);
const TEXT: u32 = 25;
const INT4: u32 = 23;

/// What the console answers to a statement.
enum Answer {
    Rows(&'static [Column], &'static [&'static [&'static str]]),
    Done(&'static [&'static str]),
    Refuse(&'static str),
}

fn script(sql: &str) -> Answer {
    match sql {
        "SHOW LANES" => Answer::Rows(
            &[("lane", TEXT), ("state", TEXT), ("quota", INT4), ("slots", INT4)],
            &[&["web", "open", "24", "10"], &["cron", "paused", "8", "2"]],
        ),
        "SHOW USAGE" => Answer::Rows(
            &[("percent", INT4), ("connections", INT4), ("usable", INT4)],
            &[&["40", "16", "40"]],
        ),
        "SHOW STATUS" => {
            Answer::Rows(&[("name", TEXT), ("value", TEXT)], &[&["monitor", "ok"], &["state", "running"]])
        }
        "SHOW TIMELINE" => Answer::Rows(
            &[("seq", INT4), ("event", TEXT)],
            &[&["1", "start"], &["2", "freeze"], &["3", "resume"]],
        ),
        "SHOW CLIENTS" => Answer::Rows(&[("id", INT4)], &[]),
        "PAUSE LANE cron" => Answer::Done(&["cron is paused; 2 transactions run on"]),
        _ => Answer::Refuse("no such lane"),
    }
}

/// One message: type byte and body.
fn receive(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).ok()?;
    Some((head[0], body))
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn row_description(out: &mut Vec<u8>, columns: &[Column]) {
    reply::message(out, b'T', |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (name, oid) in columns {
            reply::cstr(out, name);
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        }
    });
}

fn answer(out: &mut Vec<u8>, sql: &str) {
    match script(sql) {
        Answer::Rows(columns, rows) => {
            row_description(out, columns);
            for row in rows {
                reply::message(out, b'D', |out| {
                    out.extend_from_slice(&(row.len() as u16).to_be_bytes());
                    for cell in *row {
                        out.extend_from_slice(&(cell.len() as u32).to_be_bytes());
                        out.extend_from_slice(cell.as_bytes());
                    }
                });
            }
            reply::command_complete(out, "SHOW");
        }
        Answer::Done(notices) => {
            notices.iter().for_each(|notice| reply::notice(out, notice));
            reply::command_complete(out, "PAUSE");
        }
        Answer::Refuse(why) => reply::error(out, Severity::Error, SqlState(*b"42704"), why, "SHOW LANES"),
    }
}

/// The startup packet, behind a request for TLS: the CLI asks for that first, and goes on without where there is none.
fn startup(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut request = [0; 8];
    stream.read_exact(&mut request).ok()?;
    assert_eq!(request, [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]);
    stream.write_all(b"N").ok()?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut startup).ok()?;
    Some(startup)
}

/// Startup and password; none if the client may not come in.
fn login(stream: &mut TcpStream, password: &str, said: &mpsc::Sender<String>) -> Option<()> {
    let startup = startup(stream)?;
    let parameters: Vec<&[u8]> = startup[4..].split(|byte| *byte == 0).collect();
    said.send(String::from_utf8_lossy(&parameters.join(&b' ')).into_owned()).ok()?;
    let verifier = Verifier::from_password(password);
    let server = Server::new(Some(&verifier), "admin", &Mock::new([7; 32], ITERATIONS));
    ask(stream, 10, &[MECHANISM.as_bytes(), b"\0\0"].concat())?;
    let (_, chosen) = receive(stream)?;
    let (challenged, challenge) = server.first(&chosen[MECHANISM.len() + 5..], "console").ok()?;
    ask(stream, 11, challenge.as_bytes())?;
    let (_, proof) = receive(stream)?;
    let mut out = Vec::new();
    let proven = challenged.last(&proof).ok();
    if let Some(proven) = &proven {
        ask(stream, 12, proven.server_final.as_bytes())?;
        ask(stream, 0, b"")?;
        reply::ready_for_query(&mut out, b'I');
    } else {
        reply::error(&mut out, Severity::Fatal, SqlState(*b"28P01"), "password authentication failed", "");
    }
    stream.write_all(&out).ok()?;
    proven.map(drop)
}

/// An authentication request.
fn ask(stream: &mut TcpStream, code: u32, data: &[u8]) -> Option<()> {
    let mut out = Vec::new();
    reply::message(&mut out, b'R', |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(data);
    });
    stream.write_all(&out).ok()
}

/// Serves one client; tells its startup parameters and statements, in order.
fn serve(mut stream: TcpStream, password: &str, said: &mpsc::Sender<String>) -> Option<()> {
    login(&mut stream, password, said)?;
    let mut parsed = String::new();
    while let Some((tag, body)) = receive(&mut stream) {
        let mut out = Vec::new();
        match tag {
            b'Q' => {
                said.send(text(&body)).ok()?;
                answer(&mut out, &text(&body));
                reply::ready_for_query(&mut out, b'I');
            }
            b'P' => {
                let name = text(&body);
                parsed = text(&body[name.len() + 1..]);
                reply::message(&mut out, b'1', |_| {});
            }
            b'D' => {
                reply::message(&mut out, b't', |out| out.extend_from_slice(&[0, 0]));
                match script(&parsed) {
                    Answer::Rows(columns, _) => row_description(&mut out, columns),
                    _ => reply::message(&mut out, b'n', |_| {}),
                }
            }
            b'C' => reply::message(&mut out, b'3', |_| {}),
            b'S' => reply::ready_for_query(&mut out, b'I'),
            _ => return None,
        }
        stream.write_all(&out).ok()?;
    }
    Some(())
}

/// Runs the CLI against a console whose password is "secret"; gives its output and what the console heard.
fn run(password: &str, args: &[&str]) -> (Output, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (said, hears) = mpsc::channel();
    thread::spawn(move || listener.accept().ok().and_then(|(stream, _)| serve(stream, "secret", &said)));
    let output = pgweir(&address, password, args);
    let mut heard = Vec::new();
    while let Ok(line) = hears.recv_timeout(Duration::from_secs(120)) {
        heard.push(line);
    }
    (output, heard)
}

fn pgweir(address: &str, password: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgweir"));
    command.args(["--admin", address]).args(args).env("PGWEIR_PASSWORD", password);
    command.output().expect("the program runs")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_table_is_for_people_and_json_for_programs() {
    let (people, heard) = run("secret", &["lanes"]);
    assert_eq!(err(&people), "");
    assert_eq!(
        out(&people),
        "lane  state   quota  slots\nweb   open       24     10\ncron  paused      8      2\n"
    );
    assert_eq!(people.status.code(), Some(0));
    assert!(heard[0].contains("application_name pgweir cli ("), "{heard:?}");
    assert!(heard[0].contains("user admin") && heard[0].contains("database pgweir"), "{heard:?}");
    let (programs, _) = run("secret", &["lanes", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&programs.stdout).expect("JSON");
    assert_eq!(rows[1], serde_json::json!({ "lane": "cron", "state": "paused", "quota": 8, "slots": 2 }));
    let (none, _) = run("secret", &["clients", "--json"]);
    assert_eq!(out(&none).trim(), "[]");
    let (none, _) = run("secret", &["clients"]);
    assert_eq!(out(&none), "id\n");
}

#[test]
fn a_command_tells_what_was_done_or_why_not() {
    let (done, heard) = run("secret", &["pause", "cron"]);
    assert_eq!(
        (out(&done).as_str(), done.status.code()),
        ("cron is paused; 2 transactions run on\n", Some(0))
    );
    assert_eq!(heard[1], "PAUSE LANE cron");
    let (refused, _) = run("secret", &["drain", "nosuch"]);
    assert_eq!(
        (err(&refused).as_str(), refused.status.code()),
        ("pgweir: no such lane\nHINT: SHOW LANES\n", Some(1))
    );
    let (wrong, _) = run("wrong", &["lanes"]);
    assert_eq!(
        (err(&wrong).as_str(), wrong.status.code()),
        ("pgweir: password authentication failed\n", Some(1))
    );
}

/// Who has taken the admin port learns no password, and is not believed.
#[test]
fn a_false_console_is_given_nothing() {
    for (code, told) in [(3, "in the clear"), (5, "another login than SCRAM"), (0, "without a proof")] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let heard = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the CLI");
            let mut heard = startup(&mut stream).expect("a startup packet");
            ask(&mut stream, code, b"salt").expect("the CLI is there");
            // A reset is an end as well.
            let _ = stream.read_to_end(&mut heard);
            String::from_utf8_lossy(&heard).into_owned()
        });
        let fooled = pgweir(&address, "hunter2", &["status"]);
        assert_eq!(fooled.status.code(), Some(3));
        assert!(err(&fooled).contains(told) && err(&fooled).contains("no pgweir"), "{}", err(&fooled));
        let heard = heard.join().expect("the false console ends");
        assert!(heard.contains("admin") && !heard.contains("hunter2"));
        // Nothing behind the startup packet's last byte.
        assert!(heard.ends_with("\0\0"), "{heard:?}");
    }
}

#[test]
fn status_opens_with_the_verdict() {
    let (status, _) = run("secret", &["status"]);
    assert_eq!(out(&status).lines().next(), Some("PAUSED: cron"));
    assert!(out(&status).contains("Try next: pgweir resume cron --over 5m"), "{}", out(&status));
}

#[test]
fn the_timeline_shows_the_last_entries() {
    let (timeline, _) = run("secret", &["timeline", "--last", "2", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&timeline.stdout).expect("JSON");
    let expected = serde_json::json!([{ "seq": 2, "event": "freeze" }, { "seq": 3, "event": "resume" }]);
    assert_eq!(rows, expected);
}

#[test]
fn nobody_there_is_status_3_and_a_wrong_line_status_2() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("bound").to_string();
    drop(free);
    let nobody = pgweir(&address, "secret", &["status"]);
    assert_eq!(nobody.status.code(), Some(3));
    assert!(err(&nobody).starts_with(&format!("pgweir: cannot reach {address}: ")), "{}", err(&nobody));
    assert_eq!(pgweir("nowhere", "secret", &["status"]).status.code(), Some(2));
    assert_eq!(pgweir(&address, "", &["status"]).status.code(), Some(2));
    assert_eq!(pgweir(&address, "secret", &["pause"]).status.code(), Some(2));
}
