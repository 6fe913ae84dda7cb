//! Changes of a few bytes where structures are.

use std::ops::Range;

use avhdx_testkit::rng::Rng;

/// The largest structure that is copied over another one: a file record, a block of a folder, a node of an index.
const MOST_COPIED: u64 = 13;

/// Bytes that stand in other places instead.
pub type Patches = Vec<(usize, Vec<u8>)>;

/// Changes numbers in the places of structures, or copies one structure over another.
pub fn patches(rng: &mut Rng, sound: &[u8], places: &[Range<u64>]) -> Patches {
    let place = |rng: &mut Rng| {
        let range = &places[rng.below(places.len() as u64) as usize];
        let at = range.start + rng.below(range.end - range.start);
        // Most structures begin with what counts.
        if rng.chance(1, 3) {
            (range.start + rng.below(64).min(range.end - range.start - 1)) as usize
        } else {
            at as usize
        }
    };
    let mut patches = Vec::new();
    for _ in 0..=rng.below(3) {
        let at = place(rng);
        let width = 1 << rng.below(4);
        let at = if rng.chance(3, 4) { at / width * width } else { at };
        let width = width.min(sound.len() - at);
        let old = &sound[at..at + width];
        let number = old.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let new = match rng.below(10) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => u64::MAX >> 1,
            4 => number.wrapping_add(1),
            5 => number.wrapping_sub(1),
            6 => number ^ 1 << rng.below(8 * width as u64),
            7 => rng.next_u64(),
            8 => {
                let from = place(rng);
                let len = (1 << rng.below(10)).min(sound.len() - from.max(at));
                patches.push((at, sound[from..from + len].to_vec()));
                continue;
            }
            _ => {
                // One whole structure in the place of another: both are aligned to their length.
                let len = 1 << (5 + rng.below(MOST_COPIED - 4));
                let (from, at) = (place(rng) / len * len, at / len * len);
                let len = len.min(sound.len() - from.max(at));
                patches.push((at, sound[from..from + len].to_vec()));
                continue;
            }
        };
        patches.push((at, new.to_le_bytes()[..width].to_vec()));
    }
    patches
}

/// Puts patches in their places.
pub fn apply(bytes: &mut [u8], start: usize, patches: &[(usize, Vec<u8>)]) {
    for (at, new) in patches {
        for (at, byte) in (*at..).zip(new) {
            if let Some(place) = at.checked_sub(start).and_then(|at| bytes.get_mut(at)) {
                *place = *byte;
            }
        }
    }
}

/// Where the two headers of a GPT and their entries are.
pub struct Seal(pub Vec<(usize, Range<usize>)>);

impl Seal {
    /// Renews the checksums, so that changes count.
    pub fn complete(&self, sound: &[u8], mut patches: Patches) -> Patches {
        for (header, entries) in &self.0 {
            let mut list = sound[entries.clone()].to_vec();
            apply(&mut list, entries.start, &patches);
            let mut head = sound[*header..*header + 92].to_vec();
            apply(&mut head, *header, &patches);
            head[88..92].copy_from_slice(&crc32(&list).to_le_bytes());
            head[16..20].fill(0);
            let sum = crc32(&head);
            patches.push((*header + 88, head[88..92].to_vec()));
            patches.push((*header + 16, sum.to_le_bytes().to_vec()));
        }
        patches
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 }
        })
    })
}
