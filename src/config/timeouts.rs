//! PostgreSQL's own idle_in_transaction_session_timeout against the lanes' resets: the lower one acts.

use std::time::Duration;

use super::glob::matches;
use super::problem::Warning;
use super::settings::Config;
use crate::lanes::settings::{LaneSettings, LeakAction};

/// Units of PostgreSQL's times, in microseconds.
const UNITS: [(&str, f64); 6] =
    [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("min", 60e6), ("h", 3600e6), ("d", 86_400e6)];
/// Beyond PostgreSQL's largest time.
const MS_MAX: f64 = 2_147_483_647.0;

/// An idle_in_transaction_session_timeout that PostgreSQL has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleTimeout {
    /// Whose; empty is everybody's.
    pub role: String,
    /// In which database; empty is all.
    pub database: String,
    /// As it is set: `30s`, or milliseconds.
    pub value: String,
}

/// A time as PostgreSQL writes it; none where it is 0, or not one.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (text[..end].parse::<f64>().ok()?, text[end..].trim());
    let unit = if unit.is_empty() { "ms" } else { unit };
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor)?;
    let ms = number * factor / 1e3;
    (ms > 0.0).then(|| Duration::from_micros((ms.min(MS_MAX) * 1e3) as u64))
}

/// When a lane first acts on a leak by itself.
fn first_act(lane: &LaneSettings) -> Option<Duration> {
    let policy = lane.idle_in_transaction.as_ref().filter(|policy| policy.action != LeakAction::None)?;
    [policy.reset, policy.cap].into_iter().flatten().min()
}

/// When it has acted on everything.
fn last_act(lane: &LaneSettings) -> Option<Duration> {
    first_act(lane)?;
    let policy = lane.idle_in_transaction.as_ref()?;
    [policy.reset, policy.cap].into_iter().flatten().max()
}

/// Warns of times below the lanes' resets: PostgreSQL would close the connection before pgweir can roll back.
pub fn check_timeouts(config: &Config, found: &[RoleTimeout]) -> Vec<Warning> {
    let lanes: Vec<&LaneSettings> = config.settings.lanes.iter().filter(|lane| !lane.protected).collect();
    found.iter().filter_map(|timeout| one(config, &lanes, timeout)).collect()
}

fn one(config: &Config, lanes: &[&LaneSettings], found: &RoleTimeout) -> Option<Warning> {
    let timeout = duration(&found.value)?;
    let all_users = || lanes.iter().flat_map(|lane| &lane.rules).filter_map(|rule| rule.user.as_ref());
    // Where rules name users, the others are not those whom the lanes are for.
    let is_meant = found.role.is_empty()
        || all_users().next().is_none()
        || all_users().any(|glob| matches(glob, &found.role));
    if !is_meant {
        return None;
    }
    let may_be_in = |lane: &LaneSettings| {
        let takes = |glob: &crate::lanes::settings::Glob| found.role.is_empty() || matches(glob, &found.role);
        lane.default || lane.rules.iter().any(|rule| rule.user.as_ref().is_none_or(takes))
    };
    let above: Vec<&LaneSettings> = lanes
        .iter()
        .copied()
        .filter(|lane| may_be_in(lane) && first_act(lane).is_some_and(|first| first > timeout))
        .collect();
    let first = above.first()?;
    let listed =
        above.iter().filter_map(|lane| Some(format!("{} {} s", lane.name, first_act(lane)?.as_secs())));
    let listed = listed.collect::<Vec<_>>().join(", ");
    let longest = above.iter().filter_map(|lane| last_act(lane)).max().unwrap_or_default();
    let minutes = (longest.as_secs() + longest.as_secs() / 2).div_ceil(60);
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let (whose, change) = match (found.role.as_str(), found.database.as_str()) {
        ("", "") => ("PostgreSQL has".to_owned(), "alter system".to_owned()),
        ("", database) => {
            (format!("database {database} has"), format!("alter database {}", quoted(database)))
        }
        (role, "") => (format!("role {role} has"), format!("alter role {}", quoted(role))),
        (role, database) => (
            format!("role {role} has in database {database}"),
            format!("alter role {} in database {}", quoted(role), quoted(database)),
        ),
    };
    let text = format!(
        "{whose} idle_in_transaction_session_timeout = {}, less than the reset of {listed}: PostgreSQL closes the connection before pgweir can roll back",
        found.value
    );
    let hint = format!("{change} set idle_in_transaction_session_timeout = '{minutes}min'");
    let key = format!("lane.{}.idle_in_transaction", first.name);
    Some(Warning(config.problem(&key, text, &hint)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[[listen]]
address = "127.0.0.1:6432"
[upstream]
address = "127.0.0.1:5432"
[monitor]
[[lane]]
name = "admin"
protected = true
quota = 5
match = [{ user = "postgres" }]
[[lane]]
name = "web"
quota = 10
match = [{ user = "odoo*" }]
idle_in_transaction = { reset = "60s", cap = "10m" }
[[lane]]
name = "cron"
quota = 5
match = [{ process = "cron*" }]
idle_in_transaction = { reset = "5m", action = "disconnect" }
[[lane]]
name = "other"
default = true
quota = 5
idle_in_transaction = { warn = "5m", action = "none" }
"#;

    fn warned(role: &str, database: &str, value: &str) -> Option<String> {
        let (config, _) = super::super::check(TEXT, std::path::Path::new("pgweir.toml")).unwrap();
        let found = RoleTimeout { role: role.into(), database: database.into(), value: value.into() };
        check_timeouts(&config, &[found]).first().map(ToString::to_string)
    }

    #[test]
    fn a_time_below_the_reset_is_warned_of() {
        let said = warned("odoo", "", "30s").unwrap();
        assert!(
            said.starts_with("pgweir.toml:16: warning: lane.web.idle_in_transaction: role odoo has"),
            "{said}"
        );
        assert!(said.contains("= 30s, less than the reset of web 60 s, cron 300 s"), "{said}");
        assert!(
            said.contains("alter role \"odoo\" set idle_in_transaction_session_timeout = '15min'"),
            "{said}"
        );
        let cron = warned("odoo", "shop", "120000").unwrap();
        assert!(
            cron.contains("lane.cron")
                && cron.contains("in database \"shop\" set")
                && cron.contains("'8min'"),
            "{cron}"
        );
        assert!(warned("", "", "1min").unwrap().contains("alter system set"));
        assert!(warned("", "shop", "1min").unwrap().contains("alter database \"shop\" set"));
    }

    #[test]
    fn neither_no_time_nor_a_longer_one_nor_that_of_people_the_lanes_are_not_for() {
        for (role, value) in
            [("odoo", "0"), ("odoo", "15min"), ("odoo", "5min"), ("postgres", "1s"), ("bi", "1s")]
        {
            assert_eq!(warned(role, "", value), None, "{role} {value}");
        }
    }

    #[test]
    fn times_are_read_as_postgresql_writes_them() {
        for (text, ms) in
            [("250", 250), ("250ms", 250), ("1.5min", 90_000), (" 2 h", 7_200_000), ("1d", 86_400_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "-1", "x", "1 year", "99999999999999999999999999d0"] {
            assert_eq!(duration(text), None, "{text}");
        }
        assert!(duration("99999999999999d").is_some());
    }
}
