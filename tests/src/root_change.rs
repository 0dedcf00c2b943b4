//! The steps in which a mesh gets another root, each awaited (docs/mesh.md, Identity).

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use weft_controller::ca::Ca;

use crate::eventually;
use crate::mesh::{Mesh, Sidecar};

pub struct RootChange<'a> {
    mesh: &'a Mesh,
    folder: TempDir,
    next: Ca,
}

impl<'a> RootChange<'a> {
    /// Makes the next authority.
    #[must_use]
    pub fn begin(mesh: &'a Mesh) -> Self {
        let folder = TempDir::new().expect("a folder can be made");
        let life = Duration::from_secs(3600);
        let next =
            Ca::open(folder.path(), "cluster.local", life).expect("an authority can be made");
        Self { mesh, folder, next }
    }

    /// Everybody trusts the old root and the new one.
    pub fn trust_both(&self) {
        let ca = self.mesh.folder.path().join("ca");
        let both = roots(&ca) + &roots(self.folder.path());
        fs::write(ca.join("bundle.pem"), both).expect("it can be written");
        self.trusted(2);
    }

    /// Certificates come from the new root; all of `sidecars` have theirs.
    pub fn sign_with_new(&self, sidecars: &[&Sidecar]) {
        let before: Vec<f64> = sidecars.iter().map(|sidecar| renewals(sidecar)).collect();
        let ca = self.mesh.folder.path().join("ca");
        for name in ["ca.crt", "ca.key"] {
            fs::copy(self.folder.path().join(name), ca.join(name)).expect("it can be copied");
        }
        eventually("everybody having renewed", || {
            let mut counted = sidecars.iter().zip(&before);
            let renewed = counted.all(|(sidecar, before)| renewals(sidecar) > *before);
            renewed.then_some(())
        });
    }

    /// Nobody trusts the old root.
    pub fn drop_old(&self) {
        let ca = self.mesh.folder.path().join("ca");
        fs::remove_file(ca.join("bundle.pem")).expect("it can be removed");
        self.trusted(1);
        let fingerprint = &self.mesh.status().roots[0].fingerprint;
        assert_eq!(fingerprint, &hex(&self.next.bundle().signing_root));
    }

    fn trusted(&self, count: usize) {
        eventually("the roots being known", || {
            (self.mesh.status().roots.len() == count).then_some(())
        });
        self.mesh.settled();
    }
}

fn roots(folder: &Path) -> String {
    fs::read_to_string(folder.join("trust.pem")).expect("it is there")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn renewals(sidecar: &Sidecar) -> f64 {
    let labels = [("result", "ok")];
    sidecar
        .proxy
        .metrics()
        .sum("weft_mesh_certificates_total", &labels)
}
