//! What /proc tells of PostgreSQL's host and backends, where pgweir shares it and may read it. Bounded: so many backends, so long.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Backend, Host};

/// Backends measured at most: walking the page tables of one takes milliseconds where shared_buffers are large.
const BACKENDS_MAX: usize = 32;
/// Time for measuring; what was measured until then counts.
const MEASURE_MAX: Duration = Duration::from_millis(500);
/// Levels of control groups looked at.
const GROUPS_MAX: usize = 16;

/// Looks at the host under `proc` and `cgroups` (`/proc`, `/sys/fs/cgroup`). `server` is a backend that must be there, `backends` those to
/// be measured.
///
/// # Errors
/// Why nothing is known: PostgreSQL's processes are not here.
#[allow(
    clippy::disallowed_methods,
    reason = "bounds its own work by the monotonic clock; nothing is decided by it"
)]
pub fn look(proc: &Path, cgroups: &Path, server: i32, backends: &[i32]) -> Result<Host, String> {
    let command = std::fs::read(proc.join(server.to_string()).join("cmdline")).unwrap_or_default();
    if !command.starts_with(b"postgres") {
        return Err(
            "PostgreSQL's processes are not seen here: it is on another host, or in another pid namespace"
                .to_owned(),
        );
    }
    let memory = sizes(&read(&proc.join("meminfo"))?);
    let of = |name: &str| memory.get(name).copied().unwrap_or(0);
    let mut host = Host {
        total: of("MemTotal"),
        available: of("MemAvailable"),
        is_limited: false,
        shared: of("Shmem"),
        // Counted in pages, not in kB.
        huge_pages: of("HugePages_Total") / 1024 * of("Hugepagesize"),
        backends: Vec::new(),
    };
    if let Some((limit, left)) = group_limit(proc, cgroups, server)
        && left < host.available
    {
        (host.total, host.available, host.is_limited) = (limit.min(host.total), left, true);
    }
    let began = Instant::now();
    let step = backends.len().div_ceil(BACKENDS_MAX).max(1);
    for pid in backends.iter().step_by(step) {
        if began.elapsed() > MEASURE_MAX {
            break;
        }
        host.backends.extend(measure(&proc.join(pid.to_string())));
    }
    Ok(host)
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// `Name:   123 kB` lines, in bytes. What has no unit is taken as kB too.
fn sizes(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let value: u64 = rest.split_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), value.saturating_mul(1024)))
    };
    text.lines().filter_map(line).collect()
}

/// One process; none where it is gone, or another user's that we may not look into.
fn measure(process: &Path) -> Option<Backend> {
    let pages = sizes(&read(&process.join("smaps_rollup")).ok()?);
    let of = |name: &str| pages.get(name).copied().unwrap_or(0);
    let status = sizes(&read(&process.join("status")).ok()?);
    Some(Backend {
        private: of("Private_Clean") + of("Private_Dirty") + of("Swap"),
        page_tables: status.get("VmPTE").copied().unwrap_or(0),
    })
}

/// The tightest limit of a process's control group (version 2) and those above it, and what that leaves: file pages that are not in use
/// can be given up.
fn group_limit(proc: &Path, cgroups: &Path, pid: i32) -> Option<(u64, u64)> {
    let groups = read(&proc.join(pid.to_string()).join("cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut group: PathBuf = cgroups.join(path);
    let mut tightest: Option<(u64, u64)> = None;
    for _ in 0..GROUPS_MAX {
        let number = |name: &str| read(&group.join(name)).ok()?.trim().parse::<u64>().ok();
        if let (Some(limit), Some(used)) = (number("memory.max"), number("memory.current")) {
            let stat = read(&group.join("memory.stat")).unwrap_or_default();
            let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
            let inactive = inactive.and_then(|value| value.trim().parse().ok()).unwrap_or(0);
            let left = limit.saturating_sub(used.saturating_sub(inactive));
            if tightest.is_none_or(|(_, known)| left < known) {
                tightest = Some((limit, left));
            }
        }
        if group == *cgroups || !group.pop() {
            break;
        }
    }
    tightest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        std::fs::write(file, text).expect("written");
    }

    fn a_host() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let here = root.path();
        put(
            here,
            "proc/meminfo",
            "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nShmem: 1024 kB\nHugePages_Total: 4\nHugepagesize: 2048 kB\n",
        );
        put(here, "proc/7/cmdline", "postgres: pgweir postgres [local] idle\0");
        put(here, "proc/7/cgroup", "0::/system.slice/postgresql.service\n");
        put(here, "proc/7/status", "Name: postgres\nVmPTE: 100 kB\n");
        put(
            here,
            "proc/7/smaps_rollup",
            "5-7 ---p 0 00:00 0 [rollup]\nRss: 9000 kB\nPrivate_Clean: 10 kB\nPrivate_Dirty: 20 kB\nPrivate_Hugetlb: 2048 kB\nSwap: 5 kB\n",
        );
        root
    }

    fn look_at(root: &tempfile::TempDir) -> Result<Host, String> {
        look(&root.path().join("proc"), &root.path().join("cgroup"), 7, &[7, 8])
    }

    #[test]
    fn a_shared_host_is_measured_and_who_is_gone_left_out() {
        let host = look_at(&a_host()).expect("measured");
        assert_eq!((host.available, host.huge_pages, host.is_limited), (4 << 30, 8 << 20, false));
        assert_eq!(host.backends, [Backend { private: 35 * 1024, page_tables: 100 * 1024 }]);
    }

    #[test]
    fn the_tightest_group_counts_and_unused_file_pages_are_room() {
        let root = a_host();
        let group = "cgroup/system.slice/postgresql.service";
        put(root.path(), &format!("{group}/memory.max"), "max\n");
        put(root.path(), "cgroup/system.slice/memory.max", "1073741824\n");
        put(root.path(), "cgroup/system.slice/memory.current", "1000000000\n");
        put(root.path(), "cgroup/system.slice/memory.stat", "anon 1\ninactive_file 500000000\n");
        let host = look_at(&root).expect("measured");
        assert_eq!((host.total, host.available, host.is_limited), (1 << 30, (1 << 30) - 500_000_000, true));
    }

    #[test]
    fn another_hosts_pid_is_not_taken_for_postgresql() {
        let root = a_host();
        put(root.path(), "proc/7/cmdline", "/usr/bin/python3\0odoo-bin\0");
        assert!(look_at(&root).expect_err("not here").contains("another host"));
    }
}
