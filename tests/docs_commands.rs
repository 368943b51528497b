//! What README.md, docs/ and the alerts tell people to type is what the program takes: commands of the command line, statements of the console.
//! tests/postgres/test_docs.py runs whole blocks; this looks at every mention.

#![allow(clippy::panic, reason = "tests say what they found")]

use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use pgweir::admin::parse::script;
use pgweir::cli::args::Cli;
use pgweir::reason::Reason;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let docs = std::fs::read_dir(root().join("docs")).expect("docs/");
    pages.extend(
        docs.filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "md")),
    );
    pages.sort();
    pages
}

/// Text between backticks, and the lines of blocks, of all pages: with the page's name.
fn code() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in pages() {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a page");
        let mut fenced: Option<String> = None;
        for line in text.lines() {
            let line = line.trim_start();
            match (&fenced, line.strip_prefix("```")) {
                (None, Some(language)) => fenced = Some(language.to_owned()),
                (Some(_), Some(_)) => fenced = None,
                (Some(language), None) if language == "sh" => found.push((name.clone(), line.to_owned())),
                (Some(_), None) => {
                    found.extend(line.strip_prefix("$ ").map(|command| (name.clone(), command.to_owned())))
                }
                (None, None) => found
                    .extend(line.split('`').skip(1).step_by(2).map(|span| (name.clone(), span.to_owned()))),
            }
        }
    }
    found
}

/// What stands for something of the reader's, as the reader might write it.
fn filled(word: &str) -> String {
    match word {
        "ID" | "N" | "PID" | "n" | "id" => "7",
        "LANE" | "NAME" | "name" => "web",
        "FILE" | "…" => "file",
        "TIME" | "time" => "5m",
        "HOST:PORT" => "127.0.0.1:6433",
        "SCENARIO" => "runbook",
        other => return other.trim_end_matches([',', ';']).to_owned(),
    }
    .to_owned()
}

/// A shell's words, as far as these pages need it: quotes, and what follows `|`, `>`, `#`, `&&` or `;` is another matter.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (None, '|' | '>' | '#' | '&' | ';' | ')') => break,
            (None, ' ') => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (None, c) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn every_command_line_in_the_pages_is_one() {
    let known: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let mut seen = 0;
    for (page, text) in code() {
        for (at, _) in text.match_indices("pgweir ") {
            let before = &text[..at];
            let begins = before.is_empty()
                || before.ends_with("sudo ")
                || before.ends_with("&& ")
                || before.ends_with("./")
                || before.ends_with("release/");
            let all = words(&text[at + "pgweir ".len()..]);
            let is_command = all.first().is_some_and(|word| known.contains(word) || word.starts_with("--"));
            if !begins || (!is_command && !before.is_empty()) || all.is_empty() {
                continue;
            }
            if all[0] == "help" || all[0].contains('…') || text.contains('[') {
                continue;
            }
            let line = std::iter::once("pgweir".to_owned()).chain(all.iter().map(|word| filled(word)));
            if let Err(error) = Cli::try_parse_from(line) {
                use clap::error::ErrorKind;
                // `kill --pid` names an option, `init` a command.
                let is_short = error.kind() == ErrorKind::MissingRequiredArgument
                    || error.to_string().contains("but none was supplied");
                assert!(is_short || error.exit_code() == 0, "{page}: `{text}`: {error}");
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn every_statement_in_the_pages_is_one() {
    let mut seen = 0;
    for (page, text) in code() {
        let begins = [
            "SHOW ",
            "FREEZE ",
            "RESUME ",
            "PAUSE LANE",
            "RESET CLIENT ",
            "KILL CLIENT ",
            "DRAIN LANE ",
            "SET LANE ",
        ];
        let is_pgbouncers =
            ["SHOW FDS", "SHOW MEM", "SHOW SOCKETS", "RESUME db"].iter().any(|s| text.starts_with(s));
        let is_postgres =
            text.starts_with("SHOW application_name") || text.contains('…') || text.contains('[');
        if !begins.iter().any(|word| text.starts_with(word)) || is_pgbouncers || is_postgres {
            continue;
        }
        let filled: Vec<String> = text.split(' ').map(filled).collect();
        if let Err(failure) = script(&filled.join(" ")) {
            let bare = script(&format!("{} web", text.trim())).is_ok()
                || script(&format!("{} 7", text.trim())).is_ok();
            assert!(bare, "{page}: `{text}`: {failure:?}");
        }
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn every_reason_has_its_answer_in_the_faq() {
    let page = std::fs::read_to_string(root().join("docs/faq.md")).expect("docs/faq.md");
    let mut below = "";
    let mut answers = Vec::new();
    for section in page.split("\n#").skip(1) {
        let (heading, body) = section.split_once('\n').expect("a heading and its text");
        if let Some(label) = heading.strip_prefix("## `").and_then(|label| label.strip_suffix('`')) {
            assert!(body.trim().len() > 30, "{label} is not answered");
            answers.push((below, label));
        } else {
            below = heading.trim_start_matches(['#', ' ']).split(':').next().unwrap_or_default();
        }
    }
    for reason in Reason::ALL {
        let found = answers.iter().filter(|(_, label)| *label == reason.label()).collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "docs/faq.md: {}", reason.label());
        assert_eq!(found[0].0, reason.sqlstate().as_str(), "{}: below another SQLSTATE", reason.label());
    }
    assert_eq!(answers.len(), Reason::ALL.len(), "an answer to a reason that is gone");
}
