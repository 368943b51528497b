//! tokio-postgres with rustls as applications use it, for tests/postgres/test_clients.py. One process serves all modes: a line of stdin
//! is one mode, its connection's settings as key=value between tabs; the answer is a line "step TAB what was seen" for each step, and a
//! line with a dot. It uses nothing of pgweir.

use std::collections::HashMap;
use std::error::Error;
use std::future::{pending, poll_fn};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, TryStreamExt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, CopyInSink, Notification, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
type Seen = Outcome<String>;

const HOST: &str = "127.0.0.1";
const ROWS: i32 = 1000;
const BIG_CHARACTERS: usize = 300_000;
const HEAR_MAX: Duration = Duration::from_secs(20);

/// With a worker of its own: connections end while the next line is waited for.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Outcome<()> {
    let mut out = std::io::stdout();
    for line in std::io::stdin().lines() {
        let mode = Mode::parse(&line?)?;
        for (step, seen) in play(&mode).await {
            writeln!(out, "{step}\t{}", seen.replace(['\n', '\t'], " "))?;
        }
        writeln!(out, ".")?;
        out.flush()?;
    }
    Ok(())
}

/// How to come in.
struct Mode {
    config: Config,
    tls: MakeRustlsConnect,
    /// Where the login with a wrong password comes from: not held against the next mode.
    source: IpAddr,
}

impl Mode {
    fn parse(line: &str) -> Outcome<Self> {
        let mut words: HashMap<_, _> = line.split('\t').filter_map(|pair| pair.split_once('=')).collect();
        let source = words.remove("source").ok_or("no source")?.parse()?;
        let own = words.remove("certificate").zip(words.remove("key"));
        let tls = MakeRustlsConnect::new(client_tls(words.remove("ca"), own)?);
        // The driver's own names for the rest.
        let parameters: Vec<_> = words.iter().map(|(key, value)| format!("{key}='{value}'")).collect();
        let mut config: Config = parameters.join(" ").parse()?;
        config.host(HOST).dbname("postgres");
        Ok(Self { config, tls, source })
    }

    async fn open(&self) -> Outcome<Session> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
        let (tell, heard) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    // Nobody may listen any more.
                    let _ = tell.send(notification);
                }
            }
        });
        Ok(Session { client, heard })
    }

    /// From an address of its own.
    async fn wrong(&self) -> Seen {
        let port = *self.config.get_ports().first().ok_or("no port")?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.source, 0).into())?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
        let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut self.tls.clone(), HOST)?;
        let login = self.config.clone().password("wrong").connect_raw(stream, tls).await;
        Ok(state(login))
    }
}

