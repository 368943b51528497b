//! The server's end: a listener's or the admin port's certificate, key and demands.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncRead, AsyncWrite};

use super::files::{self, FileProblem, Which};
use super::names;
use super::session::Session;
use super::stream::handshake;

/// Where a server's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// Who issues clients' certificates; with it every client needs one.
    pub client_ca: Option<PathBuf>,
}

/// A server's TLS, ready for connections.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    leaf: Arc<CertificateDer<'static>>,
    knows_clients: bool,
}

impl fmt::Debug for ServerTls {
    /// Without the key: settings end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("knows_clients", &self.knows_clients).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files; `protocols` are those of ALPN, best first.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(files: &ServerFiles, protocols: &[&[u8]]) -> Result<Self, Vec<FileProblem>> {
        let chain = files::certificates(Which::Certificate, &files.certificate);
        let key = files::key(&files.key);
        let authorities = files.client_ca.as_deref().map(files::authorities).transpose();
        let mut problems = Vec::new();
        let mut note = |problem: Option<&FileProblem>| problems.extend(problem.cloned());
        note(chain.as_ref().err());
        note(key.as_ref().err());
        note(authorities.as_ref().err());
        let (Ok(chain), Ok(key), Ok(authorities)) = (chain, key, authorities) else { return Err(problems) };
        let leaf = Arc::new(chain[0].clone());
        let certified = certified(chain, key).map_err(|problem| vec![problem])?;
        let knows_clients = authorities.is_some();
        let provider = super::client::provider();
        let failed = |error: &dyn fmt::Display| {
            vec![FileProblem::new(Which::Authority, error.to_string(), "name the authorities' certificates")]
        };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?;
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some((roots, _)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| failed(&error))?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), leaf, knows_clients })
    }

    /// Whether every client has shown a certificate by the time the handshake is over.
    pub fn knows_clients(&self) -> bool {
        self.knows_clients
    }

    /// The certificate that is shown.
    pub fn leaf(&self) -> &Arc<CertificateDer<'static>> {
        &self.leaf
    }

    /// Shakes hands with a client. `read` are bytes of it that were read already.
    ///
    /// # Errors
    /// The client went away, or there was no agreement, which it has been told.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: &mut S,
        read: &[u8],
    ) -> std::io::Result<Box<Session>> {
        let session = Session::server(self.config.clone(), self.leaf.clone());
        let mut session = Box::new(session.map_err(std::io::Error::other)?);
        session.preload(read);
        handshake(io, &mut session).await?;
        Ok(session)
    }
}

/// Certificate and key, which must belong together. Asked of the certificate's key itself: certificates of version 1, which openssl makes
/// where no extension is asked for, are read by libpq and not by rustls.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
) -> Result<CertifiedKey, FileProblem> {
    let hint = "PEM keys of RSA (2048 bits and more), ECDSA (P-256, P-384) and Ed25519 are served";
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|error| FileProblem::new(Which::Key, format!("cannot be used: {error}"), hint))?;
    let ours = key.public_key().map(|key| key.as_ref().to_vec());
    let theirs = names::public_key(&chain[0]).map_err(|error| {
        FileProblem::new(Which::Certificate, error, "it must be an X.509 certificate in PEM")
    })?;
    if ours.is_some_and(|ours| ours != theirs) {
        return Err(FileProblem::new(
            Which::Key,
            "is not the key of the first certificate in certificate_file",
            "name the two files of one certificate, the server's own first in its file",
        ));
    }
    Ok(CertifiedKey::new(chain, key))
}
