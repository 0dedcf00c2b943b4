//! What is wrong with a configuration: every mistake of it, each with its field
//! path. Owns the form in which they are shown; what a mistake is, `file` and
//! `compile` know.

use std::fmt;

/// One mistake, at one place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Field path such as `services[2].endpoints[0].address`; empty: the whole file.
    pub path: String,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// All mistakes of one configuration; never empty where it is an `Err`.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Errors {
    /// What the configuration came from, e.g. `weft.yaml`; empty: not a file.
    pub source_name: String,
    pub list: Vec<ConfigError>,
}

/// More than this many are counted and not kept: a file in the wrong format
/// would otherwise bury its cause.
pub const ERRORS_MAX: usize = 200;

impl Errors {
    /// A single mistake.
    pub fn one(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            source_name: String::new(),
            list: vec![ConfigError {
                path: path.into(),
                message: message.into(),
            }],
        }
    }

    /// Names the file that the mistakes are in.
    #[must_use]
    pub fn named(mut self, source_name: &str) -> Self {
        self.source_name = source_name.to_owned();
        self
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.list.iter().take(ERRORS_MAX).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if !self.source_name.is_empty() {
                write!(f, "{}: ", self.source_name)?;
            }
            write!(f, "{error}")?;
        }
        if self.list.len() > ERRORS_MAX {
            write!(f, "\n… and {} more", self.list.len() - ERRORS_MAX)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_names_the_file_and_the_field() {
        let mut errors = Errors::one("services[2].endpoints[0].address", "is missing");
        errors.list.push(ConfigError {
            path: String::new(),
            message: "is empty".into(),
        });
        assert_eq!(
            errors.named("weft.yaml").to_string(),
            "weft.yaml: services[2].endpoints[0].address: is missing\nweft.yaml: is empty"
        );
    }

    #[test]
    fn a_flood_is_counted() {
        let mut errors = Errors::default();
        for index in 0..ERRORS_MAX + 5 {
            errors
                .list
                .push(Errors::one(format!("a[{index}]"), "x").list.remove(0));
        }
        assert!(errors.to_string().ends_with("… and 5 more"));
    }
}
