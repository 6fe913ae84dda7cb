//! Payload blocks: state, data, sector bits, and their order in the file.

use crate::rng::pattern;

/// The states of an entry. [MS-VHDX] 2.5.1.1 and 2.5.1.2
pub mod state {
    /// Deferred to the parent, or zeros.
    pub const NOT_PRESENT: u8 = 0;
    /// Undefined; read as zeros.
    pub const UNDEFINED: u8 = 1;
    /// Zeros.
    pub const ZERO: u8 = 2;
    /// Unmapped; read as zeros here.
    pub const UNMAPPED: u8 = 3;
    /// The whole block is in this file; of a bitmap: present.
    pub const FULLY_PRESENT: u8 = 6;
    /// The bitmap says which sectors are in this file.
    pub const PARTIALLY_PRESENT: u8 = 7;
}

/// One payload block.
#[derive(Clone, Debug)]
pub struct Block {
    /// One of [`state`], or anything of three bits.
    pub state: u8,
    /// What the file holds for it, regardless of the state.
    pub data: Data,
    /// One bit per sector; missing ones are 0. For states other than PARTIALLY_PRESENT, bits are written
    /// although readers ignore them.
    pub bitmap: Vec<bool>,
    /// The file offset. `None`: placed automatically, or 0 when `data` is [`Data::None`].
    pub at: Option<u64>,
}

/// The bytes of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// No space in the file.
    None,
    /// Space, left as a hole.
    Zeros,
    /// These bytes, then zeros.
    Bytes(Vec<u8>),
    /// [`pattern`] of this seed over the block's virtual offsets, including sectors not owned.
    Pattern(u64),
}

impl Block {
    /// A block in a state that holds no data.
    pub fn bare(state: u8) -> Self {
        Self { state, data: Data::None, bitmap: Vec::new(), at: None }
    }

    /// A block whose whole contents are in this file.
    pub fn full(data: Data) -> Self {
        Self { state: state::FULLY_PRESENT, data, bitmap: Vec::new(), at: None }
    }

    /// A block of which the sectors with a set bit are in this file.
    pub fn partial(data: Data, bitmap: Vec<bool>) -> Self {
        Self { state: state::PARTIALLY_PRESENT, data, bitmap, at: None }
    }

    /// As [`Block::partial`], with the bits given as runs of sectors: the first one and their count.
    pub fn partial_runs(data: Data, runs: &[(usize, usize)]) -> Self {
        let mut bitmap = vec![false; runs.iter().map(|(s, n)| s + n).max().unwrap_or(0)];
        for (s, n) in runs {
            bitmap[*s..s + n].fill(true);
        }
        Self::partial(data, bitmap)
    }

    /// Replaces the block's state; the data stay.
    pub fn with_state(mut self, state: u8) -> Self {
        self.state = state;
        self
    }

    /// Places the block at this file offset.
    pub fn at(mut self, offset: u64) -> Self {
        self.at = Some(offset);
        self
    }

    /// Whether this sector's bit is set.
    pub fn bit(&self, sector: usize) -> bool {
        self.bitmap.get(sector).copied().unwrap_or(false)
    }
}

impl Data {
    /// Fills `buf` with the block's bytes from `from` on; `virtual_at` is the start of the block.
    pub(super) fn fill(&self, virtual_at: u64, from: usize, buf: &mut [u8]) {
        buf.fill(0);
        match self {
            Self::None | Self::Zeros => {}
            Self::Bytes(b) => {
                let b = b.get(from..).unwrap_or(&[]);
                let n = b.len().min(buf.len());
                buf[..n].copy_from_slice(&b[..n]);
            }
            Self::Pattern(seed) => pattern(*seed, virtual_at + from as u64, buf),
        }
    }
}

/// The order of payload and bitmap blocks in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By virtual offset, with each chunk's bitmap before its blocks.
    #[default]
    Sequential,
    /// In the opposite order.
    Reversed,
    /// Shuffled by this seed.
    Shuffled(u64),
}
