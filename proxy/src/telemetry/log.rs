//! The proxy's own log: to standard error, its level changeable at run time.

use std::io::IsTerminal;

use parking_lot::Mutex;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "log level `{level}`: {problem}; give off, error, warn, info, debug or trace, or \
         directives such as `info,weft_proxy::health=debug`"
    )]
    Level { level: String, problem: String },
    #[error("the log was already set up")]
    Twice,
}

/// Changes the level of the running log.
#[derive(Debug)]
pub struct LogControl {
    /// `None`: the log is not ours (tests).
    handle: Option<reload::Handle<EnvFilter, Registry>>,
    level: Mutex<String>,
}

impl LogControl {
    /// For a process whose log is set up elsewhere: the level is only remembered.
    pub fn detached(level: &str) -> Self {
        Self {
            handle: None,
            level: Mutex::new(level.to_owned()),
        }
    }

    pub fn level(&self) -> String {
        self.level.lock().clone()
    }

    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        let filter = parse(level)?;
        if let Some(handle) = &self.handle {
            handle.reload(filter).map_err(|error| LogError::Level {
                level: level.to_owned(),
                problem: error.to_string(),
            })?;
        }
        level.clone_into(&mut self.level.lock());
        Ok(())
    }
}

fn parse(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|error| LogError::Level {
            level: level.to_owned(),
            problem: error.to_string(),
        })
}

/// Starts the log.
pub fn start(level: &str, format: LogFormat) -> Result<LogControl, LogError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    // https://no-color.org: set and not empty.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = std::io::stderr().is_terminal() && !no_color;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => registry.with(layer.with_ansi(colour)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    started.map_err(|_| LogError::Twice)?;
    Ok(LogControl {
        handle: Some(handle),
        level: Mutex::new(level.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_refused_with_advice() {
        let control = LogControl::detached("info");
        let error = control.set_level("weft=loud").expect_err("no such level");
        assert!(error.to_string().contains("off, error"), "{error}");
        assert_eq!(control.level(), "info");
        control
            .set_level("info,weft_proxy=debug")
            .expect("good directives");
        assert_eq!(control.level(), "info,weft_proxy=debug");
    }
}
