//! The journal: whole transactions that are not yet in their places.

use std::collections::HashMap;

use crate::boundary::number;
use crate::error::{Error, Result};
use crate::ext::inode::{File, Inode};
use crate::ext::shape::{MAGIC, Shape, Waiting};
use crate::item::Stream;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCKS: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;

const IS_64_BIT: u32 = 0x2;
const ASYNC_COMMIT: u32 = 0x4;
const CHECKSUMS_2: u32 = 0x8;
const CHECKSUMS_3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = 0x1 | IS_64_BIT | CHECKSUMS_2 | CHECKSUMS_3 | FAST_COMMIT;

const IS_ESCAPED: u32 = 1;
const HAS_SAME_ID: u32 = 2;
const IS_LAST: u32 = 8;

/// More blocks are in no journal: 16 GiB in blocks of 1 KiB.
const MOST_BLOCKS: u32 = 1 << 24;

/// A block in a transaction.
struct Logged {
    of: u64,
    waiting: Waiting,
    transaction: u32,
}

/// Reads the journal in this inode; also returns whether that is all that waits.
pub(super) fn read(shape: &Shape, inode: Inode) -> Result<(HashMap<u64, Waiting>, bool)> {
    // The file system may have grown in a transaction that waits.
    let (block, blocks) = (shape.block, shape.blocks.max(shape.bytes.len() / shape.block));
    let mut file = File::new(shape.clone(), inode);
    let mut head = [0; 1024];
    let damaged = |what: String| Error::damaged("ext.journal", what);
    if file.len() < block {
        return Err(damaged(format!("the journal has {} bytes", file.len())));
    }
    file.read_at(&mut head, 0)?;
    if head[..4] != MAGIC || !SUPERBLOCKS.contains(&u32_be(&head, 4)) {
        return Err(damaged("the journal has no superblock".into()));
    }
    let start = u32_be(&head, 28);
    if start == 0 {
        return Ok((HashMap::new(), true));
    }
    let features = if u32_be(&head, 4) == SUPERBLOCKS[1] { u32_be(&head, 40) } else { 0 };
    if features & !KNOWN != 0 {
        let what = match features & !KNOWN {
            ASYNC_COMMIT => "commits without an order (journal_async_commit)".into(),
            others => format!("unknown features {others:#x}"),
        };
        let message = format!("the journal is not empty and has {what}");
        return Err(Error::unsupported("ext.feature", message));
    }
    let fast = match features & FAST_COMMIT {
        0 => 0,
        _ => match u32_be(&head, 84) {
            0 => 256,
            blocks => blocks,
        },
    };
    let (len, first) = (u32_be(&head, 12), u32_be(&head, 20));
    let end = u32_be(&head, 16).saturating_sub(fast);
    let has_room = u64::from(end).checked_mul(block).is_some_and(|bytes| bytes <= file.len());
    if u64::from(len) != block
        || end > MOST_BLOCKS
        || !has_room
        || !(1..end).contains(&first)
        || !(first..end).contains(&start)
    {
        let what =
            format!("the journal has blocks of {len} bytes, {first} to {end}, begun at {start}");
        return Err(damaged(what));
    }
    let log = Log { file, block, blocks, first, end, features };
    Ok((log.replay(start, u32_be(&head, 24))?, features & FAST_COMMIT == 0))
}

/// Refuses a journal that is not empty, or that has seen a failure.
pub(super) fn check_empty(shape: &Shape, inode: Inode) -> Result<()> {
    let mut file = File::new(shape.clone(), inode);
    let mut head = [0; 1024];
    if file.len() < head.len() as u64 {
        let message = format!("the journal has {} bytes", file.len());
        return Err(Error::damaged("ext.journal", message));
    }
    file.read_at(&mut head, 0)?;
    if head[..4] != MAGIC || !SUPERBLOCKS.contains(&u32_be(&head, 4)) {
        return Err(Error::damaged("ext.journal", "the journal has no superblock"));
    }
    if u32_be(&head, 28) != 0 {
        let message = "the file system was not closed cleanly: its journal is not empty";
        return Err(Error::unclean("unclean.ext", message));
    }
    match u32_be(&head, 32) {
        0 => Ok(()),
        failure => {
            let message = format!("the file system has errors: failure {failure} in its journal");
            Err(Error::unclean("unclean.ext-errors", message))
        }
    }
}

