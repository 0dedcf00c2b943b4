//! A proxy that must not notice anything of what is done to the controller.

use super::{Controller, Deltas, service};

pub struct Bystander(Deltas, u8);

impl Bystander {
    pub async fn start(controller: &Controller) -> Self {
        controller.manifest("by.yaml", &service("by", "10.96.0.9", &["10.9.0.0"]));
        let mut deltas = controller.stream("bystander").await;
        deltas.want("Endpoints", &["shop/by:80"]).await;
        let mut first = deltas.take().await;
        while first.resources.is_empty() {
            first = deltas.take().await;
        }
        Self(deltas, 0)
    }

    pub async fn is_served(&mut self, controller: &Controller) {
        self.1 += 1;
        let address = format!("10.9.0.{}", self.1);
        controller.manifest("by.yaml", &service("by", "10.96.0.9", &[&address]));
        assert_eq!(self.0.take().await.resources.len(), 1);
    }
}
