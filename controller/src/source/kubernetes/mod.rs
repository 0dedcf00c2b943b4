//! The API server of a cluster as a source: a watch for each kind, whose news become
//! the same changes as those of a directory.
//!
//! `api::kinds` says what is watched, `watch` does it, `held` (pure) knows what there is, `pause`
//! (pure) when it is asked again.

mod held;
mod log;
mod pause;
mod seen;
mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::{Client, Config};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;

use super::{Behind, Told, Update};
use crate::api::kinds::WATCHED;
use held::{Held, News};
use watch::Watch;

/// News on their way to the index; a watch waits when there are more.
const NEWS_MAX: usize = 1_024;
/// News that are taken up together, at most.
const BATCH_MAX: usize = 16_384;
/// An API server that does not take a connection within this time is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a watch lasts, for it may have nothing to say.
const READ_TIMEOUT: Duration = Duration::from_secs(75);

/// A client for the cluster that this runs in, else for that of the user's kubeconfig.
pub async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Whoever asks decides when to ask again, and says that it failed.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

#[derive(Debug)]
pub struct Source {
    news: Receiver<(usize, News)>,
    held: Held,
    told: Told,
    /// Ends with us.
    _watches: JoinSet<()>,
}

impl Source {
    /// Begins to watch.
    pub fn open(client: &Client, behind: &Behind) -> Self {
        let (sender, news) = channel(NEWS_MAX);
        let mut watches = JoinSet::new();
        for number in 0..WATCHED.len() {
            if let Some(watch) = Watch::new(client.clone(), number, sender.clone(), behind.clone())
            {
                watches.spawn(watch.run());
            }
        }
        Self {
            news,
            held: Held::new(seconds_now()),
            told: Told::default(),
            _watches: watches,
        }
    }

    /// Waits for news, and takes up all that have come.
    pub async fn next(&mut self) -> Update {
        let mut taken = 0;
        while taken < BATCH_MAX {
            let next = match taken {
                // Watches go on for as long as we do.
                0 => self.news.recv().await,
                _ => self.news.try_recv().ok(),
            };
            let Some((number, news)) = next else {
                break;
            };
            self.held.take(number, news, seconds_now());
            taken += 1;
        }
        let errors = self.held.errors();
        self.told.tell(&errors);
        Update {
            changes: self.held.changes(),
            errors,
            seen: self.held.seen(),
            watches: self.held.watches().to_vec(),
            marks: self.held.marks(),
            is_complete: self.held.is_complete(),
        }
    }
}

fn seconds_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_config::status::SourceError;

    use super::*;
    use crate::api::errors::{ERRORS_MAX, ForStatus};
    use crate::api::{Key, Object, Spec};
    use held::Read;

    fn number_of(kind: &str) -> usize {
        WATCHED.iter().position(|of| of.kind == kind).unwrap()
    }

    fn key(kind: &'static str, number: usize) -> Key {
        Key {
            kind,
            namespace: "shop".to_owned(),
            name: format!("{number:05}"),
        }
    }

    /// What somebody wrote that is wrong; `None`: nothing is.
    fn policy(number: usize, wrong: Option<&str>) -> News {
        let error = |message: &str| SourceError {
            object: key("AuthorizationPolicy", number).to_string(),
            message: message.to_owned(),
            ..SourceError::default()
        };
        let read = Read {
            object: wrong.map_or(Ok(None), |message| Err(error(message))),
            for_status: Some("{}".into()),
        };
        News::Object(key("AuthorizationPolicy", number), 1, Box::new(read))
    }

    fn namespace(number: usize) -> News {
        let object = Object {
            namespace: String::new(),
            name: number.to_string(),
            created: None,
            generation: 0,
            spec: Spec::Namespace,
        };
        let read = Read {
            object: Ok(Some(object)),
            for_status: None,
        };
        News::Object(key("Namespace", number), 1, Box::new(read))
    }

    #[test]
    fn what_cannot_be_read_costs_nothing_where_it_is_as_it_was() {
        const WRONG: usize = ERRORS_MAX + 100;
        let mut held = Held::new(0);
        let policies = number_of("AuthorizationPolicy");
        for number in 0..WRONG {
            held.take(policies, policy(number, Some("is none")), 0);
        }
        let errors = held.errors();
        assert_eq!((errors.named.len(), errors.beyond), (ERRORS_MAX, 100));
        // Each is told in its own status, those too that are not named.
        let seen = held.seen();
        assert_eq!(seen.len(), WRONG);
        let is_wrong = |of: &Option<ForStatus>| of.as_ref().is_some_and(|of| of.error.is_some());
        assert!(seen.values().all(is_wrong));
        // Something else changes; one is seen again, as wrong as it was.
        held.take(number_of("Namespace"), namespace(1), 0);
        held.take(policies, policy(7, Some("is none")), 0);
        assert!(Arc::ptr_eq(&held.errors(), &errors));
        // It is wrong in another way.
        held.take(policies, policy(7, Some("is two")), 0);
        let other = held.errors();
        assert_eq!(other.named[7].message, "is two");
        assert!(Arc::ptr_eq(&other.named[8], &errors.named[8]));
        // Those that are mended make room for the others.
        for number in 0..150 {
            held.take(policies, policy(number, None), 0);
        }
        let errors = held.errors();
        assert_eq!((errors.named.len(), errors.beyond), (WRONG - 150, 0));
        assert!(!held.seen().values().any(is_wrong));
        for number in 150..WRONG {
            held.take(
                policies,
                News::Gone(key("AuthorizationPolicy", number), 2),
                0,
            );
        }
        assert_eq!(held.errors().count(), 0);
    }
}
