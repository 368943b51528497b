//! PostgreSQL's log, for those who bypass pgweir: how often a client was told that there are too many.
//!
//! Only what is written after the start counts. A file that was rotated is read to its end before the new one is begun; one that was
//! truncated is read from its beginning; where so much was written that it cannot be read in time, the oldest of it is skipped.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use memchr::memmem;

/// Bytes read for one look at most.
const LOOK_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of a line that are looked at.
const LINE_BYTES_MAX: usize = 4096;
/// Files of a directory looked at.
const FILES_MAX: usize = 10_000;

/// Messages of PostgreSQL's when it has no connection left: for anybody, and for those who are no superusers.
const FULL: [&[u8]; 2] = [b"sorry, too many clients already", b"remaining connection slots are reserved"];
/// Their severity stands before them, in every format of the log.
const SEVERITY: &[u8] = b"FATAL";
/// Between the two stand at most this many bytes: `:  `, `,53300,"`, `","state_code":"53300","message":"`.
const BETWEEN_MAX: usize = 48;

/// Whether a line of the log, as text, CSV or JSON, is such a message; not one that quotes it in a statement.
fn is_full(line: &[u8]) -> bool {
    FULL.iter().filter_map(|message| memmem::find(line, message)).any(|at| {
        let before = &line[at.saturating_sub(SEVERITY.len() + BETWEEN_MAX)..at];
        let quoted = memmem::find(&line[..at], b"STATEMENT").is_some()
            || memmem::find(&line[..at], b"statement:").is_some();
        memmem::find(before, SEVERITY).is_some() && !quoted
    })
}

/// Splits what is read into lines; holds the beginning of one.
#[derive(Debug, Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes; how many lines are such messages.
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        let mut found = 0;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                found += u64::from(is_full(&self.begun));
                self.begun.clear();
            }
        }
        found
    }
}

/// A log that is followed.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    open: Option<Open>,
    lines: Lines,
    found: u64,
    /// Nothing was looked at yet: what is there already is of before our time.
    first: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    id: (u64, u64),
    offset: u64,
}

