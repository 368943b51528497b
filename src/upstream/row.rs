//! Columns of an answer: text in any encoding, points in time, and rows inside a row.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::types::array_from_sql;
use tokio_postgres::fallible_iterator::FallibleIterator;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

type Failure = Box<dyn Error + Sync + Send>;

/// Microseconds since 2000-01-01 ("Date/Time Types": an 8-byte integer on the wire), by PostgreSQL's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// A server's clock that was set back reads as no time.
    pub fn since(self, then: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(then.0)).unwrap_or(0))
    }

    /// So long before.
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        i64::from_sql(ty, raw).map(Self)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

impl ToSql for Timestamp {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        self.0.to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

/// Bytes of a text in whatever encoding its database has.
pub struct Raw<'a>(pub &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        Ok(Self(raw))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TEXT | Type::BYTEA)
    }
}

/// A row inside a row, as `record_send` writes it: the number of its columns, and of each the type, the length (-1: NULL) and the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    rest: &'a [u8],
}

impl<'a> FromSql<'a> for Record<'a> {
    /// Takes the bytes behind the number of columns; [`Self::column`] finds out where there are fewer.
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        let rest = raw.get(4..).ok_or("a row without a number of columns")?;
        Ok(Self { rest })
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::RECORD
    }
}

/// An array of rows, none of them NULL. (The library knows arrays of types with a name only.)
pub struct Records<'a>(pub Vec<Record<'a>>);

impl<'a> FromSql<'a> for Records<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        let rows = array_from_sql(raw)?.values();
        let read = |row: Option<&'a [u8]>| Record::from_sql(&Type::RECORD, row.ok_or("a NULL among rows")?);
        rows.map(read).collect().map(Self)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::RECORD_ARRAY
    }
}

impl<'a> Record<'a> {
    /// The next column; none where it is NULL.
    ///
    /// # Errors
    /// There is no further one, it is cut off, or of a type that `T` is not.
    pub fn column<T: FromSql<'a>>(&mut self) -> Result<Option<T>, Failure> {
        let oid = u32::from_be_bytes(self.four()?);
        let length = i32::from_be_bytes(self.four()?);
        let ty = Type::from_oid(oid).filter(T::accepts).ok_or_else(|| format!("a column of type {oid}"))?;
        // -1 is NULL.
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or("a row that was cut off")?;
        self.rest = rest;
        T::from_sql(&ty, bytes).map(Some)
    }

    /// The next column, which is never NULL.
    ///
    /// # Errors
    /// As [`Self::column`], and where it is.
    pub fn required<T: FromSql<'a>>(&mut self) -> Result<T, Failure> {
        self.column()?.ok_or_else(|| "a NULL where none can be".into())
    }

    fn four(&mut self) -> Result<[u8; 4], Failure> {
        let (four, rest) = self.rest.split_first_chunk().ok_or("a row that was cut off")?;
        self.rest = rest;
        Ok(*four)
    }
}

/// The text last seen in each column: neighbours mostly say the same, and share it.
#[derive(Default)]
pub struct Known(Vec<Arc<str>>);

