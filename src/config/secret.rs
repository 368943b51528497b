//! Passwords, and the files they are kept in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a password file at most.
pub const PASSWORD_BYTES_MAX: usize = 4096;

/// Permission bits that let everybody on the machine read or replace the password.
const OTHERS: u32 = 0o006;

/// A password. Shows itself to nobody who does not ask by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
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
    let io = |error| PasswordError::Io { path: path.to_owned(), error };
    // Asked before opening, because opening a FIFO would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(PasswordError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    // Asked of the open file, so that nobody can swap it in between.
    if file.metadata().map_err(io)?.mode() & OTHERS != 0 {
        return Err(PasswordError::Exposed { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(PASSWORD_BYTES_MAX as u64 + 3).read_to_end(&mut bytes).map_err(io)?;
    let content = || PasswordError::Content { path: path.to_owned() };
    let text = String::from_utf8(bytes).map_err(|_| content())?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let fits = !line.is_empty() && line.len() <= PASSWORD_BYTES_MAX && !line.contains(['\n', '\r', '\0']);
    if fits { Ok(Secret::new(line)) } else { Err(content()) }
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
