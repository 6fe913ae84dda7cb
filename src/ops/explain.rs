//! Explains why a byte reads as it does.

use crate::answers::Owner;
use crate::chain::DiffChain;
use crate::disk::{Disk, LayerId};
use crate::error::{Error, Result};
use crate::format::bat::{BatEntry, PayloadState};
use crate::image::Core;
use crate::types::{BatIndex, BlockIndex, ChunkIndex, DiskOffset, FileOffset};

/// Follows one byte of a chain through the layers, from the tip down to the layer that supplies it.
///
/// ```no_run
/// use avhdx::DiffChain;
/// use avhdx::ops::{Explain, Verdict};
///
/// let chain = DiffChain::open("web_1A2B.avhdx")?;
/// let explanation = Explain::new(0x10_0000).run(&chain)?;
/// for layer in &explanation.layers {
///     if let Verdict::Data { at, .. } = layer.verdict {
///         println!("{} has it at {at}", layer.name);
///     }
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Explain {
    offset: u64,
}

/// The path of one byte through the layers.
#[derive(Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The byte's offset on the disk.
    pub offset: u64,
    /// From the tip down to the layer that decides the byte. Never empty.
    pub layers: Vec<LayerAnswer>,
}

/// One layer's answer for the byte.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerAnswer {
    /// The layer.
    pub layer: LayerId,
    /// The name of its file in error messages.
    pub name: String,
    /// The block that contains the byte; `None` past the layer's end, or if the table has no entry for it.
    pub block: Option<BlockFacts>,
    /// What the layer's tables say about the byte.
    pub verdict: Verdict,
}

/// A payload block and its entry in the block allocation table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockFacts {
    /// The block's number.
    pub block: u64,
    /// The byte's offset within the block.
    pub within: u64,
    /// The block's entry.
    pub entry: EntryFacts,
    /// The sector bitmap of the block's chunk, if the block's state uses it.
    pub bitmap: Option<BitmapFacts>,
}

/// An entry of the block allocation table, \[MS-VHDX\] 2.5.1.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryFacts {
    /// Its index in the table, counting payload and sector bitmap entries.
    pub index: u64,
    /// Its offset in the file.
    pub at: FileOffset,
    /// Its eight bytes.
    pub raw: u64,
    /// The name of its state.
    pub state: &'static str,
    /// The file offset recorded in the entry, even if its state does not use it.
    pub place: FileOffset,
    /// The index of the log entry whose replay supplies it, if any.
    pub log_entry: Option<u64>,
}

/// A sector's bit in the sector bitmap of its chunk, \[MS-VHDX\] 2.4.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitmapFacts {
    /// The chunk's number.
    pub chunk: u64,
    /// The chunk's entry; `None` if the table ends before it.
    pub entry: Option<EntryFacts>,
    /// The bit; `None` if there is no sector bitmap block.
    pub bit: Option<BitFacts>,
}

/// One bit of a sector bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitFacts {
    /// Its index in the bitmap: the sector's index in the chunk.
    pub index: u64,
    /// The file offset of the byte that contains it.
    pub at: FileOffset,
    /// Its position in that byte, 0 being the least significant bit.
    pub bit: u8,
    /// Whether it is set, which means that the sector is in this file.
    pub is_set: bool,
    /// The index of the log entry whose replay supplies the byte, if any.
    pub log_entry: Option<u64>,
}

/// What a layer does with the byte.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// The layer's file holds the byte.
    #[non_exhaustive]
    Data {
        /// The byte's offset in the file.
        at: FileOffset,
        /// The index of the log entry whose replay supplies it, if any.
        log_entry: Option<u64>,
    },
    /// The byte is zero, regardless of the layers below.
    Zero,
    /// The layer defers to its parent.
    Parent,
    /// The layer's disk ends before the byte, which therefore reads as zero regardless of the layers below.
    PastEnd,
    /// The layer's tables are invalid for this byte.
    Unreadable(Error),
}

impl Explain {
    /// Explains the byte at `offset` of the disk.
    pub fn new(offset: u64) -> Self {
        Self { offset }
    }

