//! Who else writes to a file, as far as Linux lists it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// QEMU holds a lock on byte 100 + n of an image for each permission n that it uses; 1 is writing.
const QEMU_WRITE_BYTE: u64 = 101;

/// Whether a process holds the lock by which QEMU says that it writes to the file.
///
/// Where the kernel's list cannot be read the answer is no: it is a courtesy beside the real lock.
pub(super) fn has_qemu_writer(file: &File) -> bool {
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
            list.lines().any(|line| is_qemu_writer(line, &name))
        }
        _ => false,
    }
}

/// A line reads `1: OFDLCK ADVISORY READ -1 fe:00:4711 100 101`, the last two being the bytes.
fn is_qemu_writer(line: &str, name: &str) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, kind, _, _, _, file, first, last] = fields[..] else { return false };
    let last = if last == "EOF" { Some(u64::MAX) } else { last.parse().ok() };
    match (kind, first.parse::<u64>(), last) {
        // A lock on the whole file is no mark of QEMU's.
        ("OFDLCK" | "POSIX", Ok(first @ 1..), Some(last)) => {
            file == name && (first..=last).contains(&QEMU_WRITE_BYTE)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_qemu_writer;

    #[test]
    fn only_the_write_byte_of_the_same_file_counts() {
        let line = |kind, file, bytes| format!("7: {kind}  ADVISORY  READ -1 {file} {bytes}");
        let qemu = |kind, file, bytes| is_qemu_writer(&line(kind, file, bytes), "fe:00:42");
        assert!(qemu("OFDLCK", "fe:00:42", "100 101"));
        assert!(qemu("POSIX", "fe:00:42", "101 101"));
        assert!(!qemu("OFDLCK", "fe:00:42", "100 100"));
        assert!(!qemu("OFDLCK", "fe:00:43", "100 101"));
        assert!(!qemu("FLOCK", "fe:00:42", "0 EOF"));
        assert!(!qemu("POSIX", "fe:00:42", "0 EOF"));
        assert!(!is_qemu_writer("7: -> OFDLCK  ADVISORY  READ -1 fe:00:42 100 101", "fe:00:42"));
    }
}
