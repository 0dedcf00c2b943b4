//! The fault matrix in full (`make chaos`): prints its table, writes `target/chaos.json`, and fails if
//! anything was lost that a proxy can save. It also is the application that the matrix runs.

use std::env;
use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use weft_tests::chaos::fault::Fault;
use weft_tests::chaos::protocol::Protocol;
use weft_tests::chaos::{Extent, application, report, run};
use weft_tests::root;

const USAGE: &str = "chaos [FAULT...] [PROTOCOL...]: all of a kind if none is named";
const EXTENT: Extent = Extent {
    step: 100,
    churn: Duration::from_secs(5),
    sent_min: 200,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [first, address, name] = arguments.as_slice()
        && first == "application"
    {
        let address = address.parse().expect("an address");
        application::serve(address, name).expect("it serves");
        return ExitCode::SUCCESS;
    }
    let mut faults = Vec::new();
    let mut protocols = Vec::new();
    for argument in &arguments {
        let fault = Fault::ALL
            .into_iter()
            .find(|fault| fault.name() == *argument);
        let protocol = Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.name() == argument);
        if fault.is_none() && protocol.is_none() {
            eprintln!("{argument}: no fault and no protocol\n{USAGE}");
            eprintln!("faults: {:?}", Fault::ALL.map(Fault::name));
            eprintln!("protocols: {:?}", Protocol::ALL.map(Protocol::name));
            return ExitCode::from(2);
        }
        faults.extend(fault);
        protocols.extend(protocol);
    }
    if faults.is_empty() {
        faults.extend(Fault::ALL);
    }
    if protocols.is_empty() {
        protocols.extend(Protocol::ALL);
    }
    let binary = env::current_exe().expect("this program has a path");
    let (mut cells, mut complaints) = (Vec::new(), Vec::new());
    print!("{}", report::header());
    for fault in faults {
        // A fault that does not happen panics; the others are done all the same.
        let done = thread::scope(|scope| {
            let running = scope.spawn(|| run(&binary, fault, &protocols, EXTENT));
            running.join()
        });
        match done {
            Ok(done) => {
                print!("{}", report::rows(&done));
                cells.extend(done);
            }
            Err(_) => complaints.push(format!("{}: it did not happen as it should", fault.name())),
        }
    }
    let path = root().join("target/chaos.json");
    let text = format!("{:#}\n", report::json(&cells));
    fs::write(&path, text).expect("target/ can be written");
    complaints.extend(cells.iter().filter_map(report::Cell::complaint));
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    if complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
