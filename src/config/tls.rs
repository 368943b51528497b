//! The keys of TLS, of those who serve and of the one who asks.

use super::raw::{Report, Section};
use super::settings::{Endpoint, ServerTlsSettings, UpstreamSettings, UpstreamTls};
use super::values;

const FILES: [&str; 3] = ["certificate_file", "key_file", "client_ca_file"];

/// The tls keys of a listener or of the admin port.
pub(super) fn server(
    report: &mut Report<'_>,
    section: &mut Section<'_>,
    is_unix: bool,
) -> Option<ServerTlsSettings> {
    let words = [("off", None), ("allow", Some(false)), ("require", Some(true))];
    let word = section.read(report, "tls", values::word(&words));
    let is_on = matches!(word, Some(Some(_)));
    if is_on && is_unix {
        let hint = "write \"off\", or leave the key out: it never leaves the machine";
        report.problem_at(&section.key("tls"), "a Unix socket has no TLS, as with PostgreSQL", hint);
    }
    if is_on {
        for name in &FILES[..2] {
            if !section.has(name) {
                let hint = format!("write {name} = \"/etc/pgweir/….pem\"");
                report.problem_at(
                    &section.key(name),
                    "is missing: TLS needs a certificate and its key",
                    hint,
                );
            }
        }
    }
    let path = report.path;
    let [certificate, key, client_ca] = FILES.map(|name| section.read(report, name, values::path(path)));
    let has_no_effect = section.has("tls") && word == Some(None) || !section.has("tls");
    for name in FILES {
        if has_no_effect && section.has(name) {
            report.warning_at(&section.key(name), "has no effect with tls = \"off\"", "remove it");
        }
    }
    Some(ServerTlsSettings {
        required: word??,
        certificate_file: certificate?,
        key_file: key?,
        client_ca_file: client_ca,
    })
}

/// The tls keys of `[upstream]`.
pub(super) fn upstream(report: &mut Report<'_>, section: &mut Section<'_>, settings: &mut UpstreamSettings) {
    let path = report.path;
    let words: Vec<_> = UpstreamTls::WORDS.iter().map(|(word, tls)| (*word, Some(*tls))).collect();
    let words = [&words[..], &[("allow", None)]].concat();
    match section.read(report, "tls", values::word(&words)) {
        Some(Some(tls)) => settings.tls = tls,
        Some(None) => report.problem_at(
            &section.key("tls"),
            "\"allow\" is not served: it would log in twice wherever PostgreSQL insists on TLS",
            "write \"prefer\": TLS where PostgreSQL has it",
        ),
        None => {}
    }
    let words = [("postgres", false), ("direct", true)];
    settings.direct = section.read(report, "tls_negotiation", values::word(&words)).unwrap_or(false);
    settings.ca_file = section.read(report, "ca_file", values::path(path));
    let certificate = section.read(report, "certificate_file", values::path(path));
    let key = section.read(report, "key_file", values::path(path));
    for (name, other) in [("certificate_file", "key_file"), ("key_file", "certificate_file")] {
        if section.has(name) && !section.has(other) {
            report.problem_at(&section.key(name), format!("needs {other}"), "name both, or none");
        }
    }
    settings.certificate = certificate.zip(key);
    judge(report, section, settings);
}

fn judge(report: &mut Report<'_>, section: &Section<'_>, settings: &UpstreamSettings) {
    let word = settings.tls.word();
    let verifies = matches!(settings.tls, UpstreamTls::VerifyCa | UpstreamTls::VerifyFull);
    if verifies && !section.has("ca_file") {
        let hint = "write ca_file = \"…\": the certificate of the authority, or PostgreSQL's own";
        report.problem_at(&section.key("tls"), format!("{word:?} needs a ca_file to verify with"), hint);
    }
    let is_weak = matches!(settings.tls, UpstreamTls::Disable | UpstreamTls::Prefer);
    if settings.direct && is_weak {
        let text = format!("\"direct\" cannot be had with tls = {word:?}: there is nothing to fall back to");
        report.problem_at(&section.key("tls_negotiation"), text, "write tls = \"require\" or better");
    }
    if settings.endpoints.iter().all(|endpoint| matches!(endpoint, Endpoint::Unix { .. })) {
        if section.has("tls") && settings.tls != UpstreamTls::Disable {
            report.warning_at(&section.key("tls"), "has no effect on a unix: address", "remove it");
        }
        return;
    }
    let idle: &[&str] = match settings.tls {
        UpstreamTls::Disable => &["ca_file", "certificate_file"],
        UpstreamTls::Prefer => &["ca_file"],
        _ => &[],
    };
    for name in idle.iter().filter(|name| section.has(name)) {
        let hint = "write tls = \"verify-full\", or remove it";
        report.warning_at(&section.key(name), format!("has no effect with tls = {word:?}"), hint);
    }
}
