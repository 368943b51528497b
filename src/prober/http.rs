//! A page: one GET, no redirects followed, no connection kept.

use std::error::Error;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::USER_AGENT;
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// Bytes of a page looked through at most.
const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Who asks.
const AGENT: &str = concat!("pgweir/", env!("CARGO_PKG_VERSION"));

type PageClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Gets pages, over https with the authorities the system trusts. Cheap to clone; the authorities are read for the first page.
#[derive(Clone, Default)]
pub struct Pages(Arc<OnceLock<PageClient>>);

/// Where the system trusts no authorities, https fails at each page and http works.
fn client() -> PageClient {
    let provider = ring::default_provider;
    let builder = match HttpsConnectorBuilder::new().with_provider_and_native_roots(provider()) {
        Ok(builder) => builder,
        Err(error) => {
            tracing::warn!(%error, "the system trusts no authorities: probes of https pages will fail");
            let config = ClientConfig::builder_with_provider(provider().into())
                .with_safe_default_protocol_versions()
                .expect("the provider has the default versions");
            let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(config)
        }
    };
    let connector = builder.https_or_http().enable_http1().build();
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector)
}

impl Pages {
    /// Gets a page; a status from 200 to 399 is good, and the text must be in its first mebibyte.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub async fn ask(&self, url: &Uri, contains: Option<&str>) -> Result<(), String> {
        let request = Request::get(url.clone())
            .header(USER_AGENT, AGENT)
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let mut page = self.0.get_or_init(client).request(request).await.map_err(|error| chain(&error))?;
        let status = page.status();
        if !(200..400).contains(&status.as_u16()) {
            return Err(format!("the page answered {status}"));
        }
        let Some(text) = contains else { return Ok(()) };
        let finder = memchr::memmem::Finder::new(text);
        let mut seen = Vec::new();
        while let Some(frame) = page.body_mut().frame().await {
            let frame = frame.map_err(|error| chain(&error))?;
            let Some(bytes) = frame.data_ref() else { continue };
            let from = seen.len().saturating_sub(text.len());
            seen.extend_from_slice(bytes);
            if finder.find(&seen[from..]).is_some() {
                return Ok(());
            }
            if seen.len() > PAGE_BYTES_MAX {
                return Err(format!("{text:?} is not in the page's first {PAGE_BYTES_MAX} bytes"));
            }
        }
        Err(format!("{text:?} is not in the page ({status}, {} bytes)", seen.len()))
    }
}

/// An error with its causes: hyper's own text is only "client error (Connect)".
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