    /// Follows the byte through `chain`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if the byte lies outside the disk;
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if a table cannot be read. Invalid tables are an answer
    /// ([`Verdict::Unreadable`]), not an error.
    pub fn run(self, chain: &DiffChain) -> Result<Explanation> {
        chain.geometry().check_range(self.offset, 1)?;
        let at = DiskOffset(self.offset);
        let mut layers = Vec::new();
        for image in chain.images() {
            let answer = layer(&image, at)?;
            let is_last = !matches!(answer.verdict, Verdict::Parent);
            layers.push(answer);
            if is_last {
                break;
            }
        }
        Ok(Explanation { offset: self.offset, layers })
    }
}

fn layer(image: &Core, at: DiskOffset) -> Result<LayerAnswer> {
    let answer = |block, verdict| LayerAnswer {
        layer: image.id(),
        name: image.name().to_owned(),
        block,
        verdict,
    };
    if at.0 >= image.layout().size() {
        return Ok(answer(None, Verdict::PastEnd));
    }
    let block = block_facts(image, at)?;
    // The facts above are for display; the verdict comes from the code that serves reads.
    let verdict = match image.resolve(at, 1) {
        Ok(run) => match run.owner {
            Owner::Here(at) => Verdict::Data { at, log_entry: image.log_entry_at(at) },
            Owner::Zero => Verdict::Zero,
            Owner::Parent => Verdict::Parent,
        },
        Err(error) => Verdict::Unreadable(error),
    };
    Ok(answer(block, verdict))
}

fn block_facts(image: &Core, at: DiskOffset) -> Result<Option<BlockFacts>> {
    let layout = image.layout();
    let BlockIndex(block) = layout.block_of(at);
    let Some((entry, raw)) = entry(image, layout.payload_index(BlockIndex(block)), payload_name)?
    else {
        return Ok(None);
    };
    let bitmap = match raw.payload_state() {
        PayloadState::PartiallyPresent => Some(bitmap_facts(image, at)?),
        _ => None,
    };
    Ok(Some(BlockFacts { block, within: layout.within_block(at), entry, bitmap }))
}

fn bitmap_facts(image: &Core, at: DiskOffset) -> Result<BitmapFacts> {
    let layout = image.layout();
    let chunk = layout.chunk_of(layout.block_of(at));
    let entry = entry(image, layout.bitmap_index(chunk), bitmap_name)?.map(|(facts, _)| facts);
    let bit = match image.bitmap_at(chunk) {
        Ok(bitmap) => {
            let index = layout.bit_of(at);
            let at = bitmap + index / 8;
            let byte = image.table_byte(at)?;
            let bit = (index % 8) as u8;
            let is_set = byte >> bit & 1 == 1;
            Some(BitFacts { index, at, bit, is_set, log_entry: image.log_entry_at(at) })
        }
        // The verdict carries the reason.
        Err(_) => None,
    };
    let ChunkIndex(chunk) = chunk;
    Ok(BitmapFacts { chunk, entry, bit })
}

fn entry(
    image: &Core,
    index: BatIndex,
    name: fn(BatEntry) -> &'static str,
) -> Result<Option<(EntryFacts, BatEntry)>> {
    if index.0 >= image.bat_entries() {
        return Ok(None);
    }
    let entry = image.bat_entry(index)?;
    let at = image.bat_entry_at(index);
    let facts = EntryFacts {
        index: index.0,
        at,
        raw: entry.0,
        state: name(entry),
        place: entry.offset(),
        log_entry: image.log_entry_at(at),
    };
    Ok(Some((facts, entry)))
}

fn payload_name(entry: BatEntry) -> &'static str {
    match entry.payload_state() {
        PayloadState::NotPresent => "PAYLOAD_BLOCK_NOT_PRESENT",
        PayloadState::Undefined => "PAYLOAD_BLOCK_UNDEFINED",
        PayloadState::Zero => "PAYLOAD_BLOCK_ZERO",
        PayloadState::Unmapped => "PAYLOAD_BLOCK_UNMAPPED",
        PayloadState::FullyPresent => "PAYLOAD_BLOCK_FULLY_PRESENT",
        PayloadState::PartiallyPresent => "PAYLOAD_BLOCK_PARTIALLY_PRESENT",
        PayloadState::DraftUnmapped => "5, a draft's PAYLOAD_BLOCK_UNMAPPED",
        PayloadState::Reserved => "4, reserved",
    }
}

fn bitmap_name(entry: BatEntry) -> &'static str {
    match entry.state_bits() {
        0 => "SB_BLOCK_NOT_PRESENT",
        6 => "SB_BLOCK_PRESENT",
        _ => "reserved",
    }
}
