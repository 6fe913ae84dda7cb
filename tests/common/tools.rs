//! Other programs that read images, if they are installed: tests of missing ones are skipped by name, and with
//! `AVHDX_INTEROP=1` they fail.

use std::path::PathBuf;
use std::process::{Command, Output};

/// Reports a missing tool; fails if it is required.
pub fn skipped(tool: &str) {
    let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|value| value == "1");
    assert!(!wanted, "AVHDX_INTEROP=1, but {tool} is not to be found");
    eprintln!("skipped: {tool} is not to be found");
}

pub fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// libvhdi through its Python binding.
pub const LIBVHDI: &str = r"
import hashlib, sys
import pyvhdi
layers = []
for path in sys.argv[1:]:
    layer = pyvhdi.file()
    layer.open(path)
    if layers:
        layer.set_parent(layers[-1])
    layers.append(layer)
    total = hashlib.sha256()
    layer.seek_offset(0, 0)
    left = layer.get_media_size()
    while left:
        piece = layer.read_buffer(min(left, 1 << 20))
        assert piece
        total.update(piece)
        left -= len(piece)
    print(total.hexdigest())
";

/// The lines that a script prints for some images; nothing if its module is not installed.
pub fn python(module: &str, script: &str, paths: &[PathBuf]) -> Option<Vec<String>> {
    let python = std::env::var_os("AVHDX_PYTHON").unwrap_or_else(|| "python3".into());
    let run = |script: &str, paths: &[PathBuf]| {
        Command::new(&python).arg("-c").arg(script).args(paths).output()
    };
    let probe = run(&format!("import {module}"), &[]);
    if !probe.is_ok_and(|output| output.status.success()) {
        skipped(module);
        return None;
    }
    Some(said(&run(script, paths).unwrap()).lines().map(str::to_owned).collect())
}
