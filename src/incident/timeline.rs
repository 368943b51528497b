//! The append-only record of an incident: the last 1,000 entries in memory, all of them in `<state>/timeline.jsonl` and in the log.
//!
//! The caller never waits for the disk: a thread writes, and what it cannot keep up with is counted as dropped from disk (it stays in
//! memory and in the log). Entries are in the file in the order of their numbers.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::clock::WallMs;
use crate::snapshot::TimelineEntry;

/// Entries kept in memory.
pub const ENTRIES_MAX: usize = 1_000;
/// Entries on their way to the disk at most.
const QUEUE_MAX: usize = 1_024;
/// Characters of a text; of any other field a quarter.
const TEXT_MAX: usize = 2_000;
/// Bytes of a file before it is rotated, unless told otherwise.
pub const BYTES_PER_FILE: u64 = 8 * 1024 * 1024;
/// Rotated files kept (`timeline.jsonl.1` is the newest), unless told otherwise.
pub const ROTATED_FILES: u32 = 3;
/// How long dropping the timeline waits for its last lines.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// An entry before it has its number. Fields as in [`TimelineEntry`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Event<'a> {
    /// An operator's name, or "pgweir".
    pub who: &'a str,
    /// What, one word.
    pub event: &'a str,
    /// Lane, empty when none.
    pub lane: &'a str,
    /// Link id.
    pub client: Option<u64>,
    /// Details and why. Never a secret: this is written to disk and log.
    pub text: &'a str,
    /// Usage in percent at that moment.
    pub usage: Option<f64>,
}

/// The record. Cheap to share behind an `Arc`; dropping it waits shortly for what is still to be written.
#[derive(Debug)]
pub struct Timeline {
    memory: Mutex<Memory>,
    /// The last entry's number, for those who follow.
    last: watch::Sender<u64>,
    /// None without a state directory.
    disk: Option<Arc<Disk>>,
}

#[derive(Debug)]
struct Memory {
    next_seq: u64,
    entries: VecDeque<TimelineEntry>,
}

impl Timeline {
    /// Opens the record in `dir` (none: memory only), going on where `timeline.jsonl` ends. A directory that cannot be read or written
    /// is logged and shown by [`Timeline::dropped_from_disk`]; the record in memory works regardless.
    pub fn open(dir: Option<&Path>, bytes_per_file: u64, rotated_files: u32) -> Self {
        let entries = dir.map(|dir| load(dir, bytes_per_file)).unwrap_or_default();
        let next_seq = entries.iter().map(|entry| entry.seq).max().map_or(1, |last| last.saturating_add(1));
        let disk = dir.map(|dir| Disk::start(dir, bytes_per_file, rotated_files));
        let last = watch::Sender::new(next_seq - 1);
        Self { memory: Mutex::new(Memory { next_seq, entries }), last, disk }
    }

    /// Records an event at `at`; gives its number. Never blocks on the disk. Control characters become blanks, long fields are cut.
    pub fn append(&self, event: Event<'_>, at: WallMs) -> u64 {
        let mut entry = TimelineEntry {
            seq: 0,
            at: at.0,
            who: clean(event.who, TEXT_MAX / 4),
            event: clean(event.event, TEXT_MAX / 4),
            lane: clean(event.lane, TEXT_MAX / 4),
            client: event.client,
            text: clean(event.text, TEXT_MAX),
            usage: event.usage.filter(|percent| percent.is_finite()).map(one_decimal),
        };
        {
            let mut memory = self.memory.lock();
            entry.seq = memory.next_seq;
            memory.next_seq = memory.next_seq.saturating_add(1);
            if memory.entries.len() >= ENTRIES_MAX {
                memory.entries.pop_front();
            }
            memory.entries.push_back(entry.clone());
            // Queued under the lock, so that the file has the order of the numbers.
            if let Some(disk) = &self.disk {
                disk.enqueue(entry.clone());
            }
            self.last.send_replace(entry.seq);
        }
        log(&entry);
        entry.seq
    }

    /// The last [`ENTRIES_MAX`] entries, oldest first.
    pub fn entries(&self) -> Vec<TimelineEntry> {
        self.memory.lock().entries.iter().cloned().collect()
    }

    /// The entries from number `seq` on, oldest first: none costs next to nothing.
    pub fn since(&self, seq: u64) -> Vec<TimelineEntry> {
        let memory = self.memory.lock();
        let new = memory.entries.iter().rev().take_while(|entry| entry.seq >= seq).count();
        memory.entries.iter().skip(memory.entries.len() - new).cloned().collect()
    }

