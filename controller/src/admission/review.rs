//! An AdmissionReview in, an AdmissionReview out: pure.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};

use super::inject::{DrainToken, Injected, Outcome, Settings, Skip, inject};

/// The lists and maps that injection changes, each of which is replaced as a whole:
/// what else is there, others may have changed in the same breath.
const CHANGED: [[&str; 2]; 4] = [
    ["metadata", "annotations"],
    ["spec", "initContainers"],
    ["spec", "containers"],
    ["spec", "volumes"],
];
/// What the API server shows of one warning.
const WARNING_CHARACTERS_MAX: usize = 240;

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Injected,
    Skipped(Skip),
    Refused(String),
    /// The review is of something else, which is let be.
    NotAPod,
}

#[derive(Debug)]
pub struct Answer {
    /// `namespace/name`, as far as it has one yet.
    pub pod: String,
    pub verdict: Verdict,
    pub review: AdmissionReview<DynamicObject>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("the body is no AdmissionReview of admission.k8s.io/v1: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error(
        "the body is a {kind} of {version}; this takes an AdmissionReview of admission.k8s.io/v1 with a request"
    )]
    OtherKind { kind: String, version: String },
}

/// Answers a review. Who is asked about has been selected by the webhook's configuration:
/// by its namespace's label or by its own.
pub fn answer(
    body: &[u8],
    settings: &Settings,
    drain_token: DrainToken,
) -> Result<Answer, ReviewError> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body)?;
    let (kind, version) = (review.types.kind.clone(), review.types.api_version.clone());
    let is_v1 = (kind.as_str(), version.as_str()) == ("AdmissionReview", "admission.k8s.io/v1");
    let request: AdmissionRequest<_> = match review.try_into() {
        Ok(request) if is_v1 => request,
        _ => return Err(ReviewError::OtherKind { kind, version }),
    };
    let response = AdmissionResponse::from(&request);
    let object = match (&request.object, &request.operation) {
        (Some(object), Operation::Create)
            if request.kind.kind == "Pod" && request.sub_resource.is_none() =>
        {
            object
        }
        _ => {
            return Ok(Answer {
                pod: request.name.clone(),
                verdict: Verdict::NotAPod,
                review: response.into_review(),
            });
        }
    };
    let pod = serde_json::to_value(object)?;
    let (verdict, response) = match inject(&pod, true, settings, drain_token) {
        Ok(Outcome::Skipped(skip)) => (Verdict::Skipped(skip), response),
        Ok(Outcome::Injected(injected)) => (Verdict::Injected, patched(response, injected)?),
        Err(refusal) => {
            let problem = refusal.to_string();
            (Verdict::Refused(problem.clone()), response.deny(problem))
        }
    };
    let name = object.metadata.name.as_ref();
    let name = name.or(object.metadata.generate_name.as_ref());
    Ok(Answer {
        pod: format!(
            "{}/{}",
            request.namespace.as_deref().unwrap_or_default(),
            name.map_or("", String::as_str)
        ),
        verdict,
        review: response.into_review(),
    })
}

