//! The disks that Windows made: the program and 7-Zip find the same volumes in them.

use avhdx_testkit::images::{gunzip, image};
use serde_json::Value;

use crate::program::{avhdx, tool};

/// The places and sizes of the partitions that 7-Zip finds in a flat disk.
fn by_7zip(flat: &str) -> Vec<(u64, u64)> {
    let said = String::from_utf8(tool("7z", &["l", "-slt", "-tmbr", flat])).unwrap();
    let (_, entries) = said.split_once("----------\n").unwrap();
    let of = |entry: &str, what: &str| {
        let mut lines = entry.lines().filter_map(|line| line.split_once(" = "));
        lines.find(|(name, _)| *name == what).map(|(_, value)| value.to_owned())
    };
    let entries =
        entries.split("\n\n").filter(|entry| of(entry, "Primary").as_deref() == Some("+"));
    let number = |entry, what| of(entry, what).unwrap().parse().unwrap();
    entries.map(|entry| (number(entry, "Offset"), number(entry, "Size"))).collect()
}

#[test]
fn volumes_of_disks_by_windows_are_those_that_7zip_finds() {
    for (name, scheme, held) in [("dirty-log", Some("MBR"), "empty"), ("swap", None, "swap")] {
        let Some(packed) = image(&format!("hyperv/{name}.vhdx.gz")) else {
            return eprintln!("skipped: AVHDX_IMAGES names no images by Windows");
        };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (disk, flat) = (path("disk.vhdx"), path("flat.raw"));
        gunzip(&packed, disk.as_ref());
        let listed = avhdx(&["ls", &disk, "--volumes", "--json"], &[0]);
        let answer: Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(answer["scheme"], Value::from(scheme), "{answer}");
        let volumes = answer["volumes"].as_array().unwrap();
        assert!(volumes.iter().all(|volume| volume["file_system"] == held), "{answer}");
        avhdx(&["convert", "-q", &disk, "-O", "raw", &flat], &[0]);
        let number = |volume: &Value, what: &str| volume[what].as_u64().unwrap();
        let found: Vec<(u64, u64)> = volumes
            .iter()
            .map(|volume| (number(volume, "offset"), number(volume, "size")))
            .collect();
        let expected = match scheme {
            Some(_) => by_7zip(&flat),
            // It takes the disk for none of its formats.
            None => vec![(0, std::fs::metadata(&flat).unwrap().len())],
        };
        assert_eq!(found, expected);
        // There are no files in them, and that is said.
        let refused = avhdx(&["ls", &disk], &[2, 7]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains(held));
    }
}
