//! What a pod may say of its sidecar: one typed set, read of annotations and of the
//! defaults' file, and the source of the table in docs/reference.md.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::{Map, Value};
use weft_config::nearest::suggestion;

use super::Refusal;
use super::quantity::{Cpu, Memory};

pub const PREFIX: &str = "sidecar.weft.dev/";
/// Entries of a list: each is an argument, and a rule in the kernel.
const ENTRIES_MAX: usize = 64;
const WORKERS_MAX: u16 = 64;
/// A sidecar takes no more.
const DRAIN_SECONDS_MAX: u32 = 300;
const DIRECTIVES_BYTES_MAX: usize = 256;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Each as annotation `sidecar.weft.dev/NAME` of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// CPU that is kept for the sidecar, 1m to 1024: `10m`, `0.5`. Default 10m.
    #[schemars(with = "Option<String>")]
    pub cpu_request: Option<Cpu>,
    /// CPU that it gets at most. Default: no limit, so that it is never throttled.
    #[schemars(with = "Option<String>")]
    pub cpu_limit: Option<Cpu>,
    /// Memory that is kept for it, 4Mi to 1Ti. Default 32Mi.
    #[schemars(with = "Option<String>")]
    pub memory_request: Option<Memory>,
    /// Memory at which it is ended. Default 256Mi.
    #[schemars(with = "Option<String>")]
    pub memory_limit: Option<Memory>,
    /// `off`, `error`, `warn`, `info`, `debug`, `trace`, or directives such as
    /// `info,weft_proxy::mesh=debug`. Default info.
    #[schemars(with = "Option<String>")]
    pub log_level: Option<LogLevel>,
    /// Ports of the pod that are reached as if there were no sidecar, at most 64: `22, 9100`.
    #[schemars(with = "Option<String>")]
    pub skip_inbound_ports: Option<Ports>,
    /// Ports that are dialled as if there were no sidecar, at most 64.
    #[schemars(with = "Option<String>")]
    pub skip_outbound_ports: Option<Ports>,
    /// Addresses and blocks that are dialled as if there were no sidecar, at most 64:
    /// `169.254.169.254, 10.8.0.0/16, fd00::/8`.
    #[schemars(with = "Option<String>")]
    pub skip_outbound_cidrs: Option<Cidrs>,
    /// Worker threads, 1 to 64. Default 2, or fewer where the CPU limit is less.
    #[schemars(with = "Option<String>")]
    pub workers: Option<Workers>,
    /// Seconds, 1 to 300 and fewer than `terminationGracePeriodSeconds`, that an application
    /// is kept from stopping while callers learn that it leaves. Default: half of that time,
    /// 15 at most.
    #[schemars(with = "Option<String>")]
    pub drain_max: Option<DrainMax>,
}

const NAMES: [&str; 10] = [
    "cpu-request",
    "cpu-limit",
    "memory-request",
    "memory-limit",
    "log-level",
    "skip-inbound-ports",
    "skip-outbound-ports",
    "skip-outbound-cidrs",
    "workers",
    "drain-max",
];

impl Options {
    /// Of a pod's annotations; those of others are not looked at.
    pub fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        let mut own = Map::new();
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(PREFIX) else {
                continue;
            };
            if !NAMES.contains(&name) {
                let problem = format!(
                    "there is no such annotation{}; there are {}, each after {PREFIX}",
                    suggestion(name, NAMES),
                    NAMES.join(", ")
                );
                return Err(Refusal::new(annotation(key), problem));
            }
            own.insert(name.to_owned(), Value::String(value.clone()));
        }
        serde_path_to_error::deserialize(Value::Object(own)).map_err(|error| {
            let key = format!("{PREFIX}{}", error.path());
            Refusal::new(annotation(&key), error.inner().to_string())
        })
    }

    /// Of a file with the same names, without the prefix.
    pub fn of_yaml(text: &str) -> Result<Self, String> {
        let none = |error: serde_saphyr::Error| error.without_snippet().to_string();
        let value: Value = serde_saphyr::from_str(text).map_err(none)?;
        match value {
            Value::Null => Ok(Self::default()),
            value => serde_path_to_error::deserialize(value)
                .map_err(|error| format!("{}: {}", error.path(), error.inner())),
        }
    }

    /// Ports in front of which there is no sidecar.
    pub fn skipped_inbound(&self) -> &[u16] {
        let ports = self.skip_inbound_ports.as_ref();
        ports.map_or(&[], |ports| &ports.0)
    }

    /// What is not said here is as it is there.
    pub fn or(self, defaults: &Self) -> Self {
        let of = defaults.clone();
        Self {
            cpu_request: self.cpu_request.or(of.cpu_request),
            cpu_limit: self.cpu_limit.or(of.cpu_limit),
            memory_request: self.memory_request.or(of.memory_request),
            memory_limit: self.memory_limit.or(of.memory_limit),
            log_level: self.log_level.or(of.log_level),
            skip_inbound_ports: self.skip_inbound_ports.or(of.skip_inbound_ports),
            skip_outbound_ports: self.skip_outbound_ports.or(of.skip_outbound_ports),
            skip_outbound_cidrs: self.skip_outbound_cidrs.or(of.skip_outbound_cidrs),
            workers: self.workers.or(of.workers),
            drain_max: self.drain_max.or(of.drain_max),
        }
    }
}

