//! What structures of FAT say of their places.

use super::MIB;
use super::anchors::Anchors;
use super::claims::{Seen, Sightings};
use super::space::Space;
use crate::boundary::{number, u16_at, u32_at};
use crate::content;

/// The sector with the copy of the boot sector, on FAT32.
const COPY: usize = 50;

/// A volume of FAT.
#[derive(Debug)]
pub(super) struct Fat {
    start: u64,
    volume: usize,
    boot: Vec<u8>,
    /// Where the copy of the boot sector lies, if there is one.
    copy: Option<u64>,
    data: u64,
    cluster: u64,
    end: u32,
    /// The first table and the bits of its entries.
    table: (u64, u64),
}

/// The bytes of a file system with this boot sector.
pub(super) fn size(raw: &[u8]) -> Option<u64> {
    content::is_fat(raw).then_some(())?;
    let sectors = match u16_at(raw, 19) {
        0 => u32_at(raw, 32),
        few => few.into(),
    };
    (sectors > 0).then(|| u64::from(sectors) * u64::from(u16_at(raw, 11)))
}

impl Fat {
    pub(super) fn new(start: u64, raw: &[u8], volume: usize) -> Option<Self> {
        let sectors = size(raw)? / u64::from(u16_at(raw, 11));
        let sector = u64::from(u16_at(raw, 11));
        let per_cluster = number(raw, 13, 1);
        let is_32 = u16_at(raw, 22) == 0;
        let per_table = if is_32 { u64::from(u32_at(raw, 36)) } else { u16_at(raw, 22).into() };
        let (reserved, tables) = (u64::from(u16_at(raw, 14)), number(raw, 16, 1));
        let root = (u64::from(u16_at(raw, 17)) * 32).div_ceil(sector);
        let before = reserved + tables * per_table + root;
        let clusters = sectors.checked_sub(before)?.checked_div(per_cluster)?;
        let bits = match clusters {
            _ if is_32 => 32,
            0..4085 => 12,
            _ => 16,
        };
        let copy = u64::from(u16_at(raw, COPY));
        Some(Self {
            start,
            volume,
            boot: raw.to_vec(),
            copy: (is_32 && (1..reserved).contains(&copy)).then_some(start + copy * sector),
            data: start + before * sector,
            cluster: per_cluster * sector,
            end: u32::try_from(clusters + 2).ok()?,
            table: (start + reserved * sector, bits),
        })
    }

    /// Adds the boot sectors.
    pub(super) fn add(&self, anchors: &Anchors, sightings: &mut Sightings) {
        let seen = Seen { what: "a boot sector", volume: self.volume, strong: true };
        for (file, _) in anchors.fat.iter().filter(|(_, raw)| *raw == self.boot) {
            let places = [Some(self.start), self.copy].into_iter().flatten();
            let mut even = places.filter(|at| at.wrapping_sub(*file).is_multiple_of(MIB));
            if let (Some(at), None) = (even.next(), even.next()) {
                sightings.add(*file..*file + 512, Some(at), seen);
            }
        }
    }

    /// Adds the folders that name their own clusters, if the table has these in use.
    pub(super) fn follow(&self, space: &Space<'_>, anchors: &Anchors, sightings: &mut Sightings) {
        for (file, cluster) in &anchors.folders {
            if !(2..self.end).contains(cluster) {
                continue;
            }
            let at = self.data + u64::from(cluster - 2) * self.cluster;
            let in_use = self.is_in_use(space, *cluster);
            // What was deleted belongs here all the same, and counts for little.
            let seen = Seen { what: "a folder", volume: self.volume, strong: in_use == Some(true) };
            sightings.add(*file..*file + 64, Some(at), seen);
        }
    }

    fn is_in_use(&self, space: &Space<'_>, cluster: u32) -> Option<bool> {
        let (table, bits) = self.table;
        let (at, len) = (u64::from(cluster) * bits / 8, bits.div_ceil(8) as usize);
        let (raw, _) = space.bytes(table + at, len)?;
        let shift = if bits == 12 && cluster % 2 == 1 { 4 } else { 0 };
        Some(number(&raw, 0, len) >> shift & (1 << bits.min(28)) - 1 != 0)
    }
}

/// The boot sector of a volume that is placed, with whether that is sure.
pub(super) fn at(space: &Space<'_>, start: u64) -> Option<(Vec<u8>, bool)> {
    let (raw, sure) = space.bytes(start, 512)?;
    (raw[510..] == [0x55, 0xAA]).then_some(())?;
    size(&raw).map(|_| (raw, sure))
}
