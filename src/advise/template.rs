//! The shipped config/odoo.toml: the lanes and their rules stand there and nowhere else. Pure.

use toml_edit::{DocumentMut, Item, Table};

/// The configuration that Odoo's lanes are taken from.
pub const SHIPPED: &str = include_str!("../../config/odoo.toml");

/// What a lane has in the template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// Its quota.
    pub quota: u32,
    /// Its reserve.
    pub reserve: u32,
    /// Whether it is no part of what the application's lanes share: protected.
    pub apart: bool,
}

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    document: DocumentMut,
    lanes: Vec<Lane>,
}

impl Template {
    /// The shipped one.
    ///
    /// # Errors
    /// The parser's words: a bug of the build, which tests exclude.
    pub fn shipped() -> Result<Self, String> {
        Self::parse(SHIPPED)
    }

    /// Reads a template.
    ///
    /// # Errors
    /// The parser's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
        let tables = document.get("lane").and_then(Item::as_array_of_tables);
        let lanes = tables.into_iter().flat_map(|tables| tables.iter()).map(lane).collect();
        Ok(Self { document, lanes })
    }

    /// In the order of the file.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// To be filled in.
    pub fn document(&self) -> DocumentMut {
        self.document.clone()
    }
}

fn lane(table: &Table) -> Lane {
    let number = |key: &str| {
        let value = table.get(key).and_then(Item::as_integer);
        value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
    };
    let is_protected = table.get("protected").and_then(Item::as_bool).unwrap_or(false);
    Lane {
        name: table.get("name").and_then(Item::as_str).unwrap_or_default().to_owned(),
        quota: number("quota"),
        reserve: number("reserve"),
        apart: is_protected,
    }
}
