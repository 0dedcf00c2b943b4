//! Pods as people have them, for a node that there is not.

use serde_json::Value;

/// A pod that no node takes.
pub fn pod(name: &str, metadata: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    let metadata: String = serde_json::from_str::<Value>(metadata)
        .unwrap()
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| format!("  {key}: {value}\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n{metadata}spec:\n  nodeSelector: {{weft.dev/nowhere: 'yes'}}\n  {spec}\n"
    )
}

/// Pods as people have them.
pub const PODS: [(&str, &str); 12] = [
    ("plain", "containers: [{name: app, image: app:1}]"),
    (
        "web",
        "containers:\n- name: app\n  image: app:1\n  ports: [{name: http, containerPort: 8080}, {name: grpc, containerPort: 9000}]\n  \
         startupProbe: {tcpSocket: {port: http}, failureThreshold: 30}\n  livenessProbe: {httpGet: {path: /healthz, port: http}}\n  \
         readinessProbe: {grpc: {port: 9000}}\n  lifecycle: {postStart: {httpGet: {port: http, path: /warm}}}",
    ),
    (
        "tls",
        "containers:\n- name: app\n  image: app:1\n  livenessProbe: {httpGet: {path: /x, port: 8443, scheme: HTTPS, httpHeaders: [{name: Host, value: shop.example}]}, terminationGracePeriodSeconds: 3}\n  \
         lifecycle: {preStop: {exec: {command: [sh, -c, 'sleep 2']}}}",
    ),
    (
        "sidecars",
        "initContainers:\n- {name: migrate, image: app:1}\n- {name: db, image: db:1, restartPolicy: Always, startupProbe: {tcpSocket: {port: 5432}}}\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "hardened",
        "automountServiceAccountToken: false\nsecurityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000, supplementalGroups: [3000], seccompProfile: {type: RuntimeDefault}}\n\
         containers: [{name: app, image: app:1, securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}}]",
    ),
    (
        "armoured",
        "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: app}}\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "hasty",
        "terminationGracePeriodSeconds: 0\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "own-dns",
        "dnsPolicy: None\ndnsConfig: {nameservers: [10.96.0.10]}\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "sized",
        "resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: 1, memory: 128Mi}}\ncontainers: [{name: app, image: app:1, resources: {requests: {cpu: 20m, memory: 64Mi}}}]",
    ),
    (
        "guaranteed",
        "containers: [{name: app, image: app:1, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}}}]",
    ),
    (
        "shared-processes",
        "shareProcessNamespace: true\nrestartPolicy: OnFailure\nactiveDeadlineSeconds: 60\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "volumes",
        "volumes: [{name: data, emptyDir: {}}, {name: other, projected: {sources: [{serviceAccountToken: {path: t, audience: vault}}]}}]\n\
         containers: [{name: app, image: app:1, volumeMounts: [{name: data, mountPath: /data}]}]",
    ),
];
