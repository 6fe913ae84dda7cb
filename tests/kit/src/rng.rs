//! A small seeded generator: the same seed gives the same images on every machine.

use uuid::Uuid;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that depends only on `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, which must not be zero; the tiny bias does not matter to tests.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }

    /// True `one` times in `of`.
    pub fn chance(&mut self, one: u64, of: u64) -> bool {
        self.below(of) < one
    }

    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for part in buf.chunks_mut(8) {
            let n = part.len();
            part.copy_from_slice(&self.next_u64().to_le_bytes()[..n]);
        }
    }

    /// A GUID that looks like a random one (version 4).
    pub fn uuid(&mut self) -> Uuid {
        let mut b = [0; 16];
        self.fill(&mut b);
        b[6] = b[6] & 0x0F | 0x40;
        b[8] = b[8] & 0x3F | 0x80;
        Uuid::from_bytes(b)
    }

    /// Shuffles `items` (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// Fills `buf` with the pattern of `seed` at the virtual `offset` (a multiple of 512).
/// Every 512 bytes differ from all others and encode their offset, so that data read from a wrong
/// place is always noticed.
pub fn pattern(seed: u64, offset: u64, buf: &mut [u8]) {
    assert!(offset.is_multiple_of(512), "pattern offset {offset}");
    for (i, unit) in buf.chunks_mut(512).enumerate() {
        let at = offset / 512 + i as u64;
        Rng::new(seed.rotate_left(32) ^ at.wrapping_mul(0xD6E8_FEB8_6659_FD93)).fill(unit);
    }
}
