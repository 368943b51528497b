//! Framing and tracking: what a link costs in user space for each thing that passes. `cargo bench --bench session`

use std::hint::black_box;

use divan::Bencher;
use divan::counter::BytesCount;
use pgweir::link::gate::{Gate, Statement, Word};
use pgweir::link::out::Out;
use pgweir::link::session::Session;
use pgweir::wire::{reply, statement};

fn main() {
    divan::main();
}

struct Open;

impl Gate for Open {
    fn request(&mut self, _begins: bool, _statement: Statement<'_>) -> Word {
        Word::Go
    }
    fn statement(&mut self, _statement: Statement<'_>) {}
    fn command(&mut self, _tag: &[u8]) {}
    fn error(&mut self, _body: &[u8]) {}
    fn parameter(&mut self, _name: &[u8], _value: &[u8]) {}
    fn notification(&mut self) {}
    fn ready(&mut self, _status: u8, _quiet: bool) {}
    fn rolled_back(&mut self, _as_expected: bool) {}
}

fn message(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    reply::message(out, tag, |out| out.extend_from_slice(body));
}

/// A simple query and its reply of one row.
#[divan::bench]
fn simple_transaction(bencher: Bencher) {
    let mut query = Vec::new();
    reply::query(&mut query, "SELECT abalance FROM pgbench_accounts WHERE aid = 123456;");
    let mut answer = Vec::new();
    message(&mut answer, b'T', &[0; 33]);
    message(&mut answer, b'D', &[0; 11]);
    reply::command_complete(&mut answer, "SELECT 1");
    reply::ready_for_query(&mut answer, b'I');
    let (mut session, mut spare, mut aside) = (Session::new(), Vec::new(), Vec::new());
    bencher.bench_local(|| {
        let mut out = Out::new(&query, &mut spare);
        let _ = black_box(session.client(&query, &mut out, &mut aside, &mut Open));
        black_box(out.bytes());
        let mut out = Out::new(&answer, &mut spare);
        let _ = black_box(session.upstream(&answer, &mut out, &mut aside, &mut Open));
        black_box(out.bytes());
    });
}

/// 64 kB of rows, as read at once.
#[divan::bench(args = [20, 100, 1000, 30_000])]
fn rows(bencher: Bencher, row_len: usize) {
    let mut rows = Vec::new();
    while rows.len() < 64 * 1024 {
        message(&mut rows, b'D', &vec![7; row_len]);
    }
    rows.truncate(64 * 1024);
    let mut spare = Vec::new();
    let mut aside = Vec::new();
    bencher.counter(BytesCount::new(rows.len())).with_inputs(Session::new).bench_local_refs(|session| {
        let mut out = Out::new(&rows, &mut spare);
        let _ = black_box(session.upstream(&rows, &mut out, &mut aside, &mut Open));
        black_box(out.bytes());
    });
}

/// A statement made ready for `statement` and `exempt` globs.
#[divan::bench]
fn fold(bencher: Bencher) {
    let text = b"SELECT \"res_partner\".\"id\" FROM \"res_partner\"\n   WHERE (\"res_partner\".\"active\" = true) ORDER BY \"res_partner\".\"id\"";
    let mut into = String::new();
    bencher.bench_local(|| statement::fold(black_box(text), &mut into));
}