impl Known {
    /// The text, shared with the one last seen in this column where it is the same. Bytes that are no UTF-8 are replaced.
    pub fn text(&mut self, column: usize, raw: Option<Raw<'_>>) -> Arc<str> {
        let raw = raw.map_or(&b""[..], |raw| raw.0);
        if self.0.len() <= column {
            self.0.resize_with(column + 1, || Arc::from(""));
        }
        let last = &mut self.0[column];
        if last.as_bytes() != raw {
            *last = String::from_utf8_lossy(raw).into();
        }
        last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_encoding_is_shown_not_refused() {
        let mut known = Known::default();
        assert_eq!(&*known.text(3, Some(Raw(b"caf\xe9"))), "caf\u{fffd}");
        assert_eq!(&*known.text(3, None), "");
    }

    #[test]
    fn neighbours_share_a_text_and_columns_do_not() {
        let mut known = Known::default();
        let first = known.text(1, Some(Raw(b"odoo")));
        assert!(Arc::ptr_eq(&first, &known.text(1, Some(Raw(b"odoo")))));
        assert_eq!(&*known.text(0, Some(Raw(b"postgres"))), "postgres");
        assert_eq!(&*known.text(1, Some(Raw(b"odoo2"))), "odoo2");
    }

    #[test]
    fn ages_of_a_clock_set_back_are_zero() {
        assert_eq!(Timestamp(5).since(Timestamp(10)), Duration::ZERO);
        assert_eq!(Timestamp(1_500_000).since(Timestamp(0)), Duration::from_millis(1500));
        // "infinity" and its opposite.
        assert_eq!(Timestamp(i64::MIN).since(Timestamp(i64::MAX)), Duration::ZERO);
        assert_eq!(Timestamp(i64::MIN).before(Duration::MAX), Timestamp(i64::MIN));
    }

    fn record(bytes: &[u8]) -> Record<'_> {
        Record::from_sql(&Type::RECORD, bytes).expect("a record")
    }

    #[test]
    fn a_record_is_read_column_by_column_up_to_its_end() {
        let bytes =
            [&[0, 0, 0, 2][..], &[0, 0, 0, 23, 0, 0, 0, 4, 0, 0, 1, 2], &[0, 0, 0, 25, 255, 255, 255, 255]]
                .concat();
        let mut row = record(&bytes);
        assert_eq!(row.required::<i32>().expect("a pid"), 258);
        assert!(row.column::<Raw<'_>>().expect("a NULL").is_none());
        assert!(row.column::<i32>().is_err(), "there is no third one");
    }

    #[test]
    fn an_array_of_records_is_read_whatever_its_length() {
        let array = |elements: &[&[u8]]| {
            let count = u32::try_from(elements.len()).expect("few");
            // Dimensions, no NULLs, of record, as many, from 1.
            let head =
                [[0, 0, 0, 1], [0; 4], 2249_u32.to_be_bytes(), count.to_be_bytes(), [0, 0, 0, 1]].concat();
            let elements = elements.iter().flat_map(|element| {
                let length = u32::try_from(element.len()).expect("short").to_be_bytes();
                [&length[..], element].concat()
            });
            head.into_iter().chain(elements).collect::<Vec<u8>>()
        };
        let read =
            |raw: &[u8]| Records::from_sql(&Type::RECORD_ARRAY, raw).map(|records| records.0.len()).ok();
        let row = [0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 4, 0, 0, 1, 2];
        assert_eq!(read(&array(&[&row, &row])), Some(2));
        assert_eq!(read(&array(&[])), Some(0));
        assert_eq!(
            read(&[[0; 4], [0; 4], 2249_u32.to_be_bytes()].concat()),
            Some(0),
            "PostgreSQL's empty array"
        );
        assert_eq!(read(&array(&[&row, &[0]])), None, "an element that is no row");
        let mut null = array(&[&row]);
        null.truncate(20);
        null.extend([255; 4]);
        assert_eq!(read(&null), None, "NULL");
        let whole = array(&[&row, &row]);
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_record_cut_off_or_of_other_types_is_an_error_and_no_panic() {
        let whole = [0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 4, 0, 0, 1, 2];
        for length in 0..whole.len() {
            let read =
                Record::from_sql(&Type::RECORD, &whole[..length]).and_then(|mut row| row.required::<i32>());
            assert!(read.is_err(), "{length} bytes");
        }
        assert!(record(&whole).column::<bool>().is_err(), "another type");
        assert!(record(&[0, 0, 0, 1, 0, 0, 0, 23, 255, 255, 255, 255]).required::<i32>().is_err(), "NULL");
        assert!(
            record(&[0, 0, 0, 1, 0, 0, 0, 23, 127, 255, 255, 255, 1]).required::<i32>().is_err(),
            "longer than all"
        );
    }
}
