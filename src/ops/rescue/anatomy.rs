//! Finds the structures of a file: headers, log, regions, metadata.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::careful::Careful;
use super::grade::Traces;
use super::signs::{Signs, log_by_entries};
use crate::error::Result;
use crate::format::header::{Header, Headers};
use crate::format::identifier::FileIdentifier;
use crate::format::log_entry::SECTOR;
use crate::format::region::{self, RegionTable};
use crate::log;
use crate::storage::{FileId, Overlay, Storage};
use crate::types::MIB;

/// What is known of a file before its blocks are looked at.
#[derive(Debug)]
pub(super) struct Anatomy {
    /// The file itself.
    pub(super) careful: Arc<Careful>,
    /// The file with its log over it.
    pub(super) storage: Arc<dyn Storage>,
    pub(super) overlay: Option<Arc<Overlay>>,
    /// How much of the file is there.
    pub(super) file_len: u64,
    pub(super) header: Option<Header>,
    /// What the log still holds of each log that was there, newest over older.
    pub(super) old: Vec<Overlay>,
    /// The block allocation table by the region table: place and length.
    pub(super) bat: Option<(u64, u64)>,
    /// The place of the metadata.
    pub(super) metadata: Option<u64>,
    /// What no block may overlap.
    pub(super) structures: Vec<Range<u64>>,
    /// Why nothing in this file is sure, if that is so.
    pub(super) doubt: Option<String>,
    pub(super) traces: Traces,
    /// Whether anything at all was recognized.
    pub(super) is_image: bool,
    signs: OnceLock<Signs>,
}

/// How many headers are intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Both,
    One,
    None,
}

impl Anatomy {
    pub(super) fn find(base: Arc<dyn Storage>) -> Result<Self> {
        let careful = Arc::new(Careful::new(base)?);
        let file_len = careful.file_len();
        let mut found = Self {
            storage: Arc::clone(&careful) as _,
            careful,
            overlay: None,
            file_len,
            header: None,
            old: Vec::new(),
            bat: None,
            metadata: None,
            structures: std::iter::once(0..MIB).collect(),
            doubt: None,
            traces: Traces::default(),
            is_image: false,
            signs: OnceLock::new(),
        };
        let mut signature = [0; FileIdentifier::LEN];
        found.careful.fill(&mut signature, 0);
        if FileIdentifier::matches(&signature) {
            found.is_image = true;
        } else {
            found.traces.lost("the file identifier is lost");
        }
        let left = found.headers();
        found.log(left);
        found.regions();
        found.metadata();
        Ok(found)
    }

    /// What the units of the file start with. Looked up once, when it is needed.
    pub(super) fn signs(&self) -> &Signs {
        self.signs.get_or_init(|| Signs::find(&self.careful))
    }

    pub(super) fn doubt(&mut self, why: impl Into<String>) {
        let why = why.into();
        self.traces.guessed(why.clone());
        self.doubt.get_or_insert(why);
    }

    fn headers(&mut self) -> Left {
        let copies = Header::OFFSETS.map(|at| {
            let mut bytes = vec![0; Header::LEN];
            self.careful.fill(&mut bytes, at);
            bytes
        });
        let bytes = [&copies[0][..], &copies[1][..]];
        let parsed = [0, 1].map(|i| Header::parse(bytes[i], Header::OFFSETS[i]));
        let chosen = Headers::choose(bytes, &parsed);
        let left = match parsed.iter().filter(|copy| copy.is_ok()).count() {
            2 => Left::Both,
            1 => Left::One,
            _ => Left::None,
        };
        if left == Left::Both && chosen.is_err() {
            self.doubt("two different headers have the same sequence number");
        }
        let at = Header::OFFSETS[chosen.as_ref().map_or(0, |index| *index)];
        let header = parsed.into_iter().nth(chosen.unwrap_or(0)).and_then(Result::ok);
        match left {
            Left::Both => {}
            Left::One => self.traces.sure(format!("one header is left, at {at:#x}")),
            Left::None => self.traces.lost("both headers are lost, and with them the identity"),
        }
        if header.as_ref().is_some_and(|header| header.version != 1) {
            self.doubt("the header names an unknown version of the format");
        }
        self.is_image |= header.is_some();
        self.header = header;
        left
    }

