use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::tls::testing::sessions;

/// One direction of a connection: takes and gives so many bytes at once, and holds so many.
struct Pipe {
    bytes: VecDeque<u8>,
    step: usize,
    capacity: usize,
}

impl Pipe {
    fn new(step: usize, capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), step, capacity }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let n = bytes.len().min(self.step).min(self.capacity - self.bytes.len().min(self.capacity));
        self.bytes.extend(&bytes[..n]);
        Ok((n > 0).then_some(n))
    }

    fn recv(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let n = into.len().min(self.step).min(self.bytes.len());
        for (to, from) in into.iter_mut().zip(self.bytes.drain(..n)) {
            *to = from;
        }
        Ok((n > 0).then_some(n))
    }
}

/// Both ends after their handshake, and the pipes between: to the server, to the client.
struct Pair {
    server: Session,
    client: Session,
    up: Pipe,
    down: Pipe,
}

fn pair_with(step: usize, capacity: usize) -> Pair {
    let (server, client) = sessions();
    let mut pair = Pair { server, client, up: Pipe::new(step, capacity), down: Pipe::new(step, capacity) };
    loop {
        let Pair { server, client, up, down } = &mut pair;
        let (up, down) = (RefCell::new(up), RefCell::new(down));
        let one = client.shake_with(|into| down.borrow_mut().recv(into), |bytes| up.borrow_mut().send(bytes));
        let two = server.shake_with(|into| up.borrow_mut().recv(into), |bytes| down.borrow_mut().send(bytes));
        if one.expect("agreed").is_some() && two.expect("agreed").is_some() {
            return pair;
        }
    }
}

fn pair() -> Pair {
    pair_with(usize::MAX, usize::MAX)
}

impl Pair {
    fn say(&mut self, bytes: &[u8]) {
        assert_eq!(self.client.write_with(bytes, |b| self.up.send(b)).expect("alive"), Some(bytes.len()));
    }

    fn hear(&mut self, into: &mut [u8]) -> Option<usize> {
        self.server.read_with(into, |into| self.up.recv(into)).expect("alive")
    }
}

fn holds_nothing(session: &Session) -> bool {
    session.carry.capacity() + session.plain.capacity() + session.out.capacity() == 0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever a socket takes and gives at once: what is reported as taken arrives once, and in order.
    #[test]
    fn everything_arrives_once(
        len in 1_usize..200_000,
        step in prop_oneof![1_usize..40, 1000_usize..100_000],
        capacity in prop_oneof![50_usize..300, 10_000_usize..300_000],
        room in prop_oneof![1_usize..40, 1000_usize..300_000],
    ) {
        // Small steps of much data take long and show no more.
        let len = len.min(step * 3000).min(capacity * 300).min(room * 3000);
        let data: Vec<u8> = (0..len).map(|n| (n * 7 + n / 251) as u8).collect();
        let mut pair = pair_with(step, capacity);
        let (mut sent, mut got, mut into) = (0, Vec::new(), vec![0; room]);
        while got.len() < len {
            if sent < len && let Some(n) = pair.client.write_with(&data[sent..], |b| pair.up.send(b)).expect("alive") {
                sent += n;
            }
            if let Some(n) = pair.hear(&mut into) {
                got.extend_from_slice(&into[..n]);
            }
        }
        prop_assert!(got == data);
        while sent < len {
            let n = pair.client.write_with(&data[sent..], |b| pair.up.send(b)).expect("alive");
            sent += n.expect("the socket is empty");
        }
        prop_assert!(holds_nothing(&pair.server) && holds_nothing(&pair.client));
    }

    /// No bytes of a peer make it panic, at any point of a session.
    #[test]
    fn garbage_is_refused(garbage in proptest::collection::vec(any::<u8>(), 1..400), kind in 0x14_u8..0x18, early in any::<bool>()) {
        for head in [Vec::new(), vec![kind, 3, 3, 0, 20]] {
            let mut wire = VecDeque::from([head, garbage.clone()].concat());
            let mut recv = |into: &mut [u8]| {
                let n = into.len().min(wire.len());
                into.iter_mut().zip(wire.drain(..n)).for_each(|(to, from)| *to = from);
                Ok((n > 0).then_some(n))
            };
            let mut alert = Vec::new();
            let mut send = |bytes: &[u8]| { alert.extend_from_slice(bytes); Ok(Some(bytes.len())) };
            if early {
                let (mut server, _) = sessions();
                let _ = server.shake_with(&mut recv, &mut send);
                let _ = server.shake_with(&mut recv, &mut send);
            } else {
                let mut server = pair().server;
                let mut into = [0; 100];
                let _ = server.read_with(&mut into, &mut recv);
                let _ = server.read_with(&mut into, &mut recv);
                let _ = server.write_with(b"x", &mut send);
                server.close();
            }
        }
    }
}

#[test]
fn what_its_reader_had_no_room_for_comes_first() {
    let mut pair = pair();
    pair.say(b"hello world");
    let mut into = [0; 5];
    assert_eq!(pair.hear(&mut into), Some(5));
    assert_eq!(pair.server.pending(), b" world");
    let rest = pair.server.read_with(&mut [0; 50], |_| panic!("nothing to ask the socket for"));
    assert_eq!(rest.expect("alive"), Some(6));
    assert!(holds_nothing(&pair.server));
}

#[test]
fn bytes_count_as_taken_when_the_last_of_them_is_sent() {
    let mut pair = pair();
    let data = vec![1; 1000];
    pair.up = Pipe::new(usize::MAX, 100);
    assert_eq!(pair.client.write_with(&data, |b| pair.up.send(b)).expect("alive"), None);
    assert!(pair.client.wants_write());
    pair.up.capacity = 10_000;
    assert_eq!(pair.client.write_with(&data, |b| pair.up.send(b)).expect("alive"), Some(1000));
    let mut into = [0; 4000];
    assert_eq!(pair.hear(&mut into), Some(1000), "and not twice");
    assert_eq!(pair.hear(&mut into), None);
}

