//! Finds QEMU's locks on a file.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Flock, FlockType, fcntl_getlk};

/// For each permission n that it uses, QEMU locks byte 100 + n of an image, and for each that it does not share with
/// others, byte 200 + n; permission 1 is writing.
const QEMU_WRITES: u64 = 101;
const QEMU_SHARES_NO_WRITING: u64 = 201;

const BYTES: [u64; 2] = [QEMU_WRITES, QEMU_SHARES_NO_WRITING];

/// Whether a process holds the lock by which QEMU marks a file that it writes to, or, if `for_writing`, a file that
/// nobody else may write to.
///
/// If the kernel does not tell, the answer is no: this check only supplements the real lock.
pub(super) fn is_kept_by_qemu(file: &File, for_writing: bool) -> bool {
    let bytes = if for_writing { &BYTES[..] } else { &BYTES[..1] };
    bytes.iter().any(|byte| {
        let mut lock = Flock::from(FlockType::WriteLock);
        (lock.start, lock.length) = (*byte, 1);
        match fcntl_getlk(file, &lock) {
            Ok(Some(found)) if found.start > 0 => true,
            // The lock of another program on the whole file, which may hide one of QEMU's.
            Ok(Some(_)) => is_listed(file, *byte),
            Ok(None) | Err(_) => false,
        }
    })
}

/// Whether the list that Linux keeps of all locks has one on this byte of the file, but not on the whole file. It takes
/// the kernel 10 ms and more to show it.
fn is_listed(file: &File, byte: u64) -> bool {
    #[allow(clippy::disallowed_methods)] // part of the module that wraps std::fs
    let list = std::fs::read_to_string("/proc/locks");
    let (Ok(metadata), Ok(list)) = (file.metadata(), list) else { return false };
    let device = metadata.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let name = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    list.lines().any(|line| is_lock_of_qemu(line, &name, byte))
}

/// A line reads `1: OFDLCK ADVISORY READ -1 fe:00:4711 100 101`; the last two fields are the first and last byte.
fn is_lock_of_qemu(line: &str, name: &str, byte: u64) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, kind, _, _, _, file, first, last] = fields[..] else { return false };
    let last = if last == "EOF" { Some(u64::MAX) } else { last.parse().ok() };
    match (kind, first.parse::<u64>(), last) {
        // QEMU does not lock whole files.
        ("OFDLCK" | "POSIX", Ok(first @ 1..), Some(last)) => {
            file == name && (first..=last).contains(&byte)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_write_byte_of_the_same_file_counts() {
        let line = |kind, file, bytes| format!("7: {kind}  ADVISORY  READ -1 {file} {bytes}");
        let qemu =
            |kind, file, bytes| is_lock_of_qemu(&line(kind, file, bytes), "fe:00:42", QEMU_WRITES);
        assert!(qemu("OFDLCK", "fe:00:42", "100 101"));
        assert!(qemu("POSIX", "fe:00:42", "101 101"));
        assert!(!qemu("OFDLCK", "fe:00:42", "100 100"));
        assert!(!qemu("OFDLCK", "fe:00:43", "100 101"));
        assert!(!qemu("FLOCK", "fe:00:42", "0 EOF"));
        assert!(!qemu("POSIX", "fe:00:42", "0 EOF"));
        let waits = "7: -> OFDLCK  ADVISORY  READ -1 fe:00:42 100 101";
        assert!(!is_lock_of_qemu(waits, "fe:00:42", QEMU_WRITES));
        // A process that only reads and lets nobody write.
        let reads = line("OFDLCK", "fe:00:42", "201 201");
        assert!(is_lock_of_qemu(&reads, "fe:00:42", QEMU_SHARES_NO_WRITING));
        assert!(!is_lock_of_qemu(&reads, "fe:00:42", QEMU_WRITES));
    }
}
