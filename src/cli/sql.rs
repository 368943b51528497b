//! Commands as the console understands them. Pure.

use std::time::Duration;

use super::args::{ClientOrPid, Command};

/// The SHOW that answers `command`, where it is one of the plain tables.
pub fn show(command: &Command) -> Option<&'static str> {
    match command {
        Command::Lanes => Some("SHOW LANES"),
        Command::Applications => Some("SHOW APPLICATIONS"),
        Command::Clients => Some("SHOW CLIENTS"),
        Command::Sessions => Some("SHOW SESSIONS"),
        Command::Leaks => Some("SHOW LEAKS"),
        Command::Usage => Some("SHOW USAGE"),
        Command::Upstreams => Some("SHOW UPSTREAMS"),
        Command::Headroom => Some("SHOW HEADROOM"),
        _ => None,
    }
}

/// The statement that carries out `command`, where it changes something.
pub fn act(command: &Command) -> Option<String> {
    Some(match command {
        Command::Freeze(freeze) => {
            format!("FREEZE{}{}", span("FOR", freeze.duration), reason(freeze.reason.as_deref()))
        }
        Command::Pause(pause) => {
            let how = match (pause.hold, pause.reject) {
                (true, _) => " HOLD",
                (_, true) => " REJECT",
                _ => "",
            };
            let lane = name(&pause.lane);
            format!(
                "PAUSE LANE {lane}{how}{}{}",
                span("FOR", pause.duration),
                reason(pause.reason.as_deref())
            )
        }
        Command::Resume(resume) if resume.lane == "all" => format!("RESUME ALL{}", span("OVER", resume.over)),
        Command::Resume(resume) => format!("RESUME LANE {}{}", name(&resume.lane), span("OVER", resume.over)),
        Command::Drain { lane } => format!("DRAIN LANE {}", name(lane)),
        Command::Cancel(ClientOrPid { pid: Some(pid), .. }) => format!("CANCEL PID {pid}"),
        Command::Cancel(ClientOrPid { id: Some(id), .. }) => format!("CANCEL CLIENT {id}"),
        Command::Reset { id } => format!("RESET CLIENT {id}"),
        Command::Kill(ClientOrPid { pid: Some(pid), .. }) => format!("TERMINATE PID {pid}"),
        Command::Kill(ClientOrPid { id: Some(id), .. }) => format!("KILL CLIENT {id}"),
        Command::Note { text } => format!("NOTE {}", literal(&text.join(" "))),
        Command::Set { lane, assignment } => format!("SET LANE {} quota = {}", name(lane), assignment.0),
        Command::Reload => "RELOAD".into(),
        _ => return None,
    })
}

fn span(word: &str, duration: Option<Duration>) -> String {
    duration.map(|duration| format!(" {word} '{} s'", duration.as_secs())).unwrap_or_default()
}

fn reason(text: Option<&str>) -> String {
    text.map(|text| format!(" REASON {}", literal(text))).unwrap_or_default()
}

/// A string literal. A NUL cannot be sent, and an operator's line break would break a log line.
pub fn literal(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("'{}'", text.replace('\'', "''"))
}

/// A lane's name: bare where it is a word, else a quoted identifier.
pub fn name(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    // Two dashes begin a comment, even inside a word.
    let bare = text.chars().all(word)
        && !text.contains("--")
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if bare {
        return text.to_owned();
    }
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled_and_control_characters_gone() {
        assert_eq!(literal("it's\nlate\0"), "'it''s late '");
        assert_eq!(literal(""), "''");
    }

    #[test]
    fn a_name_is_bare_only_where_that_is_safe() {
        for bare in ["cron", "odoo-cron", "_x9"] {
            assert_eq!(name(bare), bare);
        }
        assert_eq!(name("my lane"), "\"my lane\"");
        assert_eq!(name("x\" REASON '"), "\"x\"\" REASON '\"");
        assert_eq!(name("9"), "\"9\"");
        assert_eq!(name("-x"), "\"-x\"");
        assert_eq!(name("a--b"), "\"a--b\"");
    }
}