    /// The number of the next entry.
    pub fn next_seq(&self) -> u64 {
        self.memory.lock().next_seq
    }

    /// The number of the last entry; changes when one is added.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Entries that are not on disk because it was too slow or failed.
    pub fn dropped_from_disk(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.queue.lock().dropped)
    }

    /// Waits until everything appended so far is on disk (or dropped); false if that took longer than `wait_max`.
    pub fn flush(&self, wait_max: Duration) -> bool {
        let Some(disk) = &self.disk else { return true };
        let mut queue = disk.queue.lock();
        let target = queue.enqueued;
        let late = |queue: &mut Queue| queue.done < target && !queue.dead;
        !disk.changed.wait_while_for(&mut queue, late, wait_max).timed_out()
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.flush(CLOSE_WAIT);
        if let Some(disk) = &self.disk {
            disk.queue.lock().closed = true;
            disk.changed.notify_all();
        }
    }
}

fn log(entry: &TimelineEntry) {
    tracing::info!(
        target: "timeline",
        seq = entry.seq,
        who = %Visible(&entry.who),
        event = %entry.event,
        lane = %entry.lane,
        client = entry.client,
        usage = entry.usage,
        "{}",
        Visible(&entry.text)
    );
}

/// A text that may hold names of a client's choice, on one line: control characters, with which it would write lines of its own into
/// the log or speak to a terminal, are shown as escapes.
struct Visible<'a>(&'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|c| match c {
            // Line and paragraph separators are no control characters, and break lines all the same.
            '\u{2028}' | '\u{2029}' => write!(f, "{}", c.escape_default()),
            c if c.is_control() => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

/// All that a percentage of connections is worth, and the same in memory and on disk.
fn one_decimal(percent: f64) -> f64 {
    (percent * 10.0).round() / 10.0
}

/// One line, bounded: the texts quote application names and statements, which are whatever a client sends.
fn clean(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What goes between callers and the writer.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<TimelineEntry>,
    /// Entries ever queued, and entries written or given up.
    enqueued: u64,
    done: u64,
    dropped: u64,
    closed: bool,
    /// No writer: the thread could not be started.
    dead: bool,
}

#[derive(Debug, Default)]
struct Disk {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Disk {
    fn start(dir: &Path, bytes_per_file: u64, rotated_files: u32) -> Arc<Self> {
        let disk = Arc::new(Self::default());
        let mut writer = Writer {
            path: dir.join("timeline.jsonl"),
            bytes_per_file: bytes_per_file.max(1),
            rotated_files,
            open: None,
            failing: false,
        };
        let shared = disk.clone();
        let run = move || while shared.write_some(&mut writer) {};
        if let Err(error) = thread::Builder::new().name("timeline".into()).spawn(run) {
            tracing::error!(%error, "the timeline is not written to disk: no thread for it");
            disk.queue.lock().dead = true;
        }
        disk
    }

    fn enqueue(&self, entry: TimelineEntry) {
        let mut queue = self.queue.lock();
        if queue.dead || queue.waiting.len() >= QUEUE_MAX {
            queue.dropped += 1;
            return;
        }
        queue.enqueued += 1;
        queue.waiting.push_back(entry);
        self.changed.notify_all();
    }

    /// The writer's loop: waits for entries and writes them; false when closed and nothing is left.
    fn write_some(&self, writer: &mut Writer) -> bool {
        let batch = {
            let mut queue = self.queue.lock();
            self.changed.wait_while(&mut queue, |queue| queue.waiting.is_empty() && !queue.closed);
            std::mem::take(&mut queue.waiting)
        };
        if batch.is_empty() {
            return false;
        }
        let lost = writer.write(&batch);
        let mut queue = self.queue.lock();
        queue.done += batch.len() as u64;
        queue.dropped += lost;
        self.changed.notify_all();
        true
    }
}

/// The thread's own: the open file and its size.
struct Writer {
    path: PathBuf,
    bytes_per_file: u64,
    rotated_files: u32,
    open: Option<(File, u64)>,
    /// Whether the last write failed: an error is logged once, not per line.
    failing: bool,
}

impl Writer {
    /// Writes a batch; gives how many entries were lost.
    fn write(&mut self, batch: &VecDeque<TimelineEntry>) -> u64 {
        let mut lost = 0;
        for entry in batch {
            if let Err(error) = self.write_one(entry) {
                lost += 1;
                self.report(&error);
            } else {
                self.failing = false;
            }
        }
        if let Some((file, _)) = &self.open
            && let Err(error) = file.sync_data()
        {
            self.report(&error);
        }
        lost
    }

