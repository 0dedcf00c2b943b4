//! Invariants of the configuration's text forms.

use weft_config::duration;

/// Loading never panics, and an error always says something.
pub fn config_yaml(text: &str) {
    if let Err(errors) = weft_config::file::load("fuzz.yaml", text) {
        assert!(!errors.is_empty());
        assert!(!errors.to_string().is_empty());
    }
}

/// What parses is written back, if at all, as something that means the same.
pub fn duration(text: &str) {
    if let Ok(parsed) = duration::parse(text)
        && let Some(written) = duration::format(parsed)
    {
        assert_eq!(duration::parse(&written), Ok(parsed), "{text:?} → {written:?}");
    }
}
