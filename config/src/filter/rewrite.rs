//! URLRewrite: another host or path for the upstream.

use bytes::Bytes;
use http::uri::PathAndQuery;

use super::{FilterContext, RequestParts, path};
use crate::snapshot::Rewrite;

pub(super) fn apply(
    rewrite: &Rewrite,
    parts: &mut RequestParts,
    context: &FilterContext<'_>,
) -> Result<(), &'static str> {
    if let Some(modifier) = &rewrite.path {
        let prefix = context.matched_prefix();
        let path = path::modified(modifier, parts.path_and_query.as_str(), prefix);
        parts.path_and_query = PathAndQuery::from_maybe_shared(Bytes::from(path))
            .map_err(|_| "the rewritten path is not a path")?;
    }
    if let Some(hostname) = &rewrite.hostname {
        parts.set_authority(hostname);
    }
    Ok(())
}
