//! Scenarios in a line each, and properties over random streams and splits.

use proptest::prelude::*;

use super::super::heads::HEAD_MAX;
use super::*;

/// Records what the session tells and asks; `hold` makes it wait at the begin of transactions.
#[derive(Debug, Default, Clone, PartialEq)]
struct Log {
    told: Vec<String>,
    hold: bool,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn name(statement: Statement<'_>) -> String {
    match statement {
        Statement::Text { text: t, complete, simple, name } => {
            let cut = if complete { "" } else { "…" };
            format!("{}{}{cut}", if simple { String::new() } else { format!("{}:", text(name)) }, text(t))
        }
        Statement::Prepared(n) => format!("bind {}", text(n)),
        Statement::Function => "function".to_owned(),
    }
}

impl Gate for Log {
    fn request(&mut self, begins: bool, statement: Statement<'_>) -> Word {
        if begins && self.hold {
            return Word::Wait;
        }
        self.told.push(format!("{} {}", if begins { "begin" } else { "request" }, name(statement)));
        Word::Go
    }
    fn statement(&mut self, statement: Statement<'_>) {
        self.told.push(format!("statement {}", name(statement)));
    }
    fn command(&mut self, tag: &[u8]) {
        self.told.push(format!("command {}", text(tag)));
    }
    fn error(&mut self, _body: &[u8]) {
        self.told.push("error".to_owned());
    }
    fn parameter(&mut self, name: &[u8], value: &[u8]) {
        self.told.push(format!("parameter {}={}", text(name), text(value)));
    }
    fn notification(&mut self) {
        self.told.push("notification".to_owned());
    }
    fn ready(&mut self, status: u8, quiet: bool) {
        self.told.push(format!("ready {} {quiet}", status as char));
    }
    fn rolled_back(&mut self, as_expected: bool) {
        self.told.push(format!("rolled back {as_expected}"));
    }
}

/// A session between two byte streams.
#[derive(Debug, Default)]
struct Pair {
    session: Session,
    log: Log,
    client_rest: Vec<u8>,
    upstream_rest: Vec<u8>,
    to_upstream: Vec<u8>,
    to_client: Vec<u8>,
    waits: bool,
    terminated: bool,
}

impl Pair {
    fn client(&mut self, bytes: &[u8]) -> &mut Self {
        let mut input = std::mem::take(&mut self.client_rest);
        input.extend_from_slice(bytes);
        let (mut spare, mut aside) = (Vec::new(), Vec::new());
        let mut out = Out::new(&input, &mut spare);
        let progress = self.session.client(&input, &mut out, &mut aside, &mut self.log).expect("well-formed");
        self.to_upstream.extend_from_slice(out.bytes());
        self.to_client.extend_from_slice(&aside);
        self.waits = progress.waits;
        self.terminated |= progress.terminated;
        self.client_rest = input[progress.taken..].to_vec();
        self
    }

    fn upstream(&mut self, bytes: &[u8]) -> &mut Self {
        let mut input = std::mem::take(&mut self.upstream_rest);
        input.extend_from_slice(bytes);
        let (mut spare, mut aside) = (Vec::new(), Vec::new());
        let mut out = Out::new(&input, &mut spare);
        let progress =
            self.session.upstream(&input, &mut out, &mut aside, &mut self.log).expect("well-formed");
        self.to_client.extend_from_slice(out.bytes());
        self.to_upstream.extend_from_slice(&aside);
        self.upstream_rest = input[progress.taken..].to_vec();
        if self.waits {
            self.client(b"");
        }
        self
    }

    /// What went to the client since the last call: type bytes, with tag, status or SQLSTATE.
    fn seen(&mut self) -> Vec<String> {
        summary(&std::mem::take(&mut self.to_client))
    }

    /// What went upstream since the last call.
    fn sent(&mut self) -> Vec<String> {
        summary(&std::mem::take(&mut self.to_upstream))
    }

    fn in_transaction() -> Self {
        let mut pair = Self::default();
        pair.client(&q("begin")).upstream(&[c("BEGIN"), z('T')].concat());
        pair.to_client.clear();
        pair.to_upstream.clear();
        pair
    }

