//! The restart areas of `$LogFile`: whether anything waits in it.

use super::record::fix_up;
use crate::boundary::{u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::item::Stream;

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;
const LEAST_PAGE: u64 = 512;
const MOST_PAGE: u64 = 64 << 10;
/// No client has anything in the log.
const NO_CLIENT: u16 = 0xFFFF;
/// The flag of a volume that was closed cleanly.
const IS_CLEAN: u16 = 2;
/// The bytes of a restart area without its clients.
const AREA_LEN: usize = 48;
/// Those of Windows up to 7, and of Windows 8 and later.
const VERSIONS: [(u16, u16); 3] = [(1, 0), (1, 1), (2, 0)];

/// What one of the two restart pages says.
struct Restart {
    lsn: u64,
    is_clean: bool,
}

/// Refuses a log in which changes may wait. The newer of its two restart pages counts, and each has to be whole: one that
/// is not was being written.
pub(super) fn check(log: &mut dyn Stream) -> Result<()> {
    let len = log.len();
    if len < 2 * LEAST_PAGE {
        return Err(damaged(format!("it has {len} bytes")));
    }
    let mut head = [0; LEAST_PAGE as usize];
    log.read_at(&mut head, 0)?;
    if head.iter().all(|byte| *byte == 0xFF) {
        return check_reset(log);
    }
    let page = u64::from(u32_at(&head, 16));
    let is_page = page.is_power_of_two() && (LEAST_PAGE..=MOST_PAGE).contains(&page);
    if !is_page || 2 * page > len {
        return Err(unclean(format!("its first restart page has {page} bytes")));
    }
    let first = restart(log, 0, page)?;
    let second = restart(log, page, page)?;
    let is_clean = match first.lsn.cmp(&second.lsn) {
        std::cmp::Ordering::Greater => first.is_clean,
        std::cmp::Ordering::Less => second.is_clean,
        std::cmp::Ordering::Equal => first.is_clean && second.is_clean,
    };
    if is_clean {
        return Ok(());
    }
    Err(unclean("changes may wait in it".into()))
}

/// A log that was emptied is full of ones.
fn check_reset(log: &mut dyn Stream) -> Result<()> {
    let mut piece = vec![0; PIECE as usize];
    for at in (0..log.len()).step_by(PIECE as usize) {
        let piece = &mut piece[..(log.len() - at).min(PIECE) as usize];
        log.read_at(piece, at)?;
        if piece.iter().any(|byte| *byte != 0xFF) {
            return Err(unclean(format!("it was emptied, and has something at {at} all the same")));
        }
    }
    Ok(())
}

fn restart(log: &mut dyn Stream, at: u64, page: u64) -> Result<Restart> {
    let mut bytes = vec![0; page as usize];
    log.read_at(&mut bytes, at)?;
    if bytes[..4] != *b"RSTR" {
        let found = String::from_utf8_lossy(&bytes[..4]).into_owned();
        return Err(unclean(format!("its restart page at {at} has the signature {found:?}")));
    }
    fix_up(&mut bytes).map_err(|what| unclean(format!("its restart page at {at} {what}")))?;
    let version = (u16_at(&bytes, 28), u16_at(&bytes, 26));
    if !VERSIONS.contains(&version) {
        let message = format!("$LogFile has the unknown version {}.{}", version.0, version.1);
        return Err(Error::unclean("unclean.ntfs-log", message));
    }
    let start = usize::from(u16_at(&bytes, 24));
    let area = bytes.get(start..).filter(|area| start >= 30 && area.len() >= AREA_LEN);
    let area = area.ok_or_else(|| unclean(format!("its restart area lies at {start}")))?;
    let is_clean = u16_at(area, 12) == NO_CLIENT || u16_at(area, 14) & IS_CLEAN != 0;
    Ok(Restart { lsn: u64_at(area, 0), is_clean })
}

fn unclean(what: String) -> Error {
    let message = format!("the file system was not closed cleanly, by its log ($LogFile): {what}");
    Error::unclean("unclean.ntfs-log", message)
}

fn damaged(what: String) -> Error {
    Error::damaged("ntfs.log", format!("the log ($LogFile) is damaged: {what}"))
}
