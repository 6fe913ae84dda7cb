//! The checksums of ext: CRC-32C and CRC-16, without the inversions that other formats add; and the CRC-32 of a GPT.

const CRC_32: [u32; 256] = table_32(0xEDB8_8320);
/// Which entry of the table of CRC-32C has this upper byte: no two have the same.
const BACK_32C: [u8; 256] = back(&CRC_32C);
const CRC_32C: [u32; 256] = table_32(0x82F6_3B78);
const CRC_16: [u16; 256] = table_16(0xA001);

/// Goes on with a CRC-32C over more bytes.
pub(crate) fn crc_32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| crc >> 8 ^ CRC_32C[usize::from(crc as u8 ^ byte)])
}

/// The CRC-32C before these bytes, from the one behind them.
pub(crate) fn crc_32c_before(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(crc, |crc, byte| {
        let index = BACK_32C[(crc >> 24) as usize];
        (crc ^ CRC_32C[usize::from(index)]) << 8 | u32::from(index ^ byte)
    })
}

/// The four bytes that lead from one CRC-32C to another, as a number: there is one.
pub(crate) fn crc_32c_between(from: u32, to: u32) -> u32 {
    crc_32c_before(to, &[0; 4]) ^ from
}

/// The CRC-32 of a GPT, with its inversions.
pub(crate) fn crc_32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| crc >> 8 ^ CRC_32[usize::from(crc as u8 ^ byte)])
}

/// Goes on with a CRC-16 over more bytes.
pub(crate) fn crc_16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| crc >> 8 ^ CRC_16[usize::from(crc as u8 ^ byte)])
}

const fn table_32(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ polynomial };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

const fn back(table: &[u32; 256]) -> [u8; 256] {
    let mut back = [0; 256];
    let mut index = 0;
    while index < 256 {
        back[(table[index] >> 24) as usize] = index as u8;
        index += 1;
    }
    back
}

const fn table_16(polynomial: u16) -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u16, 0);
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ polynomial };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_check_values_come_out() {
        assert_eq!(!crc_32c(!0, b"123456789"), 0xE306_9283);
        assert_eq!(crc_16(0, b"123456789"), 0xBB3D);
        assert_eq!(crc_32c(crc_32c(!0, b"1234"), b"56789"), crc_32c(!0, b"123456789"));
    }
    #[test]
    fn a_checksum_is_followed_back() {
        let bytes = b"what lies between";
        let behind = crc_32c(0x1234_5678, bytes);
        assert_eq!(crc_32c_before(behind, bytes), 0x1234_5678);
        let behind = crc_32c(0x8765_4321, &0xCAFE_F00D_u32.to_le_bytes());
        assert_eq!(crc_32c_between(0x8765_4321, behind), 0xCAFE_F00D);
        assert_eq!(crc_32(b"123456789"), 0xCBF4_3926);
    }
}
