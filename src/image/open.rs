//! Opens one image: identifier, headers, log, regions, metadata, block allocation table.

use std::ops::Range;
use std::sync::{Arc, RwLock};

use super::Core;
use super::bytes::{read_what_is_there, too_short};
use super::core::FoundLog;
use super::foreign::with_cause;
use super::last_bitmap::LastBitmap;
use super::metadata::Metadata;
use super::policy::{ImagePolicy, Lock, LogPolicy};
use super::start::{read_headers, read_identifier};
use crate::answers::AnswerKey;
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BlockLayout, ENTRY_LEN};
use crate::format::header::{Header, Headers};
use crate::format::identifier::FileIdentifier;
use crate::format::region::{self, RegionEntry, RegionFlags, RegionTable};
use crate::format::{OnError, strict};
use crate::log::{self, Gap, Sequence};
use crate::storage::{LockMode, LockOutcome, Storage, length_of};
use crate::sync::AtomicU64;
use crate::trace;
use crate::types::{MIB, counted};
use crate::warning::Warning;

impl Core {
    /// Opens the image in `storage` for reading, without changing it.
    pub(crate) fn open(storage: Arc<dyn Storage>, policy: &ImagePolicy) -> Result<Self> {
        let name = storage.name().to_owned();
        let opened = (|| {
            let mut warnings = Vec::new();
            lock(storage.as_ref(), policy.lock, LockMode::Shared, &mut warnings)?;
            Start::read(storage.as_ref())?.image(Arc::clone(&storage), policy, warnings, Vec::new())
        })();
        let core = opened.map_err(|error| with_cause(storage.as_ref(), error).in_file(name))?;
        trace::opened(core.name(), false, core.has_replayed_log());
        Ok(core)
    }
}

/// The start of a file: its creator and headers.
#[derive(Debug)]
pub(crate) struct Start {
    identifier: FileIdentifier,
    pub(crate) headers: Headers,
}

impl Start {
    /// Reads the start of a file.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self> {
        Ok(Self { identifier: read_identifier(storage)?, headers: read_headers(storage)? })
    }

    /// Reads the rest of the image. Replays its log in memory according to the policy. `warnings` concern the image,
    /// `others` concern files beside it.
    pub(crate) fn image(
        self,
        storage: Arc<dyn Storage>,
        policy: &ImagePolicy,
        mut warnings: Vec<Warning>,
        others: Vec<Warning>,
    ) -> Result<Core> {
        let Self { identifier, headers } = self;
        let header = headers.current();
        let log = find_log(storage.as_ref(), header, policy.log, &mut warnings)?;
        let overlay = match &log {
            FoundLog::Replayed(found) => Some(Arc::new(log::replay_over(&storage, header, found)?)),
            FoundLog::Empty | FoundLog::Ignored => None,
        };
        let storage = overlay.clone().map_or(storage, |overlay| overlay as _);
        let file_len = length_of(storage.as_ref())?;

        let region_tables = read_region_tables(storage.as_ref())?;
        let regions = current_regions(&region_tables)?;
        let (bat, metadata_region) = known_regions(regions, header, file_len)?;
        let metadata = Metadata::load(storage.as_ref(), &metadata_region, policy.any_locator)?;
        let unreadable = metadata.marks.unreadable.iter();
        warnings.extend(
            unreadable.map(|error| Warning::new(error.code(), storage.name(), error.message())),
        );
        warnings.extend(metadata.locator_faults.iter().map(|error| {
            let message = format!("THE PARENT LOCATOR IS BROKEN: {error}");
            Warning::new(error.code(), storage.name(), message)
        }));
        let id = LayerId::unique();
        let warnings = warnings.into_iter().map(|warning| warning.of_layer(id)).chain(others);
        let layout = BlockLayout::new(
            metadata.file.block_size,
            metadata.geometry.logical_sector,
            metadata.geometry.size,
        );
        check_bat_length(&bat, &layout)?;
        let structures = structures(regions.0, header);
        Ok(Core {
            id,
            overlay,
            file_len: AtomicU64::new(file_len),
            identifier,
            log,
            structures_end: structures.iter().map(|range| range.end).max().unwrap_or_default(),
            structures,
            bat,
            metadata_region,
            geometry: metadata.geometry,
            file: metadata.file,
            has_parent: metadata.has_parent(),
            metadata: RwLock::new(metadata),
            layout,
            last_bitmap: LastBitmap::default(),
            budget: policy.budget.clone(),
            feed: None,
            tally: Arc::default(),
            alone: AnswerKey::new_stack(),
            readers: Default::default(),
            warnings: warnings.collect(),
            headers: RwLock::new(headers),
            region_tables,
            storage,
        })
    }
}

