//! Which endpoint of a service takes the next try. Owns what is known of each
//! endpoint ([`EndpointState`]) and the choice among them ([`EndpointSet`]);
//! leaves to others where endpoints come from, who checks their health, and
//! when one is ejected (`outlier`).
//!
//! An [`EndpointState`] is one `Arc` of atomics that every worker sees and that
//! outlives reloads; an [`EndpointSet`] is immutable and made anew whenever the
//! list, a weight or the policy changes. `pick` takes `now` and randomness as
//! arguments, allocates nothing, and for all but consistent hashing looks at a
//! handful of endpoints however many there are.
//!
//! **Invariant:** an endpoint of weight 0 is never picked; one that drains,
//! only when every other drains too or has failed this request.

mod endpoint;
mod hash;
mod health;
mod latency;
mod pick;
mod ring;
mod set;
#[cfg(test)]
mod tests;
mod weights;

pub use endpoint::{EndpointState, InFlight, Outcome};
pub use hash::{cookie_value, hash_key};
pub use health::Health;
pub use pick::Pick;
pub use set::{Counts, EndpointSet, Rotation};
