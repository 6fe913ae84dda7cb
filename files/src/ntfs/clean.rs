//! Whether it is certain which clusters nothing uses.

use std::collections::BTreeSet;

use super::record::{self, Attribute, Record, Value};
use super::{BITMAP, Held, IS_DIRTY, MFT, MOST_LIST, Ntfs, VOLUME, VOLUME_INFORMATION, log};
use crate::boundary::{number, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::item::{Kind, Stream, System};

const LOG: u64 = 2;
/// The flag of a volume that is being repaired.
const IS_REPAIRED: u16 = 0x4000;
/// What the table of files has for the records that are in use.
const RECORDS_IN_USE: u32 = 0xB0;
/// Bytes of a bitmap, and of the table of files, that are read at once.
const PIECE: u64 = 64 << 10;

/// What Windows writes its memory to.
const HIBERNATION: &[u8] = b"hiberfil.sys";
const HIBERNATION_HEAD: usize = 4096;

/// Where shadow copies are described, and how.
const SHADOW_HEADER: u64 = 0x1E00;
const SHADOW_ID: [u8; 16] = [
    0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52,
];
const SHADOW_CATALOG: u32 = 2;
const SHADOW_BLOCK: usize = 16 << 10;
const SHADOW_ENTRY: usize = 128;
/// A catalog has no more blocks.
const MOST_CATALOG: usize = 64;

impl Ntfs {
    pub(super) fn check_closed(&self) -> Result<()> {
        let volume = self.file(VOLUME)?;
        let facts = volume.parts(VOLUME_INFORMATION, &[]).next();
        let Some(Attribute { value: Value::Resident(facts), .. }) = facts else {
            return Err(Error::damaged("ntfs.record", "$Volume says nothing of the volume"));
        };
        if facts.len() < 12 || u16_at(facts, 10) & (IS_DIRTY | IS_REPAIRED) != 0 {
            let message = "the file system is marked as dirty in $Volume";
            return Err(Error::unclean("unclean.ntfs", message));
        }
        let parts: Vec<Attribute> = self.file(LOG)?.parts(record::DATA, &[]).cloned().collect();
        log::check(&mut self.shape.held(&parts)?)?;
        self.check_awake()?;
        self.check_shadows()
    }

    /// Refuses a volume from which a hibernated Windows goes on: it has more in memory than on the disk.
    fn check_awake(&self) -> Result<()> {
        let Some(file) = self.child(&self.root()?, HIBERNATION)? else { return Ok(()) };
        let hibernated = |what: &str| {
            let message =
                format!("Windows is hibernated, or was shut down with Fast Startup: {what}");
            Err(Error::unclean("unclean.hibernated", message))
        };
        let facts = file.facts()?;
        if facts.kind != Kind::File || facts.refusal.is_some() {
            return hibernated("hiberfil.sys cannot be read");
        }
        let mut stream = self.open(&file, None)?;
        if stream.len() < HIBERNATION_HEAD as u64 {
            return hibernated("hiberfil.sys is too short to tell");
        }
        let mut head = [0; HIBERNATION_HEAD];
        stream.read_at(&mut head, 0)?;
        // Windows takes the signature away once it goes on.
        match &head[..4] {
            _ if head.iter().all(|byte| *byte == 0) => Ok(()),
            b"wake" | b"WAKE" => Ok(()),
            other => {
                let other = String::from_utf8_lossy(other).into_owned();
                hibernated(&format!("hiberfil.sys has the signature {other:?}"))
            }
        }
    }

    /// Refuses a volume with shadow copies: what was deleted since they were made is needed for them, and is not in use.
    fn check_shadows(&self) -> Result<()> {
        let bytes = &self.shape.bytes;
        let head = bytes.read(SHADOW_HEADER, 128)?;
        let mut at = if head[..16] == SHADOW_ID { u64_at(&head, 48) } else { 0 };
        let refused = |what: &str| {
            let message = format!("the volume has {what}, which need what was deleted since");
            Err(Error::unclean("unclean.shadow-copies", message))
        };
        for _ in 0..MOST_CATALOG {
            if at == 0 {
                return Ok(());
            }
            let is_inside =
                at.checked_add(SHADOW_BLOCK as u64).is_some_and(|end| end <= bytes.len());
            if !is_inside {
                return refused("shadow copies in another place");
            }
            let block = bytes.read(at, SHADOW_BLOCK)?;
            if block[..16] != SHADOW_ID || u32_at(&block, 20) != SHADOW_CATALOG {
                return refused("shadow copies in another place");
            }
            // Entries of no copy have the kinds 0 and 1.
            if block[SHADOW_ENTRY..].chunks_exact(SHADOW_ENTRY).any(|entry| u64_at(entry, 0) > 1) {
                return refused("shadow copies");
            }
            at = u64_at(&block, 40);
        }
        refused("a list of shadow copies that does not end")
    }

    /// Refuses a volume of which a cluster of any file is free by `$Bitmap`.
    pub(super) fn check_clusters(&self) -> Result<()> {
        let held = |number: u64, kind: u32| -> Result<Held> {
            let parts: Vec<Attribute> = self.file(number)?.parts(kind, &[]).cloned().collect();
            self.shape.held(&parts)
        };
        let mut clusters = held(BITMAP, record::DATA)?;
        let mut in_use = held(MFT, RECORDS_IN_USE)?;
        let len = self.shape.record;
        let end = self.mft.size.min(self.mft.initialized) / len * len;
        let mut piece = vec![0; PIECE as usize];
        for start in (0..end).step_by(PIECE as usize) {
            let piece = &mut piece[..(end - start).min(PIECE) as usize];
            self.mft.read_stored(piece, start)?;
            for (raw, at) in piece.chunks_exact(len as usize).zip((start..).step_by(len as usize)) {
                let number = at / len;
                let record = Record::parse(raw.to_vec(), number, self.shape.clusters);
                let record = match record {
                    Ok(record) => record,
                    // Nobody knows what it holds.
                    Err(error) if is_listed(&mut in_use, number)? => return Err(error),
                    Err(error) if raw.starts_with(b"FILE") && u16_at(raw, 22) & 1 != 0 => {
                        return Err(error);
                    }
                    Err(_) => continue,
                };
                if record.is_used {
                    self.check_record(&record, number, &mut clusters)?;
                }
            }
        }
        Ok(())
    }

    fn check_record(&self, record: &Record, number: u64, clusters: &mut Held) -> Result<()> {
        for attribute in &record.attributes {
            let Value::Outside { runs, .. } = &attribute.value else { continue };
            for run in runs {
                let Some(lcn) = run.lcn else { continue };
                if !is_all_set(clusters, lcn, run.len)? {
                    let message = format!(
                        "file record {number} has clusters from {lcn} to {}, of which $Bitmap calls some free",
                        lcn + run.len
                    );
                    return Err(Error::damaged("ntfs.bitmap", message));
                }
            }
        }
        let list = record.attributes.iter().find(|found| found.kind == record::ATTRIBUTE_LIST);
        let Some(list) = list.filter(|_| record.base == 0) else { return Ok(()) };
        // The runs in these records are checked where they lie.
        let list = self.shape.held(std::slice::from_ref(list))?.read_all(MOST_LIST)?;
        let others: BTreeSet<u64> =
            record::listed(&list)?.into_iter().map(|listed| listed.record).collect();
        for other in others.into_iter().filter(|other| *other != number) {
            let more = self.record(other)?;
            if !more.is_used || more.base != number {
                let message = format!("file record {other} does not continue {number}");
                return Err(Error::damaged("ntfs.record", message));
            }
        }
        Ok(())
    }
}

/// Whether a record is one in use by the bitmap of the table of files.
fn is_listed(in_use: &mut Held, number: u64) -> Result<bool> {
    Ok(number / 8 < in_use.len() && is_all_set(in_use, number, 1)?)
}

/// Whether all these bits are set.
fn is_all_set(bitmap: &mut Held, first: u64, count: u64) -> Result<bool> {
    let end = first + count;
    let mut at = first;
    while at < end {
        let piece_end = (at / 8 + PIECE).saturating_mul(8).min(end);
        let mut piece = vec![0; (piece_end.div_ceil(8) - at / 8) as usize];
        if piece_end.div_ceil(8) > bitmap.len() {
            return Ok(false);
        }
        bitmap.read_at(&mut piece, at / 8)?;
        let first_byte = at / 8;
        let is_set =
            |bit: u64| number(&piece, (bit / 8 - first_byte) as usize, 1) >> (bit % 8) & 1 == 1;
        // Whole bytes at once.
        let (inner, outer) = (at.next_multiple_of(8).min(piece_end), (piece_end / 8 * 8).max(at));
        let is_full = match inner < outer {
            true => {
                (at..inner).chain(outer..piece_end).all(is_set)
                    && piece[(inner / 8 - first_byte) as usize..(outer / 8 - first_byte) as usize]
                        .iter()
                        .all(|byte| *byte == 0xFF)
            }
            false => (at..piece_end).all(is_set),
        };
        if !is_full {
            return Ok(false);
        }
        at = piece_end;
    }
    Ok(true)
}
