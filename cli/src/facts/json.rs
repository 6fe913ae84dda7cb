//! The facts as JSON: `avhdx.info/1`.

use avhdx::{HeaderInfo, ImageInfo, LogState, RegionInfo};
use serde::Serialize;
use uuid::Uuid;

use super::report::{ChainReport, HEADERS, LayerFacts, REGION_TABLES, held, kind};
use crate::render::{self, ErrorAnswer};
use crate::vocabulary::{Answer, CheckpointFacts, FoundByName, MergeFacts};

/// The facts of an image and of its chain.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct InfoAnswer {
    #[serde(flatten)]
    image: LayerDetails,
    chain: ChainDetails,
}

impl Answer for InfoAnswer {
    const SCHEMA: &'static str = "avhdx.info/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ChainDetails {
    /// Whether all parents were found.
    complete: bool,
    /// The number of layers found.
    layer_count: usize,
    /// The parent of the image; null if there is none or it was not found.
    parent: Option<FoundParent>,
    /// All layers from the tip down, with --chain; otherwise null.
    layers: Option<Vec<LayerDetails>>,
    /// Why the chain is not complete.
    error: Option<ErrorAnswer>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct FoundParent {
    image: String,
    found_by: Option<FoundByName>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LayerDetails {
    image: String,
    /// `fixed`, `dynamic` or `differencing`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Whether another program has the image open for writing.
    in_use: bool,
    virtual_size: u64,
    logical_sector_size: u32,
    physical_sector_size: u32,
    block_size: u32,
    /// The number of blocks for each sector bitmap.
    chunk_ratio: u64,
    disk_id: Uuid,
    data_write_guid: Uuid,
    has_parent: bool,
    leave_blocks_allocated: bool,
    file_size: u64,
    /// The space that the file takes on its volume; null if unknown.
    file_allocated: Option<u64>,
    creator: String,
    /// How the image was found; null for the one that was typed.
    found_by: Option<FoundByName>,
    /// Whether the log is not empty.
    log_pending: bool,
    log: LogDetails,
    headers: Vec<HeaderDetails>,
    region_tables: Vec<RegionTableDetails>,
    metadata: Vec<ItemDetails>,
    blocks: BlockDetails,
    /// Null unless a checkpoint made the image.
    checkpoint: Option<CheckpointFacts>,
    /// Null unless a merge is unfinished.
    merge: Option<MergeFacts>,
    /// Null without a parent.
    parent_locator: Option<LocatorDetails>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct HeaderDetails {
    file_offset: u64,
    valid: bool,
    current: bool,
    /// Null if the header is not valid.
    #[serde(flatten)]
    fields: Option<HeaderFields>,
    /// Why the header is not valid; left out if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// The fields of a valid header, by their names in [MS-VHDX].
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct HeaderFields {
    sequence_number: u64,
    file_write_guid: Uuid,
    data_write_guid: Uuid,
    log_guid: Uuid,
    log_version: u16,
    version: u16,
    log_length: u32,
    log_offset: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LogDetails {
    file_offset: u64,
    length: u32,
    state: LogStateName,
    /// The entries that were replayed; left out if there are none.
    #[serde(flatten)]
    replayed: Option<ReplayDetails>,
    /// Why the log is broken; left out if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum LogStateName {
    Empty,
    /// Replayed in memory.
    Replayed,
    /// Not replayed, with --log ignore.
    Ignored,
    /// Cannot be replayed.
    Broken,
    Other,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ReplayDetails {
    entries: u64,
    descriptors: u64,
    tail_sequence: u64,
    head_sequence: u64,
    flushed_file_offset: u64,
    last_file_offset: u64,
    /// Where the log is damaged although newer entries are intact; left out if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<GapDetails>,
}

/// A damaged or missing entry of the log, before which a replay ends: what was flushed after it is lost.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct GapDetails {
    file_offset: u64,
    /// The number of intact entries behind it that are not replayed.
    newer_entries: u64,
    newest_sequence: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RegionTableDetails {
    file_offset: u64,
    valid: bool,
    current: bool,
    /// Left out if the table is not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    regions: Option<Vec<RegionDetails>>,
    /// Why the table is not valid; left out if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RegionDetails {
    guid: Uuid,
    /// Null if unknown.
    name: Option<&'static str>,
    file_offset: u64,
    length: u32,
    required: bool,
}

/// A metadata item.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ItemDetails {
    guid: Uuid,
    /// Null if unknown.
    name: Option<&'static str>,
    /// Null if the item is empty.
    file_offset: Option<u64>,
    length: u32,
    user: bool,
    virtual_disk: bool,
    required: bool,
}

/// The number of blocks in each state.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
enum BlockDetails {
    Counted {
        count: u64,
        not_present: u64,
        undefined: u64,
        zero: u64,
        unmapped: u64,
        reserved: u64,
        fully_present: u64,
        partially_present: u64,
        bitmaps: u64,
        /// The bytes of the file that blocks take.
        allocated_bytes: u64,
    },
    /// The blocks cannot be counted.
    Failed { message: String },
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LocatorDetails {
    #[serde(rename = "type")]
    locator_type: Uuid,
    file_offset: u64,
    entries: Vec<LocatorEntry>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LocatorEntry {
    key: String,
    value: String,
}

impl InfoAnswer {
    /// The tip, and the other layers if `with_chain` is set.
    pub(crate) fn of(report: &ChainReport, with_chain: bool) -> Self {
        let parent = report.parent.as_ref().map(|(name, by)| FoundParent {
            image: name.clone(),
            found_by: by.map(FoundByName::from),
        });
        let layers = || report.layers.iter().map(LayerDetails::of).collect();
        Self {
            image: LayerDetails::of(&report.layers[0]),
            chain: ChainDetails {
                complete: report.broken.is_none(),
                layer_count: report.depth,
                parent,
                layers: with_chain.then(layers),
                error: report.broken.as_ref().and_then(render::answer),
            },
        }
    }
}

impl LayerDetails {
    fn of(facts: &LayerFacts) -> Self {
        let (info, layer) = (&facts.info, &facts.layer);
        Self {
            image: layer.name.clone(),
            kind: kind(info),
            in_use: facts.in_use,
            virtual_size: info.geometry.size,
            logical_sector_size: info.geometry.logical_sector,
            physical_sector_size: info.geometry.physical_sector,
            block_size: info.block_size,
            chunk_ratio: info.chunk_ratio,
            disk_id: info.disk_id,
            data_write_guid: layer.data_write_guid,
            has_parent: info.has_parent,
            leave_blocks_allocated: info.leave_blocks_allocated,
            file_size: info.file_len,
            file_allocated: facts.allocated,
            creator: info.creator.clone(),
            found_by: layer.found_by.map(FoundByName::from),
            log_pending: !matches!(info.log.state, LogState::Empty),
            log: LogDetails::of(facts),
            headers: headers(info),
            region_tables: region_tables(info),
            metadata: items(info),
            blocks: BlockDetails::of(facts),
            checkpoint: info.checkpoint.as_ref().map(CheckpointFacts::from),
            merge: info.merge.as_ref().map(MergeFacts::from),
            parent_locator: info.locator.as_ref().map(|locator| LocatorDetails {
                locator_type: locator.locator_type,
                file_offset: locator.offset.get(),
                entries: locator
                    .entries
                    .iter()
                    .map(|(key, value)| LocatorEntry { key: key.clone(), value: value.clone() })
                    .collect(),
            }),
        }
    }
}

fn headers(info: &ImageInfo) -> Vec<HeaderDetails> {
    let fields = |header: &HeaderInfo| HeaderFields {
        sequence_number: header.sequence_number,
        file_write_guid: header.file_write_guid,
        data_write_guid: header.data_write_guid,
        log_guid: header.log_guid,
        log_version: header.log_version,
        version: header.version,
        log_length: header.log_length,
        log_offset: header.log_offset,
    };
    let one = |(i, header): (usize, &Result<HeaderInfo, String>)| HeaderDetails {
        file_offset: HEADERS[i],
        valid: header.is_ok(),
        current: header.is_ok() && i == info.current_header,
        fields: header.as_ref().ok().map(fields),
        message: header.as_ref().err().cloned(),
    };
    info.headers.iter().enumerate().map(one).collect()
}

impl LogDetails {
    fn of(facts: &LayerFacts) -> Self {
        let log = &facts.info.log;
        let (state, replayed) = match &log.state {
            LogState::Empty => (LogStateName::Empty, None),
            LogState::Ignored if facts.broken_log.is_some() => (LogStateName::Broken, None),
            LogState::Ignored => (LogStateName::Ignored, None),
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
                let replayed = ReplayDetails {
                    entries: *entries,
                    descriptors: *descriptors,
                    tail_sequence: *tail_sequence,
                    head_sequence: *head_sequence,
                    flushed_file_offset: *flushed_file_offset,
                    last_file_offset: *last_file_offset,
                    gap: gap.map(|gap| GapDetails {
                        file_offset: gap.offset.get(),
                        newer_entries: gap.newer_entries,
                        newest_sequence: gap.newest_sequence,
                    }),
                };
                (LogStateName::Replayed, Some(replayed))
            }
            _ => (LogStateName::Other, None),
        };
        Self {
            file_offset: log.offset.get(),
            length: log.length,
            state,
            replayed,
            message: facts.broken_log.clone(),
        }
    }
}

fn region_tables(info: &ImageInfo) -> Vec<RegionTableDetails> {
    let region = |region: &RegionInfo| RegionDetails {
        guid: region.guid,
        name: region.name,
        file_offset: region.offset.get(),
        length: region.length,
        required: region.required,
    };
    let one = |(i, table): (usize, &Result<Vec<RegionInfo>, String>)| RegionTableDetails {
        file_offset: REGION_TABLES[i],
        valid: table.is_ok(),
        current: table.is_ok() && i == info.current_region_table,
        regions: table.as_ref().ok().map(|regions| regions.iter().map(region).collect()),
        message: table.as_ref().err().cloned(),
    };
    info.region_tables.iter().enumerate().map(one).collect()
}

fn items(info: &ImageInfo) -> Vec<ItemDetails> {
    let items = info.metadata.iter().map(|item| ItemDetails {
        guid: item.guid,
        name: item.name,
        file_offset: item.offset.map(avhdx::FileOffset::get),
        length: item.length,
        user: item.is_user,
        virtual_disk: item.is_virtual_disk,
        required: item.is_required,
    });
    items.collect()
}

impl BlockDetails {
    fn of(facts: &LayerFacts) -> Self {
        match &facts.blocks {
            Ok(blocks) => Self::Counted {
                count: blocks.blocks,
                not_present: blocks.not_present,
                undefined: blocks.undefined,
                zero: blocks.zero,
                unmapped: blocks.unmapped,
                reserved: blocks.reserved,
                fully_present: blocks.fully_present,
                partially_present: blocks.partially_present,
                bitmaps: blocks.bitmaps,
                allocated_bytes: held(blocks) * u64::from(facts.info.block_size),
            },
            Err(message) => Self::Failed { message: message.clone() },
        }
    }
}
