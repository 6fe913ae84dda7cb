//! `avhdx explain`: shows how the value of a byte comes about.

use avhdx::ops::{BlockFacts, EntryFacts, Explain, Explanation, LayerAnswer, Verdict};
use avhdx::{Disk, Lock};
use serde_json::{Value, json};

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::values;

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
        console.document(&object(&explanation, value))?;
    } else {
        text(&explanation, value, console)?;
    }
    // The explanation shows where the read failed, the error why.
    read?;
    Ok(Reply::Yes)
}

fn object(explanation: &Explanation, value: Option<u8>) -> Value {
    let layers = explanation.layers.iter().enumerate();
    let layers: Vec<Value> = layers
        .map(|(depth, layer)| {
            let mut object = json!({
                "depth": depth,
                "file": layer.name,
                "verdict": verdict_name(&layer.verdict),
            });
            if let Some(block) = &layer.block {
                object["block"] = block_object(block);
            }
            match &layer.verdict {
                Verdict::Data { at, log_entry, .. } => {
                    object["offset"] = at.get().into();
                    object["log_entry"] = (*log_entry).into();
                }
                Verdict::Unreadable(error) => {
                    object["code"] = error.code().into();
                    object["message"] = error.to_string().into();
                }
                _ => {}
            }
            object
        })
        .collect();
    json!({
        "schema": "avhdx.explain/1",
        "offset": explanation.offset,
        "value": value,
        "layers": layers,
    })
}

fn block_object(block: &BlockFacts) -> Value {
    let mut object = json!({
        "block": block.block,
        "within": block.within,
        "bat_entry": entry_object(&block.entry),
    });
    if let Some(bitmap) = &block.bitmap {
        let bit = bitmap.bit.as_ref().map(|bit| {
            json!({
                "index": bit.index,
                "offset": bit.at.get(),
                "bit": bit.bit,
                "set": bit.is_set,
                "log_entry": bit.log_entry,
            })
        });
        object["bitmap"] = json!({
            "chunk": bitmap.chunk,
            "bat_entry": bitmap.entry.as_ref().map(entry_object),
            "sector_bit": bit,
        });
    }
    object
}

fn entry_object(entry: &EntryFacts) -> Value {
    json!({
        "index": entry.index,
        "offset": entry.at.get(),
        "raw": entry.raw,
        "state": entry.state,
        "place": entry.place.get(),
        "log_entry": entry.log_entry,
    })
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