/// An annotation as a field's name.
pub fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

/// A string, or a number of YAML's that means one.
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl Visitor<'_> for AsText {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }
        }
        deserializer.deserialize_any(AsText)
    }
}

/// The trimmed entries of a comma-separated list.
fn entries<T>(
    text: &str,
    allowed: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, String> {
    let listed = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let mut all = Vec::new();
    for entry in listed {
        if all.len() == ENTRIES_MAX {
            return Err(format!(
                "more than {ENTRIES_MAX} entries; allowed is {allowed}"
            ));
        }
        all.push(read(entry).ok_or_else(|| format!("\"{entry}\" is none of {allowed}"))?);
    }
    Ok(all)
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text")]
pub struct Ports(pub Vec<u16>);

impl TryFrom<Text> for Ports {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        let allowed = "a list of ports, 1 to 65535, such as 22, 9100";
        let port = |entry: &str| entry.parse().ok().filter(|port| *port > 0);
        entries(&text, allowed, port).map(Self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text")]
pub struct Cidrs(pub Vec<String>);

impl TryFrom<Text> for Cidrs {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        let allowed =
            "a list of addresses and blocks, such as 169.254.169.254, 10.8.0.0/16, fd00::/8";
        let block = |entry: &str| {
            let (address, prefix) = entry.split_once('/').unwrap_or((entry, ""));
            let address: IpAddr = address.parse().ok()?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let is_whole = !entry.contains('/');
            let fits = |prefix: u8| prefix <= longest;
            (is_whole || prefix.parse().is_ok_and(fits)).then(|| entry.to_owned())
        };
        entries(&text, allowed, block).map(Self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text")]
pub struct LogLevel(pub String);

impl TryFrom<Text> for LogLevel {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        let is_directive = |directive: &str| {
            let (target, level) = match directive.split_once('=') {
                Some((target, level)) => (Some(target), level),
                None => (None, directive),
            };
            let is_target = |target: &str| {
                let of_path = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
                !target.is_empty() && target.chars().all(of_path)
            };
            LEVELS.contains(&level) && target.is_none_or(is_target)
        };
        match text.len() <= DIRECTIVES_BYTES_MAX && text.split(',').all(is_directive) {
            true => Ok(Self(text)),
            false => Err(format!(
                "\"{text}\" is no log level; allowed are {}, and directives such as info,weft_proxy::mesh=debug",
                LEVELS.join(", ")
            )),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text")]
pub struct Workers(pub u16);

impl TryFrom<Text> for Workers {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        let count = text
            .parse()
            .ok()
            .filter(|of| (1..=WORKERS_MAX).contains(of));
        let problem =
            || format!("\"{text}\" is no count of threads; allowed is 1 to {WORKERS_MAX}");
        count.map(Self).ok_or_else(problem)
    }
}

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text")]
pub struct DrainMax(pub u32);

impl TryFrom<Text> for DrainMax {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        let seconds = text
            .parse()
            .ok()
            .filter(|of| (1..=DRAIN_SECONDS_MAX).contains(of));
        let problem = || {
            format!(
                "\"{text}\" is no time in whole seconds; allowed is 1 to {DRAIN_SECONDS_MAX}, such as 10"
            )
        };
        seconds.map(Self).ok_or_else(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Options, Refusal> {
        let key = format!("{PREFIX}{name}");
        Options::of_annotations(&BTreeMap::from([(key, value.to_owned())]))
    }

    #[test]
    fn the_names_are_those_of_the_type() {
        let schema = schemars::schema_for!(Options);
        let properties = schema.get("properties").and_then(Value::as_object).unwrap();
        let mut names = NAMES;
        names.sort_unstable();
        let mut of_type: Vec<&String> = properties.keys().collect();
        of_type.sort_unstable();
        assert_eq!(of_type, names);
    }

    #[test]
    fn wrong_ones_are_refused_with_what_is_allowed() {
        for (name, value, parts) in [
            ("cpu-request", "lots", &["\"lots\"", "10m"][..]),
            ("cpu-limit", "0", &["1m to 1024"]),
            ("cpu-limit", "-1", &["1m to 1024"]),
            ("memory-limit", "256m", &["\"256m\"", "4Mi to 1Ti"]),
            ("memory-request", "64MB", &["\"64MB\"", "64Mi"]),
            ("log-level", "loud", &["\"loud\"", "off, error, warn"]),
            ("log-level", "info,=debug", &["off, error"]),
            ("log-level", "", &["off, error"]),
            ("skip-inbound-ports", "22,http", &["\"http\"", "1 to 65535"]),
            ("skip-inbound-ports", "0", &["\"0\"", "1 to 65535"]),
            ("skip-outbound-ports", "70000", &["\"70000\""]),
            (
                "skip-outbound-cidrs",
                "10.0.0.0/33",
                &["10.0.0.0/33", "fd00::/8"],
            ),
            ("skip-outbound-cidrs", "10.0.0.0/", &["10.0.0.0/"]),
            ("skip-outbound-cidrs", "example.org", &["example.org"]),
            ("workers", "0", &["1 to 64"]),
            ("workers", "all", &["\"all\"", "1 to 64"]),
            ("drain-max", "15s", &["\"15s\"", "whole seconds"]),
            ("drain-max", "0", &["1 to 300"]),
            (
                "memory-limits",
                "1Gi",
                &["did you mean \"memory-limit\"?", "there are cpu-request"],
            ),
            ("proxyCPU", "1", &["there are cpu-request"]),
        ] {
            let refusal = read(name, value).unwrap_err().to_string();
            let field = format!("metadata.annotations[{PREFIX}{name}]: ");
            assert!(refusal.starts_with(&field), "{refusal}");
            for part in parts {
                assert!(refusal.contains(part), "{name}={value}: {refusal}");
            }
        }
        let many = vec!["80"; ENTRIES_MAX + 1].join(",");
        let refusal = read("skip-inbound-ports", &many).unwrap_err().to_string();
        assert!(refusal.contains("more than 64"), "{refusal}");
    }

    #[test]
    fn right_ones_are_read() {
        let read = |name, value| read(name, value).unwrap();
        assert_eq!(
            read("skip-inbound-ports", " 22, 9100,").skip_inbound_ports,
            Some(Ports(vec![22, 9100]))
        );
        let blocks = read("skip-outbound-cidrs", "169.254.169.254,fd00::/8");
        assert_eq!(blocks.skip_outbound_cidrs.unwrap().0.len(), 2);
        let level = read("log-level", "info,weft_proxy::mesh=debug");
        assert_eq!(level.log_level.unwrap().0, "info,weft_proxy::mesh=debug");
        assert_eq!(read("workers", "4").workers, Some(Workers(4)));
        assert_eq!(read("drain-max", "10").drain_max, Some(DrainMax(10)));
        let others = BTreeMap::from([("example.org/a".to_owned(), "b".to_owned())]);
        assert_eq!(
            Options::of_annotations(&others).unwrap(),
            Options::default()
        );
    }

    #[test]
    fn defaults_are_the_same_set_in_yaml() {
        let text = "cpu-request: 20m\nworkers: 3\ncpu-limit: 1.5\nskip-inbound-ports: 22\n";
        let defaults = Options::of_yaml(text).unwrap();
        assert_eq!(defaults.workers, Some(Workers(3)));
        assert_eq!(
            defaults.cpu_limit,
            Some(Cpu::try_from(Text("1.5".into())).unwrap())
        );
        let own = read("workers", "1").unwrap().or(&defaults);
        assert_eq!(own.workers, Some(Workers(1)));
        assert_eq!(own.skip_inbound_ports, Some(Ports(vec![22])));
        assert_eq!(Options::of_yaml(""), Ok(Options::default()));
        for (text, part) in [
            ("wrokers: 1", "unknown field `wrokers`"),
            ("workers: [1]", "workers: "),
            ("drain-max: 0", "drain-max: \"0\" is no time"),
            ("{", ""),
        ] {
            let refused = Options::of_yaml(text).unwrap_err();
            assert!(refused.contains(part), "{refused}");
        }
    }
}
