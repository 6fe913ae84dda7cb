//! Reads a real chain with the program: the tree of its folder, all layers of its tip, and the flat disk, whose checksum
//! must be the one that other readers computed.
//!
//! ```sh
//! cargo run --release -p avhdx-cli --example tour
//! ```

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use avhdx_testkit::images;

/// A chain by DiscUtils, with its parents in other folders.
const CHAIN: &str = "dirs";
const TIP: &str = "users/tip.vhdx";

fn main() -> ExitCode {
    match tour() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tour: {message}");
            ExitCode::FAILURE
        }
    }
}

fn tour() -> Result<(), String> {
    let fixtures = images::fixtures_dir().join("chains");
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    images::unpack_tree(&fixtures.join(CHAIN), folder.path());
    let tip = folder.path().join(TIP);
    let raw = folder.path().join("flat.raw");

    avhdx(["tree".as_ref(), folder.path()])?;
    avhdx(["info".as_ref(), "--chain".as_ref(), tip.as_path()])?;
    avhdx(["convert".as_ref(), "-O".as_ref(), "raw".as_ref(), tip.as_path(), raw.as_path()])?;

    let found = images::sha256_file(&raw);
    let name = format!("{CHAIN}/{TIP}");
    let sums = images::expected(&fixtures.join("expected.sha256"));
    let (expected, _) = sums
        .iter()
        .find(|(_, path)| *path == name)
        .ok_or_else(|| format!("expected.sha256 has no sum of {name}"))?;
    if found != *expected {
        return Err(format!(
            "the flat disk of {name} has the SHA-256 {found}, expected {expected}"
        ));
    }
    println!("SHA-256 {found}: as expected");
    Ok(())
}

/// Runs the program, which must succeed.
fn avhdx<const N: usize>(args: [&Path; N]) -> Result<(), String> {
    let line: Vec<OsString> = args.iter().map(|arg| arg.as_os_str().to_owned()).collect();
    let text: Vec<_> = line.iter().map(|arg| arg.to_string_lossy()).collect();
    let text = text.join(" ");
    println!("$ avhdx {text}");
    let code = avhdx_cli::run(std::iter::once("avhdx".into()).chain(line.clone()));
    println!();
    if code == ExitCode::SUCCESS { Ok(()) } else { Err(format!("avhdx {text}: failed")) }
}
