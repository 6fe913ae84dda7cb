//! Images by other writers, stored gzipped outside the project or among its fixtures.

use crate::io::{SparseFile, ok};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The folder in `AVHDX_IMAGES`. `None` if it is not set: the test is then skipped.
/// Panics if it is set and is not a folder.
pub fn avhdx_images() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("AVHDX_IMAGES")?);
    assert!(dir.is_dir(), "AVHDX_IMAGES is {}, which is no folder", dir.display());
    Some(dir)
}

/// A file or folder below `AVHDX_IMAGES`. Panics if the variable is set and the file is missing.
pub fn image(below: &str) -> Option<PathBuf> {
    let path = avhdx_images()?.join(below);
    assert!(path.exists(), "AVHDX_IMAGES is set, but {} is missing", path.display());
    Some(path)
}

/// The folder of images that belong to the project; it may not exist.
pub fn fixtures_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// Unpacks every `*.gz` below `from` to the same path below `to`, and copies
/// nothing else. Returns the new files, sorted. Panics if there are none.
pub fn unpack_tree(from: &Path, to: &Path) -> Vec<PathBuf> {
    let mut made = Vec::new();
    walk(from, to, &mut made);
    assert!(!made.is_empty(), "no *.gz below {}", from.display());
    made.sort();
    made
}

fn walk(from: &Path, to: &Path, made: &mut Vec<PathBuf>) {
    ok(to, fs::create_dir_all(to));
    for entry in ok(from, fs::read_dir(from)) {
        let path = ok(from, entry).path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            walk(&path, &to.join(name), made);
        } else if path.extension().is_some_and(|e| e == "gz") {
            let target = to.join(name).with_extension("");
            gunzip(&path, &target);
            made.push(target);
        }
    }
}

/// Unpacks one file; runs of zeros become holes.
pub fn gunzip(from: &Path, to: &Path) {
    let mut packed = MultiGzDecoder::new(ok(from, File::open(from)));
    let mut out = SparseFile::new(ok(to, File::create(to)));
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        // Full buffers keep pages aligned, so that zero pages are recognized.
        let n = ok(from, read_full(&mut packed, &mut buf));
        ok(to, out.put(at, &buf[..n]));
        at += n as u64;
        if n < buf.len() {
            return ok(to, out.finish(at));
        }
    }
}

/// The lines of a checksum file, as `(sum, path)` in order.
pub fn expected(sums: &Path) -> Vec<(String, String)> {
    let text = ok(sums, fs::read_to_string(sums));
    let lines = text.lines().filter(|l| !l.is_empty());
    let parse = |line: &str| match line.split_once("  ") {
        Some((sum, path)) if sum.len() == 64 => (sum.into(), path.into()),
        _ => panic!("{}: no sum and path in {line:?}", sums.display()),
    };
    lines.map(parse).collect()
}

/// The SHA-256 of a stream, in lower-case hexadecimal.
pub fn sha256_hex(mut from: impl Read) -> String {
    let mut sum = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut buf).unwrap_or_else(|e| panic!("reading what to sum: {e}"));
        if n == 0 {
            return sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
        }
        sum.update(&buf[..n]);
    }
}

/// The SHA-256 of a file.
pub fn sha256_file(path: &Path) -> String {
    sha256_hex(ok(path, File::open(path)))
}

fn read_full(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match from.read(&mut buf[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}
