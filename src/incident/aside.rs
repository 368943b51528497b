//! State files that are of no use are put aside for people to look at, not written over: they may be of a newer pgweir, or mended by hand.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::clock::WallMs;
use crate::snapshot::utc;

/// Renames `<file>` to `<file>.unreadable-<time>`. Of several the last is kept.
///
/// # Errors
/// The disk's: the file is where it was.
pub fn set_aside(file: &Path, now: WallMs) -> io::Result<PathBuf> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name().and_then(OsStr::to_str)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file in a directory"));
    };
    let mark = format!("{name}.unreadable-");
    let time: String = utc(now).chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let aside = dir.join(format!("{mark}{time}"));
    fs::rename(file, &aside)?;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_older = entry.file_name().to_str().is_some_and(|name| name.starts_with(&mark));
        if is_older && entry.path() != aside {
            // One too many harms nobody.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(aside)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_is_kept_under_its_time_and_others_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peaks.json");
        let neighbours = ["peaks.json.tmp", "pauses.json", "pauses.json.unreadable-19700101T000000.000Z"];
        for name in neighbours {
            fs::write(dir.path().join(name), "").unwrap();
        }
        for (ms, text) in [(0, "one"), (1_700_000_000_000, "two")] {
            fs::write(&file, text).unwrap();
            let aside = set_aside(&file, WallMs(ms)).unwrap();
            assert!(!file.exists() && fs::read_to_string(&aside).unwrap() == text);
        }
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = neighbours.map(str::to_owned).to_vec();
        expected.push("peaks.json.unreadable-20231114T221320.000Z".to_owned());
        expected.sort();
        assert_eq!(left, expected);
        assert!(set_aside(&file, WallMs(0)).is_err(), "there is none");
    }
}
