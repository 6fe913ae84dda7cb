//! One image: where its bytes are.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx::{Error, ErrorKind, LayerId, Result};

use super::footer::{self, Footer, Kind, SECTOR, be32, damaged};
use super::header::{self, Header};
use crate::cache::{Pages, read_up_to};
use crate::file::Warning;
use crate::stack::{Found, Layer, find_raw};

/// The pages of tables and bitmaps that a layer keeps, of 4 KiB each.
const PAGES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// The most blocks that one look passes over.
const MOST_BLOCKS: u64 = 1 << 16;
/// What the table has for a block that lies nowhere.
pub(super) const UNUSED: u32 = u32::MAX;

/// An image.
#[derive(Debug)]
pub(super) struct VhdLayer {
    pub(super) id: LayerId,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) footer: Footer,
    /// None for a fixed image.
    pub(super) blocks: Option<Blocks>,
    /// What is odd, though the image is read.
    pub(super) oddities: Vec<(&'static str, String)>,
}

/// The blocks of a dynamic or differencing image.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) header: Header,
    pages: Pages,
    /// The bytes of a block's bitmap.
    bitmap: u64,
    /// The length of the file.
    len: u64,
}

impl VhdLayer {
    /// What is odd, though the image is read.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> + '_ {
        let name = self.storage.name();
        self.oddities.iter().map(move |(code, message)| Warning::new(code, name, message.as_str()))
    }

    /// Opens the image in `storage`.
    pub(super) fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let name = storage.name().to_owned();
        Self::open_unnamed(storage).map_err(|error| error.in_file(name))
    }

    fn open_unnamed(storage: Arc<dyn Storage>) -> Result<Self> {
        let len = storage.len()?;
        if len > i64::MAX as u64 {
            let message = "the file is longer than any host supports";
            return Err(Error::new(ErrorKind::Limit, "vhd.file-length", message));
        }
        let mut oddities = Vec::new();
        let (footer, end) = find_footer(storage.as_ref(), len, &mut oddities)?;
        if footer.is_saved_state {
            let message =
                "the machine of this disk is in a saved state, which the disk alone does not have";
            oddities.push(("vhd.saved-state", message.to_owned()));
        }
        let blocks = match footer.kind {
            Kind::Fixed => {
                if footer.size > end {
                    let message = "the file ends before the disk does";
                    return Err(damaged("vhd.truncated", message, end)
                        .with_found(format_args!("{end} bytes before the footer"))
                        .with_expected(footer.size));
                }
                if footer.size < end {
                    let message = format!(
                        "{} bytes between the end of the disk and the footer are not part of the disk",
                        end - footer.size
                    );
                    oddities.push(("vhd.gap", message));
                }
                None
            }
            Kind::Dynamic | Kind::Differencing => {
                Some(Blocks::open(Arc::clone(&storage), len, &footer)?)
            }
        };
        Ok(Self { id: LayerId::unique(), storage, footer, blocks, oddities })
    }
}

