//! What outlives the process in `[state] directory`: pauses, and the generated admin password.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Format of `pauses.json`.
const VERSION: u32 = 1;
/// Bytes of a state file at most: thousands of lanes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Characters of a generated password: 5 bits each.
const PASSWORD_CHARS: usize = 24;
/// Without l and o, 0 and 1: people read it off a screen. 32 of them, so that a random byte picks each alike.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Why a state file is of no use. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("{}: cannot {doing}: {error}", file.display())]
    Io {
        /// Which.
        file: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        // Not `source`: the text names it, and whoever prints a chain of causes would name it twice.
        error: io::Error,
    },
    /// It is not what pgweir wrote.
    #[error("{}: {why}; mend it, or remove it to start with {without}", file.display())]
    Corrupt {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        why: String,
        /// What its removal means.
        without: &'static str,
    },
    /// A secret that others can read.
    #[error("{}: others can read it (mode {mode:04o}): chmod 600, and set a new password", file.display())]
    Exposed {
        /// Which.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// What a pause does to new links and transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// They wait.
    Hold,
    /// They are refused.
    Reject,
}

/// A pause of one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PausedLane {
    /// Which.
    pub lane: String,
    /// Who paused it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// What it does.
    pub how: How,
    /// Since when, ms since the Unix epoch.
    pub since_ms: u64,
    /// When it ends by itself, ms since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// The ramp in which it then is resumed, in ms; present too while a ramp is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp_over_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<L> {
    version: u32,
    lanes: L,
}

/// `<state>/pauses.json`.
#[derive(Clone, Debug)]
pub struct StateFile {
    dir: PathBuf,
}

impl StateFile {
    /// The file in `dir`; nothing is touched yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.join("pauses.json")
    }

    /// The pauses in force when they were last saved; none where there is no file yet. What to do about a file that cannot be read or
    /// understood is the caller's decision: a lost pause may drown the database, a refused start does for sure.
    pub fn load(&self) -> Result<Vec<PausedLane>, StateError> {
        let file = self.path();
        let text = match read_bounded(&file, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::Io { file, doing: "read", error }),
        };
        let without = "no lane paused";
        let document: Document<Vec<PausedLane>> = match serde_json::from_slice(&text) {
            Ok(document) => document,
            Err(error) => return Err(StateError::Corrupt { file, why: error.to_string(), without }),
        };
        if document.version != VERSION {
            let why = format!("version {} is not known, {VERSION} is", document.version);
            return Err(StateError::Corrupt { file, why, without });
        }
        Ok(document.lanes)
    }

    /// Replaces the file as a whole: after a crash either the old or the new one is there. Blocks on the disk.
    pub fn save(&self, lanes: &[PausedLane]) -> Result<(), StateError> {
        let file = self.path();
        let io = |doing| {
            let file = file.clone();
            move |error| StateError::Io { file, doing, error }
        };
        let text = serde_json::to_vec_pretty(&Document { version: VERSION, lanes })
            .map_err(|error| io("write")(error.into()))?;
        let tmp = self.dir.join("pauses.json.tmp");
        write_synced(&tmp, |file| file.write_all(&text)).map_err(io("write"))?;
        fs::rename(&tmp, &file).map_err(io("replace"))?;
        // Without this the rename may be lost with the power.
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory of"))
    }
}

/// What `write` writes becomes a file, and is on the disk. Piece by piece: this runs on any of a dozen threads, each of which would keep the
/// memory of a whole text for the next one.
pub(super) fn write_synced(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    // A leftover of a crash may have other permissions, or be a link.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = BufWriter::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?);
    write(&mut file)?;
    file.into_inner()?.sync_all()
}

pub(super) fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than pgweir ever writes it"));
    }
    Ok(text)
}

/// A password: not shown by `{:?}`, overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// The password in `<dir>/admin.password`, and whether it was generated just now.
pub fn admin_password(dir: &Path) -> Result<(Password, bool), StateError> {
    let file = dir.join("admin.password");
    match read_admin_password(dir) {
        Err(StateError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read.map(|password| (password, false)),
    }
    match generate(&file) {
        Ok(password) => Ok((password, true)),
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read_admin_password(dir).map(|password| (password, false))
        }
        Err(error) => Err(StateError::Io { file, doing: "create", error }),
    }
}

