//! Boot sectors of NTFS and of FAT.

use crate::boundary::{u16_at, u32_at, u64_at};
use crate::content;

const MOST_CLUSTER: u64 = 2 << 20;
const MOST_RECORD: u64 = 64 << 10;

/// A boot sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) sector: u32,
    /// The bytes of the volume, without the copy of the boot sector behind them.
    pub(super) size: u64,
    pub(super) cluster: u64,
    pub(super) record: u64,
    pub(super) table: u64,
    pub(super) copy: u64,
    /// Where the volume begins on the disk, in sectors; often wrong or 0.
    pub(super) hidden: u32,
    pub(super) serial: u64,
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

    pub(super) fn clusters(&self) -> u64 {
        self.size / self.cluster
    }
}

impl Boot {
    /// Whether it says that it is the one of a volume at this place.
    pub(super) fn is_of(&self, start: u64) -> bool {
        u64::from(self.hidden) * u64::from(self.sector) == start
    }
}

/// The bytes of a file system with this boot sector.
pub(super) fn size_of_fat(raw: &[u8]) -> Option<u64> {
    content::is_fat(raw).then_some(())?;
    let sectors = match u16_at(raw, 19) {
        0 => u32_at(raw, 32),
        few => few.into(),
    };
    (sectors > 0).then(|| u64::from(sectors) * u64::from(u16_at(raw, 11)))
}