impl Layer for VhdLayer {
    fn ids(&self) -> [LayerId; 2] {
        [self.id; 2]
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn size(&self) -> u64 {
        self.footer.size
    }

    fn find(&self, range: Range<u64>) -> Result<(u64, Found)> {
        match &self.blocks {
            Some(blocks) => blocks
                .find(range, self.footer.size, self.footer.kind)
                .map_err(|error| error.in_file(self.storage.name())),
            None => find_raw(self.storage.as_ref(), range),
        }
    }
}

/// The footer at the end of the file, or its copy at the start; and where the file ends before it.
fn find_footer(
    storage: &dyn Storage,
    len: u64,
    oddities: &mut Vec<(&'static str, String)>,
) -> Result<(Footer, u64)> {
    let mut head = [0; footer::LEN];
    read_up_to(storage, &mut head, 0)?;
    if head.starts_with(b"vhdxfile") {
        let message = "this is a VHDX image, not a VHD image";
        return Err(Error::new(ErrorKind::Unsupported, "vhd.is-vhdx", message).at(0));
    }
    let Some(at) = len.checked_sub(footer::LEN as u64) else {
        return Err(damaged("vhd.footer", "the file is shorter than a footer", 0)
            .with_found(format_args!("{len} bytes"))
            .with_expected("at least 512"));
    };
    let mut tail = [0; footer::LEN];
    read_up_to(storage, &mut tail, at)?;
    let error = match Footer::parse(&tail, at) {
        Ok(last) => {
            if last.kind != Kind::Fixed && head != tail {
                let message = "the footer and its copy at the start differ; the footer counts";
                oddities.push(("vhd.copy", message.to_owned()));
            }
            return Ok((last, at));
        }
        Err(error) => error,
    };
    // Images of Virtual PC before 2004 have footers of 511 bytes; the last one is always zero.
    let mut old = [0; footer::LEN];
    old[..footer::LEN - 1].copy_from_slice(&tail[1..]);
    if let Ok(old) = Footer::parse(&old, at + 1) {
        return Ok((old, at + 1));
    }
    // A fixed image has no copy: whoever wrote the disk can write one into the first sector. What it leads to has to be an
    // image all the same, whose parents are opened only where they are asked for.
    let copy = Footer::parse(&head, 0).ok().filter(|copy| copy.kind != Kind::Fixed);
    let Some(copy) = copy else { return Err(error) };
    let message = format!("the copy at the start is used: {}", error.message());
    oddities.push(("vhd.footer-lost", message));
    Ok((copy, len))
}

impl Blocks {
    fn open(storage: Arc<dyn Storage>, len: u64, footer: &Footer) -> Result<Self> {
        let header =
            Header::read(storage.as_ref(), footer.data_offset, len, footer.size, footer.kind)?;
        let bits = u64::from(header.block_size) / SECTOR;
        let bitmap = bits.div_ceil(8).next_multiple_of(SECTOR);
        let pages = Pages::new(storage, PAGES);
        let blocks = Self { header, pages, bitmap, len };
        blocks.check(footer)?;
        Ok(blocks)
    }

    /// Refuses tables whose blocks lie on each other, or on what says where they lie.
    fn check(&self, footer: &Footer) -> Result<()> {
        let own = [
            (0..footer::LEN as u64, "the copy of the footer"),
            (footer.data_offset..footer.data_offset + header::LEN as u64, "the dynamic header"),
            (self.entry_at(0)..self.entry_at(self.header.entries.into()), "the table itself"),
        ];
        let len = self.bitmap + u64::from(self.header.block_size);
        let mut places = Vec::new();
        let mut bytes = vec![0; 64 << 10];
        let mut block = 0;
        while block < self.header.entries {
            let count = (self.header.entries - block).min(bytes.len() as u32 / 4);
            let part = &mut bytes[..count as usize * 4];
            self.pages.read(part, self.entry_at(block.into()))?;
            for (entry, block) in part.chunks(4).map(|entry| be32(entry, 0)).zip(block..) {
                if entry == UNUSED {
                    continue;
                }
                let place = u64::from(entry) * SECTOR;
                let met = own.iter().find(|(own, _)| place < own.end && own.start < place + len);
                if let Some((_, what)) = met {
                    let message = format!("block {block} lies on {what}");
                    return Err(self.misplaced(block, message, place));
                }
                places.push((entry, block));
            }
            block += count;
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            let (place, next) = (u64::from(pair[0].0) * SECTOR, u64::from(pair[1].0) * SECTOR);
            if next < place + len {
                let message = format!("block {} lies on block {}", pair[1].1, pair[0].1);
                return Err(self
                    .misplaced(pair[1].1, message, next)
                    .with_expected(format_args!("{:#x} or more", place + len)));
            }
        }
        Ok(())
    }

    fn misplaced(&self, block: u32, message: String, place: u64) -> Error {
        damaged("vhd.block", message, self.entry_at(block.into()))
            .with_found(format_args!("{place:#x}"))
    }

    fn entry_at(&self, block: u64) -> u64 {
        self.header.table_offset + block * 4
    }

    fn find(&self, range: Range<u64>, size: u64, kind: Kind) -> Result<(u64, Found)> {
        let block_size = u64::from(self.header.block_size);
        let elsewhere = match kind {
            Kind::Differencing => Found::Below,
            Kind::Fixed | Kind::Dynamic => Found::Zeros,
        };
        let block = range.start / block_size;
        let entry = self.entry(block)?;
        if entry == UNUSED {
            let last = (range.end - 1) / block_size;
            let most = last.min(block + MOST_BLOCKS);
            let mut next = block + 1;
            while next <= most && self.entry(next)? == UNUSED {
                next += 1;
            }
            return Ok(((next * block_size).min(range.end), elsewhere));
        }
        let place = u64::from(entry) * SECTOR;
        let start = block * block_size;
        let end = (start + block_size).min(range.end);
        let data = place + self.bitmap;
        // The last block may end with the disk.
        let used = block_size.min(size - start);
        if data + used > self.len {
            let message = format!("the file ends before block {block} does");
            return Err(damaged("vhd.truncated", message, self.len)
                .with_found(format_args!("{} bytes", self.len))
                .with_expected(format_args!("at least {}", data + used)));
        }
        let found = |at: u64| Found::Data(data + (at - start));
        if kind != Kind::Differencing {
            return Ok((end, found(range.start)));
        }
        let sectors = (range.start - start) / SECTOR..(end - start).div_ceil(SECTOR);
        let (is_here, until) = self.same_bits(place, sectors)?;
        let end = (start + until * SECTOR).min(end);
        Ok((end, if is_here { found(range.start) } else { Found::Below }))
    }

    fn entry(&self, block: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.pages.read(&mut bytes, self.entry_at(block))?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// The first of some bits of a bitmap, and the end of the run of bits that are like it.
    fn same_bits(&self, bitmap: u64, sectors: Range<u64>) -> Result<(bool, u64)> {
        let mut bytes = [0; 512];
        let (mut at, mut first) = (sectors.start, None);
        while at < sectors.end {
            let byte = at / 8;
            let count = ((sectors.end.div_ceil(8) - byte) as usize).min(bytes.len());
            self.pages.read(&mut bytes[..count], bitmap + byte)?;
            let end = sectors.end.min((byte + count as u64) * 8);
            while at < end {
                let bit = bytes[(at / 8 - byte) as usize] << (at % 8) & 0x80 != 0;
                if *first.get_or_insert(bit) != bit {
                    return Ok((!bit, at));
                }
                at += 1;
            }
        }
        Ok((first == Some(true), at))
    }
}