/// The password in `<dir>/admin.password`, never generated: for tools that talk to a running pgweir.
pub fn read_admin_password(dir: &Path) -> Result<Password, StateError> {
    let path = dir.join("admin.password");
    let read = || -> io::Result<(u32, Vec<u8>)> {
        let file = File::open(&path)?;
        let mode = file.metadata()?.mode() & 0o777;
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok((mode, text))
    };
    let (mode, text) = match read() {
        Ok(read) => read,
        Err(error) => return Err(StateError::Io { file: path, doing: "read", error }),
    };
    if mode & 0o077 != 0 {
        return Err(StateError::Exposed { file: path, mode });
    }
    let without = "a generated password";
    let Ok(text) = String::from_utf8(text) else {
        return Err(StateError::Corrupt { file: path, why: "not UTF-8".into(), without });
    };
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(StateError::Corrupt { file: path, why: "empty".into(), without });
    }
    Ok(Password(Zeroizing::new(password.to_owned())))
}

fn generate(path: &Path) -> io::Result<Password> {
    let mut random = [0; PASSWORD_CHARS];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let password: String = random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{password}\n").as_bytes())?;
    file.sync_all()?;
    Ok(Password(Zeroizing::new(password)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn cron() -> PausedLane {
        PausedLane {
            lane: "cron".into(),
            by: "admin (alice)".into(),
            reason: "it's \"late\"".into(),
            how: How::Hold,
            since_ms: 1_700_000_000_000,
            until_ms: Some(1_700_000_600_000),
            ramp_over_ms: None,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn pauses_come_back_as_they_were_saved() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(dir.path());
        assert_eq!(state.load().unwrap(), []);
        let queue = PausedLane {
            lane: "queue".into(),
            how: How::Reject,
            until_ms: None,
            ramp_over_ms: Some(300_000),
            ..cron()
        };
        state.save(&[cron(), queue.clone()]).unwrap();
        assert_eq!(state.load().unwrap(), [cron(), queue]);
        assert_eq!(mode(&state.path()), 0o600);
        state.save(&[]).unwrap();
        assert_eq!(state.load().unwrap(), []);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn the_file_has_the_agreed_format() {
        let text =
            r#"{"version":1,"lanes":[{"lane":"cron","by":"a","reason":"r","how":"reject","since_ms":5}]}"#;
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(dir.path());
        fs::write(state.path(), text).unwrap();
        let expected = PausedLane {
            by: "a".into(),
            reason: "r".into(),
            how: How::Reject,
            since_ms: 5,
            until_ms: None,
            ..cron()
        };
        assert_eq!(state.load().unwrap(), std::slice::from_ref(&expected));
        state.save(&[expected]).unwrap();
        let saved: serde_json::Value = serde_json::from_slice(&fs::read(state.path()).unwrap()).unwrap();
        assert_eq!(saved, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn a_file_that_is_not_ours_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(dir.path());
        for text in [
            "",
            "{",
            r#"{"version":2,"lanes":[]}"#,
            r#"{"version":1}"#,
            r#"{"version":1,"lanes":[{"lane":"x"}]}"#,
        ] {
            fs::write(state.path(), text).unwrap();
            let error = state.load().unwrap_err();
            assert!(matches!(error, StateError::Corrupt { .. }), "{text}: {error}");
            assert!(error.to_string().contains("pauses.json"), "{error}");
        }
        fs::write(state.path(), vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(state.load(), Err(StateError::Io { .. })));
    }

    #[test]
    fn a_leftover_of_a_crash_neither_hinders_nor_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("pauses.json.tmp")).unwrap();
        let state = StateFile::new(dir.path());
        state.save(&[cron()]).unwrap();
        assert_eq!(state.load().unwrap(), [cron()]);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
    }

    #[test]
    fn the_password_is_generated_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_admin_password(dir.path()).is_err(), "reading alone generates nothing");
        let (first, generated) = admin_password(dir.path()).unwrap();
        let path = dir.path().join("admin.password");
        assert!(generated && first.reveal().len() == PASSWORD_CHARS);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(admin_password(dir.path()).unwrap(), (first.clone(), false));
        assert!(!format!("{first:?}").contains(first.reveal()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = admin_password(dir.path()).unwrap_err();
        assert!(matches!(error, StateError::Exposed { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn a_password_of_ones_own_is_taken_and_an_empty_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.password");
        write_synced(&path, |file| file.write_all(b"my own\n")).unwrap();
        assert_eq!(admin_password(dir.path()).unwrap().0.reveal(), "my own");
        write_synced(&path, |file| file.write_all(b"\n")).unwrap();
        assert!(matches!(admin_password(dir.path()), Err(StateError::Corrupt { .. })));
    }

    #[test]
    fn the_alphabet_has_no_lookalikes_and_no_repeats() {
        let unique: std::collections::HashSet<_> = ALPHABET.iter().collect();
        assert_eq!(unique.len(), ALPHABET.len());
    }
}
