//! What a certificate says of its holder.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|error| format!("the certificate cannot be read: {error}"))
}

/// The certificate's key, as SubjectPublicKeyInfo.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    Ok(parse(certificate)?.tbs_certificate.subject_pki.raw.to_vec())
}

/// From when to when it is valid, in seconds since 1970.
///
/// # Errors
/// It is no X.509 certificate.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), String> {
    let parsed = parse(certificate)?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Whom a client's certificate names: its subject's common name, and of its alternative names those that can be a role's name. A name
/// with a NUL inside names nobody.
///
/// # Errors
/// It is no X.509 certificate.
pub fn holders(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let parsed = parse(certificate)?;
    let mut names: Vec<String> = common_names(&parsed);
    if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
        names.extend(alternative.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                Some((*name).to_owned())
            }
            _ => None,
        }));
    }
    names.retain(|name| !name.is_empty() && !name.contains('\0'));
    Ok(names)
}

/// What SCRAM binds to (tls-server-end-point, RFC 5929, section 4.1): the certificate's hash by the function of its own signature, SHA-256 where
/// that is MD5 or SHA-1. None where the signature names no hash, as Ed25519's: there is nothing to bind to.
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use sha2::Digest;
    let algorithm = parse(certificate).ok()?.signature_algorithm.algorithm.to_id_string();
    Some(match algorithm.as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => sha2::Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => sha2::Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => sha2::Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

fn common_names(parsed: &X509Certificate<'_>) -> Vec<String> {
    parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok().map(str::to_owned)).collect()
}

/// Whether the certificate's common name is `name`, for certificates without an alternative name of a server, as libpq does it: such a
/// one decides alone where there is one.
pub(super) fn is_common_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    let Ok(parsed) = parse(certificate) else { return false };
    if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
        let of_server =
            |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
        if alternative.value.general_names.iter().any(of_server) {
            return false;
        }
    }
    common_names(&parsed).last().is_some_and(|common| match name {
        ServerName::DnsName(host) => host_matches(common, host.as_ref()),
        ServerName::IpAddress(address) => common.parse() == Ok(IpAddr::from(*address)),
        _ => false,
    })
}

/// A wildcard stands for the leftmost label, whole.
fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty() && domain.contains('.') && rest.eq_ignore_ascii_case(domain)
        }),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn certificate(common_name: &str, alternative: Vec<SanType>) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = alternative;
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().expect("ascii"))
    }

    fn host(name: &str) -> ServerName<'static> {
        ServerName::try_from(name.to_owned()).expect("a name")
    }

    #[test]
    fn a_client_is_called_by_each_of_its_names() {
        let mail = SanType::Rfc822Name("odoo@example.org".try_into().expect("ascii"));
        let found = holders(&certificate("odoo", vec![dns("odoo.example.org"), mail])).expect("parsed");
        assert_eq!(found, ["odoo", "odoo.example.org", "odoo@example.org"]);
        assert!(holders(&certificate("od\0oo", Vec::new())).expect("parsed").is_empty());
        assert!(holders(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn a_servers_common_name_counts_only_without_alternative_names() {
        for (common, alternative, name, expected) in [
            ("db.example.org", Vec::new(), "db.example.org", true),
            ("DB.example.org", Vec::new(), "db.EXAMPLE.org", true),
            ("*.example.org", Vec::new(), "db.example.org", true),
            ("*.example.org", Vec::new(), "a.db.example.org", false),
            ("*.org", Vec::new(), "example.org", false),
            ("10.0.0.1", Vec::new(), "10.0.0.1", true),
            ("db.example.org", vec![dns("other.example.org")], "db.example.org", false),
        ] {
            let certificate = certificate(common, alternative);
            assert_eq!(is_common_name(&certificate, &host(name)), expected, "{common} for {name}");
        }
    }
}
