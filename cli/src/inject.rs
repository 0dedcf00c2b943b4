//! `weft inject`: manifests with sidecars, as the webhook would make pods of them, but
//! offline. What injects is the webhook's own function; here are files, documents and
//! where each kind keeps its template of pods.
//!
//! **Invariant:** a document in which nothing is injected comes out as it went in, byte
//! for byte; if anything is refused, nothing comes out.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use weft_controller::admission::drain_token;
use weft_controller::admission::inject::{DrainToken, Options, Outcome, Settings, inject};

const EXAMPLES: &str = "\
Examples:
  weft inject -f shop.yaml --controller weft-controller.weft-system.svc.cluster.local:14010 \\
      --trust-bundle roots.pem --proxy-image localhost/weft-proxy:0.1.0 | kubectl apply -f -
                      Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, Pods
                      and Lists of them get a sidecar; everything else passes unchanged

A pod (or template) that is labelled weft.dev/inject: disabled, has one already, or runs in
its node's network, is left alone; standard error says so. Annotations are those of docs/injection.md.";

/// Larger is no manifest.
const BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The manifests, YAML or JSON; -: standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    file: PathBuf,
    /// A controller's address, as pods reach it; may be repeated.
    #[arg(
        long = "controller",
        value_name = "HOST:PORT",
        required = true,
        value_delimiter = ','
    )]
    controllers: Vec<String>,
    /// The roots that the controller is verified by (PEM).
    #[arg(long, value_name = "FILE")]
    trust_bundle: PathBuf,
    /// The trust domain of all identities.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// The image of weft-proxy.
    #[arg(long, value_name = "IMAGE")]
    proxy_image: String,
    /// When nodes pull it; default: Kubernetes'.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    proxy_image_pull_policy: Option<String>,
    /// Defaults of the annotations, YAML or JSON: '{memory-limit: 64Mi, log-level: warn}'.
    #[arg(long, value_name = "YAML", default_value = "{}", value_parser = Options::of_yaml)]
    sidecar_defaults: Options,
    /// The secret part of the drain barrier's path, 32 hexadecimal digits, for output that is
    /// always the same; default: one of its own for each template.
    #[arg(long, value_name = "HEX")]
    drain_token: Option<DrainToken>,
    /// How the result is written.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Yaml,
    Json,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let settings = settings(arguments)?;
    let (name, text) = read(&arguments.file)?;
    let mut injection = Injection {
        settings,
        drain_token: arguments.drain_token,
        notes: Vec::new(),
        problems: Vec::new(),
    };
    let documents = injection.documents(&text);
    if !injection.problems.is_empty() {
        for problem in &injection.problems {
            eprintln!("{name}: {problem}");
        }
        bail!("nothing is written, since not everything can be injected");
    }
    for note in &injection.notes {
        eprintln!("{name}: {note}");
    }
    let written = match arguments.output {
        Output::Yaml => yaml(&documents)?,
        Output::Json => json_of(documents)?,
    };
    std::io::stdout().write_all(written.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn settings(arguments: &Arguments) -> Result<Settings> {
    let bundle = &arguments.trust_bundle;
    let at = || format!("--trust-bundle {}", bundle.display());
    weft_controller::ca::fingerprints(bundle).with_context(at)?;
    Ok(Settings {
        image: arguments.proxy_image.clone(),
        pull_policy: arguments.proxy_image_pull_policy.clone(),
        controllers: arguments.controllers.clone(),
        trust_bundle: std::fs::read_to_string(bundle).with_context(at)?,
        trust_domain: arguments.trust_domain.clone(),
        defaults: arguments.sidecar_defaults.clone(),
    })
}

fn read(path: &Path) -> Result<(String, String)> {
    let is_standard = path == Path::new("-");
    let name = match is_standard {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    let mut text = String::new();
    let read = match is_standard {
        true => std::io::stdin()
            .take(BYTES_MAX + 1)
            .read_to_string(&mut text),
        false => std::fs::File::open(path)
            .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text)),
    };
    let bytes = read.with_context(|| name.clone())?;
    if bytes as u64 > BYTES_MAX {
        bail!("{name}: larger than {BYTES_MAX} bytes");
    }
    Ok((name, text))
}

/// A document before and after.
struct Document {
    text: String,
    value: Value,
    is_changed: bool,
}

struct Injection {
    settings: Settings,
    drain_token: Option<DrainToken>,
    /// What became of each workload.
    notes: Vec<String>,
    problems: Vec<String>,
}

impl Injection {
    fn documents(&mut self, text: &str) -> Vec<Document> {
        let mut documents = Vec::new();
        for (index, text) in split(text).into_iter().enumerate() {
            let number = index + 1;
            let mut value: Value = match value_of(&text) {
                Ok(value) => value,
                Err(problem) => {
                    self.problems.push(format!("document {number}: {problem}"));
                    continue;
                }
            };
            let is_changed = self.object(&mut value, &format!("document {number}"));
            documents.push(Document {
                text,
                value,
                is_changed,
            });
        }
        documents
    }

