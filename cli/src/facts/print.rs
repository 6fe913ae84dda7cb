//! The facts as text.

use avhdx::{CheckpointMark, HeaderInfo, ImageInfo, LogState, MergeState};

use super::report::{
    ChainReport, HEADERS, LayerFacts, REGION_TABLES, counts, found_by, held, kind,
};
use crate::failure::Failure;
use crate::output::Console;
use crate::paint::Look;
use crate::table::Cell;
use crate::table::TextTable;
use crate::text::{count, minute, size, units, utc};

/// The tip with all its structures.
pub(crate) fn image(report: &ChainReport, console: &mut Console) -> Result<(), Failure> {
    let facts = &report.layers[0];
    let info = &facts.info;
    head(facts, None, console)?;
    let mut chain = TextTable::fields("Chain");
    chain.field("layers found", report.depth);
    if let Some((name, by)) = &report.parent {
        let by = by.map_or(String::new(), |by| format!(" (found by {})", found_by(by)));
        chain.field("parent", format!("{name}{by}"));
    }
    match &report.broken {
        Some(failure) => chain.fault("BROKEN", failure.message()),
        None => chain.field("complete", "yes"),
    };
    console.table(chain)?;
    console.table(headers(info))?;
    console.table(log(facts))?;
    regions(info, console)?;
    console.table(items(info))?;
    console.table(blocks(facts))?;
    if let Some(table) = locator(info) {
        console.table(table)?;
    }
    Ok(())
}

/// All layers, with the facts that matter in a chain.
pub(crate) fn chain(report: &ChainReport, console: &mut Console) -> Result<(), Failure> {
    let mut overview = TextTable::new(
        "Chain, from the tip down",
        &["DEPTH", ">SIZE", ">HELD", ">FILE", "LOG", "IDENTITY", "TAKEN (UTC)", "LABEL", "NAME"],
    );
    for (depth, facts) in report.layers.iter().enumerate() {
        let info = &facts.info;
        let held = facts
            .blocks
            .as_ref()
            .map_or_else(|_| "?".into(), |blocks| units(held(blocks) * u64::from(info.block_size)));
        let look = if depth == 0 { Look::Tip } else { Look::Plain };
        let mark = mark_of(report, depth);
        let label = mark.map(|mark| mark.label.clone()).filter(|label| !label.is_empty());
        overview.row([
            Cell::new(look, depth.to_string()),
            units(info.geometry.size).into(),
            held.into(),
            units(info.file_len).into(),
            log_state(facts).to_owned().into(),
            facts.layer.data_write_guid.to_string()[..8].to_owned().into(),
            mark.map_or_else(|| "-".into(), |mark| minute(mark.time)).into(),
            label.unwrap_or_else(|| "-".into()).into(),
            Cell::new(look, facts.layer.name.clone()),
        ]);
    }
    console.table(overview)?;
    for (depth, facts) in report.layers.iter().enumerate() {
        console.line(format!("Layer {depth}"))?;
        head(facts, mark_of(report, depth), console)?;
        console.table(log(facts))?;
        console.table(blocks(facts))?;
        if let Some(table) = locator(&facts.info) {
            console.table(table)?;
        }
    }
    Ok(())
}

/// The mark of the checkpoint that froze a layer: the layer above has it.
fn mark_of(report: &ChainReport, depth: usize) -> Option<&CheckpointMark> {
    report.layers.get(depth.checked_sub(1)?)?.info.checkpoint.as_ref()
}

