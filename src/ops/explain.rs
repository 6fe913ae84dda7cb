//! Why does this byte read as it does?

use crate::chain::DiffChain;
use crate::disk::{Disk, LayerId, check_range};
use crate::error::{Error, Result};
use crate::format::bat::{BatEntry, PayloadState};
use crate::image::{Core, Owner};
use crate::types::{BatIndex, BlockIndex, ChunkIndex, DiskOffset, FileOffset};

/// Follows one byte of a chain through its layers, from the tip to the one that supplies it.
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

/// The way of one byte through the layers.
#[derive(Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// Where the byte lies on the disk.
    pub offset: u64,
    /// From the tip down to the layer that has the last word. Never empty.
    pub layers: Vec<LayerAnswer>,
}

/// What one layer says of the byte.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerAnswer {
    /// Which layer.
    pub layer: LayerId,
    /// What errors call its file.
    pub name: String,
    /// The block that the byte lies in; `None` past the layer's end, and where the table has no entry.
    pub block: Option<BlockFacts>,
    /// What follows from that.
    pub verdict: Verdict,
}

/// A payload block and its entry in the block allocation table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockFacts {
    /// The block's number.
    pub block: u64,
    /// Where in the block the byte lies.
    pub within: u64,
    /// The block's entry.
    pub entry: EntryFacts,
    /// The chunk, and its sector bitmap where the block's state makes that count.
    pub bitmap: Option<BitmapFacts>,
}

/// An entry of the block allocation table, \[MS-VHDX\] 2.5.1.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryFacts {
    /// Its number, payload and bitmap entries counted alike.
    pub index: u64,
    /// Where in the file it stands.
    pub at: FileOffset,
    /// Its eight bytes.
    pub raw: u64,
    /// The name of its state.
    pub state: &'static str,
    /// The place in the file that it names, whether or not the state gives that a meaning.
    pub place: FileOffset,
    /// The log entry whose replay supplies it, if one does.
    pub log_entry: Option<u64>,
}

/// A sector's bit in the sector bitmap of its chunk, \[MS-VHDX\] 2.4.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitmapFacts {
    /// The chunk's number.
    pub chunk: u64,
    /// The chunk's entry; `None` where the table ends before it.
    pub entry: Option<EntryFacts>,
    /// The bit; `None` where there is no bitmap block.
    pub bit: Option<BitFacts>,
}

/// One bit of a sector bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitFacts {
    /// Its number in the bitmap: the sector's number in the chunk.
    pub index: u64,
    /// Where in the file its byte stands.
    pub at: FileOffset,
    /// Its number in that byte, from the lowest.
    pub bit: u8,
    /// Whether it is set: the sector is in this file.
    pub is_set: bool,
    /// The log entry whose replay supplies the byte, if one does.
    pub log_entry: Option<u64>,
}

/// What a layer's answer amounts to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// The layer's file has the byte.
    #[non_exhaustive]
    Data {
        /// Where.
        at: FileOffset,
        /// The log entry whose replay supplies it, if one does.
        log_entry: Option<u64>,
    },
    /// The byte is zero, whatever lies below.
    Zero,
    /// The parent is asked.
    Parent,
    /// The layer's disk ends before the byte, so that it is zero, whatever lies below.
    PastEnd,
    /// The tables are wrong here.
    Unreadable(Error),
}

impl Explain {
    /// The byte at `offset` of the disk.
    pub fn new(offset: u64) -> Self {
        Self { offset }
    }

    /// Follows the byte through `chain`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the byte does not lie within
    /// the disk; [`ErrorKind::Io`](crate::ErrorKind::Io) when a table cannot be read. What is wrong
    /// with the tables is an answer, not an error.
    pub fn run(self, chain: &DiffChain) -> Result<Explanation> {
        check_range(&chain.geometry(), self.offset, 1)?;
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
    // The facts above are for show; what they mean is decided where every read decides it.
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
        // The verdict says why.
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
