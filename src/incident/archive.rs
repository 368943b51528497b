//! Incidents on disk: `<state>/incidents/N.json`, one file each, replaced as a whole.
//!
//! A record that cannot be read costs only itself: it is logged and left alone, and its number is not used again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::book::KEPT;
use super::record::{Incident, Summary};
use super::state::{read_bounded, write_synced};

/// Bytes of a record at most: far above what its bounds allow.
const FILE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// `<state>/incidents`.
#[derive(Clone, Debug)]
pub struct Archive {
    dir: PathBuf,
}

/// What was found on disk.
#[derive(Debug, Default)]
pub struct Found {
    /// The one that was open when the process ended; of several the newest.
    pub open: Option<Incident>,
    /// Those that were over.
    pub closed: Vec<Summary>,
}

impl Archive {
    /// The archive in a state directory; nothing is touched yet.
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join("incidents") }
    }

    fn file(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn ids(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let id = |name: &str| name.strip_suffix(".json")?.parse().ok();
        let mut ids: Vec<u64> =
            entries.flatten().filter_map(|entry| id(entry.file_name().to_str()?)).collect();
        ids.sort_unstable();
        ids
    }

    /// Reads all that is there. Blocks on the disk.
    pub fn load(&self) -> Found {
        let mut found = Found::default();
        let ids = self.ids();
        for id in ids.iter().skip(ids.len().saturating_sub(KEPT)) {
            match self.parse(*id) {
                Ok(incident) if incident.closed_at.is_none() => found.open = Some(incident),
                Ok(incident) => found.closed.push(incident.summary()),
                Err(error) => {
                    tracing::error!(%error, file = %self.file(*id).display(), "this incident cannot be read");
                    let cause = format!("its record cannot be read: {error}");
                    found.closed.push(Summary {
                        id: *id,
                        trigger: "lost".into(),
                        cause,
                        ..Summary::default()
                    });
                }
            }
        }
        found
    }

    fn parse(&self, id: u64) -> io::Result<Incident> {
        let incident: Incident = serde_json::from_slice(&self.bytes(id)?)?;
        if incident.id != id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has another number inside"));
        }
        Ok(incident)
    }

    fn bytes(&self, id: u64) -> io::Result<Vec<u8>> {
        read_bounded(&self.file(id), FILE_BYTES_MAX)
    }

    /// A record as it was written. Blocks on the disk.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is no record.
    pub fn read(&self, id: u64) -> io::Result<String> {
        self.parse(id)?;
        String::from_utf8(self.bytes(id)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Writes a record, and forgets the oldest ones beyond [`KEPT`]. Blocks on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, incident: &Incident) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let tmp = self.dir.join("new.tmp");
        write_synced(&tmp, |file| Ok(serde_json::to_writer(file, incident)?))?;
        fs::rename(&tmp, self.file(incident.id))?;
        fs::File::open(&self.dir)?.sync_all()?;
        let ids = self.ids();
        for old in &ids[..ids.len().saturating_sub(KEPT)] {
            fs::remove_file(self.file(*old))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use crate::incident::record::At;

    fn incident(id: u64, closed_at: Option<u64>) -> Incident {
        Incident { id, opened_at: At(1_700_000_000_000), closed_at: closed_at.map(At), ..Incident::default() }
    }

    #[test]
    fn an_open_incident_survives_and_the_oldest_are_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let archive = Archive::new(state.path());
        assert!(archive.load().open.is_none());
        for id in 1..=KEPT as u64 + 2 {
            archive.save(&incident(id, Some(1_700_000_060_000))).unwrap();
        }
        let open = incident(KEPT as u64 + 3, None);
        archive.save(&open).unwrap();
        let found = archive.load();
        assert_eq!(found.open, Some(open));
        assert_eq!((found.closed.len(), found.closed[0].id), (KEPT - 1, 4));
        assert_eq!(
            archive.read(4).unwrap().parse::<serde_json::Value>().unwrap()["closed_at"],
            "2023-11-14T22:14:20.000Z"
        );
        assert!(archive.read(3).is_err(), "forgotten");
    }

    #[test]
    fn a_record_that_cannot_be_read_costs_only_itself() {
        let state = tempfile::tempdir().unwrap();
        let archive = Archive::new(state.path());
        archive.save(&incident(1, Some(1))).unwrap();
        fs::write(archive.file(2), "{").unwrap();
        let found = archive.load();
        let ids: Vec<u64> = found.closed.iter().map(|summary| summary.id).collect();
        assert_eq!((ids, found.closed[1].trigger.as_str()), (vec![1, 2], "lost"));
    }
}
