//! `inbound.authorization`: the policies of one port.

use super::at::At;
use crate::authorize::Authorization;
use crate::wire;

pub(super) fn compile(
    _at: &At<'_>,
    authorization: Option<&wire::Authorization>,
) -> Option<Authorization> {
    let Some(_authorization) = authorization else {
        return Some(Authorization::default());
    };
    Some(Authorization::default())
}