    /// Lays the log over the file, as far as its sequence is intact.
    fn log(&mut self, left: Left) {
        let placed = self.header.clone().filter(|header| {
            header.log_length > 0 && log::check_place(header, self.careful.file_len()).is_ok()
        });
        let is_pending = self.header.as_ref().is_some_and(|header| !header.log_guid.is_nil());
        let Some(mut header) = placed.or_else(|| log_by_entries(&self.careful)) else {
            if is_pending {
                self.doubt("the log that the header names is lost");
            }
            return;
        };
        self.structures.push(header.log_range());
        if left == Left::None {
            self.is_image = true;
            self.traces.sure(format!("a log at {:#x}, found by its entries", header.log_offset));
        }
        let careful = Arc::clone(&self.careful);
        let guids = log::guids(careful.as_ref(), &header).unwrap_or_default();
        self.old = old_entries(&careful, &header, &guids);
        if is_pending {
            self.replay(&header);
        } else if left != Left::Both && self.differs_from_log() {
            // The header that is lost may have named this log.
            if left == Left::None && guids.len() == 1 {
                header.log_guid = guids[0];
                self.replay(&header);
            }
            self.doubt("it is unknown whether the log was replayed, because a header is lost");
        }
    }

    fn replay(&mut self, header: &Header) {
        let storage: Arc<dyn Storage> = Arc::clone(&self.careful) as _;
        let sequence = match log::find_at_any_length(storage.as_ref(), header) {
            Ok(sequence) => sequence,
            Err(error) => return self.doubt(format!("the log cannot be replayed: {error}")),
        };
        let head = sequence.head().clone();
        match log::replay_over(&storage, header, &sequence) {
            Ok(overlay) => {
                let overlay = Arc::new(overlay);
                let len = overlay.len().unwrap_or_default();
                self.storage = Arc::clone(&overlay) as _;
                self.overlay = Some(overlay);
                if self.careful.file_len() >= head.flushed_file_offset {
                    self.file_len = self.file_len.max(len);
                }
                let entries = sequence.entries.len();
                let text =
                    format!("the log is replayed in memory, up to entry {}", head.sequence_number);
                self.traces.sure(format!("{text} ({entries} in all)"));
            }
            Err(error) => self.doubt(format!("the log cannot be replayed: {error}")),
        }
        let has_remains =
            || log::has_remains_after(storage.as_ref(), header, &sequence).unwrap_or(true);
        if sequence.gap.is_some() || has_remains() {
            self.doubt(format!(
                "the log has remains of entries behind entry {}: what they changed may be old",
                head.sequence_number
            ));
        }
    }

    /// Whether the log holds anything that the file may lack. Tables fill up: where the log has less than the file, it is
    /// older.
    fn differs_from_log(&self) -> bool {
        let (mut logged, mut there) = ([0; SECTOR as usize], [0; SECTOR as usize]);
        for (i, old) in self.old.iter().enumerate() {
            let mut at = 0;
            while let Some(next) = old.first_within(at..u64::MAX) {
                let is_read = old.read_exact_at(&mut logged, next).is_ok();
                self.careful.fill(&mut there, next);
                let others = || self.old[..i].iter().chain(&self.old[i + 1..]);
                let is_older = is_less(&logged, &there, false)
                    || is_less(&logged, &there, true)
                        && others().any(|other| has(other, next, &there));
                if !is_read || !is_older {
                    return true;
                }
                at = next + SECTOR;
            }
        }
        false
    }