    /// Injects into an object or the items of a list; whether it did.
    fn object(&mut self, object: &mut Value, at: &str) -> bool {
        let text = |pointer: &str| {
            let text = object.pointer(pointer).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        if kind.ends_with("List") {
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            let items = items.into_iter().flatten().enumerate();
            return items.fold(false, |changed, (index, item)| {
                self.object(item, &format!("{at}, item {}", index + 1)) || changed
            });
        }
        let Some(pointer) = template(&version, &kind) else {
            return false;
        };
        let namespace = text("/metadata/namespace");
        let slash = if namespace.is_empty() { "" } else { "/" };
        let name = match text("/metadata/name") {
            name if name.is_empty() => text("/metadata/generateName"),
            name => name,
        };
        let at = format!("{at}: {kind} {namespace}{slash}{name}");
        let Some(pods) = object.pointer_mut(pointer) else {
            let field = field(pointer, "");
            self.problems.push(format!("{at}: {field}: is missing"));
            return false;
        };
        let token = self.drain_token.unwrap_or_else(drain_token);
        match inject(pods, true, &self.settings, token) {
            Ok(Outcome::Injected(injected)) => {
                *pods = injected.pod;
                self.notes.push(format!("{at}: injected"));
                let warnings = injected.warnings.into_iter();
                let warnings = warnings.map(|of| format!("{at}: warning: {}", field(pointer, &of)));
                self.notes.extend(warnings);
                true
            }
            Ok(Outcome::Skipped(reason)) => {
                self.notes.push(format!("{at}: not injected: {reason}"));
                false
            }
            Err(refusal) => {
                let problem = field(pointer, &refusal.to_string());
                self.problems.push(format!("{at}: {problem}"));
                false
            }
        }
    }
}

/// Where a kind has its template of pods.
fn template(version: &str, kind: &str) -> Option<&'static str> {
    match (version, kind) {
        ("v1", "Pod") => Some(""),
        ("apps/v1", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("v1", "ReplicationController")
        | ("batch/v1", "Job") => Some("/spec/template"),
        ("batch/v1", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// A field of the object, of one of its template.
fn field(pointer: &str, within: &str) -> String {
    let path = pointer.trim_start_matches('/').replace('/', ".");
    let dot = if path.is_empty() || within.is_empty() {
        ""
    } else {
        "."
    };
    format!("{path}{dot}{within}")
}

/// The documents of a file, without the lines between them. `---` at the beginning of a
/// line is nothing else in YAML: what is within a document's scalars is indented.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---");
        let is_mark = rest.is_some_and(|rest| rest.trim_start() != rest || rest.is_empty());
        match (is_mark, documents.last_mut()) {
            (true, _) => {
                let beside = rest.unwrap_or_default().trim_start();
                documents.push(beside.to_owned());
            }
            (false, Some(document)) => document.push_str(line),
            (false, None) => {}
        }
    }
    if documents
        .first()
        .is_some_and(|first| first.trim().is_empty())
    {
        documents.remove(0);
    }
    documents
}

/// The tree of a document, in YAML as kubectl reads it: of 1.1, where `0644` is octal and
/// `yes` is true.
fn value_of(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents = serde_saphyr::from_multiple_with_options(text, options);
    let mut documents: Vec<Value> =
        documents.map_err(|error| error.without_snippet().to_string())?;
    Ok(documents.pop().unwrap_or_default())
}

fn yaml(documents: &[Document]) -> Result<String> {
    let texts: Result<Vec<String>> = documents
        .iter()
        .map(|document| match document.is_changed {
            true => Ok(serde_saphyr::to_string(&document.value)?),
            false => Ok(document.text.clone()),
        })
        .collect();
    let ended = texts?.into_iter().map(|text| match text.ends_with('\n') {
        true => text,
        false => text + "\n",
    });
    Ok(ended.collect::<Vec<_>>().join("---\n"))
}

fn json_of(documents: Vec<Document>) -> Result<String> {
    let values = documents.into_iter().map(|document| document.value);
    let mut values: Vec<Value> = values.filter(|value| !value.is_null()).collect();
    let whole = match values.len() {
        1 => values.remove(0),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": values}),
    };
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injection() -> Injection {
        let settings = Settings {
            image: "p:1".to_owned(),
            pull_policy: None,
            controllers: vec!["c:14010".to_owned()],
            trust_bundle: String::new(),
            trust_domain: "td".to_owned(),
            defaults: Options::default(),
        };
        Injection {
            settings,
            drain_token: Some(DrainToken([7; 16])),
            notes: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn injected(value: &Value, pointer: &str) -> bool {
        let first = format!("{pointer}/spec/initContainers/1/name");
        value.pointer(&first) == Some(&json!("weft-proxy"))
    }

    #[test]
    fn every_kind_with_pods_is_injected_and_nothing_else() {
        let pods = "{metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: a}]}}";
        for (version, kind, spec, pointer) in [
            (
                "apps/v1",
                "Deployment",
                format!("{{template: {pods}}}"),
                Some("/spec/template"),
            ),
            (
                "apps/v1",
                "StatefulSet",
                format!("{{template: {pods}}}"),
                Some("/spec/template"),
            ),
            (
                "apps/v1",
                "DaemonSet",
                format!("{{template: {pods}}}"),
                Some("/spec/template"),
            ),
            (
                "apps/v1",
                "ReplicaSet",
                format!("{{template: {pods}}}"),
                Some("/spec/template"),
            ),
            (
                "v1",
                "ReplicationController",
                format!("{{template: {pods}}}"),
                Some("/spec/template"),
            ),
            (
                "batch/v1",
                "Job",
                format!("{{template: {pods}}}"),
                Some("/spec/template"),
            ),
            (
                "batch/v1",
                "CronJob",
                format!("{{jobTemplate: {{spec: {{template: {pods}}}}}}}"),
                Some("/spec/jobTemplate/spec/template"),
            ),
            (
                "v1",
                "Pod",
                "{containers: [{name: a, image: a}]}".to_owned(),
                Some(""),
            ),
            (
                "example.org/v1",
                "Deployment",
                format!("{{template: {pods}}}"),
                None,
            ),
            ("v1", "Service", "{ports: [{port: 80}]}".to_owned(), None),
        ] {
            let text = format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: one}}\nspec: {spec}\n"
            );
            let mut injection = injection();
            let documents = injection.documents(&text);
            assert_eq!(injection.problems, [""; 0], "{kind}");
            assert_eq!(documents[0].is_changed, pointer.is_some(), "{kind}");
            if let Some(pointer) = pointer {
                assert!(injected(&documents[0].value, pointer), "{kind}");
                let again: Value = serde_saphyr::from_str(&yaml(&documents).unwrap()).unwrap();
                assert_eq!(
                    again, documents[0].value,
                    "what is written is what was meant"
                );
            } else {
                assert_eq!(yaml(&documents).unwrap(), text);
            }
        }
    }

    #[test]
    fn other_documents_come_out_as_they_went_in() {
        let map = "# first\nkind: ConfigMap\napiVersion: v1\ndata:\n  a: |\n    x\n    ---x\n  b: 'on'   # kept\n";
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: a, env: [{name: M, value: '0644'}]}], volumes: [{name: v, configMap: {name: c, defaultMode: 0644}}]}\n";
        let text = format!("---\n{map}--- # mark\n{pod}---\n---\n{map}");
        let mut injection = injection();
        let documents = injection.documents(&text);
        let written = yaml(&documents).unwrap();
        assert!(written.starts_with(&format!("{map}---\n")), "{written}");
        assert!(written.ends_with(&format!("---\n{map}")), "{written}");
        assert_eq!(injection.notes, ["document 2: Pod p: injected"]);
        let value = &documents[1].value;
        // As kubectl reads it.
        assert_eq!(
            value["spec"]["volumes"][2]["configMap"]["defaultMode"],
            json!(0o644)
        );
        assert_eq!(
            value["spec"]["containers"][0]["env"][0]["value"],
            json!("0644")
        );
        let whole: Value = serde_json::from_str(&json_of(documents).unwrap()).unwrap();
        assert_eq!(whole["items"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn mistakes_name_document_kind_name_and_field() {
        let text = "kind: [\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: batch/v1, kind: CronJob, metadata: {name: j, namespace: shop}, spec: {jobTemplate: {spec: {template: {metadata: {annotations: {sidecar.weft.dev/workers: 0}}, spec: {containers: [{name: a}]}}}}}}\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {}}\n- {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, securityContext: {runAsUser: 1337}}]}}\n";
        let mut injection = injection();
        let _documents = injection.documents(text);
        let begins = [
            "document 1: ",
            "document 2, item 1: CronJob shop/j: spec.jobTemplate.spec.template.metadata.annotations",
            "document 2, item 2: Deployment d: spec.template: is missing",
            "document 2, item 3: Pod p: spec.containers[0].securityContext.runAsUser: 1337",
        ];
        assert_eq!(
            injection.problems.len(),
            begins.len(),
            "{:#?}",
            injection.problems
        );
        for (problem, begin) in injection.problems.iter().zip(begins) {
            assert!(problem.starts_with(begin), "{problem}");
        }
    }
}
