//! Whether the file system lets two files share their bytes.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, fstat, fstatfs, ioctl_ficlone};
use rustix::io::Errno;

/// File systems that may share bytes, by the numbers that Linux gives them: XFS, btrfs, bcachefs, and overlays over them.
const KINDS: [u64; 4] = [0x5846_5342, 0x9123_683E, 0xCA45_1A4E, 0x794C_7630];
/// The largest unit that makes sense: payload blocks begin at multiples of it.
const MOST: u64 = 1 << 20;

/// The unit in which `to` can share the bytes of `from`, in bytes; `None` if it cannot, or that is not known.
///
/// Changes nothing: a file is asked to share its own bytes with itself. A file system that shares refuses that as
/// senseless, or has nothing to do if the file is empty; one that does not, refuses it as unsupported. XFS may be made
/// without sharing, so its kind alone does not tell.
pub(super) fn unit(to: &File, from: BorrowedFd<'_>) -> Option<u64> {
    let (one, other) = (fstat(to).ok()?, fstat(from).ok()?);
    let is_file = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
    if one.st_dev != other.st_dev || !is_file(one.st_mode) || !is_file(other.st_mode) {
        return None;
    }
    let system = fstatfs(to).ok()?;
    #[expect(clippy::cast_sign_loss, reason = "the numbers have 32 bits")]
    let kind = system.f_type as u64 & 0xFFFF_FFFF;
    let unit = u64::try_from(system.f_bsize).ok()?;
    if !KINDS.contains(&kind) || !unit.is_power_of_two() || unit > MOST {
        return None;
    }
    match ioctl_ficlone(to, to) {
        Ok(()) | Err(Errno::INVAL) => Some(unit),
        Err(_) => None,
    }
}
