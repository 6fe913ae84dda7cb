//! Sectors whose bytes all tell who wrote them, when and where.

use std::ops::Range;

use avhdx_testkit::rng::Rng;

use crate::SECTOR;

/// The writer of the parent.
pub const PARENT: u64 = 100;

/// What a sector contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// All zeros.
    Zero,
    /// A complete tag.
    Tag { writer: u64, turn: u64, sector: u64 },
    /// Anything else, for instance parts of two tags.
    Torn,
}

/// The bytes of these sectors in this turn of a writer.
pub fn run(writer: u64, turn: u64, sectors: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; ((sectors.end - sectors.start) * SECTOR) as usize];
    for (sector, buf) in sectors.zip(bytes.chunks_mut(SECTOR as usize)) {
        tag(writer, turn, sector, buf);
    }
    bytes
}

pub fn says(bytes: &[u8]) -> Says {
    if bytes.iter().all(|byte| *byte == 0) {
        return Says::Zero;
    }
    let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
    let (writer, turn, sector) = (word(0), word(1), word(2));
    let mut whole = [0; SECTOR as usize];
    tag(writer, turn, sector, &mut whole);
    if bytes == whole { Says::Tag { writer, turn, sector } } else { Says::Torn }
}

/// Every byte after the first three words is derived from them.
fn tag(writer: u64, turn: u64, sector: u64, buf: &mut [u8]) {
    for (i, word) in [writer, turn, sector].into_iter().enumerate() {
        buf[8 * i..8 * i + 8].copy_from_slice(&word.to_le_bytes());
    }
    let seed = writer << 56 ^ turn << 32 ^ sector;
    Rng::new(seed).fill(&mut buf[24..]);
}
