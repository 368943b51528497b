//! The heads of messages: how much of one must be there, what it says, and what may become of the message. Pure.

use super::gate::Statement;
use crate::wire::frame::split_cstr;

/// What becomes of a client's message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Forward,
    Drop,
    Replace(Vec<u8>),
    Wait,
    Terminate,
}

/// Bytes of a message's body that may be waited for before it is judged.
pub const HEAD_MAX: usize = 4096;

/// Body bytes that must be there before a client's message is judged.
pub(super) fn head_needed(tag: u8, body_len: u32) -> usize {
    match tag {
        b'Q' | b'P' | b'B' | b'E' | b'C' => (body_len as usize).min(HEAD_MAX),
        _ => 0,
    }
}

/// Body bytes that must be there before a reply is judged.
pub(super) fn reply_head_needed(tag: u8, body_len: u32) -> usize {
    match tag {
        b'Z' | b'C' | b'E' | b'S' => (body_len as usize).min(HEAD_MAX),
        _ => 0,
    }
}

/// Portal and statement name of a Bind.
pub(super) fn bind_names(tag: u8, body: &[u8]) -> Option<(&[u8], &[u8])> {
    if tag != b'B' {
        return None;
    }
    let (portal, rest) = split_cstr(body)?;
    let (statement, _) = split_cstr(rest)?;
    Some((portal, statement))
}

/// The statement in a Query, Parse, Bind or FunctionCall; `None` for every other message.
pub(super) fn read_statement(tag: u8, body: &[u8], complete: bool) -> Option<Statement<'_>> {
    match tag {
        b'Q' => {
            let (text, complete) = split_cstr(body).map_or((body, false), |(text, _)| (text, complete));
            Some(Statement::Text { text, complete, simple: true, name: b"" })
        }
        b'P' => {
            let (name, rest) = split_cstr(body).unwrap_or((b"", body));
            let (text, complete) = split_cstr(rest).map_or((rest, false), |(text, _)| (text, true));
            Some(Statement::Text { text, complete, simple: false, name })
        }
        b'B' => Some(Statement::Prepared(bind_names(tag, body).map_or(b"".as_slice(), |(_, name)| name))),
        b'F' => Some(Statement::Function),
        _ => None,
    }
}
