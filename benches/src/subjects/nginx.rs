//! nginx: one worker under its master, connections to the upstream kept, no
//! access log, no limit on requests a connection. In the h2 case it speaks
//! HTTP/1.1 to the upstream; in the gRPC case HTTP/2 (`grpc_pass`).

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{CONNECTIONS_MAX, Setup, Side};
use crate::case::Mode;
use crate::load::tls::HOST;

/// Where distributions keep the stream module, when it is not built in.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Whether the opaque TCP case can be done.
pub fn has_stream() -> bool {
    Path::new(STREAM_MODULE).exists()
}

pub fn command(setup: &Setup) -> Result<Command> {
    let temporary = setup.folder.join("nginx-temporary");
    fs::create_dir_all(&temporary)?;
    let main = if setup.mode == Mode::Tcp {
        stream(setup)
    } else {
        http(setup, &temporary.display().to_string())
    };
    // As whoever runs the benchmark: the temporary files are theirs. Without root the line would only warn.
    let user = if rustix::process::getuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    let load = if setup.mode == Mode::Tcp {
        format!("load_module {STREAM_MODULE};\n")
    } else {
        String::new()
    };
    let text = format!(
        "{load}{user}daemon off;\nworker_processes 1;\nworker_rlimit_nofile 20000;\n\
         pid {pid};\nerror_log stderr warn;\n\
         events {{ worker_connections {connections}; multi_accept on; }}\n{main}",
        pid = setup.file(&setup.label("nginx.pid")),
        connections = CONNECTIONS_MAX + 2000,
    );
    let path = setup.write("nginx", "conf", &text)?;
    let mut command = Command::new(&setup.binary);
    command.arg("-e").arg("stderr").arg("-c").arg(path);
    Ok(command)
}

fn http(setup: &Setup, temporary: &str) -> String {
    let Setup {
        listen, upstream, ..
    } = setup;
    let (http2, prefix) = match setup.mode {
        Mode::Http2 => (" http2", "proxy"),
        Mode::Grpc => (" http2", "grpc"),
        Mode::Tls | Mode::Http1 | Mode::Tcp => ("", "proxy"),
    };
    let scheme = match (prefix, setup.side) {
        ("grpc", Side::Client) => "grpcs",
        ("grpc", _) => "grpc",
        (_, Side::Client) => "https",
        _ => "http",
    };
    let pass = format!("{prefix}_pass {scheme}://up;");
    let mut parameters = http2.to_owned();
    let tls = match setup.side {
        Side::Alone if setup.mode == Mode::Tls => {
            parameters.push_str(" ssl");
            format!(
                "    ssl_certificate {}; ssl_certificate_key {};\n",
                setup.file("cert.pem"),
                setup.file("key.pem")
            )
        }
        Side::Alone => String::new(),
        Side::Client => mutual_upstream(setup, prefix),
        Side::Server => {
            parameters.push_str(" ssl");
            mutual_downstream(setup)
        }
    };
    format!(
        "http {{\n\
         \x20 access_log off; server_tokens off; tcp_nodelay on;\n\
         \x20 keepalive_timeout 120s; keepalive_requests 1000000000;\n\
         \x20 client_body_temp_path {temporary}/body; proxy_temp_path {temporary}/proxy;\n\
         \x20 fastcgi_temp_path {temporary}/fastcgi; uwsgi_temp_path {temporary}/uwsgi; scgi_temp_path {temporary}/scgi;\n\
         \x20 upstream up {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 120s; }}\n\
         \x20 server {{\n\
         \x20   listen {listen}{parameters} backlog=4096;\n{tls}\
         \x20   location / {{ {pass} proxy_http_version 1.1; proxy_set_header Connection \"\"; }}\n\
         \x20 }}\n}}\n"
    )
}

fn stream(setup: &Setup) -> String {
    let (listen, upstream): (SocketAddr, SocketAddr) = (setup.listen, setup.upstream);
    let (parameters, tls) = match setup.side {
        Side::Alone => ("", String::new()),
        Side::Client => (
            "",
            format!("proxy_ssl on; {}", mutual_upstream(setup, "proxy")),
        ),
        Side::Server => (" ssl", mutual_downstream(setup)),
    };
    format!(
        "stream {{ server {{ listen {listen}{parameters}; tcp_nodelay on; proxy_pass {upstream};\n{tls} }} }}\n"
    )
}

/// Shows the client's certificate, and takes only the server's.
fn mutual_upstream(setup: &Setup, prefix: &str) -> String {
    let (certificate, key, ca) = (
        setup.file("client.pem"),
        setup.file("client-key.pem"),
        setup.file("ca.pem"),
    );
    format!(
        "    {prefix}_ssl_certificate {certificate}; {prefix}_ssl_certificate_key {key}; {prefix}_ssl_protocols TLSv1.3;\n\
         \x20   {prefix}_ssl_trusted_certificate {ca}; {prefix}_ssl_verify on; {prefix}_ssl_name {HOST}; {prefix}_ssl_server_name on;\n"
    )
}

/// Shows the server's certificate, and takes only clients that have one.
fn mutual_downstream(setup: &Setup) -> String {
    let (certificate, key, ca) = (
        setup.file("server.pem"),
        setup.file("server-key.pem"),
        setup.file("ca.pem"),
    );
    format!(
        "    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;\n\
         \x20   ssl_client_certificate {ca}; ssl_verify_client on;\n"
    )
}