/// TLS as psql's sslmode=verify-full, or as its require without an authority, perhaps with a certificate and its key.
fn client_tls(ca: Option<&str>, own: Option<(&str, &str)>) -> Outcome<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match ca {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(file)? {
                roots.add(certificate?)?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let mut config = match own {
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
        }
        None => builder.with_no_client_auth(),
    };
    // TLS at once must name it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

/// Whoever it is, it must have the key of the certificate it shows.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client that is logged in, and what it hears.
struct Session {
    client: Client,
    heard: UnboundedReceiver<Notification>,
}

/// What each step saw.
async fn play(mode: &Mode) -> Vec<(&'static str, String)> {
    // At once: a wrong password may be answered later than a right one.
    let (wrong, rest) = tokio::join!(mode.wrong(), Box::pin(logged_in(mode)));
    let rest = rest.unwrap_or_else(|error| vec![("connect", told(&*error))]);
    let wrong = ("wrong", wrong.unwrap_or_else(|error| told(&*error)));
    std::iter::once(wrong).chain(rest).collect()
}

/// Every step but the wrong password.
async fn logged_in(mode: &Mode) -> Outcome<Vec<(&'static str, String)>> {
    let (mut first, second) = (mode.open().await?, mode.open().await?);
    let other = &second.client;
    let steps = [
        ("simple", simple(&first.client).await),
        ("prepared", prepared(&first.client).await),
        ("pipeline", pipelined(&first.client).await),
        ("transaction", transaction(&mut first.client).await),
        ("error", errors(&first.client).await),
        ("cursor", cursor(&mut first.client).await),
        ("copy", copy(&first.client).await),
        ("big", big(&first.client).await),
        ("cancel", cancel(&first.client, other, &mode.tls).await),
        ("notify", hear(&mut first, other).await),
        ("after", after(&first.client, other).await),
    ];
    Ok(steps.map(|(step, seen)| (step, seen.unwrap_or_else(|error| told(&*error)))).into())
}

/// An error with its causes, the SQLSTATE before them.
fn told(error: &(dyn Error + 'static)) -> String {
    let driver = error.downcast_ref::<tokio_postgres::Error>();
    let code = driver.and_then(tokio_postgres::Error::code).map_or("?????", |code| code.code());
    let (mut text, mut next) = (code.to_string(), Some(error));
    while let Some(error) = next {
        text += &format!(" {error}");
        next = error.source();
    }
    text
}

/// The SQLSTATE that it ended with.
fn state<T>(result: Result<T, tokio_postgres::Error>) -> String {
    let Err(error) = result else { return "none".into() };
    error.code().map_or_else(|| told(&error), |code| code.code().into())
}

/// A figure.
async fn number(
    client: &Client,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<i32, tokio_postgres::Error> {
    client.query_one(sql, values).await?.try_get(0)
}

async fn simple(client: &Client) -> Seen {
    let mut rows = Vec::new();
    for message in client.simple_query("select 1, 'zwei'; select null, 'größe €'").await? {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push(format!("{} {}", row.get(0).unwrap_or("null"), row.get(1).unwrap_or("null")));
        }
    }
    Ok(rows.join(", "))
}

async fn prepared(client: &Client) -> Seen {
    let statement = client.prepare("select $1::int + 1, $2::text || '!', encode($3, 'hex')").await?;
    let mut rows = Vec::new();
    for n in 1..=3 {
        let text = (n != 2).then_some("größe €");
        let row = client.query_one(&statement, &[&n, &text, &&[0, n as u8, 255][..]]).await?;
        let text: Option<&str> = row.try_get(1)?;
        let (next, hex): (i32, &str) = (row.try_get(0)?, row.try_get(2)?);
        rows.push(format!("{next} {} {hex}", text.unwrap_or("null")));
    }
    Ok(rows.join(", "))
}

/// Many queries on their way at once, one of them wrong.
async fn pipelined(client: &Client) -> Seen {
    let numbers: Vec<i32> = (0..100).collect();
    let queries = numbers.iter().map(async |n| {
        number(client, if *n == 50 { "select $1::int / 0" } else { "select $1::int" }, &[n]).await
    });
    let (good, bad): (Vec<_>, Vec<_>) = join_all(queries).await.into_iter().partition(Result::is_ok);
    let bad: Vec<_> = bad.into_iter().map(state).collect();
    Ok(format!("{} {}", good.into_iter().flatten().sum::<i32>(), bad.join(" ")))
}

async fn transaction(client: &mut Client) -> Seen {
    client.batch_execute("create temp table rolled (n int)").await?;
    let undone = client.transaction().await?;
    undone.execute("insert into rolled values ($1)", &[&1]).await?;
    undone.rollback().await?;
    let empty = number(client, "select count(*)::int from rolled", &[]).await?;
    let mut done = client.transaction().await?;
    done.execute("insert into rolled values ($1)", &[&2]).await?;
    let inner = done.transaction().await?;
    inner.execute("insert into rolled values ($1)", &[&3]).await?;
    // As an error on the way would: the driver sends the rollback.
    drop(inner);
    done.commit().await?;
    Ok(format!("{empty} {}", number(client, "select sum(n)::int from rolled", &[]).await?))
}

async fn errors(client: &Client) -> Seen {
    let alone = state(client.batch_execute("select 1 / 0").await);
    client.batch_execute("begin").await?;
    let inside = state(client.query("select * from nowhere where n = $1", &[&1]).await);
    let behind = state(client.batch_execute("select 1").await);
    client.batch_execute("rollback").await?;
    Ok(format!("{alone} {inside} {behind} {}", number(client, "select 1", &[]).await?))
}

/// By a portal, a hundred rows at a time.
async fn cursor(client: &mut Client) -> Seen {
    let transaction = client.transaction().await?;
    let portal = transaction.bind("select generate_series(1, $1)", &[&ROWS]).await?;
    let mut sum = 0;
    loop {
        let rows = transaction.query_portal(&portal, 100).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            sum += row.try_get::<_, i32>(0)?;
        }
    }
    transaction.commit().await?;
    Ok(sum.to_string())
}

/// In and out, a row that is none, and one that the client gives up.
async fn copy(client: &Client) -> Seen {
    let rows: String = (0..ROWS).map(|n| format!("{n}\tgröße {n}\n")).collect();
    client.batch_execute("create temp table copied (n int, t text)").await?;
    let count = given(client, rows.clone()).await?.as_mut().finish().await?;
    let back = client.copy_out("copy copied to stdout").await?;
    let back: Vec<Bytes> = back.try_collect().await?;
    let bad = state(given(client, "no number\tx\n".into()).await?.as_mut().finish().await);
    drop(given(client, "1\tx\n".into()).await?);
    let whole = back.concat() == rows.as_bytes();
    Ok(format!("{count} {whole} {bad} {}", number(client, "select count(*)::int from copied", &[]).await?))
}

/// A COPY that these rows were given to, and whose end is open.
async fn given(client: &Client, rows: String) -> Outcome<std::pin::Pin<Box<CopyInSink<Bytes>>>> {
    let mut sink = Box::pin(client.copy_in("copy copied from stdin").await?);
    sink.send(Bytes::from(rows)).await?;
    Ok(sink)
}

async fn big(client: &Client) -> Seen {
    let sent = "größe €".repeat(BIG_CHARACTERS / 7);
    let row = client.query_one("select $1::text", &[&sent]).await?;
    Ok((row.try_get::<_, &str>(0)? == sent).to_string())
}

/// The other connection sees the query run before it is cancelled: a cancel that is too early has nothing to hit.
async fn cancel(client: &Client, other: &Client, tls: &MakeRustlsConnect) -> Seen {
    let pid = number(client, "select pg_backend_pid()", &[]).await?;
    let asleep = "select count(*)::int from pg_stat_activity where wait_event = 'PgSleep' and pid = $1";
    let messenger = async {
        while number(other, asleep, &[&pid]).await? == 0 {}
        client.cancel_token().cancel_query(tls.clone()).await?;
        pending::<Seen>().await
    };
    let end = tokio::select! {
        end = client.batch_execute("select pg_sleep(20)") => state(end),
        failed = messenger => return failed,
    };
    // PostgreSQL signals the backend and then its process group: the second may hit what comes next, and the driver does not wait for both.
    let _ = client.batch_execute("select pg_sleep(0.2)").await;
    Ok(format!("{end} {}", number(client, "select 1", &[]).await?))
}

async fn hear(listener: &mut Session, other: &Client) -> Seen {
    listener.client.batch_execute("listen pgweir_clients").await?;
    other.batch_execute("notify pgweir_clients, 'größe €'").await?;
    let heard = tokio::time::timeout(HEAR_MAX, listener.heard.recv()).await?.ok_or("the connection ended")?;
    listener.client.batch_execute("unlisten *").await?;
    let from_other = heard.process_id() == number(other, "select pg_backend_pid()", &[]).await?;
    let count = 1 + std::iter::from_fn(|| listener.heard.try_recv().ok()).count();
    Ok(format!("{} {} {from_other} {count}", heard.channel(), heard.payload()))
}

async fn after(first: &Client, second: &Client) -> Seen {
    Ok(format!("{} {}", number(first, "select 1", &[]).await?, number(second, "select 2", &[]).await?))
}
