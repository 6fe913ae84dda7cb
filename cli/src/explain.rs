//! `avhdx explain`: shows how the value of a byte comes about.

use avhdx::ops::{BitmapFacts, BlockFacts, EntryFacts, Explain, Explanation, LayerAnswer, Verdict};
use avhdx::{Disk, Lock};
use serde::Serialize;

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{ErrorFacts, Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::values;
use crate::vocabulary::Answer;

/// Explain the value of a byte: which layer, table entry, bitmap bit or log entry supplies it.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The offset of the byte on the disk.
    #[arg(value_name = "OFFSET", value_parser = values::bytes, allow_negative_numbers = true)]
    offset: u64,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let chain = input::chain(&args.image.image, &args.opening, Lock::Shared, console)?;
    let explanation = Explain::new(args.offset).run(&chain)?;
    let mut byte = [0];
    let read = chain.read_at(&mut byte, args.offset);
    let value = read.is_ok().then_some(byte[0]);
    if console.is_json() {
        console.document(&ExplainAnswer::of(&explanation, value))?;
    } else {
        text(&explanation, value, console)?;
    }
    // The explanation shows where the read failed, the error why.
    read?;
    Ok(Reply::Yes)
}

/// How the value of a byte of the disk comes about.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ExplainAnswer {
    offset: u64,
    /// Null if the byte cannot be read.
    value: Option<u8>,
    /// The layers that are asked, from the tip down.
    layers: Vec<ExplainedLayer>,
}

impl Answer for ExplainAnswer {
    const SCHEMA: &'static str = "avhdx.explain/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ExplainedLayer {
    /// The number of layers above.
    depth: usize,
    image: String,
    /// `data`, `zero`, `parent`, `past-end` or `unreadable`.
    verdict: &'static str,
    /// Null past the end of the layer's disk.
    block: Option<ExplainedBlock>,
    /// Where the byte lies; null unless the verdict is `data`.
    file_offset: Option<u64>,
    /// The log entry that holds the byte's place.
    log_entry: Option<u64>,
    /// Why the layer is unreadable.
    error: Option<ErrorFacts>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ExplainedBlock {
    block: u64,
    /// The byte's offset within the block.
    within: u64,
    bat_entry: TableEntry,
    /// Null unless the sector bitmap was asked.
    bitmap: Option<ExplainedBitmap>,
}

/// An entry of the block allocation table.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct TableEntry {
    index: u64,
    /// Where the entry lies.
    file_offset: u64,
    /// The entry's 64 bits.
    raw: u64,
    /// The state by its name in [MS-VHDX].
    state: &'static str,
    /// Where the block lies that the entry names.
    block_file_offset: u64,
    /// The log entry that holds this entry; null if the file itself does.
    log_entry: Option<u64>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ExplainedBitmap {
    chunk: u64,
    /// Null past the end of the table.
    bat_entry: Option<TableEntry>,
    sector_bit: Option<SectorBit>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SectorBit {
    index: u64,
    /// The byte with the bit.
    file_offset: u64,
    /// The bit of that byte, 0 is the lowest.
    bit: u8,
    /// Whether the sector is in this layer.
    set: bool,
    log_entry: Option<u64>,
}

impl ExplainAnswer {
    fn of(explanation: &Explanation, value: Option<u8>) -> Self {
        let layers = explanation.layers.iter().enumerate();
        let layers = layers.map(|(depth, layer)| {
            let (at, log_entry) = match &layer.verdict {
                Verdict::Data { at, log_entry, .. } => (Some(at.get()), *log_entry),
                _ => (None, None),
            };
            ExplainedLayer {
                depth,
                image: layer.name.clone(),
                verdict: verdict_name(&layer.verdict),
                block: layer.block.as_ref().map(ExplainedBlock::from),
                file_offset: at,
                log_entry,
                error: match &layer.verdict {
                    Verdict::Unreadable(error) => Some(ErrorFacts::from(error)),
                    _ => None,
                },
            }
        });
        Self { offset: explanation.offset, value, layers: layers.collect() }
    }
}

impl From<&BlockFacts> for ExplainedBlock {
    fn from(block: &BlockFacts) -> Self {
        Self {
            block: block.block,
            within: block.within,
            bat_entry: TableEntry::from(&block.entry),
            bitmap: block.bitmap.as_ref().map(ExplainedBitmap::from),
        }
    }
}

impl From<&BitmapFacts> for ExplainedBitmap {
    fn from(bitmap: &BitmapFacts) -> Self {
        Self {
            chunk: bitmap.chunk,
            bat_entry: bitmap.entry.as_ref().map(TableEntry::from),
            sector_bit: bitmap.bit.as_ref().map(|bit| SectorBit {
                index: bit.index,
                file_offset: bit.at.get(),
                bit: bit.bit,
                set: bit.is_set,
                log_entry: bit.log_entry,
            }),
        }
    }
}

impl From<&EntryFacts> for TableEntry {
    fn from(entry: &EntryFacts) -> Self {
        Self {
            index: entry.index,
            file_offset: entry.at.get(),
            raw: entry.raw,
            state: entry.state,
            block_file_offset: entry.place.get(),
            log_entry: entry.log_entry,
        }
    }
}

fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Data { .. } => "data",
        Verdict::Zero => "zero",
        Verdict::Parent => "parent",
        Verdict::PastEnd => "past-end",
        Verdict::Unreadable(_) => "unreadable",
        _ => "other",
    }
}

