//! QEMU's tools as a second opinion: fixed and dynamic disks with 512-byte sectors.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// `qemu-img` and `qemu-io`, found on this machine.
#[derive(Clone, Debug)]
pub struct Qemu(());

impl Qemu {
    /// `None` if they are not installed; panics instead if `AVHDX_INTEROP=1` requires them.
    pub fn find() -> Option<Self> {
        let runs = |tool: &str| {
            Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success())
        };
        if runs("qemu-img") && runs("qemu-io") {
            return Some(Self(()));
        }
        let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|v| v == "1");
        assert!(!wanted, "AVHDX_INTEROP=1, but qemu-img and qemu-io are not to be found");
        None
    }

    /// Creates a VHDX image; `options` such as `("subformat", "fixed")` or
    /// `("block_size", "1048576")`.
    pub fn create(&self, path: &Path, size: u64, options: &[(&str, &str)]) -> String {
        let mut args = strings(&["create", "-f", "vhdx"]);
        if !options.is_empty() {
            let o: Vec<String> = options.iter().map(|(k, v)| format!("{k}={v}")).collect();
            args.extend(strings(&["-o", &o.join(",")]));
        }
        run("qemu-img", &args, &[path.as_os_str(), OsStr::new(&size.to_string())])
    }

    /// Runs `qemu-io` commands (`write -P 0x11 0 64k`, `flush`, …) on a VHDX image in one go.
    pub fn io(&self, path: &Path, commands: &[&str]) -> String {
        let mut args = strings(&["-f", "vhdx"]);
        commands.iter().for_each(|c| args.extend(strings(&["-c", c])));
        run("qemu-io", &args, &[path.as_os_str()])
    }

    /// Fills a range with one byte.
    pub fn write_pattern(&self, path: &Path, offset: u64, length: u64, byte: u8) -> String {
        self.io(path, &[&format!("write -P {byte} {offset} {length}")])
    }

    /// `qemu-img check`. Panics unless the image is clean.
    pub fn check(&self, path: &Path) -> String {
        run("qemu-img", &strings(&["check", "-f", "vhdx"]), &[path.as_os_str()])
    }

    /// `qemu-img check -r all`, which replays the log into the file.
    pub fn repair(&self, path: &Path) -> String {
        run("qemu-img", &strings(&["check", "-f", "vhdx", "-r", "all"]), &[path.as_os_str()])
    }

    /// `qemu-img info` as JSON.
    pub fn info(&self, path: &Path) -> String {
        run("qemu-img", &strings(&["info", "-f", "vhdx", "--output=json"]), &[path.as_os_str()])
    }

    /// `qemu-img map` as JSON.
    pub fn map(&self, path: &Path) -> String {
        run("qemu-img", &strings(&["map", "-f", "vhdx", "--output=json"]), &[path.as_os_str()])
    }

    /// Converts a VHDX image to a raw one.
    pub fn to_raw(&self, from: &Path, to: &Path) -> String {
        let args = strings(&["convert", "-f", "vhdx", "-O", "raw"]);
        run("qemu-img", &args, &[from.as_os_str(), to.as_os_str()])
    }

    /// Converts a raw image to a VHDX one.
    pub fn from_raw(&self, from: &Path, to: &Path, options: &[(&str, &str)]) -> String {
        let mut args = strings(&["convert", "-f", "raw", "-O", "vhdx"]);
        options.iter().for_each(|(k, v)| args.extend(strings(&["-o", &format!("{k}={v}")])));
        run("qemu-img", &args, &[from.as_os_str(), to.as_os_str()])
    }

    /// Compares two images of any format. Panics if they differ.
    pub fn compare(&self, a: (&str, &Path), b: (&str, &Path)) -> String {
        let args = strings(&["compare", "-f", a.0, "-F", b.0]);
        run("qemu-img", &args, &[a.1.as_os_str(), b.1.as_os_str()])
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|a| (*a).into()).collect()
}

/// Returns standard output, or panics with the command line and standard error.
fn run(tool: &str, args: &[String], last: &[&OsStr]) -> String {
    let mut command = Command::new(tool);
    command.args(args).args(last);
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdout, stderr) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}\n{stdout}{stderr}", out.status);
    // qemu-io reports a failed command on standard output and exits with success.
    let failed = tool == "qemu-io" && stdout.contains("failed:");
    assert!(!failed, "{command:?}\n{stdout}{stderr}");
    stdout.into_owned()
}
