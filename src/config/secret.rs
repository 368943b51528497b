//! Passwords, and the files they are kept in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Bytes of a password file at most.
pub const PASSWORD_BYTES_MAX: usize = 4096;

/// Permission bits that let everybody on the machine read or replace the password.
const OTHERS: u32 = 0o006;

/// A password, or a file of them. Shows itself to nobody who does not ask by name, and is overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The password itself: for a wire or a file of mode 0600, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Permission bits of a users file that must not be set: it holds everybody's.
const GROUP_AND_OTHERS: u32 = 0o077;

/// Why a password file gives no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// It cannot be opened or read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Not a regular file.
    #[error("{}: is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Everybody on the machine may read or write it.
    #[error("{}: is readable or writable by everybody; run `chmod 600` on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// Somebody but its owner may read or write a users file.
    #[error("{}: is open to others than its owner; run `chmod 600` on it", path.display())]
    NotPrivate {
        /// The file.
        path: PathBuf,
    },
    /// A users file beyond its bound, or not UTF-8.
    #[error("{}: must be UTF-8 text of at most {max} bytes", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// Bytes.
        max: usize,
    },
    /// Empty, longer than [`PASSWORD_BYTES_MAX`], not UTF-8, or with a NUL or a line break inside.
    #[error("{}: must hold one line with the password, UTF-8, 1 to {PASSWORD_BYTES_MAX} bytes", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the password kept in the file at `path`: its one line, the line's end not counted. Call it when the password is
/// needed, so that a rotated file is seen.
///
/// # Errors
/// See [`PasswordError`].
pub fn read_password(path: &Path) -> Result<Secret, PasswordError> {
    let exposed = || PasswordError::Exposed { path: path.to_owned() };
    let bytes = read_private(path, PASSWORD_BYTES_MAX + 3, OTHERS, exposed)?;
    let content = || PasswordError::Content { path: path.to_owned() };
    let text = std::str::from_utf8(&bytes).map_err(|_| content())?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let fits = !line.is_empty() && line.len() <= PASSWORD_BYTES_MAX && !line.contains(['\n', '\r', '\0']);
    if fits { Ok(Secret::new(line)) } else { Err(content()) }
}

/// Reads a file of users and their secrets, which nobody but its owner may read.
///
/// # Errors
/// See [`PasswordError`].
pub fn read_users(path: &Path, max: usize) -> Result<Secret, PasswordError> {
    let exposed = || PasswordError::NotPrivate { path: path.to_owned() };
    let bytes = read_private(path, max + 1, GROUP_AND_OTHERS, exposed)?;
    let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= max);
    text.map(Secret::new).ok_or_else(|| PasswordError::NoText { path: path.to_owned(), max })
}

/// The first `max` bytes of a regular file none of whose `forbidden` permission bits is set.
fn read_private(
    path: &Path,
    max: usize,
    forbidden: u32,
    exposed: impl FnOnce() -> PasswordError,
) -> Result<Zeroizing<Vec<u8>>, PasswordError> {
    let io = |error| PasswordError::Io { path: path.to_owned(), error };
    // Asked before opening, because opening a FIFO would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(PasswordError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    // Asked of the open file, so that nobody can swap it in between.
    let metadata = file.metadata().map_err(io)?;
    if metadata.mode() & forbidden != 0 {
        return Err(exposed());
    }
    // Room for all of it: growing would leave copies behind.
    let room = usize::try_from(metadata.len()).unwrap_or(max).min(max) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(max as u64).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("test set-up");
        let path = directory.path().join("password");
        std::fs::write(&path, content).expect("test set-up");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("test set-up");
        (directory, path)
    }

    #[test]
    fn the_line_is_the_password_and_never_shown() {
        let (_keep, path) = file("s3crèt \r\n".as_bytes(), 0o640);
        let secret = read_password(&path).expect("test set-up");
        assert_eq!(secret.expose(), "s3crèt ");
        assert!(!format!("{secret:?}").contains("s3"));
    }

    #[test]
    fn a_file_open_to_everybody_is_refused() {
        for mode in [0o644, 0o602] {
            let (_keep, path) = file(b"x", mode);
            assert!(matches!(read_password(&path), Err(PasswordError::Exposed { .. })), "{mode:o}");
        }
    }

    #[test]
    fn a_users_file_is_its_owners_alone() {
        let (_keep, path) = file(b"\"a\" \"b\"\n", 0o600);
        assert_eq!(read_users(&path, 100).expect("private").expose(), "\"a\" \"b\"\n");
        assert!(matches!(read_users(&path, 3), Err(PasswordError::NoText { .. })));
        for mode in [0o640, 0o604, 0o620] {
            let (_keep, path) = file(b"x", mode);
            assert!(matches!(read_users(&path, 100), Err(PasswordError::NotPrivate { .. })), "{mode:o}");
        }
    }

    #[test]
    fn odd_contents_and_places_are_refused() {
        let long = vec![b'x'; PASSWORD_BYTES_MAX + 1];
        for content in [b"".as_slice(), b"\n", b"a\nb\n", b"a\0b", b"\xff", &long] {
            let (_keep, path) = file(content, 0o600);
            assert!(matches!(read_password(&path), Err(PasswordError::Content { .. })));
        }
        let (keep, path) = file(b"x", 0o600);
        assert!(matches!(read_password(keep.path()), Err(PasswordError::NotAFile { .. })));
        std::fs::remove_file(&path).expect("test set-up");
        assert!(matches!(read_password(&path), Err(PasswordError::Io { .. })));
    }
}
