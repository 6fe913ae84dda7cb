//! Other programs that read VHD, if they are installed: missing ones are reported, and with `AVHDX_INTEROP=1` fail the test.

use std::path::Path;
use std::process::Command;

/// What a program says; `None` if it is not installed.
pub fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|value| value == "1");
            assert!(!wanted, "AVHDX_INTEROP=1, but {program} is not to be found");
            eprintln!("skipped: {program} is not to be found");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}");
    Some(text)
}

pub fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The disk of an image and its parents, oldest first, as libvhdi reads it.
pub fn libvhdi(chain: &[&Path]) -> Option<Vec<u8>> {
    const SCRIPT: &str = r"
import sys
import pyvhdi
layers = []
for path in sys.argv[2:]:
    layer = pyvhdi.file()
    layer.open(path)
    if layers:
        layer.set_parent(layers[-1])
    layers.append(layer)
with open(sys.argv[1], 'wb') as out:
    left = layers[-1].get_media_size()
    while left:
        piece = layers[-1].read_buffer(min(left, 1 << 20))
        assert piece
        out.write(piece)
        left -= len(piece)
";
    let python = std::env::var("AVHDX_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import pyvhdi"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|value| value == "1");
        assert!(!wanted, "AVHDX_INTEROP=1, but pyvhdi is not to be found");
        eprintln!("skipped: pyvhdi is not to be found");
        return None;
    }
    let out = chain.last()?.with_extension("libvhdi");
    let mut args = vec!["-c", SCRIPT, name(&out)];
    args.extend(chain.iter().map(|path| name(path)));
    run(&python, &args)?;
    Some(std::fs::read(out).unwrap())
}
