//! Finds QEMU's locks on a file.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

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
    bytes.iter().any(|byte| match first_lock_at(file, *byte) {
        // QEMU does not lock whole files, but another program's lock on all of this one may hide QEMU's.
        Some(0) => is_listed(file, *byte),
        start => start.is_some(),
    })
}

/// Where a lock of others on this byte begins. rustix cannot tell of one that belongs to no process, as QEMU's do.
#[cfg(not(any(target_arch = "mips", target_arch = "mips32r6", target_arch = "sparc64")))]
fn first_lock_at(file: &File, byte: u64) -> Option<u64> {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: byte as _,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    (lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_start as u64)
}

/// There the structure has fields of its own.
#[cfg(any(target_arch = "mips", target_arch = "mips32r6", target_arch = "sparc64"))]
fn first_lock_at(_: &File, _: u64) -> Option<u64> {
    Some(0)
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
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// A handle of its own, with a lock of QEMU's kind on these bytes.
    fn locked(file: &File, start: i64, len: i64) -> File {
        use nix::fcntl::{FcntlArg, fcntl};
        use nix::libc;
        let other = File::options().read(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let other = other.unwrap();
        let lock = libc::flock {
            l_type: libc::F_RDLCK as _,
            l_whence: libc::SEEK_SET as _,
            l_start: start as _,
            l_len: len as _,
            l_pid: 0,
        };
        fcntl(&other, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        other
    }

    #[test]
    fn the_file_itself_tells_of_locks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.as_file();
        let kept = || [false, true].map(|for_writing| is_kept_by_qemu(file, for_writing));
        assert_eq!(kept(), [false, false]);
        for (start, len, expected) in [
            (100, 1, [false, false]),
            (100, 2, [true, true]),
            (101, 1, [true, true]),
            (201, 1, [false, true]),
            (203, 1, [false, false]),
            // Another program's, on the whole file.
            (0, 0, [false, false]),
        ] {
            let other = locked(file, start, len);
            assert_eq!(kept(), expected, "{len} bytes from {start}");
            drop(other);
            assert_eq!(kept(), [false, false]);
        }
        file.try_lock().unwrap();
        assert_eq!(kept(), [false, false], "a lock of ours");
    }

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
