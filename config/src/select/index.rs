//! Leaves out entries that cannot match. An entry that matches has its hostname
//! and its path in one of the lists that a request looks at; each list is in
//! order of precedence, and the smallest position over all of them is the answer,
//! so that it equals the first match of a scan (a test compares the two).

use std::collections::HashMap;

use super::{RequestHead, Seen, mismatch, scan};
use crate::snapshot::{HostnameMatch, PathCondition, RouteEntry};

/// Up to this many entries a scan is as fast as the hashing that it saves.
const SCAN_MAX: usize = 16;

/// Positions of a table's entries, by hostname and then by path. Empty for a
/// table that is scanned.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteIndex {
    exact: HashMap<Box<str>, PathIndex>,
    suffix: HashMap<Box<str>, PathIndex>,
    /// Distinct lengths of the suffixes, so that a long host costs no more look-ups
    /// than there are kinds of entries.
    suffix_lengths: Vec<usize>,
    any: PathIndex,
}

#[derive(Clone, Debug, Default)]
struct PathIndex {
    exact: HashMap<Box<str>, Vec<u32>>,
    prefix: HashMap<Box<str>, Vec<u32>>,
    prefix_lengths: Vec<usize>,
    /// Every path, and regular expressions.
    rest: Vec<u32>,
}

impl RouteIndex {
    pub fn new(entries: &[RouteEntry]) -> Self {
        let mut index = Self::default();
        if entries.len() <= SCAN_MAX {
            return index;
        }
        for (position, entry) in entries.iter().enumerate() {
            let paths = match &entry.hostname {
                HostnameMatch::Exact(name) => index.exact.entry(name.clone()).or_default(),
                HostnameMatch::Suffix(suffix) => {
                    add_length(&mut index.suffix_lengths, suffix.len());
                    index.suffix.entry(suffix.clone()).or_default()
                }
                HostnameMatch::Any => &mut index.any,
            };
            // A table of 4 billion entries does not fit into memory.
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            match &entry.condition.path {
                PathCondition::Exact(path) => {
                    paths.exact.entry(path.clone()).or_default().push(position);
                }
                PathCondition::Prefix(prefix) => {
                    add_length(&mut paths.prefix_lengths, prefix.len());
                    paths
                        .prefix
                        .entry(prefix.clone())
                        .or_default()
                        .push(position);
                }
                PathCondition::Regex(_) | PathCondition::Any => paths.rest.push(position),
            }
        }
        index
    }

    /// Position of the first entry that matches.
    pub fn find(&self, entries: &[RouteEntry], request: &RequestHead<'_>) -> Option<usize> {
        if entries.len() <= SCAN_MAX {
            return scan(entries, request);
        }
        let mut search = Search {
            entries,
            request,
            seen: Seen::new(request),
            best: u32::MAX,
        };
        if !self.exact.is_empty()
            && let Some(paths) = self.exact.get(search.seen.host.as_str())
        {
            search.paths(paths);
        }
        for length in &self.suffix_lengths {
            let host = search.seen.host.as_str();
            let paths = host
                .len()
                .checked_sub(*length)
                .filter(|start| *start > 0)
                .and_then(|start| host.get(start..))
                .and_then(|suffix| self.suffix.get(suffix));
            if let Some(paths) = paths {
                search.paths(paths);
            }
        }
        search.paths(&self.any);
        (search.best != u32::MAX).then_some(search.best as usize)
    }
}

fn add_length(lengths: &mut Vec<usize>, length: usize) {
    if let Err(place) = lengths.binary_search(&length) {
        lengths.insert(place, length);
    }
}

struct Search<'a> {
    entries: &'a [RouteEntry],
    request: &'a RequestHead<'a>,
    seen: Seen<'a>,
    /// The smallest position found so far.
    best: u32,
}

impl Search<'_> {
    fn paths(&mut self, paths: &PathIndex) {
        let path = self.request.path;
        if !paths.exact.is_empty()
            && let Some(positions) = paths.exact.get(path)
        {
            self.positions(positions);
        }
        // Longest first: it is most often the answer, and then ends the other lists early.
        for length in paths.prefix_lengths.iter().rev() {
            // Only at the end of a path element.
            if !matches!(path.as_bytes().get(*length), None | Some(b'/')) {
                continue;
            }
            if let Some(prefix) = path.get(..*length)
                && let Some(positions) = paths.prefix.get(prefix)
            {
                self.positions(positions);
            }
        }
        self.positions(&paths.rest);
    }

    fn positions(&mut self, positions: &[u32]) {
        for position in positions {
            if *position >= self.best {
                return;
            }
            let matches = self
                .entries
                .get(*position as usize)
                .is_some_and(|entry| mismatch(entry, self.request, &self.seen).is_none());
            if matches {
                self.best = *position;
                return;
            }
        }
    }
}
