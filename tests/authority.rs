//! Who is believed on a real Kubernetes: tokens by its TokenReview, and the certificate authority
//! in a Secret of its API.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use weft_controller::admission::bundle;
use weft_controller::ca::Ca;
use weft_controller::ca::place::Place;
use weft_controller::ca::proof::Prover;
use weft_controller::ca::review::Reviewer;
use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::{PATIENCE, port};

const DOMAIN: &str = "cluster.local";
const LIFE: Duration = Duration::from_secs(3600);
const NAME: &str = "weft-ca";

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime can be made")
}

async fn client(cluster: &Cluster) -> Client {
    let read = Kubeconfig::read_from(&cluster.kubeconfig).expect("the kubeconfig can be read");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(read, &options).await;
    Client::try_from(config.expect("it is whole")).expect("a client can be made")
}

fn client_of(address: std::net::SocketAddr) -> Client {
    let uri = format!("http://{address}").parse().expect("it is a URI");
    Client::try_from(Config::new(uri)).expect("a client can be made")
}

/// A pod of service account `account`, which nobody runs.
fn pod(space: &Namespace, account: &str, name: &str) -> String {
    space.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: NAMESPACE}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NAMESPACE}}\n\
         spec: {{serviceAccountName: {account}, nodeSelector: {{weft.dev/nowhere: 'yes'}}, \
         containers: [{{name: application, image: none}}]}}\n"
    ));
    space.kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"])
}

/// A token by the API's TokenRequest.
fn token(space: &Namespace, account: &str, audience: &str, pod: Option<&str>) -> String {
    let audience = format!("--audience={audience}");
    let mut arguments = vec!["create", "token", account, &audience];
    let name;
    if let Some(pod) = pod {
        name = format!("--bound-object-name={pod}");
        arguments.extend(["--bound-object-kind=Pod", &name]);
    }
    space.kubectl(&arguments).trim().to_owned()
}

/// A token with other claims, signed by a key; the header is the token's own.
fn signed_anew(token: &str, key: &Path, change: impl FnOnce(&mut Value)) -> String {
    let (head, claims) = token
        .rsplit_once('.')
        .map_or("", |(of, _)| of)
        .split_once('.')
        .expect("it is a JWT");
    let mut claims: Value =
        serde_json::from_slice(&base64(&["-d"], &padded(claims))).expect("claims are JSON");
    change(&mut claims);
    let signed = format!(
        "{head}.{}",
        url(&base64(&["-w0"], claims.to_string().as_bytes()))
    );
    let key = key.to_str().expect("a path of letters");
    let signature = piped(
        Command::new("openssl").args(["dgst", "-sha256", "-sign", key]),
        signed.as_bytes(),
    );
    format!("{signed}.{}", url(&base64(&["-w0"], &signature)))
}

/// base64url as base64 has it.
fn padded(text: &str) -> Vec<u8> {
    let mut text = text.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text.into_bytes()
}

fn url(base64: &[u8]) -> String {
    let text = String::from_utf8_lossy(base64)
        .replace('+', "-")
        .replace('/', "_");
    text.trim_end_matches('=').to_owned()
}

fn base64(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    piped(Command::new("base64").args(arguments), input)
}

