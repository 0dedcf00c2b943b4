//! Certificates that are no good any more: `crl.pem` among the authority's files, as
//! `openssl ca -gencrl` writes it; several lists may follow each other.
//!
//! **Invariant:** a list counts only if a certificate that we trust, or sign with, has signed it.

use std::collections::HashSet;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::files::File;
use super::{CaError, error_at};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// Issuer (DER) and serial number of each.
    revoked: HashSet<(Vec<u8>, Vec<u8>)>,
}

impl Revocations {
    /// Reads the lists; there need be none.
    pub fn read(file: &File, issuers: &[CertificateDer<'static>]) -> Result<Self, CaError> {
        let mut all = Self::default();
        let Some(bytes) = &file.bytes else {
            return Ok(all);
        };
        let place = file.place.as_str();
        let lists = CertificateRevocationListDer::pem_slice_iter(bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error_at(place, error))?;
        if lists.is_empty() {
            let problem = "holds no revocation list (PEM); remove it";
            return Err(error_at(place, problem));
        }
        for list in lists {
            // As the proxies will read it.
            webpki::BorrowedCertRevocationList::from_der(&list)
                .map_err(|error| error_at(place, error))?;
            let (_, parsed) = CertificateRevocationList::from_der(&list)
                .map_err(|error| error_at(place, error))?;
            if !issuers.iter().any(|issuer| signed(&parsed, issuer)) {
                let problem = format!(
                    "the list of {} is signed by no certificate that signs or is trusted here",
                    parsed.issuer()
                );
                return Err(error_at(place, problem));
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
