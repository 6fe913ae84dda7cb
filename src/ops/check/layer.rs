//! Checks one file as a whole.

use std::sync::Arc;

use uuid::Uuid;

use super::blocks::Table;
use super::findings::Findings;
use super::report::CheckedLayer;
use super::{log, metadata, regions, root};
use crate::chain::{FoundBy, Linkage};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::BlockLayout;
use crate::format::metadata::FileFlags;
use crate::image::{Inspected, LogPolicy, Marks, MergeMark, MergeState, ParentLink, no_point};
use crate::storage::{Storage, length_of};
use crate::types::MIB;

/// A layer whose structures are checked, with the facts that are compared with its neighbours.
#[derive(Debug)]
pub(super) struct LayerFacts {
    pub(super) layer: CheckedLayer,
    /// Its block allocation table, still to be checked; `None` if it cannot be interpreted.
    pub(super) table: Option<Table>,
    pub(super) logical_sector: Option<u32>,
    pub(super) physical_sector: Option<u32>,
    pub(super) disk_id: Option<Uuid>,
    /// The file offset of its metadata region.
    pub(super) metadata_at: Option<u64>,
    /// The link to the parent and the file offset of the locator; `None` if there is no usable link.
    pub(super) link: Option<(ParentLink, u64)>,
}

/// Checks all of a file but its block allocation table.
///
/// # Errors
/// If the file is not an image or cannot be read.
pub(super) fn check(
    storage: &Arc<dyn Storage>,
    found_by: Option<FoundBy>,
    log_policy: LogPolicy,
    linkage: Linkage,
    findings: &mut Findings,
) -> Result<LayerFacts> {
    let mut facts = LayerFacts {
        layer: CheckedLayer {
            name: storage.name().to_owned(),
            path: storage.path().map(Into::into),
            found_by,
            file_len: length_of(storage.as_ref())?,
            data_write_guid: None,
            size: None,
            allocated_blocks: None,
            leaked: None,
        },
        table: None,
        logical_sector: None,
        physical_sector: None,
        disk_id: None,
        metadata_at: None,
        link: None,
    };
    let is_tip = found_by.is_none();
    let root = root::check(storage.as_ref(), findings)?;
    let mut storage = Arc::clone(storage);
    if let Some(root) = &root {
        if root.is_current {
            facts.layer.data_write_guid = Some(root.header.data_write_guid);
        }
        storage = log::check(&storage, facts.layer.file_len, root, log_policy, findings);
    }
    let file_len = length_of(storage.as_ref())?;
    facts.layer.file_len = file_len;
    if !file_len.is_multiple_of(MIB) {
        let message = "the file length is not a multiple of 1 MiB";
        findings.warning(
            Error::damaged("file.length", "2.1", file_len, message)
                .with_found(file_len)
                .with_expected(
                    "a multiple of 1 MiB, since everything in the file is aligned to it",
                ),
        );
    }
    let header = root.as_ref().map(|root| &root.header);
    let regions = regions::check(storage.as_ref(), file_len, header, findings)?;
    let Some(regions) = regions else { return Ok(facts) };
    let within = |end: u64| end <= file_len;
    let inspected = regions
        .metadata
        .as_ref()
        .filter(|region| within(region.end()))
        .and_then(|region| metadata::check(storage.as_ref(), region, findings));
    facts.metadata_at = regions.metadata.as_ref().map(|region| region.offset.get());
    let Some(inspected) = inspected else { return Ok(facts) };
    facts.record(&inspected, storage.as_ref(), linkage);
    let Some(region) = regions.bat.clone() else { return Ok(facts) };
    let Some((layout, flags)) = layout(&inspected) else {
        let message = "the block allocation table was not checked";
        findings.warning(
            Error::damaged("bat.not-checked", "2.5", region.offset.get(), message)
                .with_found("no block size, sector size or disk size")
                .with_expected("all three, to interpret the entries"),
        );
        return Ok(facts);
    };
    let has_parent = flags.contains(FileFlags::HAS_PARENT);
    let marks = marks(storage.as_ref(), &regions, &inspected);
    let metadata_at = facts.metadata_at.unwrap_or_default();
    match &marks {
        Marks { merge: Some(mark), .. } => report_merge(mark, metadata_at, is_tip, findings),
        Marks { request: Some(_), .. } => report_request(metadata_at, findings),
        _ => {}
    }
    facts.table = Some(Table {
        storage,
        region,
        layout,
        has_parent,
        is_fixed: flags.contains(FileFlags::LEAVE_BLOCKS_ALLOCATED) && !has_parent,
        is_merging: marks.merge.is_some(),
        file_len,
        structures: regions.structures,
    });
    Ok(facts)
}

impl LayerFacts {
    fn record(&mut self, inspected: &Inspected, storage: &dyn Storage, linkage: Linkage) {
        self.layer.size = inspected.size;
        self.logical_sector = inspected.logical_sector;
        self.physical_sector = inspected.physical_sector;
        self.disk_id = inspected.disk_id;
        self.link = inspected
            .locator
            .as_ref()
            .and_then(|placed| Some((metadata::link(placed, storage, linkage)?, placed.at)));
    }
}

/// Returns the image's marks.
fn marks(storage: &dyn Storage, regions: &regions::Regions, inspected: &Inspected) -> Marks {
    let region = regions.metadata.as_ref();
    let marks = region.and_then(|region| Marks::find(storage, region, &inspected.table).ok());
    marks.unwrap_or_default()
}

/// Reports an unfinished merge. An image that cannot be read on its own because of it must not be the tip.
fn report_merge(mark: &MergeMark, at: u64, is_tip: bool, findings: &mut Findings) {
    match no_point(mark) {
        Some(error) if is_tip => findings.error(error.at(at)),
        // Reported on the layer above.
        _ if mark.state == MergeState::Target => {}
        _ => {
            let message = format!("the merge of the image into {} is unfinished", mark.name);
            findings.warning(
                Error::new(ErrorKind::Unfinished, "merge.unfinished", message)
                    .at(at)
                    .with_section("2.6.2.6.3")
                    .with_found("the mark of an unfinished merge")
                    .with_expected("the merge to be resumed"),
            );
        }
    }
}

/// Reports a merge that was requested and has not begun.
fn report_request(at: u64, findings: &mut Findings) {
    let message = "the merge of the image into its parent was requested and has not begun";
    findings.warning(
        Error::new(ErrorKind::Unfinished, "merge.unfinished", message)
            .at(at)
            .with_section("2.6.2.6.3")
            .with_found("the request for a merge")
            .with_expected("the merge to be resumed"),
    );
}

fn layout(inspected: &Inspected) -> Option<(BlockLayout, FileFlags)> {
    let (file, _) = inspected.file?;
    let layout = BlockLayout::new(file.block_size, inspected.logical_sector?, inspected.size?);
    Some((layout, file.flags))
}
