//! The facts as JSON: `avhdx.info/1`.

use avhdx::{CheckpointMark, HeaderInfo, ImageInfo, LogState, MergeMark, MergeState, RegionInfo};
use serde_json::{Map, Value, json};

use super::report::{
    ChainReport, HEADERS, LayerFacts, REGION_TABLES, counts, found_by, held, kind,
};
use crate::render;
use crate::text::utc;

/// The tip, and the other layers if `with_chain` is set.
pub(crate) fn report(report: &ChainReport, with_chain: bool) -> Value {
    let mut object = json!({ "schema": "avhdx.info/1" });
    object["image"] = layer(&report.layers[0]);
    let mut chain = json!({ "complete": report.broken.is_none(), "layers_found": report.depth });
    if let Some((name, by)) = &report.parent {
        chain["parent"] = json!({ "file": name, "found_by": by.map(found_by) });
    }
    if with_chain {
        chain["layers"] = report.layers.iter().map(layer).collect();
    }
    if let Some(error) = report.broken.as_ref().and_then(render::json) {
        chain["error"] = error;
    }
    object["chain"] = chain;
    object
}

fn layer(facts: &LayerFacts) -> Value {
    let info = &facts.info;
    let data = &facts.layer;
    let mut object = json!({
        "file": data.name,
        "type": kind(info),
        "in_use": facts.in_use,
        "virtual_size": info.geometry.size,
        "logical_sector": info.geometry.logical_sector,
        "physical_sector": info.geometry.physical_sector,
        "block_size": info.block_size,
        "chunk_ratio": info.chunk_ratio,
        "disk_id": info.disk_id.to_string(),
        "data_write_guid": data.data_write_guid.to_string(),
        "has_parent": info.has_parent,
        "leave_blocks_allocated": info.leave_blocks_allocated,
        "file_length": info.file_len,
        "file_allocated": facts.allocated,
        "creator": info.creator,
        "found_by": data.found_by.map(found_by),
        "headers": headers(info),
        "log": log(facts),
        "region_tables": region_tables(info),
        "metadata": items(info),
        "blocks": blocks(facts),
    });
    if let Some(mark) = &info.checkpoint {
        object["checkpoint"] = checkpoint(mark);
    }
    if let Some(mark) = &info.merge {
        object["merge"] = merge(mark);
    }
    if let Some(locator) = &info.locator {
        let pairs = |(key, value): &(String, String)| json!({ "key": key, "value": value });
        object["parent_locator"] = json!({
            "type": locator.locator_type.to_string(),
            "offset": locator.offset.get(),
            "entries": locator.entries.iter().map(pairs).collect::<Vec<_>>(),
        });
    }
    object
}

/// The mark that a checkpoint leaves in the image it makes.
pub(crate) fn checkpoint(mark: &CheckpointMark) -> Value {
    json!({ "label": mark.label, "time": utc(mark.time) })
}

/// The mark of an unfinished merge.
pub(crate) fn merge(mark: &MergeMark) -> Value {
    json!({
        "state": merge_state(mark.state),
        "other": mark.other.to_string(),
        "name": mark.name,
        "low_space": mark.low_space,
    })
}

fn merge_state(state: MergeState) -> &'static str {
    match state {
        MergeState::Merging => "merging",
        MergeState::Spent => "spent",
        MergeState::Target => "target",
        _ => "other",
    }
}

fn headers(info: &ImageInfo) -> Vec<Value> {
    let one = |(i, header): (usize, &Result<HeaderInfo, String>)| match header {
        Ok(header) => json!({
            "offset": HEADERS[i],
            "valid": true,
            "current": i == info.current_header,
            "sequence_number": header.sequence_number,
            "file_write_guid": header.file_write_guid.to_string(),
            "data_write_guid": header.data_write_guid.to_string(),
            "log_guid": header.log_guid.to_string(),
            "log_version": header.log_version,
            "version": header.version,
            "log_length": header.log_length,
            "log_offset": header.log_offset,
        }),
        Err(message) => json!({
            "offset": HEADERS[i],
            "valid": false,
            "current": false,
            "message": message,
        }),
    };
    info.headers.iter().enumerate().map(one).collect()
}

fn log(facts: &LayerFacts) -> Value {
    let log = &facts.info.log;
    let mut object = json!({ "offset": log.offset.get(), "length": log.length });
    match &log.state {
        LogState::Empty => object["state"] = "empty".into(),
        LogState::Ignored => {
            let state = if facts.broken_log.is_some() { "broken" } else { "ignored" };
            object["state"] = state.into();
        }
        LogState::Replayed {
            entries,
            tail_sequence,
            head_sequence,
            descriptors,
            flushed_file_offset,
            last_file_offset,
            ..
        } => {
            object["state"] = "replayed".into();
            object["entries"] = (*entries).into();
            object["descriptors"] = (*descriptors).into();
            object["tail_sequence"] = (*tail_sequence).into();
            object["head_sequence"] = (*head_sequence).into();
            object["flushed_file_offset"] = (*flushed_file_offset).into();
            object["last_file_offset"] = (*last_file_offset).into();
        }
        _ => object["state"] = "other".into(),
    }
    object["pending"] = (!matches!(log.state, LogState::Empty)).into();
    if let Some(message) = &facts.broken_log {
        object["message"] = message.clone().into();
    }
    object
}

fn region_tables(info: &ImageInfo) -> Vec<Value> {
    let region = |region: &RegionInfo| {
        json!({
            "guid": region.guid.to_string(),
            "name": region.name,
            "offset": region.offset.get(),
            "length": region.length,
            "required": region.required,
        })
    };
    let one = |(i, table): (usize, &Result<Vec<RegionInfo>, String>)| match table {
        Ok(regions) => json!({
            "offset": REGION_TABLES[i],
            "valid": true,
            "current": i == info.current_region_table,
            "regions": regions.iter().map(region).collect::<Vec<_>>(),
        }),
        Err(message) => json!({
            "offset": REGION_TABLES[i],
            "valid": false,
            "current": false,
            "message": message,
        }),
    };
    info.region_tables.iter().enumerate().map(one).collect()
}

fn items(info: &ImageInfo) -> Vec<Value> {
    let items = info.metadata.iter().map(|item| {
        json!({
            "guid": item.guid.to_string(),
            "name": item.name,
            "offset": item.offset.map(avhdx::FileOffset::get),
            "length": item.length,
            "user": item.is_user,
            "virtual_disk": item.is_virtual_disk,
            "required": item.is_required,
        })
    });
    items.collect()
}

fn blocks(facts: &LayerFacts) -> Value {
    let blocks = match &facts.blocks {
        Ok(blocks) => blocks,
        Err(message) => return json!({ "message": message }),
    };
    let mut object = Map::new();
    object.insert("count".into(), blocks.blocks.into());
    for (name, count) in counts(blocks) {
        object.insert(name.into(), count.into());
    }
    object.insert("bitmaps".into(), blocks.bitmaps.into());
    let held = held(blocks) * u64::from(facts.info.block_size);
    object.insert("allocated_bytes".into(), held.into());
    object.into()
}