    /// A transaction that has been rolled back as a leak.
    fn reset() -> Self {
        let mut pair = Self::in_transaction();
        let mut injected = Vec::new();
        assert!(pair.session.reset(ours(), &mut injected));
        assert_eq!(summary(&injected), ["Q ROLLBACK AND CHAIN; RELEASE SAVEPOINT pgweir_reset"]);
        pair.upstream(&[c("ROLLBACK"), e("ERROR", "3B001"), z('E')].concat());
        assert_eq!(pair.seen(), Vec::<String>::new(), "nothing of it reaches the client");
        assert!(pair.log.told.contains(&"rolled back true".to_owned()));
        pair
    }
}

fn summary(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while let Ok(Some(header)) = Header::read(bytes) {
        let body = &bytes[5..header.total_len()];
        let first = split_cstr(body).map_or(body, |(s, _)| s);
        let tag = header.tag as char;
        found.push(match header.tag {
            b'E' if body.first() == Some(&b'S') => {
                let at = body.windows(2).position(|w| w == b"\0C").expect("a SQLSTATE");
                format!("E {}", text(&body[at + 2..at + 7]))
            }
            b'Q' | b'C' | b'Z' | b'E' | b'P' if !body.is_empty() => format!("{tag} {}", text(first)),
            _ => tag.to_string(),
        });
        bytes = &bytes[header.total_len()..];
    }
    assert!(bytes.is_empty(), "whole messages only");
    found
}

fn m(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    reply::message(&mut out, tag, |out| out.extend_from_slice(body));
    out
}
fn q(sql: &str) -> Vec<u8> {
    m(b'Q', format!("{sql}\0").as_bytes())
}
fn p(name: &str, sql: &str) -> Vec<u8> {
    m(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}
fn b(portal: &str, statement: &str) -> Vec<u8> {
    m(b'B', format!("{portal}\0{statement}\0\0\0\0\0\0\0").as_bytes())
}
fn x(portal: &str) -> Vec<u8> {
    m(b'E', format!("{portal}\0\0\0\0\0").as_bytes())
}
fn s() -> Vec<u8> {
    m(b'S', b"")
}
fn c(tag: &str) -> Vec<u8> {
    m(b'C', format!("{tag}\0").as_bytes())
}
fn z(status: char) -> Vec<u8> {
    m(b'Z', &[status as u8])
}
fn e(severity: &str, state: &str) -> Vec<u8> {
    m(b'E', format!("S{severity}\0V{severity}\0C{state}\0Mtext\0\0").as_bytes())
}
fn r(tags: &str) -> Vec<u8> {
    tags.bytes().flat_map(|tag| m(tag, b"")).collect()
}
fn ours() -> Vec<u8> {
    e("ERROR", "40001")
}

#[test]
fn a_transaction_is_asked_for_once() {
    let mut pair = Pair::default();
    pair.client(&q("begin")).upstream(&[c("BEGIN"), z('T')].concat());
    pair.client(&q("select 1")).upstream(&[c("SELECT 1"), z('T')].concat());
    pair.client(&q("commit")).upstream(&[c("COMMIT"), z('I')].concat());
    let asked: Vec<_> =
        pair.log.told.iter().filter(|t| t.starts_with("begin") || t.starts_with("request")).collect();
    assert_eq!(asked, ["begin begin", "request select 1", "request commit"]);
    assert!(pair.session.is_quiet());
}

#[test]
fn a_close_before_parse_does_not_slip_past_the_gate() {
    let mut pair = Pair::default();
    pair.log.hold = true;
    pair.client(&[m(b'C', b"Sold\0"), p("n", "select 1"), s()].concat());
    assert_eq!(pair.sent(), ["C Sold"]);
    assert!(pair.waits);
    pair.log.hold = false;
    pair.client(b"");
    assert_eq!(pair.sent(), ["P n", "S"]);
}

#[test]
fn a_held_query_that_is_cancelled_gets_its_error_and_the_next_one_is_asked_for() {
    let mut pair = Pair::default();
    pair.log.hold = true;
    pair.client(&q("select 1"));
    let mut answer = Vec::new();
    let rest = pair.client_rest.clone();
    let dropped = pair.session.refuse_waiting(&rest, &e("ERROR", "57014"), &mut answer);
    assert_eq!((dropped, summary(&answer)), (rest.len(), vec!["E 57014".to_owned(), "Z I".to_owned()]));
    pair.client_rest.clear();
    pair.log.hold = false;
    pair.client(&q("select 2"));
    assert_eq!(pair.sent(), ["Q select 2"]);
}

#[test]
fn a_held_pipeline_that_is_cancelled_is_dropped_up_to_its_sync() {
    let mut pair = Pair::default();
    pair.log.hold = true;
    pair.client(&[p("", "select 1"), b("", "")].concat());
    let mut answer = Vec::new();
    let dropped = pair.session.refuse_waiting(&pair.client_rest, &e("ERROR", "57014"), &mut answer);
    pair.client_rest.drain(..dropped);
    pair.log.hold = false;
    pair.client(&[x(""), s(), q("select 2")].concat());
    assert_eq!(summary(&answer), ["E 57014"]);
    assert_eq!(pair.seen(), ["Z I"]);
    assert_eq!(pair.sent(), ["Q select 2"]);
}

#[test]
fn a_reset_is_refused_unless_quiet_in_a_transaction() {
    let mut injected = Vec::new();
    let mut pair = Pair::default();
    assert!(!pair.session.reset(ours(), &mut injected), "outside a transaction");
    let mut pair_in = Pair::in_transaction();
    pair_in.client(&q("select 1"));
    assert!(!pair_in.session.reset(ours(), &mut injected), "a request is running");
    pair.client(&q("begin")[..3]);
    assert!(injected.is_empty());
    assert!(!Pair::reset().session.reset(ours(), &mut injected), "once is enough");
}

#[test]
fn a_reset_transaction_fails_until_rollback() {
    let mut pair = Pair::reset();
    for sql in ["select 1", "rollback to s", "release s", "savepoint s"] {
        pair.client(&q(sql));
        assert_eq!(pair.sent(), [format!("Q {sql}")]);
        pair.upstream(&[e("ERROR", "25P02"), z('E')].concat());
        assert_eq!(pair.seen(), ["E 40001", "Z E"], "{sql}");
    }
    pair.client(&q("rollback")).upstream(&[c("ROLLBACK"), z('I')].concat());
    assert_eq!(pair.seen(), ["C ROLLBACK", "Z I"]);
    pair.client(&q("select 1/0")).upstream(&[e("ERROR", "22012"), z('I')].concat());
    assert_eq!(pair.seen(), ["E 22012", "Z I"], "an honest error again");
}

#[test]
fn a_commit_never_succeeds_and_nothing_behind_it_is_executed() {
    for sql in
        ["COMMIT", "end", "commit and chain", "prepare transaction 'x'", "commit; insert into t values (1)"]
    {
        let mut pair = Pair::reset();
        pair.client(&q(sql));
        assert_eq!(pair.sent(), ["Q ROLLBACK"], "{sql}");
        pair.upstream(&[c("ROLLBACK"), z('I')].concat());
        assert_eq!(pair.seen(), ["E 40001", "Z I"], "{sql}");
        assert!(!pair.session.is_reset());
    }
}

#[test]
fn a_statement_hidden_behind_a_long_comment_is_not_executed() {
    let mut pair = Pair::reset();
    let sql = format!("/*{}*/ commit; insert into t values (1)", "x".repeat(HEAD_MAX));
    pair.client(&q(&sql));
    assert_eq!(pair.sent(), ["Q RELEASE SAVEPOINT pgweir_reset"]);
    pair.upstream(&[e("ERROR", "3B001"), z('E')].concat());
    assert_eq!(pair.seen(), ["E 40001", "Z E"]);
}

#[test]
fn a_pipelined_commit_is_refused_and_the_transaction_ended() {
    let mut pair = Pair::reset();
    pair.client(&[p("", "commit"), b("", ""), x(""), p("", "insert"), b("", ""), x(""), s()].concat());
    assert_eq!(pair.sent(), ["P ", "B", "E pgweir_reset", "P ", "B", "E pgweir_reset", "S"]);
    pair.upstream(&[r("12"), e("ERROR", "34000"), z('E')].concat());
    assert_eq!(pair.seen(), ["1", "2", "E 40001"]);
    assert_eq!(pair.sent(), ["Q ROLLBACK"]);
    pair.upstream(&[c("ROLLBACK"), z('I')].concat());
    assert_eq!(pair.seen(), ["Z I"]);
}

#[test]
fn a_pipelined_statement_stays_failed() {
    let mut pair = Pair::reset();
    pair.client(&[p("", "select 1"), b("", ""), x(""), p("", "commit"), b("", ""), x(""), s()].concat());
    pair.upstream(&[e("ERROR", "25P02"), z('E')].concat());
    assert_eq!(pair.seen(), ["E 40001", "Z E"]);
    assert!(pair.session.is_reset(), "the COMMIT behind it was never reached");
}

#[test]
fn a_prepared_commit_is_known_and_a_prepared_rollback_too() {
    for (sql, ends) in [("commit", true), ("rollback to s", false), ("rollback", true)] {
        let mut pair = Pair::in_transaction();
        pair.client(&[p("n", sql), s()].concat()).upstream(&[r("1"), z('T')].concat());
        assert!(pair.session.reset(ours(), &mut Vec::new()));
        pair.upstream(&[c("ROLLBACK"), e("ERROR", "3B001"), z('E')].concat());
        pair.seen();
        pair.sent();
        pair.client(&[b("", "n"), x(""), s()].concat());
        if sql == "rollback" {
            assert_eq!(pair.sent(), ["B", "E ", "S"]);
            pair.upstream(&[r("2"), c("ROLLBACK"), z('I')].concat());
            assert_eq!(pair.seen(), ["2", "C ROLLBACK", "Z I"]);
            continue;
        }
        pair.upstream(&[r("2"), e("ERROR", "34000"), z('E')].concat());
        if ends {
            pair.upstream(&[c("ROLLBACK"), z('I')].concat());
        }
        assert_eq!(pair.seen(), ["2", "E 40001", if ends { "Z I" } else { "Z E" }], "{sql}");
    }
}

#[test]
fn what_follows_a_rollback_in_the_same_pipeline_is_the_clients_own() {
    let mut pair = Pair::reset();
    pair.client(&[p("", "rollback"), b("", ""), x(""), p("", "insert"), b("", ""), x(""), s()].concat());
    assert_eq!(pair.sent(), ["P ", "B", "E ", "P ", "B", "E ", "S"]);
    pair.upstream(&[r("12"), c("ROLLBACK"), r("12"), e("ERROR", "23505"), z('I')].concat());
    assert_eq!(pair.seen(), ["1", "2", "C ROLLBACK", "1", "2", "E 23505", "Z I"]);
}

#[test]
fn a_portal_of_before_never_ends_the_transaction() {
    let mut pair = Pair::reset();
    pair.client(&[x("cursor"), s()].concat()).upstream(&[e("ERROR", "34000"), z('E')].concat());
    assert_eq!(pair.seen(), ["E 40001", "Z E"]);
}

#[test]
fn one_cycle_at_a_time_while_reset() {
    let mut pair = Pair::reset();
    pair.client(&[q("commit"), q("insert into t values (1)")].concat());
    assert_eq!(pair.sent(), ["Q ROLLBACK"]);
    pair.upstream(&[c("ROLLBACK"), z('I')].concat());
    assert_eq!(
        pair.sent(),
        ["Q insert into t values (1)"],
        "outside the transaction, as the client was told"
    );
}

#[test]
fn a_fatal_error_passes_and_parameters_do() {
    let mut pair = Pair::in_transaction();
    assert!(pair.session.reset(ours(), &mut Vec::new()));
    let parameter = m(b'S', b"client_encoding\0UTF8\0");
    pair.upstream(&[c("ROLLBACK"), parameter, m(b'A', b"\0\0\0\x01n\0\0"), e("FATAL", "57P01")].concat());
    assert_eq!(pair.seen(), ["S", "A", "E 57P01"]);
}

#[test]
fn an_unexpected_answer_to_the_injection_is_told() {
    let mut pair = Pair::in_transaction();
    assert!(pair.session.reset(ours(), &mut Vec::new()));
    pair.upstream(&[e("ERROR", "57014"), z('E')].concat());
    assert!(pair.log.told.contains(&"rolled back false".to_owned()));
}

#[test]
fn stalled_links_are_told_from_busy_ones() {
    let mut pair = Pair::default();
    pair.client(&[p("", "select 1"), b("", ""), x(""), m(b'H', b"")].concat());
    assert!(pair.session.may_be_stalled() && !pair.session.is_stalled());
    pair.upstream(&[r("12"), c("SELECT 1")].concat());
    assert!(pair.session.is_stalled());
    pair.client(&s());
    assert!(!pair.session.may_be_stalled());
    let mut copy = Pair::default();
    copy.client(&q("copy t from stdin")).upstream(&m(b'G', b"\0\0\0"));
    assert!(copy.session.is_stalled() && copy.session.is_copy_in());
    copy.client(&m(b'c', b""));
    assert!(!copy.session.may_be_stalled());
}

#[test]
fn a_message_cut_in_the_middle_stalls_a_transaction() {
    let large = q(&format!("select '{}'", "x".repeat(2 * HEAD_MAX)));
    let (piece, rest) = large.split_at(HEAD_MAX + 100);
    let mut outside = Pair::default();
    outside.client(piece);
    assert!(!outside.session.may_be_stalled(), "nothing has begun");
    let mut pair = Pair::in_transaction();
    pair.client(piece);
    assert!(pair.session.is_stalled());
    pair.client(rest);
    assert!(!pair.session.may_be_stalled());
    pair.client(piece);
    assert!(pair.session.may_be_stalled() && !pair.session.is_stalled(), "the one before is running");
    pair.upstream(&[c("SELECT 1"), z('T')].concat());
    assert!(pair.session.is_stalled());
}

#[test]
fn malformed_lengths_end_the_session_with_a_reason() {
    let mut session = Session::new();
    let (mut spare, mut aside) = (Vec::new(), Vec::new());
    for (bytes, reason) in [(b"Q\0\0\0\x03x", Reason::Malformed), (b"Q\x7f\xff\xff\xffx", Reason::Oversized)]
    {
        let mut out = Out::new(bytes, &mut spare);
        assert_eq!(session.client(bytes, &mut out, &mut aside, &mut Log::default()), Err(reason));
    }
}

// ---------------------------------------------------------------- properties

/// One exchange: what the client sends, what upstream answers.
fn exchange() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let word = "[a-z ]{0,12}";
    prop_oneof![
        word.prop_map(|sql| (q(&sql), [c("SELECT 1"), z('I')].concat())),
        word.prop_map(|sql| (q(&sql), [e("ERROR", "42601"), z('I')].concat())),
        (word, 0_usize..6000).prop_map(|(sql, n)| {
            (
                q(&format!("{sql}{}", "y".repeat(n))),
                [m(b'T', b"\0\0"), m(b'D', &vec![7; n]), c("SELECT 1"), z('T')].concat(),
            )
        }),
        word.prop_map(|sql| {
            let sent = [p("n", &sql), b("", "n"), x(""), s()].concat();
            (sent, [r("12"), c("INSERT 0 1"), z('T')].concat())
        }),
        (0_usize..300).prop_map(|n| {
            let sent = [q("copy t from stdin"), m(b'd', &vec![1; n]), m(b'c', b"")].concat();
            (sent, [m(b'G', b"\0\0\0"), c("COPY 1"), z('I')].concat())
        }),
        Just((m(b'F', b"\0\0\0\x01\0\0\0\0\0\0"), [m(b'V', b"\0\0\0\0"), z('I')].concat())),
        Just((
            q("set x"),
            [m(b'S', b"application_name\0zz\0"), m(b'N', b"\0"), m(b'A', b"\0"), c("SET"), z('I')].concat()
        )),
    ]
}

/// Feeds `bytes` in pieces of the given sizes, over and over.
fn in_pieces(mut bytes: &[u8], sizes: &[usize], mut feed: impl FnMut(&[u8])) {
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            return;
        }
        let (piece, rest) = bytes.split_at((*size).clamp(1, bytes.len()));
        feed(piece);
        bytes = rest;
    }
}