#[test]
fn close_notify_is_the_end() {
    let mut pair = pair();
    pair.say(b"last");
    pair.client.close();
    assert!(pair.client.flush_with(|b| pair.up.send(b)).expect("alive"));
    let mut into = [0; 100];
    assert_eq!(pair.hear(&mut into), Some(4));
    assert_eq!(pair.hear(&mut into), Some(0));
    assert!(pair.server.is_closed());
    assert_eq!(
        pair.server.write_with(b"reply", |b| pair.down.send(b)).expect("the other direction is open"),
        Some(5)
    );
}

#[test]
fn what_is_no_tls_is_answered_with_an_alert_once_and_not_read_any_more() {
    let mut pair = pair();
    pair.up.bytes.extend([0x17, 3, 3, 0, 20].iter().chain(&[9; 60]));
    let error = pair.server.read_with(&mut [0; 100], |into| pair.up.recv(into)).expect_err("no TLS");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(pair.server.flush_with(|b| pair.down.send(b)).expect("alive"));
    let alert = pair.down.bytes.len();
    assert!((20..60).contains(&alert), "{alert}");
    pair.up.bytes.extend([0x17, 3, 3, 0, 20].iter().chain(&[9; 20]));
    assert_eq!(pair.hear(&mut [0; 100]), None);
    assert!(pair.server.write_with(b"x", |b| pair.down.send(b)).is_err());
    assert_eq!(pair.down.bytes.len(), alert);
}

#[test]
fn the_beginning_of_a_record_is_noticed_once() {
    let mut pair = pair();
    pair.say(b"hello");
    let all: Vec<u8> = pair.up.bytes.drain(..).collect();
    pair.up.bytes.extend(&all[..7]);
    let mut into = [0; 100];
    assert_eq!(pair.hear(&mut into), None);
    assert!(pair.server.take_piece() && !pair.server.take_piece());
    assert_eq!(pair.hear(&mut into), None);
    assert!(!pair.server.take_piece(), "nothing new");
    pair.up.bytes.extend(&all[7..]);
    assert_eq!(pair.hear(&mut into), Some(5));
    assert!(!pair.server.take_piece());
}

/// A stranger's handshake message that goes over many records is kept up to a bound.
#[test]
fn an_endless_hello_is_given_up() {
    for piece in [16_000, 700, 1] {
        let (mut server, _) = sessions();
        let mut sent = 0_usize;
        // A ClientHello of 65,520 bytes, of which no end comes.
        let mut wire = vec![0x16, 3, 1];
        wire.extend_from_slice(&(piece.max(4) as u16).to_be_bytes());
        wire.extend_from_slice(&[1, 0, 0xff, 0xf0]);
        wire.resize(5 + piece.max(4), 0);
        let failed = loop {
            let mut pending = std::mem::take(&mut wire);
            let shaken = server.shake_with(
                |into| {
                    let n = into.len().min(pending.len());
                    into[..n].copy_from_slice(&pending[..n]);
                    pending.drain(..n);
                    Ok((n > 0).then_some(n))
                },
                |bytes| Ok(Some(bytes.len())),
            );
            match shaken {
                Err(error) => break error,
                Ok(done) => assert_eq!(done, None),
            }
            assert!(server.carry.len() <= HELLO_MAX);
            sent += piece;
            assert!(sent < 60_000, "it took all of it");
            wire = [&[0x16, 3, 1][..], &(piece as u16).to_be_bytes(), &vec![0; piece]].concat();
        };
        assert_eq!(failed.kind(), io::ErrorKind::InvalidData);
        assert!(sent > 2_000, "it is a handshake like any other until then: {failed} after {sent}");
    }
}

/// Measured: a client's flight with a certificate (or a chain) of 16 kB fits into what is kept.
#[test]
fn a_long_certificate_of_a_client_fits() {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::WebPkiClientVerifier;

    let names = (0..690).map(|n| format!("name-{n:04}.example.org"));
    let made = rcgen::generate_simple_self_signed(names.collect::<Vec<_>>()).expect("a certificate");
    let certificate = made.cert.der().clone();
    assert!((15_500..16_384).contains(&certificate.len()), "{}", certificate.len());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let provider = crate::tls::client::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let ends = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let leaf = ends.cert.der().clone();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(
            vec![leaf.clone()],
            PrivateKeyDer::try_from(ends.signing_key.serialize_der()).expect("a key"),
        )
        .expect("its key");
    let mut known = rustls::RootCertStore::empty();
    known.add(leaf.clone()).expect("a root");
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(known)
        .with_client_auth_cert(vec![certificate.clone()], key)
        .expect("its key");
    for step in [usize::MAX, 1000] {
        let mut server =
            Session::server(Arc::new(server.clone()), Arc::new(leaf.clone())).expect("a session");
        let mut client =
            Session::client(Arc::new(client.clone()), crate::tls::testing::name()).expect("a session");
        let (up, down) =
            (RefCell::new(Pipe::new(step, usize::MAX)), RefCell::new(Pipe::new(step, usize::MAX)));
        loop {
            let one =
                client.shake_with(|into| down.borrow_mut().recv(into), |bytes| up.borrow_mut().send(bytes));
            let two =
                server.shake_with(|into| up.borrow_mut().recv(into), |bytes| down.borrow_mut().send(bytes));
            if one.expect("agreed").is_some() && two.expect("agreed").is_some() {
                break;
            }
        }
        assert_eq!(server.peer_certificate(), Some(&certificate));
    }
}