/// Takes the lock that the policy requires, and warns or fails accordingly.
pub(crate) fn lock(
    storage: &dyn Storage,
    policy: Lock,
    mode: LockMode,
    warnings: &mut Vec<Warning>,
) -> Result<()> {
    if policy == Lock::None {
        return Ok(());
    }
    match storage.try_lock(mode) {
        Ok(LockOutcome::Locked) => Ok(()),
        Ok(LockOutcome::InUse(by)) if policy == Lock::Try && mode == LockMode::Shared => {
            let message = format!("in use elsewhere ({by}): what is read may be changing");
            warnings.push(Warning::new("lock.in-use", storage.name(), message));
            Ok(())
        }
        Ok(LockOutcome::InUse(by)) => {
            Err(Error::in_use(by).with_expected("a file that no other process writes to"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            let message = "cannot be locked where it lies";
            warnings.push(Warning::new("lock.unsupported", storage.name(), message));
            Ok(())
        }
        Err(error) => Err(Error::io("lock.failed", "cannot lock the file", error)),
    }
}

fn find_log(
    storage: &dyn Storage,
    header: &Header,
    policy: LogPolicy,
    warnings: &mut Vec<Warning>,
) -> Result<FoundLog> {
    if header.log_guid.is_nil() {
        return Ok(FoundLog::Empty);
    }
    match policy {
        LogPolicy::Replay => {
            let found = log::find(storage, header)?;
            warnings.extend(found.gap.map(|gap| cut_by(&gap, &found, header, storage.name())));
            Ok(FoundLog::Replayed(found))
        }
        LogPolicy::Refuse => Err(log_pending(header)),
        LogPolicy::Ignore => {
            let message = "THE LOG IS IGNORED: what is read is not what the disk holds";
            warnings.push(Warning::new("log.ignored", storage.name(), message));
            Ok(FoundLog::Ignored)
        }
    }
}

fn cut_by(gap: &Gap, found: &Sequence, header: &Header, name: &str) -> Warning {
    let (at, head) = (header.log_offset + gap.position, found.head().sequence_number);
    let behind = counted(gap.newer, "intact entry", "intact entries");
    let message = format!(
        "THE LOG IS DAMAGED at {at:#x}: it is replayed up to entry {head}, without {behind} up to {} behind the \
         damage; what was flushed after the damaged entry is lost",
        gap.newest
    );
    Warning::new("log.gap", name, message)
}

pub(crate) fn log_pending(header: &Header) -> Error {
    let message = "the log holds changes that the file itself does not have yet";
    Error::new(ErrorKind::LogPending, "log.pending", message)
        .with_section("2.3")
        .at(header.log_offset)
        .with_found(format_args!("log {}", header.log_guid))
        .with_expected("an empty log")
}

fn read_region_tables(storage: &dyn Storage) -> Result<[Result<RegionTable>; 2]> {
    let read_one = |at| -> Result<_> {
        let mut bytes = vec![0; RegionTable::LEN];
        match read_what_is_there(storage, &mut bytes, at)? {
            read if read < bytes.len() => {
                Ok(Err(too_short("region.table-length", "2.2.3", at, read, bytes.len())))
            }
            _ => Ok(RegionTable::parse(&bytes, at)),
        }
    };
    let [first, second] = RegionTable::OFFSETS;
    Ok([read_one(first)?, read_one(second)?])
}

/// The region table in use and its offset in the file.
fn current_regions(tables: &[Result<RegionTable>; 2]) -> Result<(&RegionTable, u64)> {
    let [first_at, second_at] = RegionTable::OFFSETS;
    match tables {
        [Ok(first), _] => Ok((first, first_at)),
        [Err(_), Ok(second)] => Ok((second, second_at)),
        [Err(error), Err(_)] => Err(error.same_again()),
    }
}

/// The parts of the file that no block may overlap.
fn structures(table: &RegionTable, header: &Header) -> Vec<Range<u64>> {
    let regions = table.entries.iter().map(|entry| entry.offset.get()..entry.end());
    [0..MIB, header.log_range()].into_iter().chain(regions).collect()
}

/// The two regions that every image has, once all regions have been checked.
fn known_regions(
    (table, at): (&RegionTable, u64),
    header: &Header,
    file_len: u64,
) -> Result<(RegionEntry, RegionEntry)> {
    strict(|on| {
        let (bat, metadata) = inspect_regions((table, at), header.log_range(), file_len, on);
        Some((bat?, metadata?))
    })
}

/// Reports every fault of the regions, and returns the block allocation table and metadata regions if they are
/// usable.
pub(crate) fn inspect_regions(
    (table, at): (&RegionTable, u64),
    log: Range<u64>,
    file_len: u64,
    on: OnError<'_>,
) -> (Option<RegionEntry>, Option<RegionEntry>) {
    let entry_at = |i: usize| RegionTable::entry_at(at, i);
    for (i, entry) in table.entries.iter().enumerate() {
        let known = entry.guid == region::BAT || entry.guid == region::METADATA;
        if !known && entry.flags.contains(RegionFlags::REQUIRED) {
            let message = "an unknown region that whoever opens the file must know";
            on(Error::new(ErrorKind::Unsupported, "region.unknown-required", message)
                .with_section("2.2.3.2")
                .at(entry_at(i))
                .with_found(entry.guid)
                .with_expected("the block allocation table and the metadata region"));
        }
        if entry.end() > file_len && known && entry.is_placed() {
            let message = format!("region {} reaches past the end of the file", entry.guid);
            on(Error::damaged("region.place", "2.2.3.2", entry_at(i) + 16, message)
                .with_found(format_args!("bytes {} to {:#x}", entry.offset, entry.end()))
                .with_expected(format_args!("an end at {file_len:#x} or before")));
        }
    }
    inspect_overlaps(table, log, &entry_at, on);
    let mut find = |guid, name: &str| {
        let entry = table.entries.iter().find(|entry| entry.guid == guid).cloned();
        if entry.is_none() {
            on(Error::damaged("region.missing", "2.2.3.2", at, format!("no {name} region"))
                .with_found("a region table without it")
                .with_expected(guid));
        }
        entry.filter(RegionEntry::is_placed)
    };
    (find(region::BAT, "block allocation table"), find(region::METADATA, "metadata"))
}

fn inspect_overlaps(
    table: &RegionTable,
    log: Range<u64>,
    entry_at: &dyn Fn(usize) -> u64,
    on: OnError<'_>,
) {
    let mut places: Vec<(u64, u64, usize)> = table
        .entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.is_placed())
        .map(|(i, entry)| (entry.offset.get(), entry.end(), i))
        .collect();
    // The log counts as one more region, numbered after the last.
    places.push((log.start, log.end, table.entries.len()));
    places.retain(|(start, end, _)| start < end);
    places.sort_unstable();
    // The end and number of the region that reaches furthest so far.
    let mut furthest: Option<(u64, usize)> = None;
    for (start, own_end, b) in places {
        let before = furthest;
        furthest = before.filter(|(end, _)| *end >= own_end).or(Some((own_end, b)));
        let Some((end, a)) = before.filter(|(end, _)| start < *end) else { continue };
        let name = |i: usize| match table.entries.get(i) {
            Some(entry) => format!("region {}", entry.guid),
            None => "the log".into(),
        };
        let place = if b < table.entries.len() { entry_at(b) } else { entry_at(a) };
        let message = format!("{} and {} overlap", name(a), name(b));
        on(Error::damaged("region.overlap", "2.2.3.2", place + 16, message)
            .with_found(format_args!("a start at {start:#x}"))
            .with_expected(format_args!("{end:#x} or later")));
    }
}

/// Refuses a table without an entry for each block of the disk.
pub(crate) fn check_bat_length(bat: &RegionEntry, layout: &BlockLayout) -> Result<()> {
    let needed = layout.entries_needed() * ENTRY_LEN;
    if u64::from(bat.length) >= needed {
        return Ok(());
    }
    let message = "the block allocation table is too short for the disk";
    Err(Error::damaged("bat.length", "2.5", bat.offset.get(), message)
        .with_found(format_args!("{} bytes", bat.length))
        .with_expected(format_args!("at least {needed}")))
}
