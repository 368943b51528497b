//! Text → what the operator or the driver wants. Pure.

use std::time::Duration;

use super::chatter::{self, Chatter};
use super::command::{Command, Show};
use super::help;
use super::lex::{self, Token};
use crate::lanes::settings::Disposition;
use crate::reason::SqlState;

/// Longest REASON, NOTE or name, in characters: they go into every line of the timeline.
pub const TEXT_MAX: usize = 1000;
/// Longest duration an operator may give.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Syntax error.
pub const SYNTAX_ERROR: SqlState = SqlState(*b"42601");

/// A statement that cannot be carried out: the fields of an ERROR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// SQLSTATE.
    pub state: SqlState,
    /// Message, behind `pgweir: `.
    pub text: String,
    /// What to do, may be empty.
    pub hint: String,
}

impl Failure {
    /// A failure with all its fields.
    pub fn new(state: &[u8; 5], text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { state: SqlState(*state), text: text.into(), hint: hint.into() }
    }
}

/// One statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Shows something.
    Show(Show),
    /// Changes something.
    Command(Command),
    /// What drivers say to any PostgreSQL server.
    Chatter(Chatter),
}

impl Request {
    /// The command tag of CommandComplete.
    pub fn tag(&self) -> &'static str {
        match self {
            Self::Show(_) => "SHOW",
            Self::Chatter(chatter) => chatter.tag(),
            Self::Command(command) => match command {
                Command::Freeze { .. } => "FREEZE",
                Command::Pause { .. } | Command::PauseAll { .. } => "PAUSE",
                Command::Resume { .. } | Command::ResumeAll { .. } => "RESUME",
                Command::Drain { .. } => "DRAIN",
                Command::CancelClient { .. } | Command::CancelPid { .. } => "CANCEL",
                Command::ResetClient { .. } => "RESET",
                Command::KillClient { .. } => "KILL",
                Command::TerminatePid { .. } => "TERMINATE",
                Command::Note { .. } => "NOTE",
                Command::SetQuota { .. } => "SET",
                Command::Reload => "RELOAD",
                Command::Shutdown => "SHUTDOWN",
            },
        }
    }
}

/// All statements of a query string; none when it is empty. Nothing may be carried out unless all are well-formed.
///
/// # Errors
/// 42601 with the nearest command as hint; 22023 for a value out of bounds.
pub fn script(text: &str) -> Result<Vec<Request>, Failure> {
    let statements = lex::statements(text).map_err(|what| Failure::new(&SYNTAX_ERROR.0, what, ""))?;
    statements.iter().map(|tokens| statement(tokens)).collect()
}

fn statement(tokens: &[Token]) -> Result<Request, Failure> {
    let mut cursor = Cursor { tokens, at: 0 };
    if let Some(command) = command(&mut cursor).map_err(|wrong| wrong.into_failure(tokens))? {
        return Ok(Request::Command(command));
    }
    if let Some(show) = show(tokens) {
        return Ok(Request::Show(show));
    }
    if let Some(show) = numbered_show(tokens).map_err(|wrong| wrong.into_failure(tokens))? {
        return Ok(Request::Show(show));
    }
    match chatter::parse(tokens)? {
        Some(chatter) => Ok(Request::Chatter(chatter)),
        None => Err(unknown(tokens)),
    }
}

/// Whether it is a SHOW with words behind it that do not belong there.
fn overlong_show(tokens: &[Token]) -> Option<&Token> {
    show(tokens.get(..2)?).and(tokens.get(2))
}

fn show(tokens: &[Token]) -> Option<Show> {
    let [Token::Word(show), Token::Word(what)] = tokens else { return None };
    let found = match what.to_ascii_uppercase().as_str() {
        "LANES" => Show::Lanes,
        "APPLICATIONS" => Show::Applications,
        "CLIENTS" => Show::Clients,
        "SESSIONS" => Show::Sessions,
        "LEAKS" => Show::Leaks,
        "USAGE" => Show::Usage,
        "TIMELINE" => Show::Timeline,
        "EXIT" => Show::Exit,
        "INCIDENTS" => Show::Incidents,
        "PEAKS" => Show::Peaks,
        "SUGGESTION" => Show::Suggestion,
        "CONFIG" => Show::Config,
        "STATS" => Show::Stats,
        "STATS_TOTALS" => Show::StatsTotals,
        "POOLS" => Show::Pools,
        "DATABASES" => Show::Databases,
        "LISTS" => Show::Lists,
        "SERVERS" => Show::Servers,
        "UPSTREAMS" => Show::Upstreams,
        "HEADROOM" => Show::Headroom,
        "VERSION" => Show::Version,
        "HELP" => Show::Help,
        "STATUS" => Show::Status,
        _ => return None,
    };
    show.eq_ignore_ascii_case("SHOW").then_some(found)
}

