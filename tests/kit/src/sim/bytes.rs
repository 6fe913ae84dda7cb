//! The bytes of a file: sparse, cheap to copy, and with a checksum that is updated with each change.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use avhdx_testkit::naive;

/// The unit of sharing and of checksums, in bytes.
pub const PAGE: usize = 4096;

/// What stale space is full of: no payload, no structure, and as a table or a bitmap it names something.
pub const STALE: [u8; 8] = *b"\xDBstale\xDB\x0F";

/// A file of any length that takes as much memory as was written to it. Copies share their pages.
#[derive(Clone, Debug, Default)]
pub struct Bytes {
    len: u64,
    /// Pages that are not all zeros.
    pages: Arc<BTreeMap<u64, Arc<Page>>>,
    /// The checksums of all pages, each mixed with its position.
    sum: Sum,
}

/// Checksums that are equal if the bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sum {
    /// Over every byte.
    pub exact: u64,
    /// Without the identities in headers and log entries, which are random, and their checksums: outcomes of two
    /// runs that are equal except for these count as one.
    pub plain: u64,
}

impl std::ops::BitXor for Sum {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        Self { exact: self.exact ^ other.exact, plain: self.plain ^ other.plain }
    }
}

impl Sum {
    fn at(self, place: u64) -> Self {
        Self { exact: mix(self.exact, place), plain: mix(self.plain, place) }
    }

    fn both(sum: u64) -> Self {
        Self { exact: sum, plain: sum }
    }
}

#[derive(Debug)]
struct Page {
    bytes: [u8; PAGE],
    sum: Sum,
}

/// Bytes to be written, split into pages once for many writes.
#[derive(Debug)]
pub struct Chunk {
    /// The offset in the file.
    pub at: u64,
    /// The bytes.
    pub data: Arc<[u8]>,
    /// The pages that it fills, by number.
    whole: BTreeMap<u64, Arc<Page>>,
}

impl Chunk {
    /// Bytes to be written at an offset.
    pub fn new(at: u64, data: &[u8]) -> Self {
        let mut whole = BTreeMap::new();
        for (page, within, part) in parts(at, data.len()) {
            if part.len() == PAGE {
                let mut bytes = [0; PAGE];
                bytes.copy_from_slice(&data[part]);
                whole.insert(page, Arc::new(Page::new(bytes)));
            }
            debug_assert!(within < PAGE);
        }
        Self { at, data: data.into(), whole }
    }

    /// The offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.at + self.data.len() as u64
    }
}

impl Page {
    fn new(bytes: [u8; PAGE]) -> Self {
        let exact = sum_of(&bytes);
        let plain = match &bytes[..4] {
            b"head" => {
                let mut plain = bytes;
                plain[4..8].fill(0);
                for guid in [16..32, 32..48, 48..64] {
                    let is_nil = plain[guid.clone()].iter().all(|byte| *byte == 0);
                    plain[guid].fill(u8::from(!is_nil));
                }
                sum_of(&plain)
            }
            b"loge" => {
                let mut plain = bytes;
                plain[4..8].fill(0);
                plain[32..48].fill(0);
                sum_of(&plain)
            }
            _ => exact,
        };
        Self { sum: Sum { exact, plain }, bytes }
    }
}

impl Bytes {
    /// The length of the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A checksum over length and contents.
    pub fn sum(&self) -> Sum {
        self.sum ^ Sum::both(mix(self.len, 0x6C65_6E67))
    }

    /// The contribution of the pages in `range` to the checksum.
    pub fn sum_within(&self, range: std::ops::Range<u64>) -> Sum {
        let pages = self.pages.range(range.start / PAGE as u64..range.end.div_ceil(PAGE as u64));
        pages.fold(Sum::default(), |sum, (number, page)| sum ^ page.sum.at(*number))
    }

