//! Checks of an image by the naive reader, beyond what reading needs.

use crate::naive::Layer;

const MIB: u64 = 1 << 20;

impl Layer {
    /// Describes violations of the rules that hold an image together: block states and offsets,
    /// overlaps, bitmaps, the length of the file. Empty for a sound image. A file may end with the disk,
    /// within its last block, as some writers leave it.
    pub fn faults(&self) -> Vec<String> {
        self.look().0
    }

    /// The minimum length of the file.
    pub fn needed_length(&self) -> u64 {
        self.look().1
    }

    fn look(&self) -> (Vec<String>, u64) {
        let mut faults = Vec::new();
        // The header section, the log and the regions, then every block.
        let mut places: Vec<(u64, u64, String)> = vec![(0, MIB, "the header section".into())];
        for (i, (at, len)) in self.structures.iter().enumerate() {
            if !at.is_multiple_of(MIB) || !len.is_multiple_of(MIB) {
                faults.push(format!("structure {i} is misaligned"));
            }
            places.push((*at, at + len, format!("structure {i}")));
        }
        let ratio = (self.sector << 23) / self.block_size;
        let blocks = self.size.div_ceil(self.block_size);
        let entries = match self.has_parent {
            true => blocks.div_ceil(ratio) * (ratio + 1),
            false => blocks + blocks.saturating_sub(1) / ratio,
        };
        if entries * 8 > self.bat.1 {
            faults.push("the BAT is too short".into());
        }
        let bat = match self.get(self.bat.0, (entries * 8).min(self.bat.1)) {
            Ok(bat) => bat,
            Err(error) => return (vec![error], u64::MAX),
        };
        let mut needed = places.iter().map(|place| place.1).max().unwrap_or_default();
        let entry = |i: u64| {
            let bytes = bat.get(8 * i as usize..8 * i as usize + 8).unwrap_or(&[0; 8]);
            bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
        };
        for i in 0..entries {
            let found = entry(i);
            if found == 0 {
                continue;
            }
            let (state, at) = (found & 7, found >> 20 << 20);
            if found & 0xF_FFF8 != 0 {
                faults.push(format!("BAT entry {i} has reserved bits set: {found:#x}"));
            }
            let (chunk, is_bitmap) = (i / (ratio + 1), i % (ratio + 1) == ratio);
            if !is_bitmap && i - chunk >= blocks {
                faults.push(format!("BAT entry {i} is {found:#x}, behind the end of the disk"));
            }
            let len = if is_bitmap { MIB } else { self.block_size };
            let holds = match (is_bitmap, state) {
                (true, 0) => false,
                (true, 6) if self.has_parent => true,
                (false, 3) => at != 0,
                (false, 0..=2) => false,
                (false, 6) => true,
                (false, 7) if self.has_parent => {
                    if entry(chunk * (ratio + 1) + ratio) & 7 != 6 {
                        faults.push(format!("BAT entry {i} is partial without a bitmap"));
                    }
                    true
                }
                _ => {
                    faults.push(format!("BAT entry {i} has state {state}"));
                    false
                }
            };
            if holds {
                // Of the last block only the part within the disk.
                let start = if is_bitmap { 0 } else { (i - chunk) * self.block_size };
                needed = needed.max(at.saturating_add(len.min(self.size.saturating_sub(start))));
                places.push((at, at.saturating_add(len), format!("BAT entry {i}")));
            } else if state == 2 && at != 0 {
                faults.push(format!("BAT entry {i} is ZERO with an offset"));
            }
        }
        match self.first_nonzero(self.bat.0 + entries * 8, self.bat.0 + self.bat.1) {
            Ok(None) => {}
            Ok(Some(at)) => {
                let i = (at - self.bat.0) / 8;
                faults.push(format!("BAT entry {i} is set, behind the end of the disk"));
            }
            Err(error) => faults.push(error),
        }
        places.sort();
        for pair in places.windows(2) {
            if pair[0].1 > pair[1].0 {
                faults.push(format!("{} and {} overlap", pair[0].2, pair[1].2));
            }
        }
        let end = places.iter().map(|place| place.1).max().unwrap_or_default();
        // A replay makes the file at least this long.
        let len = self.len().max(self.last_file_offset.unwrap_or_default());
        if needed > len {
            faults.push(format!("a file of {len:#x} bytes for blocks that end at {needed:#x}"));
        }
        if self.last_file_offset.is_some_and(|last| end > last) {
            faults.push(format!("LastFileOffset before the end of the last block, {end:#x}"));
        }
        (faults, needed)
    }

    /// The first byte of the file from `at` to `end` that is not zero.
    fn first_nonzero(&self, at: u64, end: u64) -> Result<Option<u64>, String> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        for at in (at..end).step_by(ZEROS.len()) {
            let bytes = self.get(at, (end - at).min(ZEROS.len() as u64))?;
            // Most are zeros, and whole ranges are compared faster than bytes.
            if bytes != ZEROS[..bytes.len()] {
                return Ok(bytes.iter().position(|byte| *byte != 0).map(|n| at + n as u64));
            }
        }
        Ok(None)
    }
}
