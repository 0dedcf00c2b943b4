//! `weft-controller`: reads the command line and hands over to the app.

fn main() {}