fn text(
    explanation: &Explanation,
    value: Option<u8>,
    console: &mut Console,
) -> Result<(), Failure> {
    let offset = explanation.offset;
    let value = value.map_or_else(|| "cannot be read".into(), |byte| format!("is {byte:#04x}"));
    console.line(format!("Byte {offset} ({offset:#x}) of the disk {value}"))?;
    for (depth, layer) in explanation.layers.iter().enumerate() {
        console.line("")?;
        console.line(format!("Layer {depth}  {}", layer.name))?;
        if let Some(block) = &layer.block {
            console.line(format!("  block         {}, offset {:#x}", block.block, block.within))?;
            console.line(format!("  BAT entry     {}", entry_text(&block.entry)))?;
            if let Some(bitmap) = &block.bitmap {
                let entry = match &bitmap.entry {
                    Some(entry) => entry_text(entry),
                    None => "past the end of the table".into(),
                };
                console.line(format!("  bitmap entry  {entry}, of chunk {}", bitmap.chunk))?;
                if let Some(bit) = &bitmap.bit {
                    let value = if bit.is_set { "1: in this layer" } else { "0: in the parent" };
                    console.line(format!(
                        "  sector bit    {}, bit {} of the byte at {}, {value}{}",
                        bit.index,
                        bit.bit,
                        bit.at,
                        from_log(bit.log_entry)
                    ))?;
                }
            }
        }
        console.line(format!("  result        {}", verdict_text(layer)))?;
    }
    Ok(())
}

fn entry_text(entry: &EntryFacts) -> String {
    format!(
        "{} at {}: {:#018x}, {}, file offset {}{}",
        entry.index,
        entry.at,
        entry.raw,
        entry.state,
        entry.place,
        from_log(entry.log_entry)
    )
}

fn verdict_text(layer: &LayerAnswer) -> String {
    match &layer.verdict {
        Verdict::Data { at, log_entry, .. } => {
            format!("the byte at {at} of this file{}", from_log(*log_entry))
        }
        Verdict::Zero => "zero".into(),
        Verdict::Parent => "in the parent".into(),
        Verdict::PastEnd => "zero: past the end of this layer's disk".into(),
        Verdict::Unreadable(error) => format!("unreadable: {}", error.message()),
        _ => "unknown".into(),
    }
}

fn from_log(entry: Option<u64>) -> String {
    entry.map_or_else(String::new, |sequence| format!(" (from log entry {sequence})"))
}