/// SHOW INCIDENT n.
fn numbered_show(tokens: &[Token]) -> Result<Option<Show>, Wrong> {
    let mut cursor = Cursor { tokens, at: 0 };
    if !(cursor.keyword("SHOW") && cursor.keyword("INCIDENT")) {
        return Ok(None);
    }
    let id = cursor.number("an incident's number")?;
    cursor.end()?;
    Ok(Some(Show::Incident(id)))
}

/// A command, or `None` where the first words are no command's.
fn command(cursor: &mut Cursor) -> Result<Option<Command>, Wrong> {
    let Some(first) = command_word(cursor.tokens) else { return Ok(None) };
    cursor.at = 1;
    let found = match first.as_str() {
        "FREEZE" => {
            let pause = PauseWords::parse(cursor, false)?;
            Command::Freeze { duration: pause.duration, reason: pause.reason.unwrap_or_default() }
        }
        // PgBouncer's.
        "PAUSE" if cursor.peek().is_none() => Command::PauseAll { reason: String::new() },
        "RESUME" if cursor.peek().is_none() => Command::ResumeAll { over: None },
        "RESUME" if cursor.keyword("ALL") => Command::ResumeAll { over: cursor.over()? },
        "PAUSE" | "RESUME" | "DRAIN" | "SET" => lane_command(&first, cursor)?,
        "CANCEL" if cursor.keyword("PID") => Command::CancelPid { pid: cursor.number("a pid")? },
        "TERMINATE" => {
            cursor.expect("PID")?;
            Command::TerminatePid { pid: cursor.number("a pid")? }
        }
        "CANCEL" | "RESET" | "KILL" => {
            cursor.expect("CLIENT")?;
            let id = cursor.number("a client's id")?;
            match first.as_str() {
                "CANCEL" => Command::CancelClient { id },
                "RESET" => Command::ResetClient { id },
                _ => Command::KillClient { id },
            }
        }
        "NOTE" => Command::Note { text: cursor.text("the note as 'text'")? },
        "RELOAD" => Command::Reload,
        _ => Command::Shutdown,
    };
    cursor.end()?;
    Ok(Some(found))
}

/// The first word in capitals, where it begins a command: RESET and SET are drivers' words too.
fn command_word(tokens: &[Token]) -> Option<String> {
    let Token::Word(first) = tokens.first()? else { return None };
    let second_is =
        |known: &str| matches!(tokens.get(1), Some(Token::Word(word)) if word.eq_ignore_ascii_case(known));
    let first = first.to_ascii_uppercase();
    let is_command = match first.as_str() {
        "FREEZE" | "PAUSE" | "RESUME" | "DRAIN" | "CANCEL" | "KILL" | "TERMINATE" | "NOTE" | "RELOAD"
        | "SHUTDOWN" => true,
        "RESET" => second_is("CLIENT"),
        "SET" => second_is("LANE") && !matches!(tokens.get(2), Some(Token::Symbol(_))),
        _ => false,
    };
    is_command.then_some(first)
}

/// The commands whose second word is LANE.
fn lane_command(first: &str, cursor: &mut Cursor) -> Result<Command, Wrong> {
    cursor.expect("LANE")?;
    let lane = cursor.name()?;
    Ok(match first {
        "PAUSE" => {
            let pause = PauseWords::parse(cursor, true)?;
            let reason = pause.reason.unwrap_or_default();
            Command::Pause { lane, how: pause.how, duration: pause.duration, reason }
        }
        "RESUME" => Command::Resume { lane, over: cursor.over()? },
        "DRAIN" => Command::Drain { lane },
        _ => {
            cursor.expect("QUOTA")?;
            if !cursor.keyword("TO") && !cursor.symbol('=') {
                return Err(Wrong::syntax("= expected"));
            }
            Command::SetQuota { lane, quota: cursor.number("a quota")? }
        }
    })
}