fn piped(command: &mut Command, input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let mut pipe = child.stdin.take().expect("its input is a pipe");
    pipe.write_all(input).expect("it reads");
    drop(pipe);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    let output = command
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("openssl runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Tokens that prove nothing, each with the reason for which it is refused.
fn worthless(cluster: &Cluster, space: &Namespace, good: &str) -> Vec<(String, &'static str)> {
    let _other = pod(space, "web", "web-2");
    let gone = token(space, "web", "weft.dev", Some("web-2"));
    space.kubectl(&["delete", "pod", "web-2", "--force", "--grace-period=0"]);
    let folder = TempDir::new().expect("a folder can be made");
    openssl(folder.path(), &["genrsa", "-out", "other.key", "2048"]);
    let other_key = folder.path().join("other.key");
    let ours = |change: fn(&mut Value)| signed_anew(good, &cluster.token_key(), change);
    let foreign = |change: fn(&mut Value)| signed_anew(good, &other_key, change);
    let api = "https://kubernetes.default.svc";
    vec![
        (token(space, "web", "weft", Some("web-1")), "audience"),
        (token(space, "web", api, Some("web-1")), "audience"),
        (token(space, "web", "weft.dev", None), "unbound"),
        (gone, "gone"),
        (
            ours(|claims| claims["exp"] = json!(1_700_000_000)),
            "expired",
        ),
        // Another cluster has another key, and often another issuer.
        (foreign(|_| {}), "foreign"),
        (
            foreign(|claims| claims["iss"] = json!("https://other")),
            "invalid",
        ),
        // Even by the cluster's own key: that pod is not there.
        (
            ours(|claims| claims["kubernetes.io"]["pod"]["uid"] = json!("00000000")),
            "gone",
        ),
        ("e30.e30.".to_owned(), "invalid"),
        ("nonsense".to_owned(), "invalid"),
        (good.repeat(10), "invalid"),
    ]
}

#[test]
fn only_a_living_pod_s_token_for_us_proves_anything_and_only_its_own() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let space = cluster.namespace("identity", &[]);
    let uid = pod(&space, "web", "web-1");
    let good = token(&space, "web", "weft.dev", Some("web-1"));
    let tokens = worthless(&cluster, &space, &good);
    runtime().block_on(async {
        let prover = Prover::from(Reviewer::new(client(&cluster).await));
        for (token, reason) in tokens {
            let refused = prover.prove(&token).await.expect_err(reason);
            assert_eq!(refused.reason(), reason, "{refused}");
        }
        for _ in 0..3 {
            let proof = prover.prove(&good).await.expect("it proves");
            prover.redeem(&proof).expect("it may be used again");
            let of = (proof.namespace.as_str(), proof.service_account.as_str());
            assert_eq!(of, (space.name.as_str(), "web"));
            assert_eq!(proof.workload, Some(uid.clone()));
        }
    });
}

#[test]
fn an_api_server_that_does_not_answer_lets_nobody_pass() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let silent_address = silent.local_addr().expect("it has an address");
    runtime().block_on(async {
        for address in [port::free_address(), silent_address] {
            let prover = Prover::from(Reviewer::new(client_of(address)));
            let asked = timeout(PATIENCE, prover.prove("a.b.c")).await;
            let refused = asked.expect("in bounded time").expect_err("nobody vouches");
            assert_eq!(refused.reason(), "unavailable", "{refused}");
            assert!(refused.to_string().contains("try again"), "{refused}");
        }
    });
}

/// Changes data of the Secret; `None` removes.
fn patch(space: &Namespace, data: &[(&str, Option<&[u8]>)]) {
    let encode = |bytes: &[u8]| String::from_utf8_lossy(&base64(&["-w0"], bytes)).into_owned();
    let data: serde_json::Map<String, Value> = data
        .iter()
        .map(|(key, bytes)| {
            (
                (*key).to_owned(),
                bytes.map_or(Value::Null, |bytes| json!(encode(bytes))),
            )
        })
        .collect();
    let patch = json!({ "data": data }).to_string();
    space.kubectl(&["patch", "secret", NAME, "--type=merge", "-p", &patch]);
}

/// Follows the place until the authority has taken something up, or refused it.
async fn follow(place: &mut Place, ca: &Ca) -> bool {
    timeout(PATIENCE, place.follow(ca))
        .await
        .expect("a change comes")
}