struct Log {
    file: File,
    block: u64,
    blocks: u64,
    first: u32,
    end: u32,
    features: u32,
}

impl Log {
    /// Follows the transactions up to the first that is not whole.
    fn replay(mut self, start: u32, mut transaction: u32) -> Result<HashMap<u64, Waiting>> {
        let (mut logged, mut revoked) = (Vec::new(), HashMap::new());
        let (mut now_logged, mut now_revoked) = (Vec::new(), Vec::new());
        let (mut at, mut left) = (start, self.end - self.first);
        let mut bytes = vec![0; self.block as usize];
        while left > 0 {
            left -= 1;
            self.file.read_at(&mut bytes, u64::from(at) * self.block)?;
            at = self.next(at);
            if bytes[..4] != MAGIC || u32_be(&bytes, 8) != transaction {
                break;
            }
            match u32_be(&bytes, 4) {
                DESCRIPTOR => {
                    for (of, is_escaped) in self.tags(&bytes) {
                        if left == 0 {
                            break;
                        }
                        left -= 1;
                        let place = self.file.place(at.into())?;
                        at = self.next(at);
                        let waiting = Waiting { at: place, is_escaped };
                        now_logged.push(Logged { of, waiting, transaction });
                    }
                }
                REVOKE => now_revoked.extend(self.revoked(&bytes)),
                COMMIT => {
                    logged.append(&mut now_logged);
                    for block in now_revoked.drain(..) {
                        revoked.insert(block, transaction);
                    }
                    transaction = transaction.wrapping_add(1);
                }
                _ => break,
            }
        }
        let mut waiting = HashMap::new();
        for Logged { of, waiting: place, transaction } in logged {
            // Counters of transactions begin again at 0.
            let is_revoked = revoked
                .get(&of)
                .is_some_and(|last: &u32| last.wrapping_sub(transaction) as i32 >= 0);
            if of >= self.blocks {
                let message = format!("the journal has block {of} of {}", self.blocks);
                return Err(Error::damaged("ext.journal", message));
            }
            if !is_revoked {
                waiting.insert(of, place);
            }
        }
        Ok(waiting)
    }

    fn next(&self, at: u32) -> u32 {
        if at + 1 == self.end { self.first } else { at + 1 }
    }

    /// The blocks that follow a descriptor, by their places, and whether they are escaped.
    fn tags(&self, bytes: &[u8]) -> Vec<(u64, bool)> {
        let is_64_bit = self.features & IS_64_BIT != 0;
        let is_3 = self.features & CHECKSUMS_3 != 0;
        let has_tail = self.features & (CHECKSUMS_2 | CHECKSUMS_3) != 0;
        let len = match (is_3, is_64_bit) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        } + if !is_3 && self.features & CHECKSUMS_2 != 0 { 2 } else { 0 };
        let mut rest = &bytes[12..bytes.len() - if has_tail { 4 } else { 0 }];
        let mut tags = Vec::new();
        while let Some((tag, behind)) = rest.split_at_checked(len) {
            let flags = if is_3 { u32_be(tag, 4) } else { u32_be(tag, 4) & 0xFFFF };
            let high = if is_64_bit { u64::from(u32_be(tag, 8)) << 32 } else { 0 };
            tags.push((high | u64::from(u32_be(tag, 0)), flags & IS_ESCAPED != 0));
            if flags & IS_LAST != 0 {
                break;
            }
            rest = behind.get(if flags & HAS_SAME_ID != 0 { 0 } else { 16 }..).unwrap_or(&[]);
        }
        tags
    }

    /// The blocks whose earlier versions are not to be written.
    fn revoked(&self, bytes: &[u8]) -> Vec<u64> {
        let len = if self.features & IS_64_BIT != 0 { 8 } else { 4 };
        let used = (u32_be(bytes, 12) as usize).clamp(16, bytes.len());
        let blocks = bytes[16..used].chunks_exact(len);
        blocks
            .map(|raw| raw.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            .collect()
    }
}

/// A number of the journal, which is big-endian.
fn u32_be(bytes: &[u8], at: usize) -> u32 {
    (number(bytes, at, 4) as u32).swap_bytes()
}