    fn regions(&mut self) {
        let mut tables = RegionTable::OFFSETS.map(|at| {
            let mut bytes = vec![0; RegionTable::LEN];
            self.read(&mut bytes, at);
            (at, RegionTable::parse(&bytes, at).ok())
        });
        let lost = tables.iter().filter(|(_, table)| table.is_none()).count();
        let found = tables.iter_mut().find_map(|(at, table)| Some((*at, table.take()?)));
        let Some((at, table)) = found else {
            self.traces.lost("both region tables are lost");
            return;
        };
        self.is_image = true;
        if lost > 0 {
            self.traces.sure(format!("one region table is left, at {at:#x}"));
        }
        for entry in &table.entries {
            let (start, end) = (entry.offset.get(), entry.end());
            if !entry.is_placed() {
                continue;
            }
            self.structures.push(start..end);
            match entry.guid {
                region::BAT => self.bat = Some((start, end - start)),
                region::METADATA => self.metadata = Some(start),
                _ => {}
            }
        }
    }

    fn metadata(&mut self) {
        if self.metadata.is_some() {
            return;
        }
        let places = self.signs().metadata.clone();
        let Some(first) = places.first().copied() else { return };
        self.is_image = true;
        self.metadata = Some(first);
        self.structures.push(first..first + MIB);
        self.traces.sure(format!("metadata at {first:#x}, found by its signature"));
        if places.len() > 1 {
            let more = places.len() - 1;
            self.doubt(format!("{more} more places have the signature of metadata"));
        }
    }

    /// The identity of the file on its host.
    pub(super) fn careful_id(&self) -> Option<FileId> {
        self.careful.id().ok().flatten()
    }

    /// Fills `buf` from the file with its log over it.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) {
        fill(self.storage.as_ref(), buf, at);
    }
}

/// Fills `buf`; what is not there is zeros.
pub(super) fn fill(storage: &dyn Storage, buf: &mut [u8], at: u64) {
    let mut read = 0;
    while read < buf.len() {
        match storage.read_at(&mut buf[read..], at + read as u64) {
            Ok(0) | Err(_) => break,
            Ok(more) => read += more,
        }
    }
    buf[read..].fill(0);
}

/// Whether each word is that of the newer page or nothing; with `by_state`, an entry without a block counts as nothing
/// where the newer page has a block.
fn is_less(older: &[u8], newer: &[u8], by_state: bool) -> bool {
    let mut words = older.chunks_exact(8).zip(newer.chunks_exact(8));
    words.all(|(old, new)| {
        let is_without = by_state && old[0] < 6 && old[1..] == [0; 7] && new[0] & 7 >= 6;
        *old == [0; 8] || old == new || is_without
    })
}

/// Whether a log has these bytes for a sector of the file.
fn has(log: &Overlay, at: u64, bytes: &[u8]) -> bool {
    let mut logged = [0; SECTOR as usize];
    log.first_within(at..at + SECTOR).is_some()
        && log.read_exact_at(&mut logged, at).is_ok()
        && logged == *bytes
}

/// All that intact entries of each log hold.
fn old_entries(careful: &Arc<Careful>, header: &Header, guids: &[Uuid]) -> Vec<Overlay> {
    let of = |guid: &Uuid| {
        let mut overlay = Overlay::new(Arc::clone(careful) as _, careful.file_len());
        let header = Header { log_guid: *guid, ..header.clone() };
        let mut sectors = log::logged_sectors(careful.as_ref(), &header).unwrap_or_default();
        sectors.sort_by_key(|sector| sector.sequence_number);
        for sector in sectors {
            let end = sector.at.checked_add(SECTOR).filter(|end| *end <= careful.file_len());
            if let Some(end) = end.filter(|end| end.is_multiple_of(SECTOR)) {
                overlay.lay(sector.at..end, sector.patch, sector.sequence_number);
            }
        }
        overlay
    };
    guids.iter().map(of).filter(|overlay| overlay.pieces() > 0).collect()
}
