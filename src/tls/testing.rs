//! Sessions for tests, with a certificate made on the spot.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::client::provider;
use super::session::Session;

/// The two ends' settings.
pub(crate) struct Ends {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) leaf: Arc<CertificateDer<'static>>,
    pub(crate) client: Arc<ClientConfig>,
}

pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

pub(crate) fn ends() -> Ends {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let leaf = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.clone()], key)
        .expect("its key");
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(leaf.clone()).expect("a certificate");
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ends { server: Arc::new(server), leaf: Arc::new(leaf), client: Arc::new(client) }
}

/// Both ends, before their handshake.
pub(crate) fn sessions() -> (Session, Session) {
    let Ends { server, leaf, client } = ends();
    (Session::server(server, leaf).expect("a session"), Session::client(client, name()).expect("a session"))
}
