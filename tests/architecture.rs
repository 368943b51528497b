//! ARCHITECTURE.md's import rules, held against the `use` lines.

use std::fs;
use std::path::{Path, PathBuf};

/// Places (most exact first) and the modules of this crate each may import.
const RULES: &[(&str, &[&str])] = &[
    ("src/clock.rs", &[]),
    ("src/reason.rs", &[]),
    ("src/snapshot/", &["clock", "reason", "lanes::ids"]),
    ("src/wire/", &["wire", "reason"]),
    ("src/auth/", &["auth", "clock"]),
    ("src/tls/", &["tls"]),
    ("src/lanes/", &["lanes", "reason", "clock", "snapshot"]),
    ("src/leaks/", &["leaks", "lanes", "reason", "clock"]),
    ("src/link/session", &["link", "wire", "reason"]),
    ("src/link/cycles.rs", &["link"]),
    ("src/link/out.rs", &["link"]),
    ("src/link/rollback.rs", &["link", "wire"]),
    ("src/link/gate.rs", &[]),
    ("src/link/heads.rs", &["link", "wire"]),
    ("src/link/", &["auth", "link", "wire", "lanes", "reason", "clock", "listen", "tls"]),
    ("src/listen/", &["listen", "reason"]),
    ("src/page/", &["page"]),
    ("src/prober/", &["prober", "upstream::connect", "incident::exit"]),
    ("src/advise/", &["advise", "clock", "snapshot"]),
    ("src/upstream/", &["upstream", "lanes::sample", "clock", "wire", "tls"]),
    ("src/headroom/", &["headroom", "snapshot"]),
    ("src/incident/", &["incident", "clock", "snapshot"]),
    (
        "src/admin/",
        &[
            "admin",
            "auth::fingerprint",
            "auth::scram",
            "snapshot",
            "wire",
            "reason",
            "clock",
            "lanes::rate",
            "lanes::settings",
            "page",
            "tls",
        ],
    ),
    ("src/config/", &["config", "incident::exit", "lanes::settings", "reason"]),
    // A report is made of the record as it was written.
    ("src/cli/report/", &["cli", "incident::record", "page", "snapshot", "clock"]),
    ("src/cli/", &["cli", "admin::command", "admin::parse", "tls"]),
    // A rehearsal knows the wire and the clock, and nothing of the guard: what it learns of pgweir, the console says.
    ("src/drill/", &["drill", "wire", "clock", "page"]),
    (
        "src/app/",
        &[
            "app", "admin", "advise", "auth", "cli", "clock", "config", "drill", "headroom", "incident",
            "lanes", "leaks", "link", "listen", "prober", "reason", "snapshot", "tls", "upstream", "wire",
        ],
    ),
];

/// Pure places: no runtime, no sockets, no reader of the clock.
const PURE: &[&str] = &[
    "src/reason.rs",
    "src/snapshot/",
    "src/wire/",
    "src/advise/",
    "src/auth/",
    "src/lanes/",
    "src/leaks/",
    "src/upstream/roster.rs",
    "src/upstream/targets",
    "src/upstream/names.rs",
    "src/upstream/monitor/failing.rs",
    "src/link/session",
    "src/link/cycles.rs",
    "src/link/out.rs",
    "src/link/rollback.rs",
    "src/link/gate.rs",
    "src/link/heads.rs",
    "src/admin/parse.rs",
    "src/admin/tongue.rs",
    "src/admin/view.rs",
    "src/admin/command.rs",
    "src/incident/book.rs",
    "src/incident/exit.rs",
    "src/incident/exit/",
    "src/admin/http/credentials.rs",
    "src/admin/http/origin.rs",
    "src/headroom/mod.rs",
    "src/incident/growth.rs",
    "src/incident/history.rs",
    "src/incident/record.rs",
    "src/page/",
    "src/cli/report/html.rs",
    "src/cli/report/md.rs",
    "src/cli/top/columns.rs",
    "src/cli/top/model.rs",
    "src/cli/top/view.rs",
    "src/cli/verdict.rs",
    "src/drill/scenario/",
    "src/drill/schedule.rs",
    "src/drill/retry.rs",
    "src/drill/expect.rs",
    "src/drill/tally.rs",
    "src/drill/recovery.rs",
    "src/drill/odoo.rs",
];

const IMPURE: &[&str] = &[
    "tokio",
    "std::net::Tcp",
    "std::os::unix::net",
    "std::fs",
    "std::thread",
    "clock::now",
    "clock::wall_now",
    "tracing",
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable tree").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Code before the file's unit tests, which may import what they like.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a readable file");
    let of_module = |end: &usize| {
        let mut words = text[*end..].split_whitespace().skip(1).take(2);
        words.any(|word| word == "mod")
    };
    let end = text.match_indices("#[cfg(test)]").map(|(end, _)| end).find(of_module).unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn all() -> Vec<(String, String)> {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let shown = |path: &PathBuf| path.display().to_string();
    files
        .iter()
        .filter(|path| !shown(path).ends_with("tests.rs"))
        .map(|path| (shown(path), code(path)))
        .collect()
}

#[test]
fn everybody_imports_only_what_the_map_allows() {
    let mut wrong = Vec::new();
    for (path, code) in all() {
        if path == "src/lib.rs" || path == "src/main.rs" {
            continue;
        }
        let rule = RULES.iter().find(|(place, _)| path.starts_with(place));
        let (_, allowed) = rule
            .unwrap_or_else(|| panic!("{path} is on no map: give it a place in ARCHITECTURE.md and here"));
        for import in code.split("crate::").skip(1) {
            let end =
                import.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(import.len());
            let import = import[..end].trim_end_matches(':');
            if !allowed.iter().any(|place| import == *place || import.starts_with(&format!("{place}::"))) {
                wrong.push(format!("{path} imports {import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_places_know_no_runtime_no_sockets_and_no_clock() {
    let mut wrong = Vec::new();
    for (path, code) in all() {
        if PURE.iter().any(|place| path.starts_with(place)) {
            wrong.extend(
                IMPURE.iter().filter(|what| code.contains(**what)).map(|what| format!("{path}: {what}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
