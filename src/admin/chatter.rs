//! What drivers, pools and health checks say to any PostgreSQL server, so that they get on with the console. Pure.
//!
//! Nothing here changes pgweir: a transaction is kept as a state only, because drivers check it.

use super::lex::Token;
use super::parse::Failure;

/// A statement that is answered for politeness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chatter {
    /// BEGIN, START TRANSACTION; the tag tells which.
    Begin(&'static str),
    /// COMMIT, END.
    Commit,
    /// ROLLBACK, ABORT.
    Rollback,
    /// Carried out by doing nothing: SAVEPOINT, DISCARD, DEALLOCATE, RESET, UNLISTEN …
    Nothing(&'static str),
    /// SET name = value, for a name of [`PARAMETERS`] in its canonical form.
    Set(&'static str, String),
    /// DEALLOCATE name, or all.
    Deallocate(Option<String>),
    /// DISCARD ALL.
    DiscardAll,
    /// SHOW name, in its canonical form.
    Show(&'static str),
    /// SELECT of one value.
    Select(Probe),
}

/// What health checks select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `select 1`
    One,
    /// `select version()`
    Version,
    /// `select current_schema()`
    Schema,
    /// `select current_database()`
    Database,
    /// `select current_user`
    User,
    /// `select pg_backend_pid()`
    Pid,
    /// `select pg_is_in_recovery()`
    InRecovery,
    /// asyncpg's pool, when a connection comes back.
    AdvisoryUnlockAll,
}

/// Name, value at login, whether its changes are reported by ParameterStatus.
pub const PARAMETERS: [(&str, &str, bool); 24] = [
    ("server_version", concat!("15.0 (pgweir ", env!("CARGO_PKG_VERSION"), ")"), true),
    ("server_encoding", "UTF8", true),
    ("client_encoding", "UTF8", true),
    ("DateStyle", "ISO, MDY", true),
    ("IntervalStyle", "postgres", true),
    ("TimeZone", "UTC", true),
    ("integer_datetimes", "on", true),
    ("standard_conforming_strings", "on", true),
    ("is_superuser", "off", true),
    ("session_authorization", "", true),
    ("application_name", "", true),
    ("default_transaction_read_only", "off", true),
    ("in_hot_standby", "off", true),
    ("server_version_num", "150000", false),
    ("transaction_isolation", "read committed", false),
    ("default_transaction_isolation", "read committed", false),
    ("transaction_read_only", "off", false),
    ("default_transaction_deferrable", "off", false),
    ("max_identifier_length", "63", false),
    ("extra_float_digits", "1", false),
    ("search_path", "public", false),
    ("statement_timeout", "0", false),
    ("lock_timeout", "0", false),
    ("bytea_output", "hex", false),
];

/// Parameters that describe the server: SET cannot change them.
const FIXED: [&str; 8] = [
    "server_version",
    "server_version_num",
    "server_encoding",
    "integer_datetimes",
    "is_superuser",
    "session_authorization",
    "in_hot_standby",
    "max_identifier_length",
];

/// The canonical name of a parameter.
pub fn parameter(name: &str) -> Option<&'static str> {
    PARAMETERS.iter().map(|(known, ..)| *known).find(|known| known.eq_ignore_ascii_case(name))
}

impl Chatter {
    /// The command tag of CommandComplete.
    pub fn tag(&self) -> &'static str {
        match self {
            Self::Begin(tag) | Self::Nothing(tag) => tag,
            Self::Commit => "COMMIT",
            Self::Rollback => "ROLLBACK",
            Self::Set(..) => "SET",
            Self::Deallocate(_) => "DEALLOCATE",
            Self::DiscardAll => "DISCARD ALL",
            Self::Show(_) => "SHOW",
            Self::Select(_) => "SELECT 1",
        }
    }
}

