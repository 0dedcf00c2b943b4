//! The certificates of the peers' pairs: one authority, a client's and a server's
//! P-256 certificate with a SPIFFE identity, as Weft's controller signs them.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::load::tls::HOST;

/// The sides, as their files are called.
const SIDES: [&str; 2] = ["client", "server"];

/// Who a side is.
pub fn identity(side: &str) -> String {
    format!("spiffe://cluster.local/ns/bench/sa/{side}")
}

/// Writes ca.pem, and for each side SIDE.pem, SIDE-key.pem and (for HAProxy) SIDE-both.pem.
pub fn write(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    // OpenSSL takes a certificate for self-signed that is called as its issuer.
    params
        .distinguished_name
        .push(DnType::CommonName, "bench CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    for side in SIDES {
        let mut params = CertificateParams::new([HOST.to_owned()])?;
        params
            .subject_alt_names
            .push(SanType::URI(identity(side).try_into()?));
        params.distinguished_name.push(DnType::CommonName, side);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?.pem();
        let key = key.serialize_pem();
        fs::write(folder.join(format!("{side}.pem")), &certificate)?;
        fs::write(folder.join(format!("{side}-key.pem")), &key)?;
        fs::write(folder.join(format!("{side}-both.pem")), certificate + &key)?;
    }
    Ok(())
}
