//! `HTTPPathModifier`: a new path for an old one. The query stays.

use crate::snapshot::PathModifier;

/// Path and query after a modifier. `path_and_query` is the request's, `prefix`
/// the matched prefix without its trailing slash.
pub(super) fn modified(modifier: &PathModifier, path_and_query: &str, prefix: &str) -> String {
    let (path, query) = match path_and_query.find('?') {
        Some(start) => path_and_query.split_at(start),
        None => (path_and_query, ""),
    };
    match modifier {
        PathModifier::Full(full) => [full, query].concat(),
        PathModifier::Prefix(replacement) => {
            let replacement = replacement.strip_suffix('/').unwrap_or(replacement);
            let rest = path.strip_prefix(prefix).unwrap_or(path);
            let root = if replacement.is_empty() && rest.is_empty() {
                "/"
            } else {
                ""
            };
            // `*` (OPTIONS) and the like have no slash of their own.
            let slash = if rest.is_empty() || rest.starts_with('/') {
                ""
            } else {
                "/"
            };
            [replacement, root, slash, rest, query].concat()
        }
    }
}