    fn write_one(&mut self, entry: &TimelineEntry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let bytes = line.len() as u64;
        if self.open.as_ref().is_some_and(|(_, size)| *size > 0 && size + bytes > self.bytes_per_file) {
            self.rotate()?;
        }
        let (file, size) = match &mut self.open {
            Some(open) => open,
            closed => closed.insert(open_for_append(&self.path)?),
        };
        if let Err(error) = file.write_all(&line) {
            // Half a line may be there: opening the file again ends it with a newline.
            self.open = None;
            return Err(error);
        }
        *size += bytes;
        Ok(())
    }

    /// timeline.jsonl → .1 → .2 …; the last one is overwritten.
    fn rotate(&mut self) -> io::Result<()> {
        if let Some((file, _)) = self.open.take() {
            file.sync_data()?;
        }
        for n in (1..self.rotated_files).rev() {
            rename_if_there(&rotated(&self.path, n), &rotated(&self.path, n + 1))?;
        }
        if self.rotated_files == 0 {
            fs::remove_file(&self.path)
        } else {
            rename_if_there(&self.path, &rotated(&self.path, 1))
        }
    }

    fn report(&mut self, error: &io::Error) {
        if !self.failing {
            tracing::error!(%error, file = %self.path.display(), "the timeline cannot be written to disk");
        }
        self.failing = true;
    }
}

fn rotated(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens for appending, with the size. A last line that was torn by a crash is ended first, or the next entry would be lost with it.
fn open_for_append(path: &Path) -> io::Result<(File, u64)> {
    // Statements and names of people are in it: not for everybody.
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
    let mut size = file.seek(SeekFrom::End(0))?;
    if size > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}

/// The last entries on disk, oldest first; from the newest rotated file too, where the current one has too few.
fn load(dir: &Path, bytes_max: u64) -> VecDeque<TimelineEntry> {
    let current = dir.join("timeline.jsonl");
    let mut entries = parse(&read_tail(&current, bytes_max));
    if entries.len() < ENTRIES_MAX {
        let mut older = parse(&read_tail(&rotated(&current, 1), bytes_max));
        older.append(&mut entries);
        entries = older;
    }
    entries.drain(..entries.len().saturating_sub(ENTRIES_MAX));
    entries
}

/// What is no entry is left out: a torn last line, or a line cut by reading the tail only.
fn parse(text: &[u8]) -> VecDeque<TimelineEntry> {
    let rounded = |entry: TimelineEntry| TimelineEntry { usage: entry.usage.map(one_decimal), ..entry };
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .map(rounded)
        .collect()
}

fn read_tail(path: &Path, bytes_max: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(bytes_max)))?;
        let mut text = Vec::new();
        file.take(bytes_max).read_to_end(&mut text)?;
        Ok(text)
    };
    read().unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::error!(%error, file = %path.display(), "the timeline on disk cannot be read");
        }
        Vec::new()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn open(dir: &Path) -> Timeline {
        Timeline::open(Some(dir), BYTES_PER_FILE, ROTATED_FILES)
    }

    fn note(timeline: &Timeline, text: &str) -> u64 {
        timeline.append(Event { who: "alice", event: "note", text, ..Event::default() }, WallMs(7))
    }

    fn texts(timeline: &Timeline) -> Vec<String> {
        timeline.entries().into_iter().map(|entry| entry.text).collect()
    }

    #[test]
    fn names_write_no_lines_and_no_escapes_into_the_log() {
        let shown =
            Visible("application a\n2026 ERROR b\u{1b}[2J\u{2028}\u{9b}x, user \"caf\u{e9}\"").to_string();
        assert_eq!(shown, "application a\\n2026 ERROR b\\u{1b}[2J\\u{2028}\\u{9b}x, user \"caf\u{e9}\"");
    }

    #[test]
    fn an_entry_is_one_line_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let timeline = open(dir.path());
        let event = Event {
            who: "pgweir",
            event: "shed",
            lane: "cron",
            client: Some(4),
            text: "it's \"full\"",
            usage: Some(81.483_271),
        };
        assert_eq!(timeline.append(event, WallMs(1_700_000_000_000)), 1);
        assert!(timeline.flush(LONG));
        let file = fs::read_to_string(dir.path().join("timeline.jsonl")).unwrap();
        let expected = r#"{"seq":1,"at":"2023-11-14T22:13:20.000Z","who":"pgweir","event":"shed","lane":"cron","client":4,"text":"it's \"full\"","usage":81.5}"#;
        assert_eq!(file, format!("{expected}\n"));
        // A restart shows what was shown before.
        let before = timeline.entries();
        drop(timeline);
        assert_eq!(open(dir.path()).entries(), before);
    }

    #[test]
    fn a_restart_goes_on_where_the_file_ends_even_after_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        note(&first, "one");
        note(&first, "two");
        drop(first);
        let path = dir.path().join("timeline.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"seq":3,"at":7,"wh"#).unwrap();
        let second = open(dir.path());
        assert_eq!(texts(&second), ["one", "two"]);
        assert_eq!(note(&second, "three"), 3);
        drop(second);
        assert_eq!(texts(&open(dir.path())), ["one", "two", "three"]);
    }

    #[test]
    fn files_of_earlier_versions_are_read() {
        let line = |at: &str| {
            format!(
                r#"{{"seq":1,"at":{at},"who":"","event":"note","lane":"","client":null,"text":"","usage":81.483}}"#
            )
        };
        for at in ["1700000000000", "\"2023-11-14T22:13:20.000Z\""] {
            let entries = parse(line(at).as_bytes());
            let read = entries.front().map(|entry| (entry.at, entry.usage));
            assert_eq!(read, Some((1_700_000_000_000, Some(81.5))), "{at}");
        }
        for at in ["\"yesterday\"", "-1", "null"] {
            assert!(parse(line(at).as_bytes()).is_empty(), "{at}");
        }
    }

    #[test]
    fn files_are_rotated_and_the_oldest_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let timeline = Timeline::open(Some(dir.path()), 270, 2);
        for n in 1..=12 {
            note(&timeline, &format!("entry {n:02}"));
        }
        assert!(timeline.flush(LONG));
        assert_eq!(timeline.dropped_from_disk(), 0);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        // Two lines fit into 270 bytes.
        assert!(read("timeline.jsonl").contains("entry 12") && read("timeline.jsonl").contains("entry 11"));
        assert!(read("timeline.jsonl.1").contains("entry 10"));
        assert!(read("timeline.jsonl.2").contains("entry 08"));
        assert!(!dir.path().join("timeline.jsonl.3").exists());
        drop(timeline);
        let again = Timeline::open(Some(dir.path()), 270, 2);
        assert_eq!(
            again.entries().first().map(|entry| entry.seq),
            Some(9),
            "the newest rotated file is read too"
        );
        assert_eq!(note(&again, "next"), 13);
    }

    #[test]
    fn memory_keeps_the_last_thousand() {
        let timeline = Timeline::open(None, BYTES_PER_FILE, ROTATED_FILES);
        for n in 0..ENTRIES_MAX + 5 {
            note(&timeline, &n.to_string());
        }
        let entries = timeline.entries();
        assert_eq!((entries.len(), entries[0].seq, entries[ENTRIES_MAX - 1].seq), (1000, 6, 1005));
        assert!(timeline.flush(Duration::ZERO), "without a disk there is nothing to wait for");
    }

    #[test]
    fn a_disk_that_fails_is_counted_and_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let timeline = open(&dir.path().join("missing"));
        note(&timeline, "kept in memory");
        assert!(timeline.flush(LONG));
        assert_eq!((timeline.dropped_from_disk(), timeline.entries().len()), (1, 1));
    }

    #[test]
    fn a_full_queue_drops_from_disk_only() {
        let disk = Disk::default();
        let entry =
            parse(br#"{"seq":1,"at":7,"who":"","event":"","lane":"","client":null,"text":"","usage":null}"#)
                [0]
            .clone();
        for _ in 0..QUEUE_MAX + 3 {
            disk.enqueue(entry.clone());
        }
        let queue = disk.queue.lock();
        assert_eq!((queue.waiting.len(), queue.dropped), (QUEUE_MAX, 3));
    }

    #[test]
    fn what_a_client_sends_cannot_forge_a_line_or_grow_without_bound() {
        let timeline = Timeline::open(None, BYTES_PER_FILE, ROTATED_FILES);
        note(&timeline, "a\nb\u{1b}[31m");
        note(&timeline, &"x".repeat(10_000));
        let texts = texts(&timeline);
        assert_eq!(texts[0], "a b [31m");
        assert_eq!(texts[1].len(), TEXT_MAX);
    }
}