/// The facts of a layer. `frozen_by` is the mark of the checkpoint that froze it, if that is known.
fn head(
    facts: &LayerFacts,
    frozen_by: Option<&CheckpointMark>,
    console: &mut Console,
) -> Result<(), Failure> {
    let info = &facts.info;
    let mut image = TextTable::fields(&facts.layer.name);
    image.field("type", kind(info));
    image.field("virtual size", size(info.geometry.size));
    image.field(
        "sectors",
        format!(
            "{} logical, {} physical",
            info.geometry.logical_sector, info.geometry.physical_sector
        ),
    );
    image.field("block size", size(info.block_size.into()));
    image.field("chunk ratio", format!("{} blocks", info.chunk_ratio));
    image.field("virtual disk ID", info.disk_id);
    image.field("data write GUID", facts.layer.data_write_guid);
    image.field("file length", size(info.file_len));
    if let Some(allocated) = facts.allocated {
        image.field("space used", size(allocated));
    }
    image.field("creator", &info.creator);
    if let Some(by) = facts.layer.found_by {
        image.field("found by", found_by(by));
    }
    let label = |mark: &CheckpointMark| match mark.label.is_empty() {
        true => "no label".to_owned(),
        false => mark.label.clone(),
    };
    if let Some(mark) = frozen_by {
        image.field("point in time", format!("{}, taken {}", label(mark), utc(mark.time)));
    }
    if let Some(mark) = &info.checkpoint {
        let label = label(mark);
        image.field("checkpoint", format!("{label}, {}: the point in time below", utc(mark.time)));
    }
    if let Some(mark) = &info.merge {
        let what = match mark.state {
            MergeState::Merging => "unfinished, into",
            MergeState::Spent => "complete, into",
            MergeState::Target => "unfinished, inconsistent without its child, from",
            _ => "with",
        };
        image.fault("MERGE", format!("{what} {}, {}", mark.name, mark.other));
    }
    if facts.in_use {
        image.field("IN USE", "by another program: these facts may change");
    }
    console.table(image)
}

fn headers(info: &ImageInfo) -> TextTable {
    let name = |i: usize| {
        let current = if i == info.current_header { ", current" } else { "" };
        format!("{} at {:#x}{current}", i + 1, HEADERS[i])
    };
    let mut table = TextTable::new("Headers", &["", &name(0), &name(1)]);
    let value = |of: &dyn Fn(&HeaderInfo) -> String| {
        [0, 1].map(|i| info.headers[i].as_ref().map_or_else(|_| "-".into(), of))
    };
    let mut row = |name: &str, of: &dyn Fn(&HeaderInfo) -> String| {
        let [first, second] = value(of);
        table.row([name.into(), first, second]);
    };
    row("sequence number", &|header| header.sequence_number.to_string());
    row("file write GUID", &|header| header.file_write_guid.to_string());
    row("data write GUID", &|header| header.data_write_guid.to_string());
    row("log GUID", &|header| header.log_guid.to_string());
    row("log", &|header| {
        format!("{} at {:#x}", units(header.log_length.into()), header.log_offset)
    });
    row("log version", &|header| header.log_version.to_string());
    row("version", &|header| header.version.to_string());
    for (i, header) in info.headers.iter().enumerate() {
        if let Err(message) = header {
            table.remark(format!("header {} is not valid: {message}", i + 1));
        }
    }
    table
}

fn log_state(facts: &LayerFacts) -> &'static str {
    match &facts.info.log.state {
        LogState::Empty => "empty",
        LogState::Replayed { gap: Some(_), .. } => "DAMAGED",
        LogState::Replayed { .. } => "pending",
        LogState::Ignored if facts.broken_log.is_some() => "BROKEN",
        LogState::Ignored => "IGNORED",
        _ => "?",
    }
}

