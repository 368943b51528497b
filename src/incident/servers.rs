//! `<state>/upstream.json`: which cluster was served, and its highest timeline, so that a primary that was left behind is not served after a restart
//! either.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::aside::set_aside;
use super::state::{StateError, read_bounded, write_synced};
use crate::clock::WallMs;

/// Format of the file.
const VERSION: u32 = 1;
/// Bytes of it at most: sixteen addresses and two numbers.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What is kept. Nothing of it holds for servers of other addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// As configured.
    pub addresses: Vec<String>,
    /// PostgreSQL's system identifier; none where it is not known.
    pub system_identifier: Option<u64>,
    /// The highest timeline seen; 0 where none is known.
    pub timeline: u32,
}

impl Servers {
    /// Whether there is anything to keep.
    pub fn is_nothing(&self) -> bool {
        self.system_identifier.is_none() && self.timeline == 0
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    addresses: Vec<String>,
    /// A string: many a reader of JSON takes a number of this size for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system_identifier: Option<String>,
    timeline: u32,
}

/// The file.
#[derive(Clone, Debug)]
pub struct ServersFile {
    dir: PathBuf,
    /// What it is to hold. The last word wins, whoever writes it.
    wanted: Arc<Mutex<Option<Servers>>>,
    /// One writer at a time.
    writing: Arc<Mutex<()>>,
    /// What is there is of no use, and could not be put aside: it is not written over.
    is_left_alone: Arc<AtomicBool>,
}

impl ServersFile {
    /// The file in `dir`; nothing is touched yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            wanted: Arc::default(),
            writing: Arc::default(),
            is_left_alone: Arc::default(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.join("upstream.json")
    }

    /// What was saved last; nothing where there is no file. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be read, or is not what pgweir wrote.
    pub fn load(&self) -> Result<Servers, StateError> {
        let file = self.path();
        let text = match read_bounded(&file, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Servers::default()),
            Err(error) => return Err(StateError::Io { file, doing: "read", error }),
        };
        let without = "servers of which nothing is known";
        match serde_json::from_slice(&text) {
            Ok(Document { version: VERSION, addresses, system_identifier, timeline }) => {
                match system_identifier.map(|system| system.parse()).transpose() {
                    Ok(system_identifier) => Ok(Servers { addresses, system_identifier, timeline }),
                    Err(error) => {
                        Err(StateError::Corrupt { file, why: format!("system_identifier: {error}"), without })
                    }
                }
            }
            Ok(Document { version, .. }) => {
                let why = format!("version {version} is not known, {VERSION} is");
                Err(StateError::Corrupt { file, why, without })
            }
            Err(error) => Err(StateError::Corrupt { file, why: error.to_string(), without }),
        }
    }

    /// Puts a file that is of no use out of the way.
    ///
    /// # Errors
    /// The disk's: it is where it was, and is not written over by this process.
    pub fn set_aside(&self, now: WallMs) -> io::Result<PathBuf> {
        let aside = set_aside(&self.path(), now);
        self.is_left_alone.store(aside.is_err(), Ordering::Relaxed);
        aside
    }

    /// What [`Self::write`] is to write.
    pub fn want(&self, servers: Servers) {
        if !self.is_left_alone.load(Ordering::Relaxed) {
            *self.wanted.lock() = Some(servers);
        }
    }

    /// Whether something waits to be written, and nobody is at it.
    pub fn is_due(&self) -> bool {
        self.writing.try_lock().is_some() && self.wanted.lock().is_some()
    }

    /// Replaces the file as a whole by what is wanted: after a crash either the old or the new one is there. Nothing is no file. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's. It stays wanted, unless something newer is.
    pub fn write(&self) -> Result<(), StateError> {
        let _alone = self.writing.lock();
        let Some(servers) = self.wanted.lock().take() else { return Ok(()) };
        let file = self.path();
        let written = if servers.is_nothing() { remove(&file) } else { self.replace(&file, &servers) };
        written.map_err(|error| {
            self.wanted.lock().get_or_insert(servers);
            StateError::Io { file, doing: "write", error }
        })
    }

