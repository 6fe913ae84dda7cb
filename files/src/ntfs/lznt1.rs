//! LZNT1, the compression of NTFS files [MS-XCA 2.5].

/// A chunk holds this many bytes before compression, the last one maybe fewer.
const CHUNK: usize = 4096;
const IS_COMPRESSED: u16 = 0x8000;

/// Decodes chunks into `out`; what they leave is zeros. The error says what is wrong with them.
pub(super) fn decode(mut packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    out.fill(0);
    for chunk in out.chunks_mut(CHUNK) {
        let Some((header, rest)) = packed.split_first_chunk() else { break };
        let header = u16::from_le_bytes(*header);
        if header == 0 {
            break;
        }
        let len = usize::from(header & 0xFFF) + 1;
        let Some((body, rest)) = rest.split_at_checked(len) else {
            return Err(format!("a chunk has {len} bytes, and {} are left", rest.len()));
        };
        packed = rest;
        if header & IS_COMPRESSED == 0 {
            let Some(place) = chunk.get_mut(..len) else {
                return Err(format!(
                    "a chunk of {len} bytes as they are, where {} fit",
                    chunk.len()
                ));
            };
            place.copy_from_slice(body);
        } else {
            decode_chunk(body, chunk)?;
        }
    }
    Ok(())
}

fn decode_chunk(mut body: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut at = 0;
    while let Some((flags, rest)) = body.split_first() {
        body = rest;
        for bit in 0..8 {
            if body.is_empty() {
                return Ok(());
            }
            if flags >> bit & 1 == 0 {
                let Some(place) = out.get_mut(at) else {
                    return Err(format!("a chunk holds more than {} bytes", out.len()));
                };
                *place = body[0];
                (at, body) = (at + 1, &body[1..]);
                continue;
            }
            let Some((token, rest)) = body.split_first_chunk() else {
                return Err("a chunk ends within a reference".into());
            };
            (body, at) = (rest, copy(u16::from_le_bytes(*token), out, at)?);
        }
    }
    Ok(())
}

/// Copies what the token refers to; the further the chunk is, the more bits say how far back that is.
fn copy(token: u16, out: &mut [u8], at: usize) -> Result<usize, String> {
    let last = at.checked_sub(1).ok_or("a chunk begins with a reference")?;
    let bits = (usize::BITS - last.leading_zeros()).max(4);
    let len = usize::from(token & (0xFFFF >> bits)) + 3;
    let back = usize::from(token >> (16 - bits)) + 1;
    if back > at || at + len > out.len() {
        return Err(format!("a chunk refers to {len} bytes {back} before its byte {at}"));
    }
    // The bytes may overlap those that they are copied from.
    for to in at..at + len {
        out[to] = out[to - back];
    }
    Ok(at + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification_is_decoded() {
        // [MS-XCA 3.3]
        let packed = [
            0x38, 0xB0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xA2,
            0x47, 0x01, 0xA0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xC0,
            0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xB4, 0x02, 0x4A, 0x44, 0xEF, 0x03, 0x58,
            0x02, 0x8C, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xBE, 0x00, 0x9E, 0x00, 0x04, 0x01,
            0x18, 0x90, 0x00,
        ];
        let plain = "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# \
                     G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        let mut out = vec![0xFF; CHUNK];
        decode(&packed, &mut out).unwrap();
        assert_eq!(std::str::from_utf8(&out[..plain.len()]).unwrap(), plain);
        assert!(out[plain.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn chunks_that_lead_outside_are_refused() {
        let mut out = vec![0; 2 * CHUNK];
        for packed in [
            &[0x02, 0xB0, 0x01, 0x00, 0x00][..],
            &[0x05, 0xB0, 0x02, 0x41, 0x00, 0x10, 0x42],
            &[0xFF, 0xBF, 0x00],
            &[0x01, 0xB0, 0x01, 0x00],
        ] {
            assert!(decode(packed, &mut out).is_err(), "{packed:02x?}");
        }
        let far = [&[0x03, 0xB0, 0x02, 0x41, 0xFF, 0x0F][..], &[0; 2]].concat();
        assert!(decode(&far, &mut out).is_err());
    }
}
