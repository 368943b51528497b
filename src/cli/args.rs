//! The command line's grammar.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A guard proxy on the PostgreSQL wire.
#[derive(Debug, Parser)]
#[command(name = "pgweir", version, about, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 done, 1 refused, 2 usage error, 3 cannot reach pgweir.")]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Configuration file [default: ./pgweir.toml, then /etc/pgweir/pgweir.toml]
    #[arg(long, short, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Console of a pgweir elsewhere; the password is taken from PGWEIR_PASSWORD
    #[arg(long, global = true, value_name = "HOST:PORT", conflicts_with = "config")]
    pub admin: Option<String>,
    /// Console user, with the password in PGWEIR_PASSWORD [default: the configuration's, or admin]
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Run the proxy
    Run,
    /// Check a configuration file
    Check,
    /// Propose a configuration for an Odoo, with its arithmetic, from its odoo.conf and PostgreSQL's limits
    #[command(
        after_help = "Exit status: 0 written, 1 refused (odoo.conf is broken, nothing fits, or FILE exists), 2 usage error."
    )]
    Init(Init),
    /// How things are, what grew most, and what to try next
    Status,
    /// The same live, with lists of lanes, clients and leaks, and keys to pause, resume and reset
    Top,
    /// Lanes: state, quota, slots, who waits
    Lanes,
    /// Applications, across lanes
    Applications,
    /// Client connections of pgweir
    Clients,
    /// All sessions PostgreSQL has, those that bypass pgweir too
    Sessions,
    /// Sessions idle in transaction for longer than their lane allows
    Leaks,
    /// PostgreSQL's connections: used, usable, by state
    Usage,
    /// PostgreSQL's servers: what each one is, and which one is dialled
    Upstreams,
    /// How many more backends memory would bear, and what that rests on
    Headroom,
    /// Quotas, reserves and thresholds that fit what was seen in the last week, with the evidence
    #[command(
        after_help = "Exit status: 0 told (and written), 1 refused (nothing seen, FILE exists, the file is not what runs), 2 usage error, 3 cannot reach pgweir."
    )]
    Suggest(Suggest),
    /// What happened and what was done, oldest first
    Timeline(Timeline),
    /// Whether the incident is over: each criterion, met or not, and why
    #[command(
        after_help = "Exit status: 0 every criterion is met, 1 not, 2 usage error, 3 cannot reach pgweir."
    )]
    Exit(Exit),
    /// An incident as Markdown or HTML: what happened, who did what, figures, what the criteria said
    Report(Report),
    /// Pause every lane marked `freeze = true`
    Freeze(Freeze),
    /// Pause a lane: no new connections, no new transactions
    Pause(Pause),
    /// End the pause of a lane, or of all
    Resume(Resume),
    /// End a lane's connections, each at the end of its transaction
    Drain {
        /// Lane
        lane: String,
    },
    /// Cancel what a client (or a session that bypasses pgweir) is running
    Cancel(ClientOrPid),
    /// Reset a client as a leak: roll back its idle transaction, or what its lane says
    Reset {
        /// Client id, see `pgweir clients`
        id: u64,
    },
    /// Close the connection of a client (or of a session that bypasses pgweir)
    Kill(ClientOrPid),
    /// Put a note into the timeline
    Note {
        /// Text; several words are joined
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// Change a lane until the next reload: `set cron quota=5`
    Set {
        /// Lane
        lane: String,
        /// quota=N
        #[arg(value_parser = assignment)]
        assignment: Quota,
    },
    /// Apply a changed configuration file
    Reload,
    /// Rehearse an incident against staging, directly and through proxies, and compare
    #[command(
        after_help = "Exit status: 0 every expectation held, 1 one did not, 2 refused. Scenarios: docs/drill.md."
    )]
    Drill(Drill),
    /// Print what a shell needs to complete pgweir's commands and options: `source <(pgweir completions bash)`
    Completions {
        /// Shell
        shell: Shell,
    },
    /// Print the version of this program
    Version,
}

/// `init`'s options.
#[derive(Clone, PartialEq, Eq, Args)]
pub struct Init {
    /// Odoo's configuration file
    #[arg(long, value_name = "FILE")]
    pub odoo_conf: PathBuf,
    /// PostgreSQL: HOST:PORT, postgres://user:password@host:port/database, or `none`: do not ask it [default: as odoo.conf says]
    #[arg(long, value_name = "URL", env = "PGWEIR_INIT_UPSTREAM", hide_env_values = true)]
    pub upstream: Option<String>,
    /// Write the configuration there, the monitor's password beside it [default: pgweir.toml]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Where pgweir is to listen for TCP; its socket has the same number, its admin port the next
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6432")]
    pub listen: String,
    /// Directory for socket and state, to try it without root [default: /run/pgweir and /var/lib/pgweir]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

impl std::fmt::Debug for Init {
    /// Without the URL, which may carry a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Init").field("odoo_conf", &self.odoo_conf).finish_non_exhaustive()
    }
}

/// `suggest`'s options.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Suggest {
    /// Read what a pgweir that is stopped left in its [state] directory
    #[arg(long)]
    pub state: bool,
    /// Write the configuration with the suggested figures there; its comments stay
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(long, requires = "write")]
    pub force: bool,
}