/// The chatter in a statement; `None` where it is none.
///
/// # Errors
/// For a client_encoding other than UTF8, since nothing is converted, and for parameters of the server.
pub fn parse(tokens: &[Token]) -> Result<Option<Chatter>, Failure> {
    let folded: Vec<String> = tokens.iter().map(fold).collect();
    let words: Vec<&str> = folded.iter().map(String::as_str).collect();
    Ok(Some(match words.as_slice() {
        ["begin", ..] => Chatter::Begin("BEGIN"),
        ["start", "transaction", ..] => Chatter::Begin("START TRANSACTION"),
        ["commit" | "end"] | ["commit" | "end", "work" | "transaction"] => Chatter::Commit,
        ["rollback" | "abort"] | ["rollback" | "abort", "work" | "transaction"] => Chatter::Rollback,
        ["rollback", "to", ..] => Chatter::Nothing("ROLLBACK"),
        ["savepoint", _] => Chatter::Nothing("SAVEPOINT"),
        ["release", ..] => Chatter::Nothing("RELEASE"),
        ["discard", "all"] => Chatter::DiscardAll,
        ["deallocate", "all"] | ["deallocate", "prepare", "all"] => Chatter::Deallocate(None),
        ["deallocate", "prepare", _] => Chatter::Deallocate(tokens.get(2).map(exact)),
        ["deallocate", _] => Chatter::Deallocate(tokens.get(1).map(exact)),
        ["close", "all"] => Chatter::Nothing("CLOSE CURSOR ALL"),
        ["unlisten", _] => Chatter::Nothing("UNLISTEN"),
        ["reset", ..] => Chatter::Nothing("RESET"),
        ["set", rest @ ..] => return set(rest, tokens).map(Some),
        ["show", "transaction", "isolation", "level"] => Chatter::Show("transaction_isolation"),
        ["show", "time", "zone"] => Chatter::Show("TimeZone"),
        ["show", name] => match parameter(name) {
            Some(name) => Chatter::Show(name),
            None => return Ok(None),
        },
        ["select", rest @ ..] => match probe(rest) {
            Some(probe) => Chatter::Select(probe),
            None => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn set(words: &[&str], tokens: &[Token]) -> Result<Chatter, Failure> {
    let value_from =
        |at: usize| tokens.get(at..).unwrap_or_default().iter().map(exact).collect::<Vec<_>>().join("");
    match words {
        ["session" | "local", rest @ ..] if rest.first() != Some(&"characteristics") => {
            set(rest, tokens.get(1..).unwrap_or_default())
        }
        ["session", "characteristics", ..] | ["transaction", ..] => Ok(Chatter::Nothing("SET")),
        ["names", _] => set_parameter("client_encoding", value_from(2)),
        ["time", "zone", _, ..] => set_parameter("TimeZone", value_from(3)),
        [name, "to" | "=", _, ..] => set_parameter(name, value_from(3)),
        _ => Err(Failure::new(b"42601", "SET needs a name and a value", "SET LANE name quota = n")),
    }
}

/// SET of one parameter; a name that is not known is accepted and forgotten.
///
/// # Errors
/// For a client_encoding other than UTF8, since nothing is converted, and for parameters of the server.
pub fn set_parameter(name: &str, value: String) -> Result<Chatter, Failure> {
    let Some(name) = parameter(name) else { return Ok(Chatter::Nothing("SET")) };
    if FIXED.contains(&name) {
        return Err(Failure::new(b"55P02", format!("parameter {name} cannot be changed"), ""));
    }
    if name == "client_encoding" && !is_utf8(&value) {
        return Err(Failure::new(b"22023", "the console speaks UTF8 only", "SET client_encoding = 'UTF8'"));
    }
    let value: String = value.chars().filter(|c| !c.is_control()).take(200).collect();
    let value = if name == "client_encoding" { "UTF8".to_owned() } else { value };
    Ok(Chatter::Set(name, value))
}

/// Whether an encoding's name means UTF-8; the names that drivers send.
fn is_utf8(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    matches!(plain.to_ascii_lowercase().as_str(), "utf8" | "unicode" | "default")
}

fn probe(words: &[&str]) -> Option<Probe> {
    let call = match words {
        [name, "(", ")"] => *name,
        [name] => name,
        _ => return None,
    };
    let probe = match call.strip_prefix("pg_catalog.").unwrap_or(call) {
        "1" => Probe::One,
        "version" => Probe::Version,
        "current_schema" => Probe::Schema,
        "current_database" => Probe::Database,
        "current_user" | "session_user" | "user" => Probe::User,
        "pg_backend_pid" => Probe::Pid,
        "pg_is_in_recovery" => Probe::InRecovery,
        "pg_advisory_unlock_all" => Probe::AdvisoryUnlockAll,
        _ => return None,
    };
    let is_name = matches!(probe, Probe::One | Probe::User) || call.ends_with("current_schema");
    (is_name || words.len() == 3).then_some(probe)
}

fn fold(token: &Token) -> String {
    match token {
        Token::Word(text) => text.to_ascii_lowercase(),
        Token::Quoted(text) | Token::Text(text) => text.clone(),
        Token::Symbol(symbol) => symbol.to_string(),
    }
}

fn exact(token: &Token) -> String {
    match token {
        Token::Word(text) | Token::Quoted(text) | Token::Text(text) => text.clone(),
        Token::Symbol(symbol) => symbol.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::lex;

    fn one(text: &str) -> Result<Option<Chatter>, Failure> {
        parse(&lex::statements(text).expect("tokens")[0])
    }

    #[test]
    fn drivers_are_understood() {
        let set = |name, value: &str| Chatter::Set(name, value.to_owned());
        for (text, want) in [
            ("BEGIN ISOLATION LEVEL REPEATABLE READ", Chatter::Begin("BEGIN")),
            ("START TRANSACTION READ ONLY", Chatter::Begin("START TRANSACTION")),
            ("END", Chatter::Commit),
            ("ROLLBACK TO SAVEPOINT s", Chatter::Nothing("ROLLBACK")),
            ("set datestyle to 'ISO'", set("DateStyle", "ISO")),
            ("SET extra_float_digits = 3", set("extra_float_digits", "3")),
            ("SET SESSION application_name = 'My App'", set("application_name", "My App")),
            ("SET NAMES 'utf-8'", set("client_encoding", "UTF8")),
            ("SET whatever.it = 'is'", Chatter::Nothing("SET")),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Chatter::Nothing("SET")),
            ("SHOW datestyle", Chatter::Show("DateStyle")),
            ("show transaction isolation level", Chatter::Show("transaction_isolation")),
            ("select pg_catalog.version()", Chatter::Select(Probe::Version)),
            ("SELECT 1", Chatter::Select(Probe::One)),
            ("DEALLOCATE \"Mine\"", Chatter::Deallocate(Some("Mine".into()))),
        ] {
            assert_eq!(one(text), Ok(Some(want)), "{text}");
        }
    }

    #[test]
    fn what_would_be_a_lie_is_refused() {
        assert!(one("SET client_encoding TO 'LATIN1'").is_err());
        assert!(one("SET server_version = '9.6'").is_err());
        assert_eq!(one("SELECT version"), Ok(None));
        assert_eq!(one("SELECT * FROM pg_class"), Ok(None));
        assert_eq!(one("SHOW max_connections"), Ok(None));
    }
}
