//! Certificates and keys: from the files that the configuration names to what listeners, links, monitor and CLI are told.

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::AdminTls;
use crate::clock;
use crate::config::checked::Config;
use crate::config::settings::{Endpoint, ServerTlsSettings, UpstreamTls};
use crate::config::{Problem, Warning};
use crate::link::welcome::DoorTls;
use crate::tls::client::{ClientFiles, ClientTls, Mode, server_name};
use crate::tls::names::validity;
use crate::tls::server::{ServerFiles, ServerTls};
use crate::tls::{ALPN_HTTP, ALPN_POSTGRESQL, FileProblem, Which};

/// A certificate that ends sooner than this is warned of by `check`.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// All TLS of a configuration, read from its files.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub(super) doors: Vec<DoorTls>,
    pub(super) admin: Option<Arc<AdminTls>>,
    pub(super) upstream: ClientTls,
}

impl Tls {
    /// Reads every file that is named.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(super) fn read(config: &Config) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut doors = Vec::new();
        for (at, listen) in config.listen.iter().enumerate() {
            let Some(settings) = &listen.tls else { continue };
            match ServerTls::load(&files(settings), &[ALPN_POSTGRESQL]) {
                Ok(tls) => {
                    doors.push(DoorTls { listener: listen.text.clone(), tls, required: settings.required });
                }
                Err(found) => {
                    problems.extend(told(config, &format!("listen[{}]", at + 1), "client_ca_file", found))
                }
            }
        }
        let mut admin = None;
        if let Some(settings) = &config.admin.tls {
            match ServerTls::load(&files(settings), &[ALPN_POSTGRESQL, ALPN_HTTP]) {
                Ok(tls) => admin = Some(Arc::new(AdminTls { tls, required: settings.required })),
                Err(found) => problems.extend(told(config, "admin", "client_ca_file", found)),
            }
        }
        let upstream = ClientTls::load(&upstream_files(config));
        let upstream = upstream.map_err(|found| problems.extend(told(config, "upstream", "ca_file", found)));
        problems.extend(nameless(config));
        match upstream {
            Ok(upstream) if problems.is_empty() => Ok(Self { doors, admin, upstream }),
            _ => Err(problems),
        }
    }

    /// Certificates that have ended, or will soon.
    pub(super) fn expiries(&self, config: &Config) -> Vec<Warning> {
        let now = i64::try_from(clock::wall_now().0 / 1000).unwrap_or(i64::MAX);
        let listeners = config.listen.iter().enumerate().filter_map(|(at, listen)| {
            let door = self.doors.iter().find(|door| door.listener == listen.text)?;
            Some((format!("listen[{}].certificate_file", at + 1), &door.tls))
        });
        let admin = self.admin.iter().map(|admin| ("admin.certificate_file".to_owned(), &admin.tls));
        let told = listeners.chain(admin).filter_map(|(key, tls)| {
            let (_, ends) = validity(tls.leaf()).ok()?;
            let left = ends - now;
            let text = match left {
                ..0 => format!(
                    "the certificate ended {} days ago: clients that verify it refuse",
                    -left / 86_400
                ),
                _ if left < ENDS_SOON.as_secs() as i64 => {
                    format!("the certificate ends in {} days", left / 86_400)
                }
                _ => return None,
            };
            Some(Warning(config.problem(&key, text, "renew it, then `pgweir reload`")))
        });
        told.collect()
    }

    /// Pass-through authentication over TLS on both sides reaches through only with one certificate, where PostgreSQL can be asked
    /// for its own.
    pub(super) fn certificates_differ(&self, config: &Config) -> Vec<Problem> {
        if self.doors.is_empty() || config.auth.own.is_some() {
            return Vec::new();
        }
        let theirs: Vec<Vec<u8>> = config
            .upstream
            .endpoints
            .iter()
            .filter_map(|endpoint| self.upstream_certificate(config, endpoint))
            .collect();
        let listeners = config.listen.iter().enumerate();
        let told = listeners.filter_map(|(at, listen)| {
            let door = self.doors.iter().find(|door| door.listener == listen.text)?;
            let text = "is another certificate than PostgreSQL's: with TLS on both sides clients that use SCRAM's channel binding \
                        (libpq does) cannot log in";
            let hint = "name PostgreSQL's own certificate and key here, or write [auth] mode = \"scram\", or [upstream] tls = \
                        \"disable\"; a client can leave channel binding out: channel_binding=disable";
            theirs.iter().any(|theirs| door.tls.leaf().as_ref().as_ref() != theirs.as_slice()).then(|| {
                config.problem(&format!("listen[{}].certificate_file", at + 1), text, hint)
            })
        });
        told.collect()
    }

    /// PostgreSQL's certificate, if it shows one.
    fn upstream_certificate(&self, config: &Config, endpoint: &Endpoint) -> Option<Vec<u8>> {
        let Endpoint::Tcp { host, port } = endpoint else { return None };
        let address = (&**host, *port).to_socket_addrs().ok()?.next()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async {
            let look = async {
                let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
                let session = self.upstream.negotiate(&mut stream, host).await.ok()??;
                session.peer_certificate().map(|certificate| certificate.to_vec())
            };
            tokio::time::timeout(config.upstream.connect_timeout, look).await.ok()?
        })
    }
}