/// `timeline`'s options.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Timeline {
    /// Entries to show
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub last: usize,
    /// Go on showing new entries until interrupted
    #[arg(long, short)]
    pub follow: bool,
}

/// `exit`'s options.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Exit {
    /// Wait until every criterion is met, and tell what changes
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    pub timeout: Option<Duration>,
}

/// `report`'s options.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Report {
    /// Its number, or `latest`
    #[arg(long, value_name = "N|latest", default_value = "latest", value_parser = which)]
    pub incident: Which,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Md)]
    pub format: Format,
    /// Write it there [default: to the standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Which incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that is open, or else the last one.
    Latest,
    /// This one.
    Number(u64),
}

fn which(text: &str) -> Result<Which, String> {
    match text {
        "latest" => Ok(Which::Latest),
        number => {
            number.parse().map(Which::Number).map_err(|_| format!("{text:?} is no number, nor \"latest\""))
        }
    }
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Markdown.
    Md,
    /// One self-contained page with plots.
    Html,
}

/// A shell that completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// For `source`, or as /usr/share/bash-completion/completions/pgweir.
    Bash,
    /// As ~/.config/fish/completions/pgweir.fish.
    Fish,
    /// As _pgweir in a directory of $fpath.
    Zsh,
}

/// `freeze`'s options.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Freeze {
    /// End by itself after this time: 30m, 1h30m, 90s
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Why, for the timeline and those who wait
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `pause`'s options.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Pause {
    /// Lane
    pub lane: String,
    /// Let clients wait, whatever the lane's on_pause says
    #[arg(long, conflicts_with = "reject")]
    pub hold: bool,
    /// Refuse clients at once, whatever the lane's on_pause says
    #[arg(long)]
    pub reject: bool,
    /// End by itself after this time: 10m, 1h30m, 90s
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Why, for the timeline and those who wait
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `resume`'s options.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Resume {
    /// Lane, or `all`: one after the other, best priority first
    pub lane: String,
    /// Let the lane grow step by step over this time; it is paused again if usage rises too far
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub over: Option<Duration>,
}

/// `drill`'s options.
#[derive(Clone, PartialEq, Args)]
pub struct Drill {
    /// A scenario file, or the name of one that is built in: steady, leak, runbook, …
    pub scenario: String,
    /// Staging's Odoo database: postgres://user:password@host:port/database
    #[arg(long, value_name = "URL", env = "PGWEIR_DRILL_TARGET", hide_env_values = true)]
    pub target: String,
    /// A proxy in front of it, with the same account, perhaps as NAME=HOST:PORT; several are played in turn, after the target itself
    #[arg(long, value_name = "HOST:PORT")]
    pub through: Vec<String>,
    /// Do not play the target itself
    #[arg(long)]
    pub skip_direct: bool,
    /// Length of each run: phases and actions are stretched or shrunk [default: the scenario's]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Decides when what arrives, and every choice: the same seed is the same load
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write the report, one self-contained HTML file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The target is staging, though it does not say so
    #[arg(long)]
    pub i_know_this_is_staging: bool,
    /// Connections at once, all actors together
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub max_connections: u32,
    /// Time for requests that are under way when the schedule ends
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub drain: Duration,
    /// Run the shell commands of the scenario's actions
    #[arg(long)]
    pub allow_commands: bool,
    /// The --through whose console --admin is [default: the last]
    #[arg(long, value_name = "WAY")]
    pub console_of: Option<String>,
    /// A way that must hold the expectations: direct, or one of --through [default: every --through]
    #[arg(long, value_name = "WAY")]
    pub judge: Vec<String>,
}

impl std::fmt::Debug for Drill {
    /// Without the target, whose URL may carry a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drill").field("scenario", &self.scenario).finish_non_exhaustive()
    }
}

/// Whom to cancel or kill.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[group(required = true, multiple = false)]
pub struct ClientOrPid {
    /// Client id, see `pgweir clients`
    pub id: Option<u64>,
    /// Backend pid of a session that bypasses pgweir, see `pgweir sessions`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
}

/// `quota=N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota(pub u32);

fn assignment(text: &str) -> Result<Quota, String> {
    let value = text.split_once('=').filter(|(key, _)| key.trim() == "quota").map(|(_, value)| value.trim());
    let value = value.ok_or("what can be set is the quota: quota=5")?;
    value.parse().map(Quota).map_err(|_| format!("a quota is a whole number, not {value:?}"))
}

/// A time as people write it: `90s`, `10m`, `1h30m`, `2 min`. At least a second, at most a year.
pub fn duration(text: &str) -> Result<Duration, String> {
    const MAX: u64 = 366 * 86_400;
    let wrong = || format!("{text:?} is not a time: write 90s, 10m, 1h30m");
    let mut rest = text.trim();
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            _ => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = rest[letters..].trim_start();
    }
    if !(1..=MAX).contains(&seconds) {
        return Err(format!("{text:?} is not between a second and a year"));
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in
            [("90s", 90), ("10m", 600), ("1h30m", 5400), (" 2 min ", 120), ("1d", 86_400), ("1 h 5 s", 3605)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "10",
            "m",
            "10x",
            "-5m",
            "1.5h",
            "0s",
            "999d",
            "99999999999999999999s",
            "5m10",
            "300000000000000000d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_grammar_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
