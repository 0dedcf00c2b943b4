//! Everything that can be asked of a run on the command line, and its defaults.

use std::path::PathBuf;

use crate::case::Case;
use crate::subjects::Subject;

/// Everything that can be asked of a run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Cases to run, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = Case::ALL)]
    pub cases: Vec<Case>,
    /// Subjects to measure, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = Subject::ALL)]
    pub subjects: Vec<Subject>,
    /// How often each case is measured; the median is kept.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub repeats: u32,
    /// Length of one measurement, after a warm-up of a fifth of it (at most 1 s).
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Where hop.json, hop.svg, hop-runs.json, the subjects' configuration and logs go.
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
    /// The proxy's binary [default: weft-proxy beside this one].
    #[arg(long)]
    pub weft: Option<PathBuf>,
    /// Connections of the HTTP/1.1 cases.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: u32,
    /// Connections of the HTTP/2 and gRPC cases.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub h2_connections: u32,
    /// Requests a second of h1-open-loop: one that every subject sustains.
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    /// Idle connections of idle-10k.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub idle: u32,
    /// Core of the subject.
    #[arg(long, default_value_t = 1)]
    pub subject_core: usize,
    /// Core of the load generator and the upstream.
    #[arg(long, default_value_t = 0)]
    pub load_core: usize,
    /// Install nginx and HAProxy (apt-get) and Envoy (pip, in a venv under --out) where missing.
    #[arg(long)]
    pub install: bool,
}
