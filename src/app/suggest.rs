//! `pgweir suggest`: tells what a running pgweir suggests, or what its state directory does, and writes the configuration with it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::rows::ms;
use crate::advise::edit;
use crate::advise::letter;
use crate::advise::peaks::Peaks;
use crate::advise::suggest::{self as advice, Application, Lane, Leak, Present, Suggestion};
use crate::cli::args::Suggest;
use crate::clock;
use crate::config::{self, Config};
use crate::incident::peaks::PeaksFile;
use crate::lanes::guard::is_replication_only;
use crate::lanes::settings::{LaneSettings, LeakAction, LeakSettings};

/// What is configured, as far as something may be suggested of it.
pub fn present(config: &Config) -> Present {
    let settings = &config.settings;
    let application = |one: &crate::lanes::settings::ApplicationSettings| Application {
        name: one.name.to_string(),
        quota: one.quota,
        lanes: one.lanes.iter().map(ToString::to_string).collect(),
    };
    Present {
        mode: if settings.limits.observe { "observe" } else { "enforce" }.to_owned(),
        headroom: settings.limits.headroom,
        lanes: settings.lanes.iter().map(lane).collect(),
        applications: settings.applications.iter().map(application).collect(),
    }
}

fn lane(lane: &LaneSettings) -> Lane {
    let pooled = lane.pooling.as_ref().map_or(0, |pooling| pooling.min_size);
    Lane {
        name: lane.name.to_string(),
        priority: lane.priority,
        protected: lane.protected,
        apart: !lane.default && is_replication_only(lane),
        quota: lane.quota,
        reserve: lane.reserve,
        quota_min: lane.links_per_process.max(pooled),
        max_waiting: lane.max_waiting,
        shed: lane.shed_above.map(|above| (above, lane.shed_below)),
        leak: lane.idle_in_transaction.as_ref().map(leak),
    }
}

fn leak(leak: &LeakSettings) -> Leak {
    Leak {
        warn_ms: leak.warn.map(ms),
        reset_ms: leak.reset.map(ms),
        cap_ms: leak.cap.map(ms),
        acts: leak.action != LeakAction::None,
    }
}

/// Tells, and writes where `wanted` says so. `told`: what a running pgweir said; without it the state directory of `file` is read.
pub fn suggest(wanted: &Suggest, told: Option<&str>, file: Option<&Path>, json: bool) -> ExitCode {
    let done = found(told, file).and_then(|suggestion| {
        let written = wanted.write.as_deref().map(|output| write(&suggestion, file, output, wanted.force));
        written.transpose().map(|written| (suggestion, written.flatten()))
    });
    match done {
        Ok((suggestion, written)) => {
            print(&suggestion, written.as_deref(), json);
            ExitCode::SUCCESS
        }
        Err(problems) => {
            if json {
                println!("{}", serde_json::json!({"ok": false, "problems": problems}));
            } else {
                problems.iter().for_each(|problem| eprintln!("{problem}"));
            }
            ExitCode::from(1)
        }
    }
}

fn found(told: Option<&str>, file: Option<&Path>) -> Result<Suggestion, Vec<String>> {
    let one = |text: String| vec![text];
    match (told, file) {
        (Some(text), _) => serde_json::from_str(text).map_err(|error| {
            one(format!(
                "pgweir: the running pgweir speaks of something else: {error}. Is it another version?"
            ))
        }),
        (None, Some(file)) => {
            let (config, _) = load(file)?;
            let kept = PeaksFile::new(&config.state_directory);
            let text = kept.load().map_err(|error| one(error.to_string()))?;
            let text = text.ok_or_else(|| {
                one(format!(
                    "{}: is not there: no pgweir with this configuration has seen anything yet",
                    kept.path().display()
                ))
            })?;
            let peaks = Peaks::load(&text)
                .map_err(|why| one(format!("{}: is not what pgweir wrote: {why}", kept.path().display())))?;
            Ok(advice::suggest(&present(&config), &peaks, clock::wall_now().0))
        }
        (None, None) => Err(one("pgweir: --state needs the configuration file".to_owned())),
    }
}

