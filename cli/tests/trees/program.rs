//! The program, and tools.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program; its exit code has to be one of these.
#[track_caller]
pub fn avhdx<S: AsRef<OsStr>>(args: &[S], codes: &[i32]) -> Output {
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_avhdx")).args(&args).output().unwrap();
    let code = output.status.code();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(code.is_some_and(|code| codes.contains(&code)), "{args:?}: {code:?}: {said}");
    output
}

/// Writes to a disk.
pub fn write(image: &Path, offset: u64, bytes: &[u8]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
    command.args(["write", "-q", "--offset", &offset.to_string()]).arg(image);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a tool with standard input. Names are UTF-8 and times UTC.
#[track_caller]
pub fn tool_with<S: AsRef<OsStr>>(name: &str, args: &[S], input: &str) -> Vec<u8> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    let mut command = Command::new(name);
    command.args(&args).env("PATH", path).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {said}");
    output.stdout
}

#[track_caller]
pub fn tool<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Vec<u8> {
    tool_with(name, args, "")
}
