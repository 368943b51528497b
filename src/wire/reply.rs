//! Messages pgweir itself sends: to clients, and injected upstream.

use crate::reason::{Reason, Refusal, Severity, SqlState};

/// Appends a message: type byte, length, and what `body` writes.
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = u32::try_from(out.len() - at).expect("a message of our own is far below 4 GiB");
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends `text` and a NUL; an inner NUL would end the string early and is dropped.
pub fn cstr(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().filter(|b| *b != 0));
    out.push(0);
}

/// ErrorResponse (or NoticeResponse with `tag` `b'N'`) with the given fields.
fn report(out: &mut Vec<u8>, tag: u8, severity: &str, state: SqlState, text: &str, detail: &str, hint: &str) {
    message(out, tag, |out| {
        for (field, value) in [(b'S', severity), (b'V', severity), (b'C', state.as_str())] {
            out.push(field);
            cstr(out, value);
        }
        out.push(b'M');
        cstr(out, text);
        for (field, value) in [(b'D', detail), (b'H', hint)] {
            if !value.is_empty() {
                out.push(field);
                cstr(out, value);
            }
        }
        out.push(0);
    });
}

/// The error of a refusal: `pgweir: ` and its reason's text, figures as DETAIL, the next command as HINT.
pub fn refusal(out: &mut Vec<u8>, refusal: &Refusal) {
    refusal_as(out, refusal, refusal.reason.sqlstate());
}

/// The same with another SQLSTATE than the reason's (a lane's `sqlstate`).
pub fn refusal_as(out: &mut Vec<u8>, refusal: &Refusal, state: SqlState) {
    let text = format!("pgweir: {}", refusal.reason.text());
    report(out, b'E', refusal.reason.severity().word(), state, &text, &refusal.detail, &refusal.hint);
}

/// A bare error of the console.
pub fn error(out: &mut Vec<u8>, severity: Severity, state: SqlState, text: &str, hint: &str) {
    report(out, b'E', severity.word(), state, &format!("pgweir: {text}"), "", hint);
}

/// A notice.
pub fn notice(out: &mut Vec<u8>, text: &str) {
    report(out, b'N', "NOTICE", SqlState(*b"00000"), text, "", "");
}

/// Shorthand for a refusal without figures.
pub fn plain_refusal(out: &mut Vec<u8>, reason: Reason) {
    refusal(out, &Refusal::new(reason, "", ""));
}

/// NegotiateProtocolVersion: protocol 3.`minor` is spoken, and these options are not.
pub fn negotiate_protocol_version(out: &mut Vec<u8>, minor: u16, unknown: &[String]) {
    message(out, b'v', |out| {
        out.extend_from_slice(&(3 << 16 | u32::from(minor)).to_be_bytes());
        // A startup packet of 10,000 bytes has room for far fewer than 2^32 names.
        out.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(0).to_be_bytes());
        unknown.iter().for_each(|name| cstr(out, name));
    });
}

/// ReadyForQuery with a transaction status: `b'I'`, `b'T'` or `b'E'`.
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    message(out, b'Z', |out| out.push(status));
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        cstr(out, name);
        cstr(out, value);
    });
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| cstr(out, tag));
}

/// BackendKeyData: 4 bytes of key for protocol 3.0, up to 256 for 3.2.
pub fn backend_key_data(out: &mut Vec<u8>, pid: i32, key: &[u8]) {
    message(out, b'K', |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(key);
    });
}

/// A simple Query.
pub fn query(out: &mut Vec<u8>, sql: &str) {
    message(out, b'Q', |out| cstr(out, sql));
}

/// Terminate.
pub const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// CancelRequest (no type byte; code 80877102).
pub fn cancel_request(pid: i32, key: &[u8]) -> Vec<u8> {
    let len = u32::try_from(12 + key.len()).expect("a cancel key has at most 256 bytes");
    let mut out = Vec::with_capacity(12 + key.len());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&super::startup::CANCEL_CODE.to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(key);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_all_its_fields() {
        let mut out = Vec::new();
        refusal(&mut out, &Refusal::new(Reason::LaneFull, "8 of 8", "SHOW LANES"));
        let text = String::from_utf8_lossy(&out[5..]).into_owned();
        assert_eq!(out[0], b'E');
        assert_eq!(u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize, out.len() - 1);
        for part in ["SFATAL\0", "C53300\0", "Mpgweir: ", "D8 of 8\0", "HSHOW LANES\0"] {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
    }
}
