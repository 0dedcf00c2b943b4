//! Certificates that are no good any more: `crl.pem` in the authority's directory, as
//! `openssl ca -gencrl` writes it; several lists may follow each other.
//!
//! **Invariant:** a list counts only if a certificate that we trust, or sign with, has signed it.

use std::collections::HashSet;
use std::path::Path;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{CaError, file_error};

const FILE_BYTES_MAX: u64 = 8 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// Issuer (DER) and serial number of each.
    revoked: HashSet<(Vec<u8>, Vec<u8>)>,
}

impl Revocations {
    /// Reads the lists; there need be none.
    pub fn read(path: &Path, issuers: &[CertificateDer<'static>]) -> Result<Self, CaError> {
        let mut all = Self::default();
        match std::fs::metadata(path) {
            Err(_) => return Ok(all),
            Ok(of) if of.len() > FILE_BYTES_MAX => {
                let problem = format!("is larger than {FILE_BYTES_MAX} bytes");
                return Err(file_error(path, problem));
            }
            Ok(_) => {}
        }
        let lists = CertificateRevocationListDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| file_error(path, error))?;
        if lists.is_empty() {
            return Err(file_error(
                path,
                "holds no revocation list (PEM); remove it",
            ));
        }
        for list in lists {
            // As the proxies will read it.
            webpki::BorrowedCertRevocationList::from_der(&list)
                .map_err(|error| file_error(path, error))?;
            let (_, parsed) = CertificateRevocationList::from_der(&list)
                .map_err(|error| file_error(path, error))?;
            if !issuers.iter().any(|issuer| signed(&parsed, issuer)) {
                let problem = format!(
                    "the list of {} is signed by no certificate of ca.crt or bundle.pem",
                    parsed.issuer()
                );
                return Err(file_error(path, problem));
            }
            let issuer = parsed.issuer().as_raw();
            all.revoked.extend(
                parsed
                    .iter_revoked_certificates()
                    .map(|of| (issuer.to_vec(), of.raw_serial().to_vec())),
            );
            all.lists.push(list);
        }
        Ok(all)
    }

    pub fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.revoked.is_empty() {
            return false;
        }
        let parsed = x509_parser::parse_x509_certificate(certificate);
        parsed.is_ok_and(|(_, of)| {
            let key = (of.issuer().as_raw().to_vec(), of.raw_serial().to_vec());
            self.revoked.contains(&key)
        })
    }
}

fn signed(list: &CertificateRevocationList<'_>, issuer: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate(issuer);
    parsed.is_ok_and(|(_, issuer)| {
        issuer.subject().as_raw() == list.issuer().as_raw()
            && list.verify_signature(issuer.public_key()).is_ok()
    })
}
