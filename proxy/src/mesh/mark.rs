//! How far whoever told us what we know had read (`Pod=12,Service=7`): claimed from the next
//! controller, which is not to take us back. We only keep it: what it means is the controllers'.

use std::collections::BTreeMap;

use weft_config::staleness;

/// There are fewer kinds than that.
const PARTS_MAX: usize = 32;
const PART_BYTES_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Mark(BTreeMap<String, String>);

impl Mark {
    /// Takes up what has moved.
    pub fn take(&mut self, news: &str) {
        for (kind, version) in news.split(',').filter_map(|part| part.split_once('=')) {
            if kind == staleness::WORD {
                continue;
            }
            let has_room = self.0.len() < PARTS_MAX || self.0.contains_key(kind);
            if has_room && kind.len() <= PART_BYTES_MAX && version.len() <= PART_BYTES_MAX {
                self.0.insert(kind.to_owned(), version.to_owned());
            }
        }
    }

    pub fn text(&self) -> String {
        let parts = self
            .0
            .iter()
            .map(|(kind, version)| format!("{kind}={version}"));
        parts.collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_last_of_each_and_is_bounded() {
        let mut mark = Mark::default();
        mark.take("Service=7,Pod=3");
        mark.take("");
        mark.take("nonsense,Pod=12,stale=1");
        assert_eq!(mark.text(), "Pod=12,Service=7");
        mark.take(&format!("Long={}", "1".repeat(100)));
        for number in 0..100 {
            mark.take(&format!("K{number}=1"));
        }
        assert_eq!(mark.0.len(), PARTS_MAX);
        assert!(!mark.0.contains_key("Long"));
    }
}