/// What may follow FREEZE and PAUSE LANE, in any order, each at most once.
#[derive(Default)]
struct PauseWords {
    how: Option<Disposition>,
    duration: Option<Duration>,
    reason: Option<String>,
}

impl PauseWords {
    fn parse(cursor: &mut Cursor, with_how: bool) -> Result<Self, Wrong> {
        let mut found = Self::default();
        loop {
            if found.duration.is_none() && cursor.keyword("FOR") {
                found.duration = Some(cursor.duration()?);
            } else if found.reason.is_none() && cursor.keyword("REASON") {
                found.reason = Some(cursor.text("the reason as 'text'")?);
            } else if with_how && found.how.is_none() && cursor.keyword("HOLD") {
                found.how = Some(Disposition::Hold);
            } else if with_how && found.how.is_none() && cursor.keyword("REJECT") {
                found.how = Some(Disposition::Reject);
            } else {
                return Ok(found);
            }
        }
    }
}

struct Cursor<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<&'a Token> {
        let token = self.tokens.get(self.at);
        self.at += usize::from(token.is_some());
        token
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if word.eq_ignore_ascii_case(keyword));
        self.at += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: char) -> bool {
        let found = self.peek() == Some(&Token::Symbol(symbol));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, keyword: &str) -> Result<(), Wrong> {
        if self.keyword(keyword) { Ok(()) } else { Err(self.unexpected(keyword)) }
    }

    fn name(&mut self) -> Result<String, Wrong> {
        match self.peek() {
            // A lane called like a keyword must be quoted, or a forgotten name would be taken from the clause behind it.
            Some(Token::Word(word)) if !is_clause(word) => {
                self.at += 1;
                bounded(word)
            }
            Some(Token::Quoted(name) | Token::Text(name)) => {
                self.at += 1;
                bounded(name)
            }
            _ => Err(self.unexpected("a lane's name")),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, Wrong> {
        match self.peek() {
            Some(Token::Text(text)) => {
                self.at += 1;
                bounded(text)
            }
            _ => Err(self.unexpected(what)),
        }
    }

    /// A positive number that fits.
    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, Wrong> {
        match self.peek() {
            Some(Token::Word(word)) if word.bytes().all(|b| b.is_ascii_digit()) => {
                self.at += 1;
                word.parse().map_err(|_| Wrong::value(format!("{word} is too large for {what}")))
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn duration(&mut self) -> Result<Duration, Wrong> {
        match self.peek() {
            Some(Token::Text(text) | Token::Word(text)) => {
                self.at += 1;
                duration(text).map_err(Wrong::value)
            }
            _ => Err(self.unexpected("a duration such as '30 min'")),
        }
    }

    fn over(&mut self) -> Result<Option<Duration>, Wrong> {
        if self.keyword("OVER") { self.duration().map(Some) } else { Ok(None) }
    }

    fn end(&mut self) -> Result<(), Wrong> {
        match self.next() {
            None => Ok(()),
            Some(token) => Err(Wrong::syntax(format!("unexpected {}", shown(token)))),
        }
    }

    fn unexpected(&self, wanted: &str) -> Wrong {
        match self.peek() {
            Some(token) => Wrong::syntax(format!("{wanted} expected, not {}", shown(token))),
            None => Wrong::syntax(format!("{wanted} expected at the end")),
        }
    }
}

fn is_clause(word: &str) -> bool {
    ["FOR", "REASON", "HOLD", "REJECT", "OVER", "QUOTA"]
        .iter()
        .any(|clause| word.eq_ignore_ascii_case(clause))
}

/// Control characters would break lines of the timeline and of terminals.
fn bounded(text: &str) -> Result<String, Wrong> {
    if text.is_empty() {
        return Err(Wrong::value("the text is empty"));
    }
    if text.chars().count() > TEXT_MAX {
        return Err(Wrong::value(format!("the text is longer than {TEXT_MAX} characters")));
    }
    Ok(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// Reads a duration: numbers with units (ms, s, min or m, h, d and their long forms), `'1h 30m'`.
///
/// # Errors
/// What is wrong, in words: no unit, no number, zero, or longer than [`DURATION_MAX`].
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:.40?} is no duration: write '90s', '30 min' or '1h 30m'");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let behind = rest[digits..].trim_start();
        let end = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let unit_ms = match behind[..end].to_ascii_lowercase().as_str() {
            "ms" | "millisecond" | "milliseconds" => 1,
            "s" | "sec" | "secs" | "second" | "seconds" => 1000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60 * 1000,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3600 * 1000,
            "d" | "day" | "days" => 24 * 3600 * 1000,
            _ => return Err(wrong()),
        };
        total = total.saturating_add(Duration::from_millis(number.saturating_mul(unit_ms)));
        rest = behind[end..].trim_start();
    }
    match total {
        Duration::ZERO => Err(wrong()),
        total if total > DURATION_MAX => Err(format!("{text:.40?} is longer than 365 days")),
        total => Ok(total),
    }
}

/// A mistake inside a command whose first words are known.
struct Wrong {
    state: SqlState,
    text: String,
}

impl Wrong {
    fn syntax(text: impl Into<String>) -> Self {
        Self { state: SYNTAX_ERROR, text: text.into() }
    }

    fn value(text: impl Into<String>) -> Self {
        Self { state: SqlState(*b"22023"), text: text.into() }
    }

    fn into_failure(self, tokens: &[Token]) -> Failure {
        let hint = match help::nearest_command(&first_words(tokens)) {
            Some(syntax) => format!("{syntax} (SHOW HELP lists all commands)"),
            None => "SHOW HELP lists all commands".to_owned(),
        };
        Failure { state: self.state, text: self.text, hint }
    }
}

fn unknown(tokens: &[Token]) -> Failure {
    if let Some(token) = overlong_show(tokens) {
        return Wrong::syntax(format!("unexpected {}", shown(token))).into_failure(tokens);
    }
    let words = first_words(tokens);
    let wrong = Wrong::syntax(format!("unknown command {words:.60?}"));
    match help::nearest_command(&words) {
        Some(syntax) => {
            let hint = format!("SHOW HELP lists all commands; the nearest is: {syntax}");
            Failure { state: wrong.state, text: wrong.text, hint }
        }
        None => wrong.into_failure(tokens),
    }
}

fn first_words(tokens: &[Token]) -> String {
    let words = tokens.iter().take(2).map_while(|token| match token {
        Token::Word(word) => Some(word.as_str()),
        _ => None,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(text) | Token::Quoted(text) | Token::Text(text) => format!("{text:.40?}"),
        Token::Symbol(symbol) => format!("{symbol:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Request {
        let mut requests = script(text).expect(text);
        assert_eq!(requests.len(), 1, "{text}");
        requests.remove(0)
    }

    fn state(text: &str) -> String {
        script(text).expect_err(text).state.to_string()
    }

    const MIN: Duration = Duration::from_secs(60);

    #[test]
    fn commands_are_read_with_their_clauses_in_any_order() {
        let pause = |lane: &str, how, duration, reason: &str| Command::Pause {
            lane: lane.into(),
            how,
            duration,
            reason: reason.into(),
        };
        for (text, want) in [
            ("FREEZE", Command::Freeze { duration: None, reason: String::new() }),
            (
                "freeze reason 'sale; it''s on' for '30 min'",
                Command::Freeze { duration: Some(30 * MIN), reason: "sale; it's on".into() },
            ),
            ("PAUSE LANE cron", pause("cron", None, None, "")),
            ("pause lane \"For\" reject for 5m", pause("For", Some(Disposition::Reject), Some(5 * MIN), "")),
            ("PAUSE LANE queue-low REASON 'x' HOLD", pause("queue-low", Some(Disposition::Hold), None, "x")),
            ("RESUME LANE web OVER '1h 30m';", Command::Resume { lane: "web".into(), over: Some(90 * MIN) }),
            ("resume all", Command::ResumeAll { over: None }),
            ("RESUME;", Command::ResumeAll { over: None }),
            ("PAUSE;", Command::PauseAll { reason: String::new() }),
            ("RESUME ALL OVER '90s'", Command::ResumeAll { over: Some(MIN * 3 / 2) }),
            ("RESUME LANE \"all\"", Command::Resume { lane: "all".into(), over: None }),
            ("DRAIN LANE web", Command::Drain { lane: "web".into() }),
            ("CANCEL CLIENT 7", Command::CancelClient { id: 7 }),
            ("Reset Client 7", Command::ResetClient { id: 7 }),
            ("KILL CLIENT 18446744073709551615", Command::KillClient { id: u64::MAX }),
            ("CANCEL PID 12", Command::CancelPid { pid: 12 }),
            ("TERMINATE PID 12", Command::TerminatePid { pid: 12 }),
            ("NOTE 'two\nlines'", Command::Note { text: "two lines".into() }),
            ("SET LANE web quota = 5", Command::SetQuota { lane: "web".into(), quota: 5 }),
            ("set lane web QUOTA TO 0", Command::SetQuota { lane: "web".into(), quota: 0 }),
            ("RELOAD", Command::Reload),
            ("SHUTDOWN", Command::Shutdown),
        ] {
            assert_eq!(one(text), Request::Command(want), "{text}");
        }
    }

    #[test]
    fn shows_and_chatter_are_told_apart() {
        assert_eq!(one("show Lanes"), Request::Show(Show::Lanes));
        assert_eq!(one("SHOW INCIDENT 12;"), Request::Show(Show::Incident(12)));
        assert_eq!((state("SHOW INCIDENT"), state("SHOW INCIDENT x")), ("42601".into(), "42601".into()));
        assert_eq!(one("/* x */ SHOW VERSION -- y"), Request::Show(Show::Version));
        assert_eq!(one("SHOW server_version"), Request::Chatter(Chatter::Show("server_version")));
        assert_eq!(one("RESET ALL"), Request::Chatter(Chatter::Nothing("RESET")));
        assert_eq!(one("SET lane = 'x'"), Request::Chatter(Chatter::Nothing("SET")));
    }

    #[test]
    fn a_string_is_carried_out_only_when_all_of_it_is_well_formed() {
        assert_eq!(script("SHOW LANES; SHOW HELP").expect("well-formed").len(), 2);
        assert_eq!(script(" ; -- nothing"), Ok(vec![]));
        assert_eq!(state("FREEZE; FREZE"), "42601");
    }

    #[test]
    fn mistakes_name_the_command_that_was_meant() {
        for (text, part) in [
            ("SHOW LANE", "SHOW LANES"),
            ("SHOW LANES web", "SHOW LANES"),
            ("PAUSE odoo", "PAUSE LANE name"),
            ("PAUSE LANE FOR '5m'", "PAUSE LANE name"),
            ("RESUME web", "RESUME"),
            ("KILL CLIENT x", "KILL CLIENT id"),
            ("FREEZE now", "FREEZE"),
            ("SELECT * FROM t", "SHOW HELP"),
            ("NOTE", "NOTE 'text'"),
        ] {
            let failure = script(text).expect_err(text);
            assert_eq!(failure.state, SYNTAX_ERROR, "{text}");
            assert!(failure.hint.contains(part) && failure.hint.contains("SHOW HELP"), "{text}: {failure:?}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        let long = format!("NOTE '{}'", "x".repeat(TEXT_MAX + 1));
        let texts =
            ["FREEZE FOR '30'", "FREEZE FOR '0s'", "FREEZE FOR '400 d'", "CANCEL PID 2147483648", "NOTE ''"];
        for text in texts.into_iter().chain([&*long]) {
            assert_eq!(state(text), "22023", "{text}");
        }
        for text in ["FREEZE FOR", "SET LANE web quota = -1", "PAUSE LANE web HOLD REJECT", "NOTE 'x"] {
            assert_eq!(state(text), "42601", "{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        let ms = |text: &str| duration(text).map(|found| found.as_millis());
        for (text, want) in
            [("30 min", 1_800_000), ("5m", 300_000), ("1h 30m", 5_400_000), ("2d1ms", 172_800_001)]
        {
            assert_eq!(ms(text), Ok(want), "{text}");
        }
        for text in
            ["", "5", "m", "5 m 3", "-5m", "5 parsecs", "1.5h", "99999999999999999999s", "9999999999999999d"]
        {
            assert!(ms(text).is_err(), "{text}");
        }
    }
}