fn load(file: &Path) -> Result<(Config, Vec<config::Warning>), Vec<String>> {
    config::load(file).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// Writes the configuration with every change in it; nothing where there is none. Says where.
fn write(
    suggestion: &Suggestion,
    file: Option<&Path>,
    output: &Path,
    force: bool,
) -> Result<Option<PathBuf>, Vec<String>> {
    let one = |text: String| vec![text];
    if suggestion.changes() == 0 {
        return Ok(None);
    }
    let file =
        file.ok_or_else(|| one("pgweir: --write needs the configuration file: --config FILE".to_owned()))?;
    let (config, _) = load(file)?;
    differs(suggestion, &present(&config), file)?;
    let text = fs::read_to_string(file).map_err(|error| one(format!("{}: {error}", file.display())))?;
    let text = edit::apply(&text, suggestion)?;
    checked(&text, file, suggestion)?;
    put(&text, file, output, force).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            one(format!("{}: exists. Hint: name another FILE, or --force replaces it", output.display()))
        }
        _ => one(format!("{}: cannot be written: {error}", output.display())),
    })?;
    Ok(Some(output.to_owned()))
}

/// What is suggested starts from what runs: a file that says something else is another configuration.
fn differs(suggestion: &Suggestion, in_file: &Present, file: &Path) -> Result<(), Vec<String>> {
    let mut found = Vec::new();
    let mut differs = |what: String, there: Option<String>, runs: &str| {
        if there.as_deref() != Some(runs) {
            let there = there.unwrap_or_else(|| "nothing".to_owned());
            found.push(format!(
                "{}: {what} is {there}, and {runs} in the running pgweir. Hint: pgweir reload, then suggest again",
                file.display()
            ));
        }
    };
    for one in &suggestion.lanes {
        let lane = in_file.lanes.iter().find(|lane| lane.name == one.lane);
        let settings = lane.map(Lane::settings).unwrap_or_default();
        for advice in &one.advice {
            let there = settings.iter().find(|(key, _)| *key == advice.key).map(|(_, value)| value.literal());
            differs(format!("lane {} {}", one.lane, advice.key), there, &advice.present.literal());
        }
    }
    for one in &suggestion.applications {
        let application = in_file.applications.iter().find(|known| known.name == one.application);
        let there = application.and_then(|known| known.quota).map(|quota| quota.to_string());
        differs(format!("application {} quota", one.application), there, &one.advice.present.literal());
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// A file that `check` refuses would be a bug; it must not be found by the reader.
fn checked(text: &str, file: &Path, suggestion: &Suggestion) -> Result<(), Vec<String>> {
    let told = |problems: Vec<config::Problem>| -> Vec<String> {
        let told =
            problems.iter().map(|one| format!("the file that was to be written would not pass: {one}"));
        told.collect()
    };
    let (config, _) = config::check(text, file).map_err(told)?;
    let Some(room) = suggestion.room else { return Ok(()) };
    let reserved = room.max_connections.saturating_sub(room.usable);
    match config::check_against(&config, room.max_connections, reserved) {
        problems if problems.is_empty() => Ok(()),
        problems => Err(told(problems)),
    }
}

/// Owner and mode are the original's: the service must be able to read what root wrote.
fn put(text: &str, original: &Path, output: &Path, force: bool) -> io::Result<()> {
    let kept = fs::metadata(original)?;
    let mut new = output.as_os_str().to_owned();
    if force {
        new.push(".new");
    }
    let new = PathBuf::from(new);
    if force {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (kept.uid(), kept.gid()) {
        fchown(&file, Some(kept.uid()), Some(kept.gid()))?;
    }
    file.set_permissions(kept.permissions())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    if force { fs::rename(&new, output) } else { Ok(()) }
}

fn print(suggestion: &Suggestion, written: Option<&Path>, json: bool) {
    let text = if json {
        let all = serde_json::json!({"ok": true, "suggestion": suggestion, "changes": suggestion.changes(), "written": written});
        format!("{all:#}\n")
    } else {
        let written = written.map_or_else(String::new, |file| {
            format!("Written: {}. Next: pgweir check --config {0}\n", file.display())
        });
        letter::text(suggestion) + &written
    };
    // A reader that has gone (`| head`) is no failure of ours.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_keeps_the_originals_mode_and_replaces_nothing_unasked() {
        let directory = tempfile::tempdir().unwrap();
        let (original, output) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&original, "old").unwrap();
        fs::set_permissions(&original, fs::Permissions::from_mode(0o640)).unwrap();
        put("new", &original, &output, false).unwrap();
        assert_eq!(fs::metadata(&output).unwrap().mode() & 0o777, 0o640);
        assert_eq!(put("newer", &original, &output, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        put("newer", &original, &original, true).unwrap();
        assert_eq!(fs::read_to_string(&original).unwrap(), "newer");
        assert_eq!(fs::metadata(&original).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
