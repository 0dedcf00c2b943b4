//! What is wrong with objects, as their source has found it.
//!
//! **Invariant:** who is handed the errors pays nothing for those that are as they were: it is
//! the same [`Arc`].

use std::sync::Arc;

use weft_config::status::SourceError;

/// Errors that are named, one by one; of more it is only said how many they are. Objects that
/// have a status are told in theirs, however many.
pub const ERRORS_MAX: usize = 1_000;
/// An error's field and its message, each: what somebody writes into an object is in them.
const ERROR_BYTES_MAX: usize = 2 << 10;

/// All that is wrong now.
#[derive(Debug, Default)]
pub struct Errors {
    pub named: Vec<Arc<SourceError>>,
    /// How many more there are.
    pub beyond: usize,
}

impl Errors {
    /// `all`: this many.
    pub fn of<'a>(all: impl Iterator<Item = &'a Arc<SourceError>>, count: usize) -> Self {
        let named: Vec<Arc<SourceError>> = all.take(ERRORS_MAX).cloned().collect();
        let beyond = count.saturating_sub(named.len());
        Self { named, beyond }
    }

    pub fn count(&self) -> usize {
        self.named.len() + self.beyond
    }
}

impl From<Vec<SourceError>> for Errors {
    fn from(all: Vec<SourceError>) -> Self {
        let beyond = all.len().saturating_sub(ERRORS_MAX);
        let named = all.into_iter().take(ERRORS_MAX);
        let named = named.map(|error| Arc::new(bounded(error))).collect();
        Self { named, beyond }
    }
}

pub fn bounded(mut error: SourceError) -> SourceError {
    for text in [&mut error.field, &mut error.message] {
        text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    }
    error
}

/// What an object's status is made from.
#[derive(Clone, Debug)]
pub struct ForStatus {
    /// The parts of it that count, as JSON.
    pub object: Arc<str>,
    /// Why its newest version cannot be read, if it cannot.
    pub error: Option<Arc<SourceError>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_beyond_are_counted_and_none_is_long() {
        let error = SourceError {
            message: "é".repeat(ERROR_BYTES_MAX),
            ..SourceError::default()
        };
        let errors = Errors::from(vec![error; ERRORS_MAX + 7]);
        assert_eq!((errors.named.len(), errors.beyond), (ERRORS_MAX, 7));
        assert_eq!(errors.count(), ERRORS_MAX + 7);
        assert_eq!(errors.named[0].message.len(), ERROR_BYTES_MAX);
    }
}
