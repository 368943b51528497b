//! Whether pgweir could write where its configuration says: asked by `pgweir check`, before anybody starts it. Nothing is made or changed.
//!
//! What holds for whoever runs the check need not hold for the service's account, so every line says as whom it was looked at.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::cli::endpoint::user_of;
use crate::config::checked::Config;
use crate::config::settings::Endpoint;

/// What is in the state directory and is opened rather than replaced, and how.
const OPENED: [(&str, Access, &str); 6] = [
    ("timeline.jsonl", Access::READ_OK.union(Access::WRITE_OK), "written"),
    ("incidents", Access::WRITE_OK.union(Access::EXEC_OK), "written"),
    ("pauses.json", Access::READ_OK, "read"),
    ("peaks.json", Access::READ_OK, "read"),
    ("upstream.json", Access::READ_OK, "read"),
    ("admin.password", Access::READ_OK, "read"),
];

/// What the shipped unit makes for the service (StateDirectory, RuntimeDirectory), and where that unit is.
const MADE: [&str; 2] = ["/var/lib/pgweir", "/run/pgweir"];
const UNITS: [&str; 3] = [
    "/etc/systemd/system/pgweir.service",
    "/usr/lib/systemd/system/pgweir.service",
    "/lib/systemd/system/pgweir.service",
];

/// What would fail, each with what to do about it.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let user = user_of(rustix::process::geteuid().as_raw());
    let of_service = UNITS.iter().any(|unit| Path::new(unit).exists());
    let will_be_made = |path: &Path| of_service && MADE.iter().any(|made| path == *made) && !path.exists();
    let state = directory("state.directory", &config.state_directory, &user);
    let mut found: Vec<String> =
        state.filter(|_| !will_be_made(&config.state_directory)).into_iter().collect();
    if found.is_empty() {
        found.extend(OPENED.iter().filter_map(|one| opened(&config.state_directory, *one, &user)));
    }
    for (at, listen) in config.listen.iter().enumerate() {
        if let Endpoint::Unix { directory: place, .. } = &listen.endpoint {
            // With a socket there already somebody may listen for us: the service manager, or the pgweir that runs.
            let taken = listen.endpoint.socket_path().is_some_and(|path| fs::symlink_metadata(path).is_ok());
            let key = format!("listen[{}].address", at + 1);
            found.extend(directory(&key, place, &user).filter(|_| !taken && !will_be_made(place)));
        }
    }
    found
}

/// Why no file can be made in a directory, which itself may have to be made; none where one can.
fn directory(key: &str, path: &Path, user: &str) -> Option<String> {
    let (nearest, is_directory) = nearest(path);
    let shown = path.display();
    if !is_directory {
        let hint = "move it away, or name another directory";
        return Some(format!("{key}: {shown}: {} is no directory. Hint: {hint}", nearest.display()));
    }
    let may = accessat(CWD, &nearest, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    let error: io::Error = may.err()?.into();
    if nearest == path {
        let hint = give(path, user);
        return Some(format!(
            "{key}: {shown} cannot be written by {user}, as whom this was checked: {error}. Hint: {hint}"
        ));
    }
    Some(format!(
        "{key}: {shown} cannot be made by {user}, as whom this was checked: {}: {error}. Hint: make it as root (install -d -o {} {shown}), \
         or name another directory",
        nearest.display(),
        account(user),
    ))
}

/// The path itself, or the nearest one above it that this user can see, and whether it is a directory.
fn nearest(path: &Path) -> (PathBuf, bool) {
    for at in path.ancestors() {
        let at = if at.as_os_str().is_empty() { Path::new(".") } else { at };
        if let Ok(found) = fs::metadata(at) {
            return (at.to_owned(), found.is_dir());
        }
    }
    (PathBuf::from("."), true)
}

fn opened(state: &Path, (name, access, done): (&str, Access, &str), user: &str) -> Option<String> {
    let path = state.join(name);
    fs::symlink_metadata(&path).ok()?;
    let error: io::Error = accessat(CWD, &path, access, AtFlags::EACCESS).err()?.into();
    Some(format!(
        "state.directory: {} cannot be {done} by {user}, as whom this was checked: {error}. Hint: {}",
        path.display(),
        give(&path, user)
    ))
}

/// What to do where something is another's.
fn give(path: &Path, user: &str) -> String {
    let owner = fs::metadata(path).ok().map(|found| user_of(found.uid()));
    let other = match owner {
        Some(owner) if owner != user => format!(
            "; or, where pgweir runs as its owner {owner}, check as that account (sudo -u {} pgweir check)",
            account(&owner)
        ),
        _ => String::new(),
    };
    format!("chown {} {} as root{other}", account(user), path.display())
}

/// The account as commands take it.
fn account(user: &str) -> &str {
    let name = user.split(' ').next().unwrap_or_default();
    if name == "uid" { user.trim_start_matches("uid ") } else { name }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_that_can_be_made_is_as_good_as_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory("k", dir.path(), "me (uid 1)"), None);
        assert_eq!(directory("k", &dir.path().join("a/b"), "me (uid 1)"), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
    }

    #[test]
    fn what_is_in_the_way_is_named_once_with_its_cause_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let said = directory("state.directory", &file.join("state"), "me (uid 1)").unwrap();
        // Nobody can make anything below a file, be it root.
        let file_shown = file.display();
        assert_eq!(
            said,
            format!(
                "state.directory: {file_shown}/state: {file_shown} is no directory. Hint: move it away, or name another directory"
            )
        );
        if rustix::process::geteuid().is_root() {
            return;
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let shown = dir.path().display();
        let denied = "Permission denied (os error 13)";
        let said = directory("k", dir.path(), "me (uid 1)").unwrap();
        let start = format!(
            "k: {shown} cannot be written by me (uid 1), as whom this was checked: {denied}. Hint: chown me "
        );
        assert!(said.starts_with(&start), "{said}");
        let said = directory("k", &dir.path().join("a"), "uid 7").unwrap();
        let start =
            format!("k: {shown}/a cannot be made by uid 7, as whom this was checked: {shown}: {denied}. ");
        assert!(said.starts_with(&start) && said.contains("install -d -o 7 "), "{said}");
    }

    #[test]
    fn a_file_of_anothers_is_found_and_one_that_is_not_there_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let me = user_of(rustix::process::geteuid().as_raw());
        assert!(OPENED.iter().all(|one| opened(dir.path(), *one, &me).is_none()));
        symlink("/nonexistent/timeline", dir.path().join("timeline.jsonl")).unwrap();
        let said = opened(dir.path(), OPENED[0], &me).unwrap();
        assert!(
            said.contains("timeline.jsonl cannot be written by ") && said.contains(". Hint: chown "),
            "{said}"
        );
    }
}
