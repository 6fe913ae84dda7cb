//! The program `avhdx`.

use std::process::ExitCode;

fn main() -> ExitCode {
    avhdx_cli::run(std::env::args_os())
}
