//! Moments as text.

use crate::clock::WallMs;

/// Milliseconds since the epoch in UTC as RFC 3339 writes it: `2026-01-02T03:04:05.678Z`.
pub fn utc(at: WallMs) -> String {
    let mut out = String::with_capacity("2026-01-02T03:04:05.678Z".len());
    write_seconds(&mut out, at, 'T');
    out.push('.');
    let ms = at.0 % 1000;
    out.push(digit(ms / 100));
    two(&mut out, ms % 100);
    out.push('Z');
    out
}

/// The same as PgBouncer's tables have it: `2026-01-02 03:04:05 UTC`.
pub fn utc_seconds(at: WallMs) -> String {
    let mut out = String::with_capacity("2026-01-02 03:04:05 UTC".len());
    write_seconds(&mut out, at, ' ');
    out.push_str(" UTC");
    out
}

/// Digit by digit: tables have two of them in each of thousands of rows.
fn write_seconds(out: &mut String, at: WallMs, between: char) {
    let (days, second) = (at.0 / 86_400_000, at.0 / 1000 % 86_400);
    let (year, month, day) = civil(days);
    if year < 10_000 {
        two(out, year / 100);
        two(out, year % 100);
    } else {
        out.push_str(&year.to_string());
    }
    for (mark, number) in
        [('-', month), ('-', day), (between, second / 3600), (':', second / 60 % 60), (':', second % 60)]
    {
        out.push(mark);
        two(out, number);
    }
}

/// A number below 100.
fn two(out: &mut String, number: u64) {
    out.push(digit(number / 10));
    out.push(digit(number % 10));
}

/// A number below 10.
fn digit(number: u64) -> char {
    char::from(b'0' + (number % 10) as u8)
}

/// Year, month and day of a number of days since 1970-01-01, in the proleptic Gregorian calendar. Years are counted from March, so
/// that the leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let since_march_0 = days + 719_468;
    let (era, day_of_era) = (since_march_0 / 146_097, since_march_0 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// What [`utc`] wrote, back. None for anything else, a day that is in no calendar included.
pub fn from_utc(text: &str) -> Option<WallMs> {
    // "2026-01-02T03:04:05.678Z": every number at its place.
    let number = |place: std::ops::Range<usize>| text.get(place)?.parse::<u64>().ok();
    let days = days(number(0..4)?, number(5..7)?, number(8..10)?)?;
    let seconds = number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
    let at = WallMs(days.checked_mul(86_400_000)? + seconds * 1000 + number(20..23)?);
    (utc(at) == text).then_some(at)
}

/// The reverse of [`civil`], for dates from 1970 on.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month > 2 { year } else { year.checked_sub(1)? };
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

/// A moment in JSON, for `#[serde(with = "rfc3339")]`.
pub mod rfc3339 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{WallMs, from_utc, utc};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Ms(u64),
        Text(String),
    }

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    /// As [`utc`] writes it.
    pub fn serialize<S: Serializer>(at: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&utc(WallMs(*at)))
    }

    /// As [`utc`] writes it, or in ms since the epoch.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        match Written::deserialize(from)? {
            Written::Ms(at) => Ok(at),
            Written::Text(text) => {
                from_utc(&text).map(|at| at.0).ok_or_else(|| D::Error::custom("no moment in UTC"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_utc_and_read_back() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(WallMs(at)), text);
            assert_eq!(utc_seconds(WallMs(at)), format!("{} {} UTC", &text[..10], &text[11..19]));
            assert_eq!(from_utc(text), Some(WallMs(at)));
        }
        // Years of five digits are written, and not read.
        assert_eq!(utc(WallMs(253_402_300_800_000)), "10000-01-01T00:00:00.000Z");
        for day in 0..200_000 {
            let at = WallMs(day * 86_400_000 + 45_296_789);
            assert_eq!(from_utc(&utc(at)), Some(at), "day {day}");
        }
    }

    #[test]
    fn what_is_no_moment_is_not_read() {
        for text in [
            "",
            "2025-02-29T00:00:00.000Z",
            "2025-13-01T00:00:00.000Z",
            "2025-00-01T00:00:00.000Z",
            "2025-01-00T00:00:00.000Z",
            "1969-12-31T23:59:59.999Z",
            "0000-01-01T00:00:00.000Z",
            "2025-01-01T24:00:00.000Z",
            "2025-01-01T00:00:00.000+01:00",
            "2025-01-01 00:00:00.000Z",
            "2025-01-01T00:00:00Z",
            "2025-01-01T00:00:é0.00Z",
            "+025-01-01T00:00:00.000Z",
        ] {
            assert_eq!(from_utc(text), None, "{text}");
        }
    }
}
