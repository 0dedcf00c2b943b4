//! The chart's CustomResourceDefinitions are what the types say. `make reference` (or
//! WEFT_WRITE_REFERENCE=1) writes them anew; otherwise a difference is a failure.
//!
//! What is the proxy's own (`AuthorizationRules`, `Service`) comes from its wire form, with
//! its comments.

use std::fs;
use std::path::{Path, PathBuf};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{FieldDescriptorProto, FileDescriptorProto};
use serde_json::{Map, Value, json};
use weft_controller::api::definition::definitions;

/// A list that has no bound of its own is admitted up to this.
const ITEMS_MAX: u32 = 1000;
/// Durations as GEP-2257 writes them; `0s` too.
const DURATION: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
const DURATION_ENDS: [&str; 6] = ["Timeout", "timeout", "interval", "Start", "Decay", "Time"];
const DURATIONS_MORE: [&str; 1] = ["ejectionTimeMax"];
/// Fields of a Service that a TrafficPolicy cannot set: a controller does.
const NOT_OF_A_POLICY: [&str; 5] = ["name", "protocol", "endpoints", "dns", "tls"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The messages of the proxy's configuration.
struct Messages {
    file: FileDescriptorProto,
}

impl Messages {
    fn read() -> Self {
        let set = protox::Compiler::new([root().join("config/proto")])
            .unwrap()
            .include_source_info(true)
            .include_imports(true)
            .open_file("weft/v1/config.proto")
            .unwrap()
            .file_descriptor_set();
        let mut files = set.file.into_iter();
        let file = files.find(|file| file.name().ends_with("config.proto"));
        Self {
            file: file.unwrap(),
        }
    }

    fn index(&self, name: &str) -> usize {
        let mut messages = self.file.message_type.iter();
        messages.position(|of| of.name() == name).unwrap()
    }

    /// The fields of a message as properties of a schema.
    fn properties(&self, name: &str, without: &[&str]) -> Map<String, Value> {
        let number = self.index(name);
        let fields = self.file.message_type[number].field.iter().enumerate();
        fields
            .filter(|(_, field)| !without.contains(&field.json_name()))
            .map(|(index, field)| {
                let mut schema = self.field(field);
                let path = [4, number as i32, 2, index as i32];
                let about = self.comment(&path);
                if !about.is_empty() {
                    schema["description"] = json!(about);
                }
                (field.json_name().to_owned(), schema)
            })
            .collect()
    }

    fn comment(&self, path: &[i32]) -> String {
        let locations = &self.file.source_code_info.as_ref().unwrap().location;
        let of = locations.iter().find(|location| location.path == path);
        let lines = of.map_or("", |of| of.leading_comments()).trim().lines();
        lines.map(str::trim).collect::<Vec<_>>().join(" ")
    }

    fn field(&self, field: &FieldDescriptorProto) -> Value {
        let one = self.one(field);
        match field.label() {
            Label::Repeated => json!({"type": "array", "items": one, "maxItems": ITEMS_MAX}),
            _ => one,
        }
    }

    fn one(&self, field: &FieldDescriptorProto) -> Value {
        let (name, of) = (field.json_name(), field.type_name());
        let percent = name.to_ascii_lowercase().contains("percent");
        match field.r#type() {
            Type::String if is_duration(name) => json!({"type": "string", "pattern": DURATION}),
            Type::String => json!({"type": "string"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Uint32 if percent => json!({"type": "integer", "minimum": 0, "maximum": 100}),
            Type::Uint32 if name == "port" || name == "ports" => {
                json!({"type": "integer", "minimum": 1, "maximum": 65535})
            }
            Type::Uint32 => {
                json!({"type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX})
            }
            Type::Uint64 => json!({"type": "integer", "format": "int64", "minimum": 0}),
            Type::Enum => json!({"type": "string", "enum": self.values(of)}),
            Type::Message => {
                let inner = of.rsplit('.').next().unwrap();
                json!({"type": "object", "properties": self.properties(inner, &[])})
            }
            other => panic!("{name}: {other:?} has no schema here"),
        }
    }

    /// The names of an enum that is written within a message.
    fn values(&self, of: &str) -> Vec<String> {
        let mut parts = of.rsplit('.');
        let (own, within) = (parts.next().unwrap(), parts.next().unwrap());
        let message = &self.file.message_type[self.index(within)];
        let of = message.enum_type.iter().find(|of| of.name() == own);
        let values = of.unwrap().value.iter();
        values.map(|value| value.name().to_owned()).collect()
    }
}

fn is_duration(name: &str) -> bool {
    DURATION_ENDS.iter().any(|end| name.ends_with(end)) || DURATIONS_MORE.contains(&name)
}

/// Makes a schema structural: what Kubernetes takes for itself (pruning, strict validation)
/// is not written.
fn structural(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("additionalProperties") == Some(&json!(false)) {
                map.remove("additionalProperties");
            }
            map.values_mut().for_each(structural);
        }
        Value::Array(list) => list.iter_mut().for_each(structural),
        _ => {}
    }
}

/// What one kind's fields may hold beyond their types.
fn refine(kind: &str, spec: &mut Value, messages: &Messages) {
    let refs = |bound: u32| {
        json!({
            "type": "array", "maxItems": bound,
            "items": {
                "type": "object", "required": ["kind", "name"],
                "properties": {
                    "group": {"type": "string", "enum": [""], "default": "", "description": "Empty, as Services' is."},
                    "kind": {"type": "string", "enum": ["Service"]},
                    "name": {"type": "string", "minLength": 1, "maxLength": 253, "description": "In the policy's namespace."},
                },
            },
        })
    };
    let properties = spec["properties"].as_object_mut().unwrap();
    match kind {
        "AuthorizationPolicy" => {
            properties.extend(messages.properties("AuthorizationRules", &["name"]));
            let about = properties["targetRefs"]["description"].clone();
            properties["targetRefs"] = refs(64);
            properties["targetRefs"]["description"] = about;
            spec["x-kubernetes-validations"] = json!([{
                "rule": "!(has(self.targetRefs) && self.targetRefs.size() > 0 && has(self.selector))",
                "message": "takes targetRefs or selector, not both",
            }]);
        }
        "TrafficPolicy" => {
            properties.extend(messages.properties("Service", &NOT_OF_A_POLICY));
            properties["targetRefs"] = refs(64);
            properties["targetRefs"]["minItems"] = json!(1);
            properties["targetRefs"]["description"] = json!("Services.");
        }
        _ => {
            properties["ports"]["items"]["properties"]["port"] = json!({"type": "integer", "minimum": 1, "maximum": 65535, "description": "The application's."});
            properties["ports"]["maxItems"] = json!(64);
            properties["ports"]["x-kubernetes-list-type"] = json!("map");
            properties["ports"]["x-kubernetes-list-map-keys"] = json!(["port"]);
        }
    }
}

/// The whole definition of each kind, and its file.
fn files() -> Vec<(String, String)> {
    let messages = Messages::read();
    definitions()
        .iter()
        .map(|definition| {
            let mut whole = serde_json::to_value(definition).unwrap();
            structural(&mut whole);
            let kind = definition.spec.names.kind.clone();
            let version = &mut whole["spec"]["versions"][0];
            let schema = &mut version["schema"]["openAPIV3Schema"];
            refine(&kind, &mut schema["properties"]["spec"], &messages);
            let status = &mut schema["properties"]["status"]["properties"];
            status["conditions"]["x-kubernetes-list-type"] = json!("map");
            status["conditions"]["x-kubernetes-list-map-keys"] = json!(["type"]);
            whole["metadata"]["labels"] = json!({"app.kubernetes.io/part-of": "weft"});
            let text = serde_saphyr::to_string(&whole).unwrap();
            let file = format!("{}.yaml", definition.spec.names.plural);
            let head = "# Written by `make reference` from controller/src/api: do not edit.\n";
            (file, format!("{head}{text}"))
        })
        .collect()
}

#[test]
fn the_chart_has_what_the_types_say() {
    let folder = root().join("charts/weft/definitions");
    let files = files();
    if std::env::var_os("WEFT_WRITE_REFERENCE").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in &files {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    for (name, text) in &files {
        let present = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(
            present == *text,
            "charts/weft/definitions/{name} is not what the types say: run `make reference`"
        );
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), files.len());
}

/// What a definition admits and what the controller reads are the same fields.
#[test]
fn every_field_is_one_that_the_controller_reads() {
    use weft_controller::source::manifest;
    for (kind, field, value) in [
        (
            "TrafficPolicy",
            "balancer",
            json!({"algorithm": "least_request", "slowStart": "30s"}),
        ),
        (
            "TrafficPolicy",
            "outlierDetection",
            json!({"ejectionTimeMax": "5m", "ejectedPercentMax": 10}),
        ),
        (
            "AuthorizationPolicy",
            "rules",
            json!([{"to": [{"ports": [80], "methods": ["GET"]}]}]),
        ),
        (
            "WorkloadPolicy",
            "ports",
            json!([{"port": 80, "mtls": "strict"}]),
        ),
    ] {
        let mut spec = json!({ field: value });
        if kind == "TrafficPolicy" {
            spec["targetRefs"] = json!([{"kind": "Service", "name": "a"}]);
        }
        let object = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": kind,
            "metadata": {"name": "a", "namespace": "shop"}, "spec": spec,
        });
        let parsed = manifest::parse("x", &object.to_string());
        assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        assert_eq!(parsed.objects.len(), 1);
    }
}