impl Tail {
    /// Follows a file, or of a directory the file written last.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, lines: Lines::default(), found: 0, first: true }
    }

    /// Reads what is new; how many clients were turned away since the start. Blocks on the disk.
    ///
    /// # Errors
    /// The log cannot be read: with its name. What was found before is not lost.
    pub fn look(&mut self) -> Result<u64, String> {
        let looked = self.try_look();
        looked.map_err(|error| format!("{}: {error}", self.path.display()))?;
        Ok(self.found)
    }

    fn try_look(&mut self) -> io::Result<()> {
        let first = std::mem::replace(&mut self.first, false);
        if let Some(mut open) = self.open.take() {
            self.read(&mut open)?;
            self.open = Some(open);
        }
        let path = self.newest()?;
        let metadata = fs::metadata(&path)?;
        let id = (metadata.dev(), metadata.ino());
        if self.open.as_ref().is_none_or(|open| open.id != id) {
            // One that was there at the start is old; one that came later is new from its first byte.
            let offset = if first { metadata.len() } else { 0 };
            let mut open = Open { file: File::open(&path)?, path, id, offset };
            // Bytes of another file must not join ours to a line.
            self.lines.begun.clear();
            self.read(&mut open)?;
            self.open = Some(open);
        }
        Ok(())
    }

    fn read(&mut self, open: &mut Open) -> io::Result<()> {
        let size = open.file.metadata()?.len();
        if size < open.offset {
            open.offset = 0;
            self.lines.begun.clear();
        }
        if size - open.offset > LOOK_BYTES_MAX {
            tracing::warn!(file = %open.path.display(), "PostgreSQL's log grows faster than it is read: some of it is skipped");
            open.offset = size - LOOK_BYTES_MAX;
            self.lines.begun.clear();
        }
        open.file.seek(SeekFrom::Start(open.offset))?;
        let mut buffer = vec![0; 64 * 1024];
        let mut left = size - open.offset;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = open.file.read(&mut buffer[..want])?;
            if n == 0 {
                break;
            }
            self.found += self.lines.feed(&buffer[..n]);
            open.offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// The file itself, or of a directory the one written last.
    fn newest(&self) -> io::Result<PathBuf> {
        if !fs::metadata(&self.path)?.is_dir() {
            return Ok(self.path.clone());
        }
        let files = fs::read_dir(&self.path)?.flatten().take(FILES_MAX).filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some(((metadata.mtime(), metadata.mtime_nsec()), entry.path()))
        });
        let newest = files.max().map(|(_, path)| path);
        newest.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no file in it"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &str =
        "2026-01-02 03:04:05.678 UTC [123] odoo@odoo [unknown] FATAL:  sorry, too many clients already\n";

    fn append(path: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_message_is_known_in_every_format_and_not_in_quotations() {
        for line in [
            TEXT,
            "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
            r#"2026-01-02,"odoo","odoo",1,"[local]",x,1,"",2026,,0,FATAL,53300,"sorry, too many clients already",,,,,"#,
            r#"{"pid":1,"error_severity":"FATAL","state_code":"53300","message":"sorry, too many clients already"}"#,
        ] {
            assert!(is_full(line.as_bytes()), "{line}");
        }
        for line in [
            "LOG:  statement: select 'FATAL:  sorry, too many clients already'",
            "STATEMENT:  select 'FATAL:  sorry, too many clients already'",
            "LOG:  sorry, too many clients already",
            "FATAL:  too many connections for role \"odoo\"",
            "FATAL:  number of requested standby connections exceeds max_wal_senders",
        ] {
            assert!(!is_full(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn what_was_there_before_does_not_count_and_halves_of_lines_are_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        append(&log, TEXT);
        let mut tail = Tail::new(&log);
        assert_eq!(tail.look(), Ok(0));
        append(&log, &TEXT[..70]);
        assert_eq!(tail.look(), Ok(0));
        append(&log, &TEXT[70..]);
        assert_eq!(tail.look(), Ok(1));
        assert_eq!(tail.look(), Ok(1));
    }

    #[test]
    fn rotation_and_truncation_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        append(&log, "LOG:  start\n");
        let mut tail = Tail::new(&log);
        assert_eq!(tail.look(), Ok(0));
        append(&log, TEXT);
        fs::rename(&log, dir.path().join("log.1")).unwrap();
        append(&log, &TEXT.repeat(2));
        assert_eq!(tail.look(), Ok(3), "the old one's end, then the new one");
        File::create(&log).unwrap();
        append(&log, TEXT);
        assert_eq!(tail.look(), Ok(4), "from the beginning again");
        fs::remove_file(&log).unwrap();
        assert!(tail.look().unwrap_err().contains("log"), "it is gone");
        append(&log, TEXT);
        assert_eq!(tail.look(), Ok(5), "what came while it was gone is new");
    }

    #[test]
    fn of_a_directory_the_file_written_last_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        append(&dir.path().join("monday.log"), TEXT);
        let mut tail = Tail::new(dir.path());
        assert_eq!(tail.look(), Ok(0));
        let tuesday = dir.path().join("tuesday.log");
        append(&tuesday, TEXT);
        let later = fs::metadata(dir.path().join("monday.log")).unwrap().modified().unwrap()
            + std::time::Duration::from_secs(60);
        File::options().append(true).open(&tuesday).unwrap().set_modified(later).unwrap();
        assert_eq!(tail.look(), Ok(1));
    }

    #[test]
    fn a_line_without_end_needs_no_memory_and_too_much_is_skipped() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(&vec![b'x'; 10 * LINE_BYTES_MAX]), 0);
        assert_eq!(lines.begun.len(), LINE_BYTES_MAX);
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        append(&log, "");
        let mut tail = Tail::new(&log);
        assert_eq!(tail.look(), Ok(0));
        append(&log, TEXT);
        append(&log, &"LOG:  noise\n".repeat(LOOK_BYTES_MAX as usize / 10));
        append(&log, TEXT);
        assert_eq!(tail.look(), Ok(1), "the oldest was skipped, the newest was not");
    }
}
