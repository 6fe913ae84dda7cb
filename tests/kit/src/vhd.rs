//! Builds VHD images byte by byte from the published layout. Shares nothing with what reads them.

/// An image to be built. Offsets and lengths in bytes.
#[derive(Clone, Debug)]
pub struct Image {
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub kind: u8,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a block.
    pub block: u32,
    /// The identity.
    pub id: [u8; 16],
    /// What is recorded of the parent.
    pub parent: Option<Parent>,
    /// Runs of sectors: the first sector and the bytes.
    pub runs: Vec<(u64, Vec<u8>)>,
    /// The order in which blocks lie in the file is the one in which they come here, others follow.
    pub order: Vec<u64>,
}

/// What a differencing image records of its parent.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The identity.
    pub id: [u8; 16],
    /// When the parent last changed, in seconds since 2000.
    pub stamp: u32,
    /// The name.
    pub name: String,
    /// The path from the folder of the image.
    pub relative: Option<String>,
    /// The path on the machine that made the image.
    pub absolute: Option<String>,
}

impl Image {
    /// An image without bytes, whose identity has this byte 16 times.
    pub fn new(kind: u8, size: u64, block: u32, id: u8) -> Self {
        let runs = Vec::new();
        Self { kind, size, block, id: [id; 16], parent: None, runs, order: Vec::new() }
    }

    /// The bytes of the file.
    pub fn build(&self) -> Vec<u8> {
        let mut file = Vec::new();
        if self.kind == 2 {
            file.resize(self.size as usize, 0);
            for (sector, bytes) in &self.runs {
                file[*sector as usize * 512..][..bytes.len()].copy_from_slice(bytes);
            }
            file.extend(self.footer());
            return file;
        }
        let block = u64::from(self.block);
        let count = self.size.div_ceil(block) as usize;
        let bitmap = (block as usize / 512).div_ceil(8).next_multiple_of(512);
        file.extend(self.footer());
        file.extend([0; 1024]);
        let table_at = file.len();
        file.resize((table_at + count * 4).next_multiple_of(512), 0xFF);
        let mut locators = Vec::new();
        let parent = self.parent.iter();
        let paths = parent.flat_map(|p| [(b"W2ru", &p.relative), (b"W2ku", &p.absolute)]);
        for (code, path) in paths {
            let Some(path) = path else { continue };
            let bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            locators.push((code, file.len() as u64, bytes.len() as u32));
            file.extend(&bytes);
            file.resize(file.len().next_multiple_of(512), 0);
        }
        let used = |n: u64| self.runs.iter().any(|(s, b)| self.sectors(n, *s, b).is_some());
        let others = (0..count as u64).filter(|n| !self.order.contains(n));
        let order: Vec<u64> =
            self.order.iter().copied().chain(others).filter(|n| used(*n)).collect();
        for n in order {
            let at = file.len();
            file[table_at + n as usize * 4..][..4]
                .copy_from_slice(&((at / 512) as u32).to_be_bytes());
            file.resize(at + bitmap + block as usize, 0);
            for (sector, bytes) in &self.runs {
                let Some((from, to)) = self.sectors(n, *sector, bytes) else { continue };
                for s in from..to {
                    let within = (s - n * block / 512) as usize;
                    file[at + within / 8] |= 0x80 >> (within % 8);
                    file[at + bitmap + within * 512..][..512]
                        .copy_from_slice(&bytes[(s - sector) as usize * 512..][..512]);
                }
            }
        }
        file.splice(512..512 + 1024, self.header(table_at as u64, count as u32, &locators));
        file.extend(self.footer());
        file
    }

    /// What the disk reads as over its parent.
    pub fn flat(&self, parent: &[u8]) -> Vec<u8> {
        let mut flat = parent.to_vec();
        flat.resize(self.size as usize, 0);
        for (sector, bytes) in &self.runs {
            flat[*sector as usize * 512..][..bytes.len()].copy_from_slice(bytes);
        }
        flat
    }

    /// The sectors of a run in a block.
    fn sectors(&self, n: u64, first: u64, bytes: &[u8]) -> Option<(u64, u64)> {
        let per = u64::from(self.block) / 512;
        let from = first.max(n * per);
        let to = (first + bytes.len() as u64 / 512).min((n + 1) * per);
        (from < to).then_some((from, to))
    }

    fn footer(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(b"conectix");
        bytes[11] = 2;
        bytes[13] = 1;
        bytes[16..24].copy_from_slice(&[if self.kind == 2 { 0xFF } else { 0 }; 8]);
        if self.kind != 2 {
            bytes[22] = 2;
        }
        bytes[24..28].copy_from_slice(&700_000_000_u32.to_be_bytes());
        bytes[28..32].copy_from_slice(b"win ");
        bytes[36..40].copy_from_slice(b"Wi2k");
        bytes[40..48].copy_from_slice(&self.size.to_be_bytes());
        bytes[48..56].copy_from_slice(&self.size.to_be_bytes());
        bytes[56..60].copy_from_slice(&[0, 1, 4, 17]);
        bytes[63] = self.kind;
        bytes[68..84].copy_from_slice(&self.id);
        let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn header(&self, table: u64, count: u32, locators: &[(&[u8; 4], u64, u32)]) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        bytes[..8].copy_from_slice(b"cxsparse");
        bytes[8..16].fill(0xFF);
        bytes[16..24].copy_from_slice(&table.to_be_bytes());
        bytes[25] = 1;
        bytes[28..32].copy_from_slice(&count.to_be_bytes());
        bytes[32..36].copy_from_slice(&self.block.to_be_bytes());
        if let Some(parent) = &self.parent {
            bytes[40..56].copy_from_slice(&parent.id);
            bytes[56..60].copy_from_slice(&parent.stamp.to_be_bytes());
            let name: Vec<u8> = parent.name.encode_utf16().flat_map(u16::to_be_bytes).collect();
            bytes[64..64 + name.len()].copy_from_slice(&name);
            for (n, (code, place, len)) in locators.iter().enumerate() {
                let entry = &mut bytes[576 + 24 * n..][..24];
                entry[..4].copy_from_slice(*code);
                entry[4..8].copy_from_slice(&512_u32.to_be_bytes());
                entry[8..12].copy_from_slice(&len.to_be_bytes());
                entry[16..].copy_from_slice(&place.to_be_bytes());
            }
        }
        let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// Corrects the checksums of a footer's copy, the header and the footer after a change to their bytes.
pub fn seal(file: &mut [u8]) {
    let len = file.len();
    for (at, length, sum_at) in [(0, 512, 64), (512, 1024, 36), (len - 512, 512, 64)] {
        let Some(bytes) = file.get_mut(at..at + length) else { continue };
        if !matches!(&bytes[..8], b"conectix" | b"cxsparse") {
            continue;
        }
        bytes[sum_at..sum_at + 4].fill(0);
        let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        bytes[sum_at..sum_at + 4].copy_from_slice(&sum.to_be_bytes());
    }
}
