//! Copies from volumes that lie: whatever they say, nothing outside of the target changes.

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use avhdx_testkit::rng::Rng;

use crate::look::{Patched, look};
use crate::mutate::{Patches, apply, patches};
use crate::sound::{self, Sound};
use crate::truth::walk;

/// Names that lead elsewhere, as long as the ones that they replace.
const NAMES: [(&str, &[&str]); 3] = [
    (
        "small.txt",
        &["../no.txt", "/lies.txt", "..\\no.txt", "a/new.txt", "../../no.", "no\0/a.txt"],
    ),
    ("level 0", &["../../x", "..//../", "./././.", "/tmp/xx", "a/../.."]),
    ("many", &["../x", "/tmp", "a/..", "..\\x"]),
];

/// Replaces a name where the volume has it, in either way to write it.
fn renamed(rng: &mut Rng, volume: &[u8], places: &[Range<u64>]) -> Patches {
    let (name, others) = NAMES[rng.below(NAMES.len() as u64) as usize];
    let other = others[rng.below(others.len() as u64) as usize];
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut patches = Patches::new();
    // A long name of FAT begins with five characters.
    let start = |text: &str| utf16(text).into_iter().take(10).collect::<Vec<u8>>();
    for (from, to) in [
        (name.as_bytes().to_vec(), other.as_bytes().to_vec()),
        (utf16(name), utf16(other)),
        (start(name), start(other)),
    ] {
        for place in places {
            let bytes = &volume[place.start as usize..place.end as usize];
            let found = bytes.windows(from.len()).enumerate().filter(|(_, bytes)| *bytes == from);
            let found = found.map(|(at, _)| place.start as usize + at);
            patches.extend(found.map(|at| (at, to.clone())));
        }
    }
    patches
}

fn copy(image: &Path, run: &Path, said: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
    command.args(["cp", "-q", "-f", "raw"]).arg(image).args(["-r", "/", "out/copy"]);
    let output = command.current_dir(run).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0..=8)), "{said}: {:?}: {text}", output.status);
    assert!(!text.contains("panic"), "{said}: {text}");
}

#[test]
fn copies_of_volumes_that_lie_stay_in_their_target() {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let cases = if is_long { 200 } else { 23 };
    let folder = tempfile::tempdir().unwrap();
    let image = tempfile::NamedTempFile::new().unwrap();
    let run = folder.path().join("a/b/run");
    std::fs::create_dir_all(run.join("out")).unwrap();
    for name in ["no.txt", "a/x", "a/b/no.txt", "a/b/run/x"] {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    std::os::unix::fs::symlink("../../x", run.join("small.txt")).unwrap();
    let mut rng = Rng::new(7);
    for Sound { name, bytes, sector, .. } in sound::volumes() {
        let bytes = Arc::new(bytes);
        let mut touched = Vec::new();
        look(&Arc::new(Patched::new(Arc::clone(&bytes), sector, Vec::new())), &mut touched);
        for case in 0..cases {
            let patches = match case % 2 {
                0 => patches(&mut rng, &bytes, &touched),
                _ => renamed(&mut rng, &bytes, &touched),
            };
            let said = format!("{name}, case {case}: {patches:x?}");
            let mut lying = bytes.to_vec();
            apply(&mut lying, 0, &patches);
            std::fs::write(image.path(), lying).unwrap();
            let mut before = walk(folder.path());
            copy(image.path(), &run, &said);
            let copied = run.join("out/copy");
            // The top of a volume that lies may be a file.
            if copied.is_dir() {
                std::fs::remove_dir_all(copied).unwrap();
            } else if copied.exists() {
                std::fs::remove_file(copied).unwrap();
            }
            let mut after = walk(folder.path());
            // The folder of the target has it no longer, only another time.
            let target = b"a/b/run/out";
            assert!(before.remove(&target[..]).is_some() && after.remove(&target[..]).is_some());
            assert!(before == after, "{said}: something outside changed");
            assert!(!Path::new("/lies.txt").exists() && !Path::new("/tmp/xx").exists(), "{said}");
        }
    }
}
