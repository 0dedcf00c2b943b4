//! The bars that are set for Weft's figures, and whether a run's medians are under
//! them.

use crate::case::Case;
use crate::options::Options;
use crate::report::{Colour, Summary, find, idle_bytes};
use crate::subjects::Subject;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;
/// Memory of Weft right after its start.
const RSS_START_MAX_MIB: f64 = 8.0;
/// Memory of Weft for each idle connection.
const IDLE_MAX_KIB: f64 = 12.0;
/// "Within 10 % of the best peer's bytes per CPU second", as CPU per byte.
const TCP_MAX: f64 = 1.0 / 0.9;
/// CPU of both of a pair, as so many plain hops of ours.
const PAIR_MAX: f64 = 2.5;
/// CPU of a pair beside Envoy's at its best.
const PAIR_ENVOY_MAX: f64 = 1.0 / 3.0;

/// CPU bars: case, beside whom, at most how many times theirs, whether only an aim.
const CPU_BARS: [(Case, Subject, f64, bool); 10] = [
    (Case::H1Small, Subject::Floor, 1.4, false),
    (Case::H1Small, Subject::Nginx, 1.15, false),
    (Case::H1Small, Subject::Nginx, 1.0, true),
    (Case::H1Small, Subject::Haproxy, 0.8, false),
    (Case::H1Small, Subject::Envoy, 0.25, false),
    (Case::H2Small, Subject::Haproxy, 0.8, false),
    (Case::H2Small, Subject::Envoy, 0.6, false),
    (Case::H2SmallSingle, Subject::Envoy, 0.7, false),
    (Case::GrpcUnary, Subject::Haproxy, 0.8, false),
    (Case::GrpcUnary, Subject::Envoy, 0.6, false),
];

/// A figure of Weft and the most it may be.
#[derive(Debug)]
pub struct Bar {
    what: String,
    value: f64,
    most: f64,
    unit: String,
    /// An aim beyond the bar: worth seeing, no failure.
    aim: bool,
}

impl Bar {
    fn new(what: impl Into<String>, value: f64, most: f64, unit: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            value,
            most,
            unit: unit.into(),
            aim: false,
        }
    }

    pub fn line(&self, colour: &Colour) -> String {
        let met = self.value <= self.most;
        let verdict = match (met, self.aim) {
            (true, _) => colour.green("met"),
            (false, false) => colour.red("NOT MET"),
            (false, true) => "aim, not reached".to_owned(),
        };
        format!(
            "  {:<34} {:>7.2} {:<14} at most {:>5.2}   {verdict}",
            self.what, self.value, self.unit, self.most
        )
    }
}

/// Those that the run has figures for.
pub fn of(options: &Options, summaries: &[Summary]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (case, other, most, aim) in CPU_BARS {
        let pair = find(summaries, case, Subject::Weft).zip(find(summaries, case, other));
        bars.extend(pair.map(|(weft, other)| Bar {
            aim,
            ..beside(format!("{case} CPU"), weft, other, most)
        }));
    }
    let peers = [Subject::Nginx, Subject::Haproxy, Subject::Envoy];
    let weft = |case| find(summaries, case, Subject::Weft);
    if let Some((weft, best)) = weft(Case::TcpStream).zip(best(summaries, Case::TcpStream, &peers))
    {
        bars.push(beside("tcp-1g CPU a byte (best peer)", weft, best, TCP_MAX));
    }
    if let Some((pair, hop)) = weft(Case::PairH1Small).zip(weft(Case::H1Small)) {
        let value = pair.cpu_us() / hop.cpu_us();
        bars.push(Bar::new(
            "pair-h1-64 CPU of both",
            value,
            PAIR_MAX,
            "× h1-64",
        ));
    }
    let envoys = [Subject::Envoy, Subject::EnvoyH2];
    if let Some((weft, best)) =
        weft(Case::PairH1Small).zip(best(summaries, Case::PairH1Small, &envoys))
    {
        bars.push(beside("pair-h1-64 CPU of both", weft, best, PAIR_ENVOY_MAX));
    }
    let starts = summaries
        .iter()
        .filter(|summary| summary.subject == Subject::Weft && !summary.case.is_pair());
    if let Some(start) = starts.map(|summary| summary.rss_start_bytes).max() {
        let value = start as f64 / MIB;
        bars.push(Bar::new("RSS at start", value, RSS_START_MAX_MIB, "MiB"));
    }
    if let Some(weft) = weft(Case::Idle) {
        let value = idle_bytes(weft, options) / KIB;
        bars.push(Bar::new(
            "idle-10k RSS a connection",
            value,
            IDLE_MAX_KIB,
            "KiB",
        ));
    }
    bars
}

fn beside(what: impl Into<String>, weft: &Summary, other: &Summary, most: f64) -> Bar {
    let value = weft.cpu_us() / other.cpu_us();
    Bar::new(what, value, most, format!("× {}", other.subject))
}

/// The cheapest of these.
fn best<'a>(summaries: &'a [Summary], case: Case, peers: &[Subject]) -> Option<&'a Summary> {
    peers
        .iter()
        .filter_map(|&peer| find(summaries, case, peer))
        .min_by(|one, other| one.cpu_us().total_cmp(&other.cpu_us()))
}
