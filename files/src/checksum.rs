//! The checksums of ext: CRC-32C and CRC-16, without the inversions that other formats add.

const CRC_32C: [u32; 256] = table_32(0x82F6_3B78);
const CRC_16: [u16; 256] = table_16(0xA001);

/// Goes on with a CRC-32C over more bytes.
pub(crate) fn crc_32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| crc >> 8 ^ CRC_32C[usize::from(crc as u8 ^ byte)])
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
}
