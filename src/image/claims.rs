//! Checks the space that an image claims in its file before the first change: where free space begins, whether the
//! file still has all bytes that its tables name, and whether each byte is claimed only once.

use std::ops::Range;

use super::Core;
use super::block_table::{BlockTable, Claim, Role};
use super::units::{MOST_UNITS, Units, units};
use crate::error::{Error, Result};
use crate::format::region::{self, RegionTable};
use crate::storage::length_of;
use crate::types::MIB;

/// All claims of the structures and the block allocation table of a file, as stored in the file, without changes that
/// are still in memory.
#[derive(Debug)]
pub(crate) struct Claims {
    file_len: u64,
    /// End of the last claim. Claims beyond the limits of the format are left out.
    pub(crate) end: u64,
    /// Header section, log, and the regions of every valid region table.
    pub(crate) structures: Vec<Structure>,
    /// Structures with bytes missing from the file.
    pub(crate) lost_structures: Vec<Structure>,
    /// Blocks with bytes missing from the file, in table order.
    pub(crate) lost: Vec<Claim>,
    /// Blocks that share a MiB of the file with another block or a structure, in table order. All blocks that share
    /// it are listed.
    pub(crate) shared: Vec<Claim>,
    /// Number of lost and of shared blocks beyond those listed.
    pub(crate) unlisted: [u64; 2],
}

/// A part of the file that is not a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Structure {
    pub(crate) name: String,
    pub(crate) range: Range<u64>,
    /// Offset in the file of the field that names it.
    pub(crate) at: u64,
}

impl Core {
    /// Refuses an image with bytes that its tables name but its file has lost, or that two of its claims share. A
    /// writer would refuse the first change for the same reasons.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged), and [`ErrorKind::Io`](crate::ErrorKind::Io) if the tables
    /// cannot be read.
    pub(crate) fn check_claims(&self) -> Result<()> {
        self.claims(Claims::MOST_LISTED)?.check(self)
    }

    /// Walks all claims once, and lists up to `most` damaged blocks of each kind. Keeps only one bit for each MiB of
    /// the file in memory.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the table cannot be read.
    pub(crate) fn claims(&self, most: usize) -> Result<Claims> {
        self.claims_within(self.file_len(), most)
    }

    /// The error for claimed bytes that the file has lost since it was opened; `None` if it has lost none.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be examined.
    pub(crate) fn lost_meanwhile(&self) -> Result<Option<Error>> {
        let claims = self.claims_within(length_of(self.bare_storage().as_ref())?, 1)?;
        let structure = claims.lost_structures.first().map(|lost| claims.lost_structure(lost));
        Ok(structure.or_else(|| claims.lost.first().map(|lost| claims.lost_block(self, lost))))
    }

    fn claims_within(&self, file_len: u64, most: usize) -> Result<Claims> {
        let table = self.block_table();
        let mut walk = Walk::new(self.claimed_structures(), file_len, most);
        let failed = table.claims(|claim| walk.take(claim));
        let failed = failed.or_else(|| walk.tell_shared(&table));
        match failed {
            Some(error) => Err(error.in_file(self.name())),
            None => Ok(walk.claims),
        }
    }

    pub(crate) fn block_table(&self) -> BlockTable<'_> {
        BlockTable {
            storage: self.storage.as_ref(),
            region: &self.bat,
            layout: self.layout,
            has_parent: self.has_parent,
            file_len: self.file_len(),
            changed: self.feed.as_ref().map(|feed| &feed.changed),
        }
    }

    /// The parts of the file that no block may overlap. If two valid region tables differ, both count, because
    /// another reader may use either.
    pub(super) fn claimed_structures(&self) -> Vec<Structure> {
        let log = self.headers().current().log_range();
        let mut structures = vec![
            Structure { name: "the header section".into(), range: 0..MIB, at: 0 },
            Structure { name: "the log".into(), range: log, at: 0 },
        ];
        for (table, at) in self.region_tables.iter().zip(RegionTable::OFFSETS) {
            let Ok(table) = table else { continue };
            for (i, entry) in table.entries.iter().enumerate() {
                let name = region::title(entry.guid);
                let range = entry.offset.get()..entry.end();
                if !structures.iter().any(|known| known.name == name && known.range == range) {
                    let at = RegionTable::entry_at(at, i);
                    structures.push(Structure { name, range, at });
                }
            }
        }
        structures
    }
}

impl Claims {
    /// Number of blocks of each kind of damage that a refusal examines. Further blocks are only counted.
    pub(crate) const MOST_LISTED: usize = 64;

    /// Refuses to change an image with lost or overlapping parts.
    pub(crate) fn check(&self, image: &Core) -> Result<()> {
        let refused = self
            .too_long()
            .or_else(|| self.lost_structures.first().map(|lost| self.lost_structure(lost)))
            .or_else(|| self.lost.first().map(|lost| self.lost_block(image, lost)))
            .or_else(|| self.shared.first().map(|first| self.shared_block(image, first)));
        refused.map_or(Ok(()), |error| Err(error.in_file(image.name())))
    }