/// A startup packet whose name was tagged: `odoo-7 @10.0.0.5`.
fn tag() -> Arc<Tag> {
    let body = b"user\0odoo\0application_name\0odoo-7\0\0";
    let mut packet = u32::try_from(8 + body.len()).expect("short").to_be_bytes().to_vec();
    packet.extend_from_slice(&(3_u32 << 16).to_be_bytes());
    packet.extend_from_slice(body);
    let Ok(crate::wire::startup::FirstPacket::Startup(mut startup)) = crate::wire::startup::parse(&packet)
    else {
        panic!("no startup packet")
    };
    Arc::new(Tag::put(&mut startup, Some([10, 0, 0, 5].into())).expect("tagged"))
}

#[test]
fn a_tagged_name_is_told_as_the_clients_own_however_it_is_split() {
    let report = |name: &[u8]| m(b'S', &[b"application_name\0", name, b"\0"].concat());
    let bytes = [
        c("SET"),
        report(b"odoo-7 @10.0.0.5"),
        report(b"later"),
        m(b'S', b"TimeZone\0odoo-7 @10.0.0.5\0"),
        z('I'),
    ];
    let wanted =
        [c("SET"), report(b"odoo-7"), report(b"later"), m(b'S', b"TimeZone\0odoo-7 @10.0.0.5\0"), z('I')]
            .concat();
    for size in 1..40 {
        let mut pair = Pair::default();
        pair.session.set_tag(Some(tag()));
        pair.client(&q("set x = y"));
        for piece in bytes.concat().chunks(size) {
            pair.upstream(piece);
        }
        assert_eq!(pair.to_client, wanted, "{size}");
        assert!(pair.log.told.contains(&"parameter application_name=odoo-7".to_owned()));
        assert!(pair.session.is_quiet());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any split of the same bytes gives the same output, byte for byte, and the same facts.
    #[test]
    fn splits_make_no_difference(
        exchanges in prop::collection::vec(exchange(), 1..8),
        sizes in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let (mut whole, mut split) = (Pair::default(), Pair::default());
        for (client, upstream) in &exchanges {
            whole.client(client).upstream(upstream);
            in_pieces(client, &sizes, |piece| { split.client(piece); });
            in_pieces(upstream, &sizes, |piece| { split.upstream(piece); });
        }
        prop_assert_eq!(&whole.to_upstream, &split.to_upstream);
        prop_assert_eq!(&whole.to_client, &split.to_client);
        prop_assert_eq!(&whole.log, &split.log);
        // Nothing had to be changed, so everything passed byte for byte.
        let sent: Vec<u8> = exchanges.iter().flat_map(|(client, _)| client.clone()).collect();
        prop_assert_eq!(&whole.to_upstream, &sent);
        prop_assert!(whole.session.is_quiet());
    }

    /// The same while the transaction is reset: the client's statements come in any pieces.
    #[test]
    fn splits_make_no_difference_to_a_reset_transaction(
        sqls in prop::collection::vec("(select 1|commit|end;|rollback|/\\* c \\*/ commit; select 2|release s)", 1..6),
        sizes in prop::collection::vec(1_usize..9, 1..20),
    ) {
        let (mut whole, mut split) = (Pair::reset(), Pair::reset());
        for sql in &sqls {
            if !whole.session.is_reset() {
                break;
            }
            let answer = |sent: &[String]| match sent {
                [one] if one.to_lowercase().contains("q rollback") => [c("ROLLBACK"), z('I')].concat(),
                _ => [e("ERROR", "25P02"), z('E')].concat(),
            };
            whole.client(&q(sql));
            in_pieces(&q(sql), &sizes, |piece| { split.client(piece); });
            let (one, other) = (whole.sent(), split.sent());
            prop_assert_eq!(&one, &other);
            let reply = answer(&one);
            whole.upstream(&reply);
            in_pieces(&reply, &sizes, |piece| { split.upstream(piece); });
            let seen = whole.seen();
            prop_assert_eq!(&seen, &split.seen());
            let is_rollback = sql == "rollback";
            prop_assert_eq!(seen.contains(&"C ROLLBACK".to_owned()), is_rollback, "{}: {:?}", sql, seen);
        }
    }

    /// Garbage ends in an error or waits for more; it never panics and never sends more than came in.
    #[test]
    fn garbage_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), sizes in prop::collection::vec(1_usize..30, 1..9)) {
        let (mut session, mut log) = (Session::new(), Log::default());
        let (mut spare, mut aside) = (Vec::new(), Vec::new());
        let mut rest: Vec<u8> = Vec::new();
        let mut sent = 0;
        let mut failed = false;
        in_pieces(&bytes, &sizes, |piece| {
            if failed {
                return;
            }
            rest.extend_from_slice(piece);
            let mut out = Out::new(&rest, &mut spare);
            match session.client(&rest, &mut out, &mut aside, &mut log) {
                Ok(progress) => {
                    sent += out.bytes().len();
                    rest.drain(..progress.taken);
                }
                Err(_) => failed = true,
            }
        });
        prop_assert!(sent <= bytes.len() + reply::TERMINATE.len());
        let mut out = Out::new(&bytes, &mut spare);
        let _ = Session::new().upstream(&bytes, &mut out, &mut aside, &mut log);
    }
}