fn log(facts: &LayerFacts) -> TextTable {
    let log = &facts.info.log;
    let mut table = TextTable::fields("Log");
    table.field("location", format!("{} at {}", units(log.length.into()), log.offset));
    match &log.state {
        LogState::Empty => table.field("state", "empty, nothing to replay"),
        LogState::Ignored => match &facts.broken_log {
            Some(message) => table.fault("state", format!("BROKEN, not replayed: {message}")),
            None => table.field("state", "PENDING, ignored on request"),
        },
        LogState::Replayed {
            entries,
            tail_sequence,
            head_sequence,
            descriptors,
            flushed_file_offset,
            last_file_offset,
            gap,
            ..
        } => {
            table.field("state", "PENDING, replayed in memory");
            table.field(
                "entries",
                format!("{entries}, with {}", count(*descriptors as usize, "change")),
            );
            table.field("sequence", format!("{tail_sequence} to {head_sequence}"));
            table.field("flushed length", size(*flushed_file_offset));
            if let Some(gap) = gap {
                let lost = format!(
                    "{}, {} not replayed: what was flushed after the damaged entry is lost",
                    gap.offset,
                    count(gap.newer_entries as usize, "newer intact entry"),
                );
                table.fault("damaged at", lost);
            }
            table.field("needed length", size(*last_file_offset))
        }
        _ => table.field("state", "unknown"),
    };
    table
}

fn regions(info: &ImageInfo, console: &mut Console) -> Result<(), Failure> {
    let columns = ["GUID", "NAME", ">OFFSET", ">LENGTH", "REQUIRED"];
    for (i, regions) in info.region_tables.iter().enumerate() {
        let is_current = i == info.current_region_table;
        let same = i == 1 && info.region_tables[0] == info.region_tables[1];
        let place = REGION_TABLES[i];
        let current = if is_current { ", current" } else { "" };
        let title = format!("Region table {} at {place:#x}{current}", i + 1);
        let mut table = TextTable::new(&title, &columns);
        match regions {
            Ok(_) if same => table = TextTable::fields(&title).with_remark("same as the first"),
            Ok(regions) => {
                for region in regions {
                    table.row([
                        region.guid.to_string(),
                        region.name.unwrap_or("(unknown)").into(),
                        region.offset.to_string(),
                        units(region.length.into()),
                        yes(region.required).into(),
                    ]);
                }
            }
            Err(message) => {
                table = TextTable::fields(&title).with_remark(format!("not valid: {message}"));
            }
        }
        console.table(table)?;
    }
    Ok(())
}

fn items(info: &ImageInfo) -> TextTable {
    let columns = ["GUID", "NAME", ">OFFSET", ">LENGTH", "REQUIRED", "OF"];
    let mut table = TextTable::new("Metadata", &columns);
    for item in &info.metadata {
        let of = match (item.is_user, item.is_virtual_disk) {
            (true, true) => "user, disk",
            (true, false) => "user, file",
            (false, true) => "disk",
            (false, false) => "file",
        };
        table.row([
            item.guid.to_string(),
            item.name.unwrap_or("(unknown)").into(),
            item.offset.map_or_else(|| "-".into(), |offset| offset.to_string()),
            item.length.to_string(),
            yes(item.is_required).into(),
            of.into(),
        ]);
    }
    table
}

fn blocks(facts: &LayerFacts) -> TextTable {
    let mut table = TextTable::fields("Blocks");
    let blocks = match &facts.blocks {
        Ok(blocks) => blocks,
        Err(message) => return table.with_remark(format!("cannot be counted: {message}")),
    };
    table.field("total", blocks.blocks);
    for (name, count) in counts(blocks) {
        if count > 0 {
            table.field(&name.replace('_', " "), count);
        }
    }
    if facts.info.has_parent {
        table.field("sector bitmaps", blocks.bitmaps);
    }
    let (held, block) = (held(blocks), u64::from(facts.info.block_size));
    let per_mille = (held * 1000).checked_div(blocks.blocks).unwrap_or_default();
    let share = format!("{}.{} %", per_mille / 10, per_mille % 10);
    table.field("allocated", format!("{}, {share} of the blocks", size(held * block)));
    table
}

fn locator(info: &ImageInfo) -> Option<TextTable> {
    let locator = info.locator.as_ref()?;
    let mut table = TextTable::fields(&format!("Parent locator at {}", locator.offset));
    table.field("type", locator.locator_type);
    for (key, value) in &locator.entries {
        table.field(key, value);
    }
    Some(table)
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
