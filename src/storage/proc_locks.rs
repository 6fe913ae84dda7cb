//! Who else writes to a file, as far as Linux lists it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// QEMU holds a lock on byte 100 + n of an image for each permission n that it uses, and on byte 200 + n for each
/// that it does not share with others; 1 is writing.
const QEMU_WRITES: u64 = 101;
const QEMU_SHARES_NO_WRITING: u64 = 201;

const BYTES: [u64; 2] = [QEMU_WRITES, QEMU_SHARES_NO_WRITING];

/// Whether a process holds the lock by which QEMU says that it writes to the file, or, for those who want to write, that
/// nobody else may.
///
/// Where the kernel's list cannot be read the answer is no: it is a courtesy beside the real lock.
pub(super) fn is_kept_by_qemu(file: &File, for_writing: bool) -> bool {
    #[allow(clippy::disallowed_methods)] // this is the module for it
    let list = std::fs::read_to_string("/proc/locks");
    match (file.metadata(), list) {
        (Ok(metadata), Ok(list)) => {
            let device = metadata.dev();
            let name = format!(
                "{:02x}:{:02x}:{}",
                rustix::fs::major(device),
                rustix::fs::minor(device),
                metadata.ino()
            );
            let bytes = if for_writing { &BYTES[..] } else { &BYTES[..1] };
            list.lines().any(|line| is_lock_of_qemu(line, &name, bytes))
        }
        _ => false,
    }
}

/// A line reads `1: OFDLCK ADVISORY READ -1 fe:00:4711 100 101`, the last two being the bytes.
fn is_lock_of_qemu(line: &str, name: &str, bytes: &[u64]) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, kind, _, _, _, file, first, last] = fields[..] else { return false };
    let last = if last == "EOF" { Some(u64::MAX) } else { last.parse().ok() };
    match (kind, first.parse::<u64>(), last) {
        // A lock on the whole file is no mark of QEMU's.
        ("OFDLCK" | "POSIX", Ok(first @ 1..), Some(last)) => {
            file == name && bytes.iter().any(|byte| (first..=last).contains(byte))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{BYTES, is_lock_of_qemu};

    #[test]
    fn only_the_write_byte_of_the_same_file_counts() {
        let line = |kind, file, bytes| format!("7: {kind}  ADVISORY  READ -1 {file} {bytes}");
        let qemu =
            |kind, file, bytes| is_lock_of_qemu(&line(kind, file, bytes), "fe:00:42", &BYTES[..1]);
        assert!(qemu("OFDLCK", "fe:00:42", "100 101"));
        assert!(qemu("POSIX", "fe:00:42", "101 101"));
        assert!(!qemu("OFDLCK", "fe:00:42", "100 100"));
        assert!(!qemu("OFDLCK", "fe:00:43", "100 101"));
        assert!(!qemu("FLOCK", "fe:00:42", "0 EOF"));
        assert!(!qemu("POSIX", "fe:00:42", "0 EOF"));
        let waits = "7: -> OFDLCK  ADVISORY  READ -1 fe:00:42 100 101";
        assert!(!is_lock_of_qemu(waits, "fe:00:42", &BYTES));
        // One that reads, and lets nobody write.
        let reads = line("OFDLCK", "fe:00:42", "201 201");
        assert!(is_lock_of_qemu(&reads, "fe:00:42", &BYTES));
        assert!(!is_lock_of_qemu(&reads, "fe:00:42", &BYTES[..1]));
    }
}