    fn too_long(&self) -> Option<Error> {
        let most = MOST_UNITS * MIB;
        let is_too_long = self.file_len > most;
        is_too_long.then(|| {
            let message = "the file is longer than any image can be, and is not changed";
            Error::damaged("claim.too-far", "2.1", self.file_len, message)
                .with_found(format_args!("{} bytes", self.file_len))
                .with_expected(format_args!("at most {most}"))
        })
    }

    fn lost_structure(&self, lost: &Structure) -> Error {
        let Structure { name, range, at } = lost;
        let message = format!("{name} lost bytes, and the image is not changed as it is");
        Error::damaged("claim.lost", "2.2.3.2", *at, message)
            .with_found(format_args!("bytes {:#x} to {:#x}", range.start, range.end))
            .with_expected(format_args!(
                "an end at {:#x}, where the file ends, or before",
                self.file_len
            ))
    }

    fn lost_block(&self, image: &Core, lost: &Claim) -> Error {
        let count = self.lost.len() as u64 + self.unlisted[0];
        let message = format!(
            "{}{} lost bytes, and the image is not changed as it is",
            lost.role.name(lost.index),
            and_more(count - 1)
        );
        let (start, end) = (lost.start(), lost.start().saturating_add(lost.needed));
        Error::damaged("claim.lost", section(lost), image.bat_entry_at(lost.index).get(), message)
            .with_found(format_args!("bytes {start:#x} to {end:#x}"))
            .with_expected(format_args!(
                "a place from 1 MiB on, with an end at {:#x}, where the file ends, or before",
                self.file_len
            ))
    }

    fn shared_block(&self, image: &Core, first: &Claim) -> Error {
        let (start, end) = (first.start(), first.end());
        let met = self.structures.iter().find(|structure| meet(&structure.range, &(start..end)));
        let other = self.shared[1..]
            .iter()
            .find(|other| meet(&(other.start()..other.end()), &(start..end)));
        let other = match (met, other) {
            (Some(structure), _) => structure.name.clone(),
            (None, Some(other)) => other.role.name(other.index),
            (None, None) => "another".into(),
        };
        let count = self.shared.len() as u64 + self.unlisted[1];
        let message = format!(
            "{}{} lies where something else does, and the image is not changed as it is",
            first.role.name(first.index),
            and_more(count - 1)
        );
        Error::damaged(
            "claim.shared",
            section(first),
            image.bat_entry_at(first.index).get(),
            message,
        )
        .with_found(format_args!("bytes {start:#x} to {end:#x}"))
        .with_expected(format_args!("a place of its own: {other} has it"))
    }
}

fn section(claim: &Claim) -> &'static str {
    match claim.role {
        Role::Bitmap(_) => "2.5.1.2",
        _ => "2.5.1.1",
    }
}

fn and_more(count: u64) -> String {
    if count == 0 { String::new() } else { format!(" (and {count} more)") }
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Collects the claims of a walk.
struct Walk {
    claims: Claims,
    most: usize,
    used: Units,
    /// Units that are claimed more than once.
    twice: Units,
    is_any_twice: bool,
}

impl Walk {
    fn new(structures: Vec<Structure>, file_len: u64, most: usize) -> Self {
        let mut used = Units::default();
        let mut end = 0;
        let (lost, there): (Vec<&Structure>, Vec<&Structure>) =
            structures.iter().partition(|structure| structure.range.end > file_len);
        for Structure { range, .. } in there {
            used.take(units(range.start, range.end - range.start));
            end = range.end.max(end);
        }
        let lost_structures = lost.into_iter().cloned().collect();
        let claims = Claims {
            file_len,
            end,
            structures,
            lost_structures,
            lost: Vec::new(),
            shared: Vec::new(),
            unlisted: [0; 2],
        };
        Self { claims, most, used, twice: Units::default(), is_any_twice: false }
    }

    fn take(&mut self, claim: Claim) {
        let taken = units(claim.start(), claim.len);
        if claim.is_lost(self.claims.file_len) {
            list(&mut self.claims.lost, claim, self.most, &mut self.claims.unlisted[0]);
        }
        if claim.start() == 0 || taken.end > MOST_UNITS {
            return;
        }
        self.claims.end = self.claims.end.max(claim.end());
        if self.used.take(taken.clone()) {
            // All of these units are shared with this claim.
            taken.for_each(|unit| self.twice.put(unit));
            self.is_any_twice = true;
        }
    }

    /// Finds all blocks that share space, by a second walk of the table.
    fn tell_shared(&mut self, table: &BlockTable<'_>) -> Option<Error> {
        if !self.is_any_twice {
            return None;
        }
        let Self { claims, most, twice, .. } = self;
        table.claims(|claim| {
            if claim.start() != 0 && twice.has_any(units(claim.start(), claim.len)) {
                list(&mut claims.shared, claim, *most, &mut claims.unlisted[1]);
            }
        })
    }
}

fn list(found: &mut Vec<Claim>, claim: Claim, most: usize, unlisted: &mut u64) {
    if found.len() < most {
        found.push(claim);
    } else {
        *unlisted += 1;
    }
}
