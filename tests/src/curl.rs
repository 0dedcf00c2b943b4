//! curl as a client.

use std::process::Command;

/// What curl saw.
#[derive(Debug)]
pub struct Curled {
    /// curl's own exit code; 0: it got a whole answer.
    pub exit: i32,
    pub status: u16,
    /// As curl says it: 1, 1.1 or 2.
    pub version: String,
    pub body: Vec<u8>,
    /// With `-v`: everything curl says about the exchange.
    pub log: String,
}

impl Curled {
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Runs curl with these arguments, silent, within 30 seconds.
pub fn curl(arguments: &[&str]) -> Curled {
    curl_by(Command::new("curl"), &[&["-m", "30"], arguments].concat())
}

/// The same by a command that ends in curl, without its time limit.
pub fn curl_by(mut command: Command, arguments: &[&str]) -> Curled {
    let output = command
        .args(["-s", "-S", "--noproxy", "*"])
        .args(["-w", "\n%{http_code} %{http_version}"])
        .args(arguments)
        .output()
        .expect("curl can be run; `make test` installs it");
    let mut body = output.stdout;
    let last = body.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
    let tail = String::from_utf8_lossy(&body[last..]).trim().to_owned();
    body.truncate(last);
    let (status, version) = tail.split_once(' ').unwrap_or(("0", ""));
    Curled {
        exit: output.status.code().unwrap_or(-1),
        status: status.parse().unwrap_or(0),
        version: version.to_owned(),
        body,
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