fn files(settings: &ServerTlsSettings) -> ServerFiles {
    ServerFiles {
        certificate: settings.certificate_file.clone(),
        key: settings.key_file.clone(),
        client_ca: settings.client_ca_file.clone(),
    }
}

fn upstream_files(config: &Config) -> ClientFiles {
    let upstream = &config.upstream;
    ClientFiles {
        mode: match upstream.tls {
            UpstreamTls::Disable => Mode::Disable,
            UpstreamTls::Prefer => Mode::Prefer,
            UpstreamTls::Require => Mode::Require,
            UpstreamTls::VerifyCa => Mode::VerifyCa,
            UpstreamTls::VerifyFull => Mode::VerifyFull,
        },
        direct: upstream.direct,
        ca: upstream.ca_file.clone(),
        certificate: upstream.certificate.clone(),
    }
}

/// Hosts that no certificate can name.
fn nameless(config: &Config) -> Vec<Problem> {
    let upstream = config.upstream.endpoints.iter().map(|endpoint| ("upstream.address", endpoint));
    let monitor = config.monitor.iter().map(|monitor| ("monitor.address", &monitor.endpoint));
    let mut problems = Vec::new();
    for (key, endpoint) in upstream.chain(monitor) {
        if let Endpoint::Tcp { host, .. } = endpoint
            && config.upstream.tls != UpstreamTls::Disable
            && let Err(error) = server_name(host)
        {
            problems.push(config.problem(
                key,
                error.to_string(),
                "write the name that PostgreSQL's certificate bears",
            ));
        }
    }
    problems
}

fn told(config: &Config, section: &str, authority: &str, found: Vec<FileProblem>) -> Vec<Problem> {
    let key = |which| match which {
        Which::Certificate => "certificate_file",
        Which::Key => "key_file",
        Which::Authority => authority,
    };
    let told = found.into_iter().map(|problem| {
        config.problem(&format!("{section}.{}", key(problem.which)), problem.message, problem.hint)
    });
    told.collect()
}

/// How the CLI talks to an admin port with these settings: with that very certificate and no other. Where clients need one too, the CLI
/// shows the port's own.
pub(super) fn pinned(settings: &ServerTlsSettings) -> Result<ClientTls, String> {
    let own = || (settings.certificate_file.clone(), settings.key_file.clone());
    let files = ClientFiles {
        mode: Mode::VerifyCa,
        direct: false,
        ca: Some(settings.certificate_file.clone()),
        certificate: settings.client_ca_file.as_ref().map(|_| own()),
    };
    ClientTls::load(&files)
        .map_err(|found| found.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>().join("\n"))
}
