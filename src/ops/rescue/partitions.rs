//! The size of a disk by its partition table.

use byteorder::{ByteOrder, LittleEndian};

/// The size of a disk that starts with these bytes: exact by a GUID partition table, which names the last sector, or at least what
/// the partitions of a master boot record take up.
pub(super) fn size_by_partitions(start: &[u8], sector: u64) -> Option<u64> {
    by_gpt(start, sector).or_else(|| by_mbr(start, sector))
}

fn by_gpt(start: &[u8], sector: u64) -> Option<u64> {
    let header = start.get(sector as usize..)?.get(..92)?;
    if !header.starts_with(b"EFI PART") || LittleEndian::read_u32(&header[12..]) != 92 {
        return None;
    }
    let mut summed = [0; 92];
    summed.copy_from_slice(header);
    summed[16..20].fill(0);
    if crc32(&summed) != LittleEndian::read_u32(&header[16..]) {
        return None;
    }
    LittleEndian::read_u64(&header[32..]).checked_add(1)?.checked_mul(sector)
}

fn by_mbr(start: &[u8], sector: u64) -> Option<u64> {
    if start.get(510..512)? != [0x55, 0xAA] {
        return None;
    }
    let end = |entry: &[u8]| {
        let (first, count) =
            (LittleEndian::read_u32(&entry[8..]), LittleEndian::read_u32(&entry[12..]));
        // A protective entry covers as much as it can name.
        let is_used = entry[4] != 0 && entry[4] != 0xEE && entry[0] & 0x7F == 0;
        is_used.then(|| u64::from(first) + u64::from(count))
    };
    let end = start[446..510].chunks_exact(16).filter_map(end).max()?;
    end.checked_mul(sector)
}

/// The checksum of GUID partition tables, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let sum = bytes.iter().fold(!0, |sum: u32, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 }
        })
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_the_one_that_tables_of_them_give() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }
}
