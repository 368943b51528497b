//! A configuration file with the suggested figures in it: comments, order and everything else stay. Pure.

use toml_edit::{ArrayOfTables, DocumentMut, Item, TableLike, Value};

use super::suggest::{Advice, Setting, Suggestion};

/// The file's text with every change in it.
///
/// # Errors
/// The parser's words, or a lane or application that is to be changed and is not in the file.
pub fn apply(text: &str, suggestion: &Suggestion) -> Result<String, Vec<String>> {
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| vec![error.to_string()])?;
    let mut missing = Vec::new();
    let lanes = suggestion.lanes.iter().map(|one| ("lane", &one.lane, &one.advice[..]));
    let applications = suggestion
        .applications
        .iter()
        .map(|one| ("application", &one.application, std::slice::from_ref(&one.advice)));
    for (kind, name, advice) in lanes.chain(applications) {
        for change in advice.iter().filter(|advice| advice.is_change()) {
            let found = document.get_mut(kind).and_then(Item::as_array_of_tables_mut);
            let put = found.is_some_and(|tables| change_in(tables, name, change));
            if !put {
                missing.push(format!("{kind} {name}: {} cannot be set in this file", change.key));
            }
        }
    }
    if missing.is_empty() { Ok(document.to_string()) } else { Err(missing) }
}

/// Every table of that name: an application may have several.
fn change_in(tables: &mut ArrayOfTables, name: &str, change: &Advice) -> bool {
    let mut put = false;
    for table in tables.iter_mut().filter(|table| table.get("name").and_then(Item::as_str) == Some(name)) {
        put |= match change.key.split_once('.') {
            None => set(table, &change.key, &change.suggested),
            Some((section, key)) => match table.get_mut(section).and_then(Item::as_table_like_mut) {
                // A policy with a cap and no reset is reset at its cap.
                Some(section)
                    if key == "reset" && !section.contains_key(key) && section.contains_key("cap") =>
                {
                    true
                }
                Some(section) => set(section, key, &change.suggested),
                None => false,
            },
        };
    }
    put
}

fn set(table: &mut dyn TableLike, key: &str, new: &Setting) -> bool {
    let mut value = match new {
        Setting::Count(count) => Value::from(i64::from(*count)),
        Setting::Percent(percent) if percent.fract() == 0.0 => Value::from(*percent as i64),
        Setting::Percent(percent) => Value::from(*percent),
        Setting::Time(time) => Value::from(time.as_str()),
    };
    match table.get_mut(key) {
        Some(item) => match item.as_value_mut() {
            Some(known) => {
                *value.decor_mut() = known.decor().clone();
                *known = value;
                true
            }
            None => false,
        },
        None => {
            table.insert(key, Item::Value(value));
            true
        }
    }
}