#[test]
fn replicas_that_start_at_once_have_one_authority_and_take_up_its_changes() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let space = cluster.namespace("authority", &[]);
    let other = TempDir::new().expect("a folder can be made");
    let next = Ca::open(other.path(), DOMAIN, LIFE).expect("an authority can be made");
    let next_file = |name: &str| fs::read(other.path().join(name)).expect("it is there");
    runtime().block_on(async {
        let client = client(&cluster).await;
        let secret = (space.name.as_str(), NAME);
        let open = || Place::secret(client.clone(), secret, DOMAIN, LIFE);
        let (first, second, third) = tokio::join!(open(), open(), open());
        let (ca, mut place) = first.expect("it opens");
        let old = ca.bundle().signing_root;
        for other in [second, third] {
            let (other, _) = other.expect("it opens");
            assert_eq!(other.bundle().signing_root, old);
        }
        // A key alone, then the pair without its root in the bundle: refused, and said.
        patch(&space, &[("tls.key", Some(&next_file("ca.key")))]);
        assert!(!follow(&mut place, &ca).await);
        let problem = ca.problem().expect("it is said");
        assert_eq!(
            problem.file,
            format!("Secret {}/{NAME}, tls.key", space.name)
        );
        let pair = next_file("ca.crt");
        patch(&space, &[("tls.crt", Some(&pair)), ("ca.crt", Some(&pair))]);
        assert!(!follow(&mut place, &ca).await);
        let problem = ca.problem().expect("it is said");
        assert!(problem.file.ends_with("bundle.pem"), "{problem:?}");
        assert_eq!(ca.bundle().signing_root, old, "what there was stays");
        let both = ca.trust_pem() + &next.trust_pem();
        patch(&space, &[("bundle.pem", Some(both.as_bytes()))]);
        assert!(follow(&mut place, &ca).await);
        assert_eq!(ca.problem(), None);
        assert_eq!(ca.bundle().signing_root, next.bundle().signing_root);
        assert_eq!(ca.bundle().roots.len(), 2);
        patch(&space, &[("bundle.pem", None)]);
        assert!(follow(&mut place, &ca).await);
        assert_eq!(ca.bundle().roots, next.bundle().roots);
        // Without it, what there was stays.
        space.kubectl(&["delete", "secret", NAME]);
        assert!(!follow(&mut place, &ca).await);
        assert!(
            ca.problem()
                .is_some_and(|problem| problem.message.contains("put it back"))
        );
        assert_eq!(ca.bundle().roots, next.bundle().roots);
    });
}

