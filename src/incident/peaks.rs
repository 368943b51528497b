//! `<state>/peaks.json`: what `pgweir suggest` reckons with. What is in it is for others to know.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::aside::set_aside;
use super::state::{StateError, read_bounded, write_synced};
use crate::clock::WallMs;

/// Bytes of it at most: far above what the bounds of its content allow.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The file.
#[derive(Clone, Debug)]
pub struct PeaksFile {
    dir: PathBuf,
    /// One writer at a time.
    writing: Arc<Mutex<()>>,
}

impl PeaksFile {
    /// The file in `dir`; nothing is touched yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), writing: Arc::default() }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.join("peaks.json")
    }

    /// What was saved last; none where there is no file yet. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn load(&self) -> Result<Option<Vec<u8>>, StateError> {
        match read_bounded(&self.path(), FILE_BYTES_MAX) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::Io { file: self.path(), doing: "read", error }),
        }
    }

    /// Puts a file that is of no use out of the way.
    ///
    /// # Errors
    /// The disk's: the file is where it was, and is not to be written over.
    pub fn set_aside(&self, now: WallMs) -> io::Result<PathBuf> {
        set_aside(&self.path(), now)
    }

    /// Replaces the file as a whole: after a crash either the old or the new one is there. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), StateError> {
        let _alone = self.writing.lock();
        let tmp = self.dir.join("peaks.json.tmp");
        let saved = write_synced(&tmp, write)
            .and_then(|()| fs::rename(&tmp, self.path()))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        saved.map_err(|error| StateError::Io { file: self.path(), doing: "write", error })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_one_saved_is_there_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = PeaksFile::new(dir.path());
        assert_eq!(file.load().unwrap(), None);
        for text in ["one", "two"] {
            file.save(|to| to.write_all(text.as_bytes())).unwrap();
            assert_eq!(file.load().unwrap().unwrap(), text.as_bytes());
        }
        assert_eq!(fs::read(file.set_aside(WallMs(0)).unwrap()).unwrap(), b"two");
        assert_eq!(file.load().unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        let gone = PeaksFile::new(&dir.path().join("nosuch"));
        assert!(gone.save(|_| Ok(())).unwrap_err().to_string().contains("peaks.json: cannot write"));
    }
}
