//! What a rotation does with the authority's files, step by step. Pure.
//!
//! ```text
//! Begin ──both roots trusted──▶ Sign ──the new one signs──▶ Drop ──the old one is gone──▶ Begin
//! ```
//!
//! Where it stands is read from the files alone, so one that was killed goes on where it was.

use anyhow::{Context as _, Result, bail};
use rustls_pki_types::CertificateDer;
use weft_controller::ca::files::{File, Files};
use weft_controller::ca::{Authority, fingerprint, pem_of};

use super::hex;
use super::place::{Change, Kept, Slot};

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Begin,
    Sign,
    Drop,
}

impl Step {
    pub fn title(self) -> &'static str {
        match self {
            Self::Begin => "1/3 trust both roots",
            Self::Sign => "2/3 sign with the new root",
            Self::Drop => "3/3 drop the old root",
        }
    }
}

/// A certificate with its key, PEM: what is to sign next.
#[derive(Clone, Debug)]
pub struct Next {
    pub certificate: String,
    pub key: String,
}

/// Fingerprints (hex) of the old root and the new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    pub old: String,
    pub new: String,
}

pub fn print_of(root: &CertificateDer<'_>) -> String {
    hex(&fingerprint(root))
}

/// The root of what signs.
fn root_of(authority: &Authority) -> Result<CertificateDer<'static>> {
    authority.roots.first().cloned().context("no root")
}

/// What is to sign next, if a rotation has begun.
fn next_of(kept: &Kept) -> Result<Option<Authority>> {
    if kept.next.bytes.is_none() {
        return Ok(None);
    }
    let none = |name: &str| File {
        place: format!("{}'s {name}", kept.next.place),
        bytes: None,
    };
    let files = Files {
        certificate: kept.next.clone(),
        key: kept.next_key.clone(),
        root: none("root"),
        bundle: none("bundle"),
        revocations: none("revocations"),
    };
    Ok(Some(files.authority()?))
}

/// Where a rotation stands.
pub fn step(kept: &Kept) -> Result<Step> {
    let authority = kept.files.authority()?;
    let Some(next) = next_of(kept)? else {
        return Ok(Step::Begin);
    };
    let (signing, new) = (root_of(&authority)?, root_of(&next)?);
    Ok(match (signing == new, authority.roots.contains(&new)) {
        (true, _) => Step::Drop,
        (false, true) => Step::Sign,
        // Its files were written, and the bundle was not, or is not any more.
        (false, false) => Step::Begin,
    })
}

/// The roots of a rotation that has begun.
pub fn roots(kept: &Kept) -> Result<Roots> {
    let next = next_of(kept)?.context("no rotation is under way")?;
    let old = kept.previous.certificates()?;
    let old = old.first().with_context(|| {
        format!(
            "{}: is not there; which root is to go?",
            kept.previous.place
        )
    })?;
    Ok(Roots {
        old: print_of(old),
        new: print_of(&root_of(&next)?),
    })
}

/// Why a rotation must not begin.
pub fn obstacle(kept: &Kept, is_given: bool) -> Result<()> {
    if let Some(owner) = &kept.owner {
        bail!("{owner} keeps this authority and would undo every step; rotate it there");
    }
    let authority = kept.files.authority()?;
    if !authority.chain.is_empty() && next_of(kept)?.is_none() && !is_given {
        bail!(
            "it signs with an intermediate; give its successor by --certificate (with the chain to its root) and --key"
        );
    }
    Ok(())
}

/// What a step writes. `fresh`: what is to sign next, where nothing has begun.
pub fn change(kept: &Kept, step: Step, fresh: Option<&Next>) -> Result<Change> {
    let authority = kept.files.authority()?;
    let change = match step {
        Step::Begin => begin(kept, &authority, fresh)?,
        Step::Sign => {
            let next = next_of(kept)?.context("no rotation is under way")?;
            let text = |file: &File| -> Result<Option<String>> {
                let bytes = file.bytes.clone().unwrap_or_default();
                Ok(Some(String::from_utf8(bytes)?))
            };
            Change::from([
                (Slot::Key, text(&kept.next_key)?),
                (Slot::Certificate, text(&kept.next)?),
                (Slot::Root, Some(pem_of(&[root_of(&next)?]))),
            ])
        }
        Step::Drop => {
            let gone = kept.previous.certificates()?;
            let signing = root_of(&authority)?;
            let mut left = kept.files.bundle.certificates()?;
            left.retain(|root| !gone.contains(root) && *root != signing);
            Change::from([
                (Slot::Bundle, (!left.is_empty()).then(|| pem_of(&left))),
                (Slot::Next, None),
                (Slot::NextKey, None),
                (Slot::Previous, None),
            ])
        }
    };
    check(kept, &authority, &change).context("this step is not safe")?;
    Ok(change)
}

fn begin(kept: &Kept, authority: &Authority, fresh: Option<&Next>) -> Result<Change> {
    let mut change = Change::new();
    let signing = root_of(authority)?;
    let next = match (next_of(kept)?, fresh) {
        (Some(next), _) => next,
        (None, None) => bail!("nothing to sign with next"),
        (None, Some(fresh)) => {
            let file = |name: &str, text: &str| File {
                place: name.to_owned(),
                bytes: Some(text.as_bytes().to_vec()),
            };
            let none = |name: &str| File {
                place: name.to_owned(),
                bytes: None,
            };
            let files = Files {
                certificate: file("the new certificate", &fresh.certificate),
                key: file("the new key", &fresh.key),
                root: none("the new root"),
                bundle: none("its bundle"),
                revocations: none("its revocations"),
            };
            change.insert(Slot::NextKey, Some(fresh.key.clone()));
            change.insert(Slot::Next, Some(fresh.certificate.clone()));
            change.insert(Slot::Previous, Some(pem_of(std::slice::from_ref(&signing))));
            files.authority()?
        }
    };
    let new = root_of(&next)?;
    if new == signing {
        bail!("the new root is the one that signs now");
    }
    let mut bundle = kept.files.bundle.certificates()?;
    for root in [signing, new] {
        if !bundle.contains(&root) {
            bundle.push(root);
        }
    }
    change.insert(Slot::Bundle, Some(pem_of(&bundle)));
    Ok(change)
}

/// Whether controllers will take the files as they will be: by their own rules.
fn check(kept: &Kept, before: &Authority, change: &Change) -> Result<()> {
    let mut files = kept.files.clone();
    for (slot, text) in change {
        let file = match slot {
            Slot::Key => &mut files.key,
            Slot::Certificate => &mut files.certificate,
            Slot::Root if files.root.bytes.is_some() => &mut files.root,
            Slot::Bundle => &mut files.bundle,
            Slot::Root | Slot::Next | Slot::NextKey | Slot::Previous => continue,
        };
        file.bytes = text.clone().map(String::into_bytes);
    }
    let after = files.authority()?;
    if !after.roots.contains(&root_of(before)?) {
        bail!("it would end trust in the root that signs");
    }
    Ok(())
}