    /// Cuts the file, or grows it by zeros.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            let first = len.div_ceil(PAGE as u64);
            for (number, page) in Arc::make_mut(&mut self.pages).split_off(&first) {
                self.sum = self.sum ^ page.sum.at(number);
            }
            let within = (len % PAGE as u64) as usize;
            if within > 0 {
                self.write(len, &vec![0; PAGE - within]);
            }
        }
        self.len = len;
    }

    /// Fills a page with stale bytes, as far as it lies before `end`.
    pub fn fill_stale(&mut self, page: u64, end: u64) {
        static STALE_PAGE: OnceLock<Arc<Page>> = OnceLock::new();
        let at = page * PAGE as u64;
        if at + PAGE as u64 <= end {
            let bytes = || std::array::from_fn(|i| STALE[i % STALE.len()]);
            let stale = STALE_PAGE.get_or_init(|| Arc::new(Page::new(bytes())));
            self.put(page, Arc::clone(stale));
            self.len = self.len.max(at + PAGE as u64);
        } else if at < end {
            let bytes: Vec<u8> = STALE.iter().copied().cycle().take((end - at) as usize).collect();
            self.write(at, &bytes);
        }
    }

    /// Reads from `at` on; all of `buf` lies in the file.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        for (number, within, part) in parts(at, buf.len()) {
            let len = part.len();
            match self.pages.get(&number) {
                Some(page) => buf[part].copy_from_slice(&page.bytes[within..within + len]),
                None => buf[part].fill(0),
            }
        }
    }

    /// Writes `data` at `at`; the file grows to hold it.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        for (number, within, part) in parts(at, data.len()) {
            let mut bytes = self.pages.get(&number).map_or([0; PAGE], |page| page.bytes);
            bytes[within..within + part.len()].copy_from_slice(&data[part]);
            self.put(number, Arc::new(Page::new(bytes)));
        }
        self.len = self.len.max(at + data.len() as u64);
    }

    /// Writes a chunk; its pages are shared where it fills them.
    pub fn write_chunk(&mut self, chunk: &Chunk) {
        if chunk.whole.is_empty() {
            return self.write(chunk.at, &chunk.data);
        }
        for (number, _, part) in parts(chunk.at, chunk.data.len()) {
            match chunk.whole.get(&number) {
                Some(page) => self.put(number, Arc::clone(page)),
                None => self.write(chunk.at + part.start as u64, &chunk.data[part]),
            }
        }
        self.len = self.len.max(chunk.end());
    }

    fn put(&mut self, number: u64, page: Arc<Page>) {
        let is_zero = page.sum.exact == 0;
        self.sum = self.sum ^ page.sum.at(number);
        let pages = Arc::make_mut(&mut self.pages);
        let old = if is_zero { pages.remove(&number) } else { pages.insert(number, page) };
        if let Some(old) = old {
            self.sum = self.sum ^ old.sum.at(number);
        }
    }
}

impl naive::Bytes for Bytes {
    fn len(&self) -> u64 {
        self.len()
    }

    fn read(&self, at: u64, buf: &mut [u8]) {
        self.read(at, buf);
    }
}

/// Splits a range at pages: the number of each, the start of the part in it, and the part.
fn parts(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let place = at + done as u64;
        let within = (place % PAGE as u64) as usize;
        let part = done..len.min(done + PAGE - within);
        done = part.end;
        Some((place / PAGE as u64, within, part))
    })
}

/// Zero for a page of zeros.
fn sum_of(bytes: &[u8; PAGE]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    if words.iter().all(|word| *word == [0; 8]) {
        return 0;
    }
    let mut lanes = [1_u64, 2, 3, 4];
    let (groups, _) = words.as_chunks::<4>();
    for group in groups {
        for (lane, word) in lanes.iter_mut().zip(group) {
            let product = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            *lane = product ^ product >> 29;
        }
    }
    lanes.into_iter().fold(1, |sum, lane| mix(sum, lane).max(1))
}

/// Zero stays zero, so that a page of zeros does not count.
pub fn mix(sum: u64, place: u64) -> u64 {
    if sum == 0 {
        return 0;
    }
    let z = (sum ^ place.wrapping_mul(0xD6E8_FEB8_6659_FD93)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 31).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 29
}
