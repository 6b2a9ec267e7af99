//! Whose certificates are believed.

use crate::error::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use ureq::tls::{Certificate, RootCerts};

/// `SSL_CERT_FILE` and `SSL_CERT_DIR`, where they are set: then only these count, as for curl.
#[derive(Clone, Debug, Default)]
pub struct RootSource {
    pub file: Option<PathBuf>,
    pub dir: Option<PathBuf>,
}

impl RootSource {
    /// The certificates: those named, else the system's store, else Mozilla's in this program.
    pub fn load(&self) -> Result<RootCerts> {
        let named = self.file.is_some() || self.dir.is_some();
        let found = match named {
            true => {
                let (file, dir) = (self.file.as_deref(), self.dir.as_deref());
                rustls_native_certs::load_certs_from_paths(file, dir)
            }
            false => rustls_native_certs::load_native_certs(),
        };
        if found.certs.is_empty() && named {
            let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(Error::input(format!("no certificate was found in {self}"))
                .evidence(why)
                .hint(
                    "SSL_CERT_FILE names a file of PEM certificates; unset it for the system's",
                ));
        }
        if found.certs.is_empty() {
            return Ok(RootCerts::WebPki);
        }
        let own = |der: &[u8]| Certificate::from_der(der).to_owned();
        Ok(RootCerts::Specific(Arc::new(found.certs.iter().map(|c| own(c)).collect())))
    }

    /// How a certificate authority gets believed here.
    pub fn advice(&self) -> String {
        format!(
            "the certificates of {self} are believed: add the CA that signs for this server (of a \
             company's proxy, perhaps) to the system's store (Debian: \
             /usr/local/share/ca-certificates/NAME.crt, then `update-ca-certificates`), or set \
             SSL_CERT_FILE=FILE.pem"
        )
    }
}

impl std::fmt::Display for RootSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.file, &self.dir) {
            (Some(file), Some(dir)) => write!(f, "{} and {}", file.display(), dir.display()),
            (Some(one), None) | (None, Some(one)) => write!(f, "{}", one.display()),
            (None, None) => f.write_str("the system's store"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_named_file_without_certificates_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        for content in [None, Some("no certificate")] {
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let source = RootSource { file: Some(file.clone()), dir: None };
            let e = source.load().unwrap_err();
            assert_eq!(e.kind(), Kind::Input);
            assert!(e.to_string().contains("ca.pem"), "{e}");
        }
    }
}
