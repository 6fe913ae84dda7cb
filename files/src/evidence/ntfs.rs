//! What structures of NTFS say of their places.

use super::MIB;
use super::anchors::{Anchors, Records};
use super::claims::{Seen, Sightings};
use super::space::Space;
use crate::boundary::{u16_at, u32_at, u64_at};
use crate::ntfs::{Places, places};

const MOST_CLUSTER: u64 = 2 << 20;
const MOST_RECORD: u64 = 64 << 10;
const LOG: u64 = 2;
/// Records with copies in `$MFTMirr`.
const COPIED: u64 = 4;
/// File records that are read to find nodes of their indexes.
const MOST_FOLDERS: usize = 1 << 18;

/// A boot sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) sector: u32,
    /// The bytes of the volume, without the copy of the boot sector behind them.
    pub(super) size: u64,
    cluster: u64,
    record: u64,
    table: u64,
    copy: u64,
    /// Where the volume begins on the disk, in sectors; often wrong or 0.
    hidden: u32,
    serial: u64,
}

impl Boot {
    pub(super) fn of(raw: &[u8]) -> Option<Self> {
        (raw.get(3..11)? == b"NTFS    " && raw.get(510..512)? == [0x55, 0xAA]).then_some(())?;
        let sector = u64::from(u16_at(raw, 11));
        let per_cluster = match raw[13] {
            many @ 0xE1.. => 1u64 << (256 - u32::from(many)),
            few => few.into(),
        };
        let cluster = sector * per_cluster;
        let record = match raw[64] as i8 {
            bits @ -31..=-1 => 1u64 << -bits,
            clusters => u64::try_from(clusters).ok()?.checked_mul(cluster)?,
        };
        let is_size = |size: u64, most: u64| size.is_power_of_two() && (512..=most).contains(&size);
        let size = u64_at(raw, 40).checked_mul(sector)?;
        let boot = Self {
            sector: sector as u32,
            size,
            cluster,
            record,
            table: u64_at(raw, 48),
            copy: u64_at(raw, 56),
            hidden: u32_at(raw, 28),
            serial: u64_at(raw, 72),
        };
        let clusters = size.checked_div(cluster)?;
        let holds = is_size(sector, 4096)
            && is_size(cluster, MOST_CLUSTER)
            && is_size(record, MOST_RECORD)
            && size < 1 << 62
            && (1..clusters).contains(&boot.table)
            && (1..clusters).contains(&boot.copy);
        holds.then_some(boot)
    }

    fn clusters(&self) -> u64 {
        self.size / self.cluster
    }
}

/// A volume of NTFS while its structures are looked for.
#[derive(Debug)]
pub(super) struct Ntfs {
    start: u64,
    boot: Boot,
    volume: usize,
    /// Where the table of files lies, and where the copy of its first record that says so lies in the file.
    table: Places,
}

impl Ntfs {
    /// Finds the table of files of a volume; nothing if nothing says where it lies. Also returns whether that is certain.
    pub(super) fn new(
        space: &Space<'_>,
        start: u64,
        boot: Boot,
        volume: usize,
        anchors: &Anchors,
    ) -> Option<(Self, bool)> {
        let (len, clusters) = (boot.record as usize, boot.clusters());
        let placed = space.bytes(start.checked_add(boot.table * boot.cluster)?, len);
        let mut firsts: Vec<Vec<u8>> = placed.into_iter().map(|(raw, _)| raw).collect();
        let ends = [boot.table, boot.copy].map(|lcn| start + lcn * boot.cluster);
        for records in anchors.records.iter().filter(|records| records.first == 0) {
            let is_even = ends.iter().any(|at| at.wrapping_sub(records.file).is_multiple_of(MIB));
            if is_even && records.len == boot.record {
                firsts.extend(space.loose_bytes(records.file, len));
            }
        }
        let mut tables = firsts
            .into_iter()
            .filter_map(|raw| places(raw, 0, clusters))
            .filter(|table| matches!(table.data[..], [(0, _, lcn), ..] if lcn == boot.table));
        let table = tables.next()?;
        // An older copy says less.
        let is_certain = tables.all(|other| {
            let count = table.data.len().min(other.data.len()).saturating_sub(1);
            table.data[..count] == other.data[..count]
        });
        Some((Self { start, boot, volume, table }, is_certain))
    }

    fn seen(&self, what: &'static str) -> Seen {
        Seen { what, volume: self.volume, strong: true }
    }

    fn place(&self, runs: &[(u64, u64, u64)], at: u64) -> Option<u64> {
        let vcn = at / self.boot.cluster;
        let next = runs.partition_point(|(first, ..)| *first <= vcn);
        let (first, len, lcn) = runs.get(next.checked_sub(1)?)?;
        let lcn = (vcn - first < *len).then(|| lcn + vcn - first)?;
        Some(self.start + lcn * self.boot.cluster + at % self.boot.cluster)
    }

