//! Certificates and keys in PEM files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// Bytes of a PEM file at most: a bundle of all public authorities has 220 kB.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// Spare room in which read_to_end finds the end of a file without growing its buffer.
const PROBE_LEN: usize = 64;

/// Which of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `certificate_file`.
    Certificate,
    /// `key_file`.
    Key,
    /// `client_ca_file` or `ca_file`.
    Authority,
}

/// What is wrong with one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// Which.
    pub which: Which,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
}

impl FileProblem {
    pub(super) fn new(which: Which, message: impl Into<String>, hint: &'static str) -> Self {
        Self { which, message: message.into(), hint }
    }
}

fn read(
    which: Which,
    path: &Path,
    may_read: impl FnOnce(&std::fs::Metadata) -> bool,
) -> Result<Zeroizing<Vec<u8>>, FileProblem> {
    let shown = path.display();
    let io = |error: std::io::Error| {
        FileProblem::new(which, format!("{shown}: {error}"), "name a PEM file that pgweir may read")
    };
    // Asked before opening, because opening a FIFO would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(FileProblem::new(which, format!("{shown}: is not a regular file"), "name a PEM file"));
    }
    let file = File::open(path).map_err(io)?;
    // Asked of the open file, so that nobody can swap it in between.
    if !may_read(&file.metadata().map_err(io)?) {
        let text = format!("{shown}: others may read or write the private key");
        return Err(FileProblem::new(which, text, "run `chmod 600` on it; a file of root's may be 640"));
    }
    // Room for all of it and a byte to find the end with: growing would leave copies of a key behind.
    let len = usize::try_from(file.metadata().map_err(io)?.len().min(FILE_MAX)).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(len + PROBE_LEN));
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(FileProblem::new(
            which,
            format!("{shown}: has more than {FILE_MAX} bytes"),
            "name a PEM file",
        ));
    }
    Ok(bytes)
}

/// The certificates of a file, at least one.
pub(super) fn certificates(which: Which, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileProblem> {
    let bytes = read(which, path, |_| true)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(FileProblem::new(
            which,
            format!("{}: holds no certificate", path.display()),
            "it must be PEM: -----BEGIN CERTIFICATE-----",
        )),
        Err(error) => Err(FileProblem::new(
            which,
            format!("{}: {error}", path.display()),
            "it must be a valid PEM file",
        )),
    }
}

/// The private key of a file. As PostgreSQL and libpq do, a file of ours must be closed to all others, a file of root's may be
/// readable by its group.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, FileProblem> {
    let bytes = read(Which::Key, path, |meta| {
        let others = if meta.uid() == 0 { 0o037 } else { 0o077 };
        meta.mode() & others == 0
    })?;
    let key = PrivateKeyDer::from_pem_slice(&bytes);
    let encrypted = bytes.windows(9).any(|word| word == b"ENCRYPTED");
    key.map_err(|error| {
        let shown = path.display();
        if encrypted {
            let text = format!("{shown}: the key is encrypted");
            return FileProblem::new(
                Which::Key,
                text,
                "store it without a passphrase, readable by pgweir only",
            );
        }
        FileProblem::new(
            Which::Key,
            format!("{shown}: {error}"),
            "it must be a PEM private key: PKCS#8, PKCS#1 or SEC1",
        )
    })
}

/// The authorities of a file.
pub(super) fn authorities(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), FileProblem> {
    let found = certificates(Which::Authority, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &found {
        roots.add(certificate.clone()).map_err(|error| {
            let text = format!("{}: a certificate cannot be used: {error}", path.display());
            FileProblem::new(Which::Authority, text, "name the authorities' certificates")
        })?;
    }
    Ok((roots, found))
}
