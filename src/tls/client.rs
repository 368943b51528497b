//! The client's end: what is asked of PostgreSQL (or of the admin port), in libpq's words.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ALPN_POSTGRESQL;
use super::files::{self, FileProblem, Which};
use super::server::certified;
use super::session::Session;
use super::stream::handshake;
use super::verify::{Trust, Verifier};

/// SSLRequest: its length, and 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// libpq's sslmode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Plain.
    Disable,
    /// TLS where the server has it.
    #[default]
    Prefer,
    /// TLS with whomever; with an authority's file as verify-ca, as libpq does it.
    Require,
    /// TLS with a certificate of an authority.
    VerifyCa,
    /// The same, and its name must be the host's.
    VerifyFull,
}

/// What a client demands, and its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// How much.
    pub mode: Mode,
    /// TLS from the first byte on, without asking (PostgreSQL 17 and later).
    pub direct: bool,
    /// Authorities.
    pub ca: Option<PathBuf>,
    /// Own certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// A client's TLS, ready for connections.
#[derive(Clone)]
pub struct ClientTls {
    mode: Mode,
    direct: bool,
    verifies: bool,
    config: Arc<ClientConfig>,
}

impl PartialEq for ClientTls {
    /// Whether they were read together.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
}

impl Eq for ClientTls {}

impl fmt::Debug for ClientTls {
    /// Without the key: settings end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("mode", &self.mode)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

/// The cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(files: &ClientFiles) -> Result<Self, Vec<FileProblem>> {
        let authorities = files.ca.as_deref().map(files::authorities).transpose();
        let own = files.certificate.as_ref().map(|(certificate, key)| {
            let chain = files::certificates(Which::Certificate, certificate)?;
            certified(chain, files::key(key)?)
        });
        let own = own.transpose();
        let (authorities, own) = match (authorities, own) {
            (Ok(authorities), Ok(own)) => (authorities, own),
            (a, b) => return Err(a.err().into_iter().chain(b.err()).collect()),
        };
        let verifies = match files.mode {
            Mode::Disable | Mode::Prefer => false,
            Mode::Require => authorities.is_some(),
            Mode::VerifyCa | Mode::VerifyFull => true,
        };
        let trust = verifies.then(|| {
            let (roots, known) = authorities.unwrap_or_else(|| (rustls::RootCertStore::empty(), Vec::new()));
            Trust { roots, known, name: files.mode == Mode::VerifyFull }
        });
        let provider = provider();
        let verifier = Verifier { trust, algorithms: provider.signature_verification_algorithms };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| vec![FileProblem::new(Which::Authority, error.to_string(), "")])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some(own) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        };
        config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { mode: files.mode, direct: files.direct, verifies, config: Arc::new(config) })
    }

    /// Whether TLS may be asked for at all.
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Disable
    }

    /// Whether a connection without TLS will do where TLS cannot be had.
    pub fn may_be_plain(&self) -> bool {
        matches!(self.mode, Mode::Disable | Mode::Prefer)
    }

    /// Asks a server for TLS and shakes hands. None: the server has none, and that will do.
    ///
    /// # Errors
    /// The server has none and must, it sent what it must not, or there was no agreement.
    pub async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: &mut S,
        host: &str,
    ) -> io::Result<Option<Box<Session>>> {
        if !self.is_on() {
            return Ok(None);
        }
        let name = server_name(host)?;
        if !self.direct && !self.ask(io).await? {
            return Ok(None);
        }
        let mut session = Box::new(Session::client(self.config.clone(), name).map_err(io::Error::other)?);
        handshake(io, &mut session).await.map_err(|error| wrap("TLS with the server", &error))?;
        session.set_verified(self.verifies);
        if self.direct && session.alpn() != Some(ALPN_POSTGRESQL) {
            return Err(refused(
                "the server does not speak PostgreSQL's protocol behind direct TLS (no ALPN)",
            ));
        }
        Ok(Some(session))
    }

    /// SSLRequest, and its answer: one byte and nothing behind it, which would be somebody else's (CVE-2021-23222).
    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(&self, io: &mut S) -> io::Result<bool> {
        io.write_all(&SSL_REQUEST).await?;
        io.flush().await?;
        let mut answer = [0; 2];
        match (io.read(&mut answer).await?, answer[0]) {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (1, b'S') => Ok(true),
            (1, b'N') if self.may_be_plain() => Ok(false),
            (1, b'N') => Err(refused("the server has no TLS, which `tls` asks for")),
            (_, b'S' | b'N') => {
                Err(refused("the server sent bytes behind its answer to the request for TLS"))
            }
            _ => Err(refused("the server does not answer the request for TLS")),
        }
    }
}

/// What a server's certificate must be called: a host name or an address.
///
/// # Errors
/// It is neither.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| refused(&format!("{host:?} is neither a host name nor an address")))
}

fn refused(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

fn wrap(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Whether two certificates are one.
pub fn is_same(a: Option<&CertificateDer<'_>>, b: Option<&CertificateDer<'_>>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a == b)
}
