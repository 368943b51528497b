//! Tables as messages: RowDescription and DataRow, in text and binary format. Pure.

use super::view::{Column, Kind, Value};
use crate::wire::reply;

/// RowDescription; `binary` says per column which format the rows will have, and is empty where it is not known yet.
pub fn row_description(out: &mut Vec<u8>, columns: &[Column], binary: &[bool]) {
    reply::message(out, b'T', |out| {
        out.extend_from_slice(&count(columns.len()));
        for (at, column) in columns.iter().enumerate() {
            reply::cstr(out, column.name);
            // No table, no column number.
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&column.kind.oid().to_be_bytes());
            out.extend_from_slice(&column.kind.size().to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&i16::from(is_binary(binary, at)).to_be_bytes());
        }
    });
}

/// DataRow.
pub fn data_row(out: &mut Vec<u8>, columns: &[Column], row: &[Value], binary: &[bool]) {
    reply::message(out, b'D', |out| {
        out.extend_from_slice(&count(columns.len()));
        for (at, (column, value)) in columns.iter().zip(row).enumerate() {
            let length_at = out.len();
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            if *value == Value::Null {
                continue;
            }
            if is_binary(binary, at) {
                write_binary(out, column.kind, value);
            } else {
                write_text(out, value);
            }
            let len = i32::try_from(out.len() - length_at - 4).expect("a value of ours is far below 2 GiB");
            out[length_at..length_at + 4].copy_from_slice(&len.to_be_bytes());
        }
    });
}

fn is_binary(binary: &[bool], at: usize) -> bool {
    binary.get(at).copied().unwrap_or(false)
}

fn count(columns: usize) -> [u8; 2] {
    i16::try_from(columns).expect("a table of ours has few columns").to_be_bytes()
}

/// PostgreSQL's text format. Nothing is made on the way where there may be thousands of rows of it.
fn write_text(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Text(text) => write_string(out, text),
        Value::Int(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
        _ => write_string(out, &value.text().unwrap_or_default()),
    }
}

/// A string; a NUL, which PostgreSQL's text has not, is left out.
fn write_string(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = memchr::memchr(0, rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// PostgreSQL's binary formats: integers and floats big-endian, bool one byte, text its bytes.
fn write_binary(out: &mut Vec<u8>, kind: Kind, value: &Value) {
    match (kind, value) {
        (Kind::Int4, Value::Int(value)) => {
            let value = i32::try_from(*value).unwrap_or(if *value < 0 { i32::MIN } else { i32::MAX });
            out.extend_from_slice(&value.to_be_bytes());
        }
        (Kind::Numeric, Value::Int(value)) => write_numeric(out, *value),
        (_, Value::Int(value)) => out.extend_from_slice(&value.to_be_bytes()),
        (_, Value::Float(value)) => out.extend_from_slice(&value.to_be_bytes()),
        (_, Value::Bool(value)) => out.push(u8::from(*value)),
        (_, Value::Text(value)) => write_string(out, value),
        (_, Value::Null) => {}
    }
}

/// A whole numeric: how many digits to the base of 10,000 there are, the first one's weight, sign, no decimals, then the digits.
fn write_numeric(out: &mut Vec<u8>, value: i64) {
    const BASE: u64 = 10_000;
    let mut digits = Vec::new();
    let mut rest = value.unsigned_abs();
    while rest > 0 {
        digits.push((rest % BASE) as u16);
        rest /= BASE;
    }
    let weight = (digits.len() as u16).saturating_sub(1);
    let sign: u16 = if value < 0 { 0x4000 } else { 0 };
    let head = [digits.len() as u16, weight, sign, 0];
    out.extend(head.iter().chain(digits.iter().rev()).flat_map(|word| word.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] = [
        Column { name: "a", kind: Kind::Int4 },
        Column { name: "b", kind: Kind::Int8 },
        Column { name: "c", kind: Kind::Float8 },
        Column { name: "d", kind: Kind::Text },
    ];

    fn row() -> Vec<Value> {
        vec![Value::Int(7), Value::Int(-1), Value::Float(1.5), Value::Text("x\0y".into())]
    }

    #[test]
    fn values_are_written_in_the_format_asked_for() {
        let mut out = Vec::new();
        data_row(&mut out, &COLUMNS, &row(), &[true, true, true, false]);
        let want: Vec<u8> = [
            &[0, 4][..],
            &[0, 0, 0, 4, 0, 0, 0, 7],
            &[0, 0, 0, 8, 255, 255, 255, 255, 255, 255, 255, 255],
            &[0, 0, 0, 8, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0],
            b"\0\0\0\x02xy",
        ]
        .concat();
        assert_eq!(&out[5..], want);
    }

    #[test]
    fn a_numeric_is_written_in_digits_to_the_base_of_10000() {
        for (value, want) in [
            (0, vec![0, 0, 0, 0]),
            (7, vec![1, 0, 0, 0, 7]),
            (-12_345, vec![2, 1, 0x4000, 0, 1, 2345]),
            (100_000_000, vec![3, 2, 0, 0, 1, 0, 0]),
            (i64::MAX, vec![5, 4, 0, 0, 922, 3372, 368, 5477, 5807]),
        ] {
            let mut out = Vec::new();
            write_numeric(&mut out, value);
            assert_eq!(
                out,
                want.iter().flat_map(|word: &u16| word.to_be_bytes()).collect::<Vec<_>>(),
                "{value}"
            );
        }
    }

    #[test]
    fn null_has_no_bytes_in_either_format() {
        for binary in [false, true] {
            let mut out = Vec::new();
            data_row(&mut out, &COLUMNS[..1], &[Value::Null], &[binary]);
            assert_eq!(out, b"D\0\0\0\x0a\0\x01\xff\xff\xff\xff");
        }
    }
}