    fn replace(&self, file: &Path, servers: &Servers) -> io::Result<()> {
        let document = Document {
            version: VERSION,
            addresses: servers.addresses.clone(),
            system_identifier: servers.system_identifier.map(|system| system.to_string()),
            timeline: servers.timeline,
        };
        let text = serde_json::to_vec_pretty(&document)?;
        let tmp = self.dir.join("upstream.json.tmp");
        write_synced(&tmp, |to| to.write_all(&text))?;
        fs::rename(&tmp, file)?;
        File::open(&self.dir)?.sync_all()
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    fn servers() -> Servers {
        let addresses = vec!["a:5432".to_owned(), "/run/postgresql/.s.PGSQL.5432".to_owned()];
        Servers { addresses, system_identifier: Some(u64::MAX), timeline: 3 }
    }

    #[test]
    fn the_last_word_is_there_and_nothing_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = ServersFile::new(dir.path());
        assert_eq!(file.load().unwrap(), Servers::default());
        file.write().unwrap();
        assert!(!file.path().exists(), "nobody has said anything");
        let without = Servers { system_identifier: None, ..servers() };
        for kept in [servers(), without] {
            file.want(Servers { timeline: 1, ..servers() });
            file.want(kept.clone());
            file.write().unwrap();
            assert_eq!(file.load().unwrap(), kept);
        }
        file.want(Servers { addresses: servers().addresses, ..Servers::default() });
        file.write().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no temporary file stays either");
    }

    #[test]
    fn what_pgweir_did_not_write_is_an_error_that_names_it_and_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = ServersFile::new(dir.path());
        let good = r#"{"version":1,"addresses":["a:5432"],"system_identifier":"7","timeline":3}"#;
        fs::write(file.path(), good).unwrap();
        assert_eq!(file.load().unwrap().timeline, 3);
        for bad in [
            "",
            "{",
            &good.replace(":1,", ":2,"),
            &good.replace("timeline", "time"),
            &good.replace('7', "-7"),
            &good.replace("\"7\"", "7"),
        ] {
            fs::write(file.path(), bad).unwrap();
            let error = file.load().unwrap_err().to_string();
            assert!(error.contains("upstream.json"), "{error}");
        }
        fs::write(file.path(), vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(file.load(), Err(StateError::Io { .. })));
        assert!(file.set_aside(WallMs(0)).unwrap().exists() && !file.path().exists());
    }

    #[test]
    fn what_could_not_be_written_is_written_later_unless_there_is_something_newer() {
        let dir = tempfile::tempdir().unwrap();
        let file = ServersFile::new(dir.path());
        let in_the_way = dir.path().join("upstream.json.tmp");
        let (older, newer) = (servers(), Servers { timeline: 4, ..servers() });
        for expected in [older.clone(), newer] {
            fs::create_dir(&in_the_way).unwrap();
            file.want(older.clone());
            assert!(file.write().is_err() && file.is_due());
            if expected != older {
                file.want(expected.clone());
                assert!(file.write().is_err());
            }
            fs::remove_dir(&in_the_way).unwrap();
            file.write().unwrap();
            assert!(file.load().unwrap() == expected && !file.is_due());
        }
        // To forget is a word, too.
        fs::remove_file(file.path()).unwrap();
        fs::create_dir(file.path()).unwrap();
        file.want(Servers::default());
        assert!(file.write().is_err() && file.is_due());
    }

    #[test]
    fn what_cannot_be_put_aside_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = ServersFile::new(dir.path());
        assert!(file.set_aside(WallMs(0)).is_err(), "there is none");
        file.want(servers());
        assert!(!file.is_due());
        file.write().unwrap();
        assert!(!file.path().exists());
    }
}
