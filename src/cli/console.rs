//! One conversation with the console.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage};

use super::endpoint::{AdminEndpoint, application_name};
use super::table::{Kind, Table};
use crate::tls::asked::{self, Answered, Wary};
use crate::tls::client::{ClientFiles, ClientTls, Mode};
use crate::tls::stream::TlsStream;

/// Time for connecting and logging in.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Time for an answer: a RELOAD or DRAIN may take its time.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Lines of notices kept.
const NOTICES_MAX: usize = 1_000;
/// The database that is the console.
const DATABASE: &str = "pgweir";

/// Why a command was not done.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// pgweir said no.
    Refused(String),
    /// The command line (or the configuration it names) is wrong.
    Usage(String),
    /// There was no answer.
    Unreachable(String),
}

impl Failure {
    /// The exit status of the contract.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(text) | Self::Usage(text) | Self::Unreachable(text)) = self;
        // The console's own errors begin so already.
        write!(f, "pgweir: {}", text.strip_prefix("pgweir: ").unwrap_or(text))
    }
}

type Notices = Arc<Mutex<Vec<String>>>;

/// A logged-in connection.
pub struct Console {
    client: Client,
    notices: Notices,
    address: String,
}

impl Console {
    /// Connects and logs in, within 5 s.
    pub async fn connect(endpoint: &AdminEndpoint) -> Result<Self, Failure> {
        let address = format!("{}:{}", endpoint.host, endpoint.port);
        let password = endpoint.password.as_ref().map_err(|why| Failure::Usage(why.clone()))?;
        let mut config = Config::new();
        config.user(&endpoint.user).password(password).dbname(DATABASE).application_name(application_name());
        config.ssl_mode(SslMode::Disable);
        let connecting = async {
            let stream = dial(endpoint)
                .await
                .map_err(|error| Failure::Unreachable(format!("cannot reach {address}: {error}")))?;
            // pgweir asks for SCRAM and nothing else: whoever asks for more has taken its port.
            let stream = Wary::new(stream, Answered::ProofOnly, no_pgweir);
            config.connect_raw(stream, NoTls).await.map_err(|error| connect_failure(&address, &error))
        };
        let (client, mut connection) = match tokio::time::timeout(CONNECT_MAX, connecting).await {
            Ok(connected) => connected?,
            Err(_) => return Err(Failure::Unreachable(format!("{address} does not answer"))),
        };
        let notices = Notices::default();
        let collected = notices.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message {
                    collect(&collected, &notice);
                }
            }
        });
        Ok(Self { client, notices, address })
    }

    /// The answer of a SHOW, with the types of its columns.
    pub async fn show(&self, sql: &str) -> Result<Table, Failure> {
        self.within(async {
            // The simple protocol gives every value as text but no types; describing the statement gives those.
            let statement = self.client.prepare(sql).await?;
            let kinds = statement.columns().iter().map(|column| Kind::of_type(column.type_().name()));
            let mut table = Table { kinds: kinds.collect(), ..Table::default() };
            for message in self.client.simple_query(sql).await? {
                match message {
                    SimpleQueryMessage::RowDescription(columns) => {
                        table.names = columns.iter().map(|column| column.name().to_owned()).collect();
                    }
                    SimpleQueryMessage::Row(row) => {
                        table.rows.push((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect());
                    }
                    _ => {}
                }
            }
            Ok(table)
        })
        .await
    }

    /// Carries out a command; gives what the console said.
    pub async fn act(&self, sql: &str) -> Result<Vec<String>, Failure> {
        self.within(self.client.simple_query(sql)).await?;
        Ok(std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The rows of a two-column answer, by name.
    pub async fn pairs(&self, sql: &str) -> Result<BTreeMap<String, String>, Failure> {
        let table = self.show(sql).await?;
        let pair = |row: &Vec<Option<String>>| {
            Some((row.first()?.clone()?, row.get(1)?.clone().unwrap_or_default()))
        };
        Ok(table.rows.iter().filter_map(pair).collect())
    }

    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Ok(answer) => answer.map_err(|error| match error.as_db_error() {
                Some(refusal) => Failure::Refused(told(refusal)),
                None => Failure::Unreachable(format!("{}: {}", self.address, chain(&error))),
            }),
            Err(_) => Err(Failure::Unreachable(format!("{} took too long to answer", self.address))),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What is said of an admin port that asks for what pgweir's never does.
fn no_pgweir(code: u32) -> &'static str {
    match code {
        asked::OK => "the admin port let us in without a proof that it knows the password: this is no pgweir",
        asked::CLEAR => "the admin port asked for the password in the clear: this is no pgweir",
        _ => "the admin port asked for another login than SCRAM-SHA-256: this is no pgweir",
    }
}

/// Connects, with TLS where the port has it.
async fn dial(endpoint: &AdminEndpoint) -> io::Result<Box<dyn Duplex>> {
    let host = reachable(&endpoint.host);
    if host.starts_with('/') {
        let path = format!("{host}/.s.PGSQL.{}", endpoint.port);
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let whomever = |mode| {
        let files = ClientFiles { mode, ..ClientFiles::default() };
        ClientTls::load(&files).map_err(|_| io::Error::from(io::ErrorKind::Other))
    };
    let Some(known) = &endpoint.tls else {
        return secure(host, endpoint.port, &whomever(Mode::Prefer)?).await;
    };
    match secure(host, endpoint.port, known).await {
        // A renewed certificate that pgweir was not told of yet must not keep anybody on its host from telling it. SCRAM shows neither
        // side the password, and the driver makes the other side prove that it knows it; without TLS at all there is no going on.
        Err(error) if error.kind() == io::ErrorKind::InvalidData && is_loopback(host) => {
            let again = secure(host, endpoint.port, &whomever(Mode::Require)?).await;
            let stream = again.map_err(|_| not_the_certificate(&error))?;
            eprintln!("pgweir: {}", not_the_certificate(&error));
            Ok(stream)
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(not_the_certificate(&error)),
        done => done,
    }
}

fn not_the_certificate(error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "the admin port does not show the certificate of the configuration ({error}); was certificate_file renewed or changed since \
         pgweir loaded it? On its host `systemctl reload pgweir` (SIGHUP) or `pgweir reload` tells it"
    ))
}

async fn secure(host: &str, port: u16, tls: &ClientTls) -> io::Result<Box<dyn Duplex>> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    match tls.negotiate(&mut stream, host).await? {
        Some(session) => Ok(Box::new(TlsStream::new(stream, session))),
        None => Ok(Box::new(stream)),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Where to connect for an address that is listened on.
fn reachable(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    }
}

fn collect(notices: &Notices, notice: &DbError) {
    let mut notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
    if notices.len() < NOTICES_MAX {
        notices.push(notice.message().to_owned());
    }
}

fn connect_failure(address: &str, error: &tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        // 57P01..57P03: going down or coming up, not a decision about us.
        Some(refusal) if refusal.code().code().starts_with("57P") => {
            Failure::Unreachable(format!("{address}: {}", told(refusal)))
        }
        Some(refusal) => Failure::Refused(told(refusal)),
        None => Failure::Unreachable(format!("cannot reach {address}: {}", chain(error))),
    }
}

/// An error of the console as its lines for people.
fn told(error: &DbError) -> String {
    let mut text = error.message().to_owned();
    for (word, part) in [("DETAIL", error.detail()), ("HINT", error.hint())] {
        if let Some(part) = part {
            text.push_str(&format!("\n{word}: {part}"));
        }
    }
    text
}

/// An error with its causes: tokio-postgres's own text is only "error connecting to server".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(&format!(": {cause}"));
        }
        source = error.source();
    }
    text
}
