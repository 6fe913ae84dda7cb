//! CRC-32C (Castagnoli), the only checksum of the format.

/// The reversed Castagnoli polynomial.
const POLY: u32 = 0x82F6_3B78;

/// `TABLES[k][b]`: the remainder of byte `b` followed by `k` zero bytes (slicing by eight).
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut b = 0;
    while b < 256 {
        let mut r = b as u32;
        let mut bit = 0;
        while bit < 8 {
            r = if r & 1 == 1 { (r >> 1) ^ POLY } else { r >> 1 };
            bit += 1;
        }
        t[0][b] = r;
        b += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut b = 0;
        while b < 256 {
            let r = t[k - 1][b];
            t[k][b] = (r >> 8) ^ t[0][(r & 0xFF) as usize];
            b += 1;
        }
        k += 1;
    }
    t
}

/// The CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !update(!0, bytes)
}

/// The CRC-32C of a structure whose 4-byte checksum field at `field` counts as zero.
pub fn sealed(bytes: &[u8], field: usize) -> u32 {
    let r = update(!0, &bytes[..field]);
    let r = update(r, &[0; 4]);
    !update(r, &bytes[field + 4..])
}

fn update(mut r: u32, bytes: &[u8]) -> u32 {
    let (eights, rest) = bytes.as_chunks::<8>();
    for e in eights {
        let lo = u32::from_le_bytes([e[0], e[1], e[2], e[3]]) ^ r;
        r = TABLES[7][(lo & 0xFF) as usize]
            ^ TABLES[6][(lo >> 8 & 0xFF) as usize]
            ^ TABLES[5][(lo >> 16 & 0xFF) as usize]
            ^ TABLES[4][(lo >> 24) as usize]
            ^ TABLES[3][e[4] as usize]
            ^ TABLES[2][e[5] as usize]
            ^ TABLES[1][e[6] as usize]
            ^ TABLES[0][e[7] as usize];
    }
    for &b in rest {
        r = (r >> 8) ^ TABLES[0][((r ^ u32::from(b)) & 0xFF) as usize];
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the CRC catalogue and the vectors of RFC 3720, B.4.
    #[test]
    fn known_answers() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&up), 0x46DD_794E);
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&down), 0x113F_DB5C);
    }

    #[test]
    fn field_counts_as_zero() {
        let mut b: Vec<u8> = (0..61).collect();
        let with = sealed(&b, 4);
        b[4..8].fill(0);
        assert_eq!(with, crc32c(&b));
    }
}