fn patched(
    response: AdmissionResponse,
    mut injected: Injected,
) -> Result<AdmissionResponse, serde_json::Error> {
    let operations = CHANGED.map(|path| {
        let value = injected.pod[path[0]][path[1]].take();
        // RFC 6902: what is there is replaced.
        PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(path),
            value,
        })
    });
    let mut response = response
        .with_patch(Patch(operations.into()))
        .map_err(|_| serde::ser::Error::custom("the patch cannot be written"))?;
    if !injected.warnings.is_empty() {
        let cut = |text: String| text.chars().take(WARNING_CHARACTERS_MAX).collect();
        response.warnings = Some(injected.warnings.into_iter().map(cut).collect());
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::super::inject::Options;
    use super::*;
    use serde_json::{Value, json};

    fn settings() -> Settings {
        Settings {
            image: "weft-proxy:1".to_owned(),
            pull_policy: None,
            controllers: vec!["c:14010".to_owned()],
            trust_bundle: String::new(),
            trust_domain: "cluster.local".to_owned(),
            defaults: Options::default(),
        }
    }

    fn review(kind: &str, operation: &str, object: &Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": kind},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "namespace": "shop", "operation": operation, "userInfo": {}, "object": object,
                "oldObject": null, "dryRun": false, "options": null,
            }
        })
    }

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "web", "image": "w"}], "novelty": 1},
        })
    }

    fn ask(review: &Value) -> Answer {
        let body = serde_json::to_vec(review).unwrap();
        answer(&body, &settings(), DrainToken([1; 16])).unwrap()
    }

    #[test]
    fn a_pod_is_patched() {
        let answer = ask(&review("Pod", "CREATE", &pod()));
        assert_eq!(answer.verdict, Verdict::Injected);
        assert_eq!(answer.pod, "shop/web-");
        let response = answer.review.response.unwrap();
        assert!(response.allowed);
        assert_eq!(response.uid, "u-1");
        let patch: Patch = serde_json::from_slice(&response.patch.unwrap()).unwrap();
        let mut patched = pod();
        json_patch::patch(&mut patched, &patch).unwrap();
        let Ok(Outcome::Injected(whole)) = inject(&pod(), true, &settings(), DrainToken([1; 16]))
        else {
            panic!();
        };
        assert_eq!(patched, whole.pod);
    }

    #[test]
    fn what_is_refused_says_why_and_what_is_left_alone_is_allowed() {
        let mut bad = pod();
        bad["metadata"]["annotations"] = json!({"sidecar.weft.dev/workers": "many"});
        let answer = ask(&review("Pod", "CREATE", &bad));
        let response = answer.review.response.unwrap();
        assert!(!response.allowed && response.patch.is_none());
        assert!(response.result.message.contains("allowed is 1 to 64"));
        let mut out = pod();
        out["metadata"]["labels"] = json!({"weft.dev/inject": "disabled"});
        for (review, verdict) in [
            (
                review("Pod", "CREATE", &out),
                Verdict::Skipped(Skip::Disabled),
            ),
            (review("Pod", "UPDATE", &pod()), Verdict::NotAPod),
            (review("Secret", "CREATE", &pod()), Verdict::NotAPod),
            (review("Pod", "CREATE", &Value::Null), Verdict::NotAPod),
        ] {
            let answer = ask(&review);
            assert_eq!(answer.verdict, verdict);
            let response = answer.review.response.unwrap();
            assert!(response.allowed && response.patch.is_none());
        }
    }

    #[test]
    fn warnings_come_along_and_fit() {
        let mut short = pod();
        short["spec"]["terminationGracePeriodSeconds"] = json!(1);
        let warnings = ask(&review("Pod", "CREATE", &short))
            .review
            .response
            .unwrap()
            .warnings;
        assert!(warnings.unwrap()[0].starts_with("spec.terminationGracePeriodSeconds: 1"));
        short["spec"]["containers"][0]["readinessProbe"] =
            json!({"tcpSocket": {"port": "x".repeat(1000)}});
        let warnings = ask(&review("Pod", "CREATE", &short))
            .review
            .response
            .unwrap()
            .warnings;
        assert_eq!(warnings.unwrap()[1].len(), WARNING_CHARACTERS_MAX);
    }

    #[test]
    fn garbage_is_an_error() {
        let ask = |body: &[u8]| {
            let answer = answer(body, &settings(), DrainToken([1; 16]));
            answer.unwrap_err().to_string()
        };
        for body in [&b""[..], b"{", b"[]", b"\xff\xfe", b"{\"kind\": 1}"] {
            assert!(ask(body).contains("is no AdmissionReview"), "{body:?}");
        }
        let mut beta = review("Pod", "CREATE", &pod());
        beta["apiVersion"] = json!("admission.k8s.io/v1beta1");
        let said = ask(&serde_json::to_vec(&beta).unwrap());
        assert!(said.contains("v1beta1"), "{said}");
        let empty = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
        assert!(ask(&serde_json::to_vec(&empty).unwrap()).contains("with a request"));
    }
}
