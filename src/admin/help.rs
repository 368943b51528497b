//! The console's commands as shown by SHOW HELP and named in hints. Pure.

/// Syntax and meaning of every command.
pub const COMMANDS: [(&str, &str); 42] = [
    ("SHOW LANES", "state, quota and load of each lane"),
    ("SHOW APPLICATIONS", "quota and load of each application"),
    ("SHOW CLIENTS", "every client link"),
    ("SHOW SESSIONS", "PostgreSQL's sessions, those that bypass pgweir included"),
    ("SHOW LEAKS", "sessions idle in transaction for too long"),
    ("SHOW USAGE", "how full PostgreSQL is"),
    ("SHOW UPSTREAMS", "PostgreSQL's servers: what each one is, and which one is dialled"),
    ("SHOW HEADROOM", "how many more backends memory would bear, and why"),
    ("SHOW STATS", "what each database's clients did, as PgBouncer tells it"),
    ("SHOW STATS_TOTALS", "the same without averages"),
    ("SHOW POOLS", "clients and connections by database and user, as PgBouncer tells it"),
    ("SHOW DATABASES", "databases, as PgBouncer tells it"),
    ("SHOW SERVERS", "every upstream connection"),
    ("SHOW LISTS", "how many of everything, as PgBouncer tells it"),
    ("SHOW TIMELINE", "what happened, oldest first"),
    ("SHOW EXIT", "criteria by which an incident is over: met or not, since when, why"),
    ("SHOW INCIDENTS", "what was an incident, and is"),
    ("SHOW INCIDENT n", "everything about one, as JSON"),
    ("SHOW PEAKS", "what each lane used and asked for in the last week"),
    ("SHOW SUGGESTION", "quotas and thresholds that would fit that, as JSON: pgweir suggest"),
    ("SHOW STATUS", "pgweir itself"),
    ("SHOW CONFIG", "settings in force"),
    ("SHOW VERSION", "pgweir's version"),
    ("SHOW HELP", "this list"),
    ("FREEZE [FOR '30 min'] [REASON 'text']", "pause every lane marked freeze = true"),
    (
        "PAUSE LANE name [HOLD|REJECT] [FOR '10 min'] [REASON 'text']",
        "no new links and transactions in a lane",
    ),
    (
        "PAUSE;",
        "PgBouncer's: pause every lane that is not protected; it does not wait for transactions to end",
    ),
    ("RESUME LANE name [OVER '5 min']", "end a pause, at once or step by step"),
    ("RESUME ALL [OVER '10 min']", "end all pauses, one lane after the other, best priority first"),
    ("RESUME;", "PgBouncer's: end all pauses at once"),
    ("DRAIN LANE name", "end the lane's links at their next transaction boundary"),
    ("CANCEL CLIENT id", "cancel a link's running query"),
    ("RESET CLIENT id", "treat a link as a leak, by its lane's action"),
    ("KILL CLIENT id", "close a link"),
    ("CANCEL PID n", "pg_cancel_backend, through the monitor"),
    ("TERMINATE PID n", "pg_terminate_backend, through the monitor"),
    ("NOTE 'text'", "a line in the timeline"),
    ("SET LANE name quota = n", "until the next reload or restart"),
    ("RELOAD", "apply the changed configuration, or refuse it whole"),
    ("SHUTDOWN", "drain and stop"),
    ("BEGIN, COMMIT, ROLLBACK", "accepted for drivers; commands take effect at once"),
    ("SET name = value, SHOW name", "accepted for drivers"),
];

/// Letters of the input looked at when the nearest command is searched.
const COMPARED_MAX: usize = 32;

/// Edits between a name and what it may be mistaken for.
const NAME_DISTANCE_MAX: usize = 3;

/// The command meant by the first two words of `text`: of those that begin with its first word the nearest, else the nearest of
/// all, if it is near.
pub fn nearest_command(text: &str) -> Option<&'static str> {
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    let one = words.first().copied().unwrap_or("").to_uppercase();
    let two = words.join(" ").to_uppercase();
    let distance_of = |syntax: &str| {
        let keywords = keywords(syntax);
        let typed = if keywords.contains(' ') { &two } else { &one };
        distance(typed, &keywords)
    };
    let begins_alike = |syntax: &str| keywords(syntax).split(' ').next() == Some(&one);
    let all = || COMMANDS.iter().map(|(syntax, _)| *syntax).filter(|syntax| !keywords(syntax).is_empty());
    if let Some(found) = all().filter(|syntax| begins_alike(syntax)).min_by_key(|syntax| distance_of(syntax))
    {
        return Some(found);
    }
    let best = all().min_by_key(|syntax| distance_of(syntax))?;
    (distance_of(best) * 3 <= keywords(best).len()).then_some(best)
}

/// The name among `known` nearest to `name`, if any is near; letters match in either case.
fn nearest_name<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase();
    let best =
        known.map(|other| (distance(&folded, &other.to_lowercase()), other)).min_by_key(|found| found.0)?;
    (best.0 <= NAME_DISTANCE_MAX && best.0 < best.1.chars().count()).then_some(best.1)
}

/// Where the names are listed that `name` is none of, and the one nearest to it.
pub fn where_listed<'a>(place: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match nearest_name(name, known) {
        Some(near) => format!("{place} lists them; the nearest is: {near}"),
        None => format!("{place} lists them"),
    }
}

/// The upper-case words a syntax begins with.
fn keywords(syntax: &str) -> String {
    let is_keyword = |word: &&str| word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    syntax.split(' ').take_while(is_keyword).collect::<Vec<_>>().join(" ")
}

/// Edits between two words (Levenshtein), over their first letters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(COMPARED_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(COMPARED_MAX).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_command() {
        for (typed, want) in [
            ("SHOW LANE", "SHOW LANES"),
            ("shwo clients", "SHOW CLIENTS"),
            ("freze for '5m'", "FREEZE"),
            ("RESUM ALL", "RESUME ALL"),
            ("kil client 5", "KILL CLIENT"),
        ] {
            assert!(nearest_command(typed).is_some_and(|found| found.starts_with(want)), "{typed}");
        }
        for far in ["insert into t values (1)", "DECLARE x", ""] {
            assert_eq!(nearest_command(far), None, "{far}");
        }
    }

    #[test]
    fn a_lane_is_found_by_a_similar_name() {
        let lanes = ["web", "cron", "reports"];
        assert_eq!(nearest_name("Report", lanes.into_iter()), Some("reports"));
        assert_eq!(nearest_name("xyzzy", lanes.into_iter()), None);
    }
}
