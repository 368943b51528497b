//! Rows for people and for programs. Pure.

use serde_json::{Map, Number, Value};

/// How a column is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// As text.
    #[default]
    Text,
    /// As a number.
    Number,
    /// As true or false.
    Bool,
}

impl Kind {
    /// By the name of a PostgreSQL type.
    pub fn of_type(name: &str) -> Self {
        match name {
            "int2" | "int4" | "int8" | "oid" | "float4" | "float8" | "numeric" => Self::Number,
            "bool" => Self::Bool,
            _ => Self::Text,
        }
    }
}

/// An answer of the console: values as text, none is NULL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Column names.
    pub names: Vec<String>,
    /// One per column; what is missing is text.
    pub kinds: Vec<Kind>,
    /// Rows.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// The value of a column in a row.
    pub fn get(&self, row: usize, name: &str) -> Option<&str> {
        let column = self.names.iter().position(|other| other == name)?;
        self.rows.get(row)?.get(column)?.as_deref()
    }

    /// Only these columns, in this order; those that are not there are left out.
    pub fn select(&self, names: &[&str]) -> Self {
        let columns: Vec<usize> =
            names.iter().filter_map(|name| self.names.iter().position(|other| other == name)).collect();
        Self {
            names: columns.iter().map(|n| self.names[*n].clone()).collect(),
            kinds: columns.iter().map(|n| self.kind(*n)).collect(),
            rows: self
                .rows
                .iter()
                .map(|row| columns.iter().map(|n| row.get(*n).cloned().flatten()).collect())
                .collect(),
        }
    }

    fn kind(&self, column: usize) -> Kind {
        self.kinds.get(column).copied().unwrap_or_default()
    }

    /// Aligned columns with a heading: text to the left, numbers to the right. Without rows only the heading.
    pub fn aligned(&self) -> String {
        let cells: Vec<Vec<String>> = self.rows.iter().map(|row| self.printable(row)).collect();
        let width = |column: usize| {
            let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            longest.max(self.names[column].chars().count())
        };
        let widths: Vec<usize> = (0..self.names.len()).map(width).collect();
        let mut out = String::new();
        for row in std::iter::once(&self.names).chain(&cells) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let width = *width;
                match self.kind(column) {
                    Kind::Number => line.push_str(&format!("{cell:>width$}")),
                    _ => line.push_str(&format!("{cell:<width$}")),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    fn printable(&self, row: &[Option<String>]) -> Vec<String> {
        let cell = |column| row.get(column).and_then(Option::as_deref).unwrap_or("");
        (0..self.names.len()).map(|column| printable(cell(column))).collect()
    }

    /// One object per row.
    pub fn objects(&self) -> Vec<Value> {
        let object = |row: &Vec<Option<String>>| {
            let value = |column: usize| row.get(column).and_then(Option::as_deref);
            let fields = self.names.iter().enumerate();
            Value::Object(
                fields.map(|(n, name)| (name.clone(), json(self.kind(n), value(n)))).collect::<Map<_, _>>(),
            )
        };
        self.rows.iter().map(object).collect()
    }
}

/// On one line and harmless to a terminal: application names and statements are whatever a client sends.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn json(kind: Kind, value: Option<&str>) -> Value {
    let Some(text) = value else { return Value::Null };
    match kind {
        Kind::Text => text.into(),
        Kind::Bool => (text == "t" || text == "true").into(),
        Kind::Number => number(text).map_or_else(|| text.into(), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let whole =
        text.parse::<i64>().ok().map(Number::from).or_else(|| text.parse::<u64>().ok().map(Number::from));
    whole.or_else(|| Number::from_f64(text.parse().ok()?))
}

/// JSON as it is printed: indented, ended by a newline.
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Table {
        let row = |cells: [Option<&str>; 4]| cells.map(|cell| cell.map(str::to_owned)).to_vec();
        Table {
            names: ["lane", "slots", "percent", "full"].map(str::to_owned).to_vec(),
            kinds: vec![Kind::Text, Kind::Number, Kind::Number, Kind::Bool],
            rows: vec![
                row([Some("web"), Some("7"), Some("82.5"), Some("f")]),
                row([Some("réports"), Some("12"), None, Some("t")]),
            ],
        }
    }

    #[test]
    fn people_get_columns() {
        let expected = "\
lane     slots  percent  full
web          7     82.5  f
réports     12           t
";
        assert_eq!(table().aligned(), expected);
    }

    #[test]
    fn programs_get_numbers_as_numbers() {
        let expected = json!([
            {"lane": "web", "slots": 7, "percent": 82.5, "full": false},
            {"lane": "réports", "slots": 12, "percent": null, "full": true},
        ]);
        assert_eq!(Value::Array(table().objects()), expected);
        assert_eq!(json(Kind::Number, Some("NaN")), json!("NaN"));
        assert_eq!(json(Kind::Number, Some("18446744073709551615")), json!(u64::MAX));
    }

    #[test]
    fn a_client_cannot_steer_the_operators_terminal() {
        let mut table = table();
        table.rows[0][0] = Some("a\u{1b}[2J\nb".into());
        assert!(table.aligned().contains("a [2J b"));
        assert_eq!(table.aligned().lines().count(), 3);
    }

    #[test]
    fn columns_are_picked_by_name() {
        let picked = table().select(&["slots", "missing", "lane"]);
        assert_eq!(picked.names, ["slots", "lane"]);
        assert_eq!(
            (picked.get(1, "lane"), picked.get(1, "percent"), picked.get(2, "lane")),
            (Some("réports"), None, None)
        );
    }

    #[test]
    fn rows_shorter_than_the_heading_do_no_harm() {
        let table = Table { rows: vec![vec![Some("web".into())]], ..table() };
        assert_eq!(table.objects()[0]["slots"], Value::Null);
        assert!(table.aligned().ends_with("web\n"));
    }
}
