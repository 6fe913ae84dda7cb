//! The program `avhdx`.

fn main() {}
