//! What a proxy refuses of what it was sent, as its answers say. Pure.
//!
//! **Invariant:** however much a proxy says, what is kept of it is bounded.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::status::Refusal;

use crate::index::Type;

/// Refused resources of one proxy that are told of; there is more to mend than that already.
pub const REFUSALS_MAX: usize = 256;
/// Bytes of what a proxy says that are kept, of each, and written to the log.
pub const REFUSAL_BYTES_MAX: usize = 1024;

#[derive(Debug, Default)]
pub struct Refusals {
    of: BTreeMap<(Type, String), Refusal>,
    /// Something else is to be told than when it was asked last.
    is_new: bool,
}

impl Refusals {
    /// Takes up an answer about these resources. `problem`: what is wrong, a line for each
    /// (`name: what`); one that names nothing refuses all. `now`: seconds since the Unix epoch.
    pub fn take(&mut self, kind: Type, sent: &[String], problem: Option<&str>, now: u64) {
        let Some(problem) = problem else {
            sent.iter().for_each(|name| self.forget(kind, name));
            return;
        };
        let named = by_name(sent, problem);
        for name in sent {
            let of_it = named.get(name.as_str()).map(String::as_str);
            match of_it.or(named.is_empty().then_some(problem)) {
                Some(message) => self.put((kind, name.clone()), shortened(message), now),
                None => self.forget(kind, name),
            }
        }
    }

    fn put(&mut self, key: (Type, String), message: &str, now: u64) {
        let before = self.of.get(&key);
        if before.is_none() && self.of.len() >= REFUSALS_MAX {
            return;
        }
        let refusal = Refusal {
            resource: format!("{} {}", key.0.name(), key.1),
            message: message.to_owned(),
            since: before.map_or(now, |before| before.since),
        };
        self.is_new |= self.of.insert(key, refusal.clone()) != Some(refusal);
    }

    /// It is good, or wanted no more.
    pub fn forget(&mut self, kind: Type, name: &str) {
        // Nearly always there is none.
        if !self.of.is_empty() {
            self.is_new |= self.of.remove(&(kind, name.to_owned())).is_some();
        }
    }

    /// All of them, if there is something new to tell.
    pub fn news(&mut self) -> Option<Vec<Refusal>> {
        let is_new = std::mem::take(&mut self.is_new);
        is_new.then(|| self.of.values().cloned().collect())
    }
}

/// The lines that are about each of those that were sent.
fn by_name<'a>(sent: &'a [String], problem: &str) -> BTreeMap<&'a str, String> {
    let sent: BTreeSet<&str> = sent.iter().map(String::as_str).collect();
    let mut all: BTreeMap<&str, String> = BTreeMap::new();
    let mut current = None;
    for line in problem.lines() {
        let name = line.split_once(": ").map_or("", |(name, _)| name);
        if let Some(name) = sent.get(name) {
            current = Some(*name);
        }
        let Some(name) = current else { continue };
        let text = all.entry(name).or_default();
        if text.len() < REFUSAL_BYTES_MAX {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(shortened(line));
        }
    }
    all
}

/// As much of what somebody says as is kept.
pub fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(REFUSAL_BYTES_MAX))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    fn told(refusals: &mut Refusals) -> Vec<(String, String)> {
        let told = refusals.news().unwrap();
        let told = told.into_iter().map(|of| (of.resource, of.message));
        told.collect()
    }

    #[test]
    fn each_resource_gets_what_is_said_of_it() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.news(), None);
        let sent = || names(&["a:80", "[fd00::1]:80", "c:80"]);
        let said = "a:80: no\n  at all\n[fd00::1]:80: nor this";
        refusals.take(Type::Service, &sent(), Some(said), 1);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            told(&mut refusals),
            [
                pair("Service [fd00::1]:80", "[fd00::1]:80: nor this"),
                pair("Service a:80", "a:80: no\n  at all"),
            ]
        );
        assert_eq!(refusals.news(), None, "it is told once");
        // What names nothing is about all, and since the first time.
        refusals.take(Type::Service, &sent(), Some("bad"), 2);
        let news = refusals.news().unwrap();
        assert_eq!(
            news.iter().map(|of| of.since).collect::<Vec<_>>(),
            [1, 1, 2]
        );
        refusals.take(Type::Service, &names(&["a:80", "c:80"]), None, 3);
        refusals.forget(Type::Service, "[fd00::1]:80");
        assert_eq!(refusals.news(), Some(Vec::new()));
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_letter_stays_whole() {
        let sent: Vec<String> = (0..2_000).map(|number| format!("n{number}")).collect();
        let long = "é".repeat(1 << 16);
        let each: String = sent
            .iter()
            .map(|of| format!("{of}: {long:.2000}\n"))
            .collect();
        for problem in [&long, &each] {
            let mut refusals = Refusals::default();
            refusals.take(Type::Service, &sent, Some(problem), 1);
            let news = refusals.news().unwrap();
            assert_eq!(news.len(), REFUSALS_MAX);
            assert!(news.iter().all(|of| of.message.len() <= REFUSAL_BYTES_MAX));
        }
    }
}