/// A root with its key, an intermediate and a leaf of it, and a root of somebody else's that has
/// the same name.
fn issued_elsewhere(folder: &Path) {
    let make = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        openssl(folder, &arguments);
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for name in ["root", "stranger"] {
        make(&format!(
            "req -x509 {key} -keyout {name}.key -out {name}.crt -subj /CN=root -days 9"
        ));
    }
    for (name, extension) in [
        ("between", "basicConstraints=critical,CA:TRUE"),
        ("leaf", "subjectAltName=DNS:x"),
    ] {
        make(&format!(
            "req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        fs::write(folder.join("ext"), extension).expect("it can be written");
        make(&format!(
            "x509 -req -in {name}.csr -CA root.crt -CAkey root.key -CAcreateserial -out {name}.crt -days 9 -extfile ext"
        ));
    }
}

/// What cert-manager writes.
fn given(space: &Namespace, folder: &Path, [certificate, key, root]: [&str; 3]) {
    let _ = space
        .cluster
        .try_kubectl(&["-n", &space.name, "delete", "secret", NAME]);
    let of = |key: &str, name: &str| format!("--from-file={key}={}", folder.join(name).display());
    let certificate = of("tls.crt", certificate);
    let (key, root) = (of("tls.key", key), of("ca.crt", root));
    space.kubectl(&[
        "create",
        "secret",
        "generic",
        NAME,
        &certificate,
        &key,
        &root,
    ]);
}

#[test]
fn a_secret_of_cert_manager_s_works_as_it_is_and_a_wrong_one_says_what_is_wrong() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let folder = TempDir::new().expect("a folder can be made");
    issued_elsewhere(folder.path());
    let root = fs::read_to_string(folder.path().join("root.crt")).expect("it is there");
    let flat = |pem: &str| pem.split_whitespace().collect::<String>();
    let space = cluster.namespace("given", &[]);
    let cases = [
        (["root.crt", "root.key", "root.crt"], ""),
        // cert-manager's ca.crt is the issuer's root, and its tls.crt has no root.
        (["between.crt", "between.key", "root.crt"], ""),
        (
            ["between.crt", "between.key", "stranger.crt"],
            "ca.crt: holds no certificate that has signed",
        ),
        (
            ["leaf.crt", "leaf.key", "root.crt"],
            "tls.crt: its first certificate is no authority's",
        ),
        (
            ["root.crt", "between.key", "root.crt"],
            "tls.key: is not the key",
        ),
    ];
    runtime().block_on(async {
        let client = client(&cluster).await;
        for (files, problem) in cases {
            given(&space, folder.path(), files);
            let opened = Place::secret(client.clone(), (&space.name, NAME), DOMAIN, LIFE).await;
            match opened {
                Ok((ca, _)) => {
                    assert_eq!(problem, "", "{files:?}");
                    assert_eq!(
                        flat(&ca.trust_pem()),
                        flat(&root),
                        "the root alone is trusted"
                    );
                }
                Err(error) => {
                    let said = error.to_string();
                    assert!(
                        !problem.is_empty() && said.contains(problem),
                        "{files:?}: {said}"
                    );
                }
            }
        }
    });
}

/// Everywhere the API server is told by what it knows the webhook.
fn bundles(cluster: &Cluster, name: &str) -> Vec<String> {
    let configuration = cluster.get(&["mutatingwebhookconfiguration", name]);
    let webhooks = configuration["webhooks"]
        .as_array()
        .expect("it has webhooks");
    let bundle = |of: &Value| {
        of["clientConfig"]["caBundle"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let decoded = webhooks
        .iter()
        .map(|of| base64(&["-d"], bundle(of).as_bytes()));
    decoded
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[test]
fn the_api_server_is_told_by_which_roots_it_knows_the_webhook_whoever_else_writes_there() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let space = cluster.namespace("webhook", &[]);
    let name = space.name.as_str();
    // Selects nothing.
    let webhook = |of: &str, bundle: &str| {
        format!(
            "- name: {of}.weft.dev\n  admissionReviewVersions: [v1]\n  sideEffects: None\n  failurePolicy: Ignore\n  \
         namespaceSelector: {{matchLabels: {{weft.dev/test: {name}}}}}\n  \
         clientConfig: {{service: {{name: weft-webhook, namespace: {name}}}{bundle}}}\n  \
         rules: [{{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}}]\n"
        )
    };
    let configuration = |bundle: &str| {
        let webhooks = webhook("a", bundle) + &webhook("b", "");
        space.apply(&format!(
            "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\n\
             metadata: {{name: {name}}}\nwebhooks:\n{webhooks}"
        ));
    };
    configuration("");
    let other = TempDir::new().expect("a folder can be made");
    let next = Ca::open(other.path(), DOMAIN, LIFE).expect("an authority can be made");
    runtime().block_on(async {
        let client = client(&cluster).await;
        let secret = (name, NAME);
        let (ca, mut place) = Place::secret(client.clone(), secret, DOMAIN, LIFE)
            .await
            .expect("it opens");
        let told = async {
            let becomes = async |roots: String| {
                // kubectl must not hold up the one who is to write.
                let bundles = async || {
                    let (cluster, name) = (cluster.clone(), name.to_owned());
                    let look = tokio::task::spawn_blocking(move || bundles(&cluster, &name));
                    look.await.expect("it does not panic")
                };
                let look = async {
                    while bundles().await != [roots.clone(), roots.clone()] {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                timeout(PATIENCE, look).await.expect("the roots are told");
            };
            becomes(ca.trust_pem()).await;
            // Somebody empties one, as an upgrade may, and changes something else.
            configuration(", caBundle: ''");
            becomes(ca.trust_pem()).await;
            cluster.kubectl(&["delete", "mutatingwebhookconfiguration", name]);
            configuration("");
            becomes(ca.trust_pem()).await;
            let both = ca.trust_pem() + &next.trust_pem();
            patch(&space, &[("bundle.pem", Some(both.as_bytes()))]);
            assert!(follow(&mut place, &ca).await);
            becomes(both).await;
        };
        tokio::select! {
            () = told => {}
            () = bundle::keep(client.clone(), name, &ca) => {}
        }
    });
    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", name]);
}
