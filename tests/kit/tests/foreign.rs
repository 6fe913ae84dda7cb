//! The naive reader on images of other writers, whose checksums several readers agree on.

#![allow(clippy::disallowed_methods)]

use avhdx_testkit::images::{expected, gunzip, image, sha256_hex, unpack_tree};
use avhdx_testkit::naive::{Chain, Who};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The layers of a tip, base first, found by `relative_path`.
fn layers(tip: &Path) -> Vec<PathBuf> {
    let mut paths = vec![tip.to_path_buf()];
    loop {
        let child = paths[paths.len() - 1].clone();
        let layer = Chain::open([&child]).unwrap().0.remove(0);
        if !layer.has_parent {
            paths.reverse();
            return paths;
        }
        let (_, path) = layer.locator.iter().find(|(k, _)| k == "relative_path").unwrap();
        paths.push(child.parent().unwrap().join(path.replace('\\', "/")));
    }
}

#[test]
fn chains() {
    let Some(dir) = image("chains") else { return };
    let out = tempfile::tempdir().unwrap();
    unpack_tree(&dir, out.path());
    let mut seen = BTreeSet::new();
    for (sum, name) in expected(&dir.join("expected.sha256")) {
        let paths = layers(&out.path().join(&name));
        let tip = paths.len() - 1;
        let small = Chain::from_bytes(paths.iter().map(|p| std::fs::read(p).unwrap())).unwrap();
        assert_eq!(sha256_hex(&small.flat(tip).unwrap()[..]), sum, "{name}, in memory");
        let streamed = Chain::open(&paths).unwrap();
        assert_eq!(sha256_hex(streamed.stream(tip)), sum, "{name}, streamed");
        for s in 0..small.0[tip].size / small.0[tip].sector {
            if let Who::Data { layer, .. } = small.who(tip, s).unwrap() {
                seen.insert(layer);
            }
        }
    }
    assert_eq!(seen, (0..6).collect(), "every layer of the deepest chain is read from");
}

/// Both are large: run with `--release -- --ignored`.
#[test]
#[ignore = "sums 11 GiB sector by sector"]
fn hyper_v() {
    for (name, sum) in [
        ("dirty-log", "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e"),
        ("swap", "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49"),
    ] {
        let Some(packed) = image(&format!("hyperv/{name}.vhdx.gz")) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhdx");
        gunzip(&packed, &path);
        assert_eq!(sha256_hex(Chain::open([&path]).unwrap().stream(0)), sum, "{name}");
    }
}