    /// Where a record belongs, if the table has one of this number.
    fn record_place(&self, number: u64) -> Option<u64> {
        self.place(&self.table.data, number.checked_mul(self.boot.record)?)
    }

    /// Whether the records begin with the first one of this volume.
    fn is_first_of(&self, space: &Space<'_>, records: &Records) -> bool {
        let raw = space.loose_bytes(records.file, self.boot.record as usize);
        let table = raw.and_then(|raw| places(raw, 0, self.boot.clusters()));
        table.is_some_and(|table| table.data == self.table.data)
    }

    /// Adds the nodes of indexes and the log, once records are placed.
    pub(super) fn follow(&self, space: &Space<'_>, anchors: &Anchors, sightings: &mut Sightings) {
        let told = |number: u64| {
            let (raw, sure) = space.bytes(self.record_place(number)?, self.boot.record as usize)?;
            let is_own = u64::from(u32_at(&raw, 44)) == number;
            Some((places(raw, number, self.boot.clusters()).filter(|_| is_own)?, sure))
        };
        let mut folders = std::collections::HashMap::new();
        for node in &anchors.nodes {
            if folders.len() >= MOST_FOLDERS {
                folders.clear();
            }
            let folder = folders.entry(node.folder).or_insert_with(|| told(node.folder));
            let folder = folder.as_ref().filter(|(it, _)| it.sequence == node.sequence);
            let Some((folder, sure)) = folder else { continue };
            // Nodes smaller than clusters are counted in sectors.
            let unit = if node.len < self.boot.cluster { 512 } else { self.boot.cluster };
            let at = node.vcn.checked_mul(unit).and_then(|at| self.place(&folder.index, at));
            if at.is_none() && folder.goes_on {
                continue;
            }
            let range = node.file..node.file + node.len;
            let seen = Seen { strong: *sure, ..self.seen("a node of a folder's index") };
            sightings.add(range, at, seen);
        }
        let log = told(LOG).and_then(|(log, _)| self.place(&log.data, 0));
        for file in &anchors.restarts {
            let Some(log) = log else { continue };
            let at =
                [log, log + 4096].into_iter().find(|at| at.wrapping_sub(*file).is_multiple_of(MIB));
            if at.is_some() {
                let seen = Seen { strong: false, ..self.seen("a page of the log") };
                sightings.add(*file..*file + 512, at, seen);
            }
        }
    }
}

/// Adds the boot sectors of all volumes, and the file records.
pub(super) fn add(
    space: &Space<'_>,
    volumes: &[Ntfs],
    anchors: &Anchors,
    sightings: &mut Sightings,
) {
    for volume in volumes {
        for (file, boot) in anchors.ntfs.iter().filter(|(_, boot)| *boot == volume.boot) {
            let ends = [volume.start, volume.start + boot.size];
            let mut even = ends.into_iter().filter(|at| at.wrapping_sub(*file).is_multiple_of(MIB));
            // Which of both it is cannot be told if it could be either.
            if let (Some(at), None) = (even.next(), even.next()) {
                sightings.add(*file..*file + 512, Some(at), volume.seen("a boot sector"));
            }
        }
    }
    for records in &anchors.records {
        add_records(space, volumes, records, sightings);
    }
}

fn add_records(space: &Space<'_>, volumes: &[Ntfs], records: &Records, sightings: &mut Sightings) {
    let fitting = || volumes.iter().filter(|volume| volume.boot.record == records.len);
    let own = match records.first {
        0 => fitting().find(|volume| volume.is_first_of(space, records)),
        _ => None,
    };
    if let Some(own) = own
        && records.count <= COPIED.max(own.boot.cluster / own.boot.record)
        && let copy = own.start + own.boot.copy * own.boot.cluster
        && copy.wrapping_sub(records.file).is_multiple_of(MIB)
    {
        let range = records.file..records.file + records.count * records.len;
        return sightings.add(range, Some(copy), own.seen("copies of file records"));
    }
    for volume in own.into_iter().chain(fitting().filter(|_| own.is_none())) {
        // A cluster or a record, whichever is larger, counts once.
        let (len, mut at) = (records.len, 0);
        let each = (volume.boot.cluster / len).max(1);
        while at < records.count {
            let number = records.first + at;
            let count = (each - number % each).min(records.count - at);
            let file = records.file + at * len;
            let range = file..file + count * len;
            let place = volume.record_place(number);
            // Records that are named elsewhere may be anywhere.
            if place.is_some() || !volume.table.goes_on {
                sightings.add(range, place, volume.seen("file records"));
            }
            at += count;
        }
    }
}

/// The boot sector of a volume that is placed, with whether that is sure.
pub(super) fn at(space: &Space<'_>, start: u64) -> Option<(Boot, bool)> {
    let (raw, sure) = space.bytes(start, 512)?;
    Some((Boot::of(&raw)?, sure))
}

impl Boot {
    /// Whether it says that it is the one of a volume at this place.
    pub(super) fn is_of(&self, start: u64) -> bool {
        u64::from(self.hidden) * u64::from(self.sector) == start
    }
}
