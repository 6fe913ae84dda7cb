//! One image: where its bytes are.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use avhdx::storage::Storage;
use avhdx::{Error, ErrorKind, LayerId, Result};

use super::descriptor::{Descriptor, ExtentLine, LineKind, MOST};
use super::facts::{ExtentKind, VmdkExtent, VmdkImage};
use super::header::{Header, Magic, damaged, unsupported};
use super::sparse::Sparse;
use crate::cache::read_up_to;
use crate::file::Warning;
use crate::stack::{Found, Layer, find_raw};

/// The pages of tables that an image keeps, of 4 KiB each, and the fewest of an extent.
const PAGES: usize = 512;
const FEWEST_PAGES: usize = 4;

/// An image.
#[derive(Debug)]
pub(super) struct VmdkLayer {
    ids: [LayerId; 2],
    storage: Arc<dyn Storage>,
    pub(super) descriptor: Descriptor,
    /// The extents in the order of the disk, without gaps; none if they were not opened.
    parts: Vec<Part>,
    size: u64,
    is_dirty: bool,
    /// The grain that was unpacked last, by its place on the disk.
    unpacked: Mutex<Option<(u64, Vec<u8>)>>,
}

/// An extent.
#[derive(Debug)]
struct Part {
    ids: [LayerId; 2],
    storage: Arc<dyn Storage>,
    /// Its place on the disk.
    range: Range<u64>,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Zero,
    /// As they are from here on.
    Flat(u64),
    Sparse(Box<Sparse>),
}

/// Opens the file of an extent by its recorded name.
pub(super) type OpenExtent<'a> = &'a dyn Fn(&str) -> Result<Arc<dyn Storage>>;

impl VmdkLayer {
    /// Opens an image, with its extents if they can be opened.
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        open_extent: Option<OpenExtent<'_>>,
    ) -> Result<Self> {
        let name = storage.name().to_owned();
        Self::open_unnamed(storage, open_extent).map_err(|error| error.in_file(name))
    }

    fn open_unnamed(
        storage: Arc<dyn Storage>,
        open_extent: Option<OpenExtent<'_>>,
    ) -> Result<Self> {
        let (descriptor, own) = read_descriptor(storage.as_ref())?;
        if descriptor.extents.is_empty() {
            let message = "the descriptor has no extents";
            return Err(damaged("vmdk.descriptor", message, 0));
        }
        let mut layer = Self {
            ids: [LayerId::unique(), LayerId::unique()],
            storage,
            size: descriptor.extents.iter().map(|extent| extent.size).sum(),
            is_dirty: own.is_some_and(|header| header.is_dirty),
            descriptor,
            parts: Vec::new(),
            unpacked: Mutex::new(None),
        };
        if let Some(open_extent) = open_extent {
            layer.open_parts(own.is_some(), open_extent)?;
        }
        Ok(layer)
    }

    fn open_parts(&mut self, is_own: bool, open_extent: OpenExtent<'_>) -> Result<()> {
        let count = self.descriptor.extents.len();
        let pages = (PAGES / count).max(FEWEST_PAGES);
        let pages = NonZeroUsize::new(pages).unwrap_or(NonZeroUsize::MIN);
        let mut start = 0;
        for line in &self.descriptor.extents {
            let storage = match &line.kind {
                LineKind::Zero => Arc::clone(&self.storage),
                _ if is_own => Arc::clone(&self.storage),
                LineKind::Flat { name, .. } | LineKind::Sparse { name } => {
                    open_extent(name).map_err(|error| error.at(line.at))?
                }
            };
            let name = storage.name().to_owned();
            let bytes = Bytes::open(line, &storage, pages).map_err(|error| error.in_file(name))?;
            if let Bytes::Sparse(sparse) = &bytes {
                self.is_dirty |= sparse.header.is_dirty;
            }
            let ids = match count {
                1 => self.ids,
                _ => [LayerId::unique(), LayerId::unique()],
            };
            let range = start..start + line.size;
            start = range.end;
            self.parts.push(Part { ids, storage, range, bytes });
        }
        Ok(())
    }

    /// What the image records, and of its extents what is known.
    pub(super) fn image(&self) -> VmdkImage {
        let extents = self.descriptor.extents.iter().enumerate().map(|(n, line)| {
            let part = self.parts.get(n);
            let (kind, recorded) = match &line.kind {
                LineKind::Zero => (ExtentKind::Zero, None),
                LineKind::Flat { name, .. } => (ExtentKind::Flat, Some(name)),
                LineKind::Sparse { name } => (ExtentKind::Sparse, Some(name)),
            };
            let file = part.map(|part| &part.storage).filter(|_| kind != ExtentKind::Zero);
            let [layer, packed] = part.map_or(self.ids, |part| part.ids);
            VmdkExtent {
                layer,
                packed,
                recorded: recorded.cloned(),
                name: file.map(|file| file.name().to_owned()),
                path: file.and_then(|file| file.path()).map(Path::to_path_buf),
                kind,
                size: line.size,
                grain_size: part.and_then(|part| match &part.bytes {
                    Bytes::Sparse(sparse) => Some(sparse.header.grain),
                    _ => None,
                }),
            }
        });
        let parent = self.descriptor.parent.as_ref();
        VmdkImage {
            name: self.storage.name().to_owned(),
            path: self.storage.path().map(Path::to_path_buf),
            size: self.size,
            create_type: self.descriptor.create_type.clone(),
            content_id: self.descriptor.content_id,
            parent_content_id: parent.map(|parent| parent.content_id),
            parent: parent.map(|parent| parent.name.clone()),
            extents: extents.collect(),
        }
    }

    pub(super) fn warnings(&self) -> Option<Warning> {
        let message =
            "the image was not closed: what was written last may be missing; it is read as it is";
        self.is_dirty.then(|| Warning::new("vmdk.dirty", self.storage.name(), message))
    }

    fn part(&self, offset: u64) -> Result<&Part> {
        let n = self.parts.partition_point(|part| part.range.end <= offset);
        self.parts.get(n).ok_or_else(|| Error::other("the image was opened without its extents"))
    }
}

/// The descriptor, and the header if the only extent is in the same file.
fn read_descriptor(storage: &dyn Storage) -> Result<(Descriptor, Option<Header>)> {
    let len = storage.len()?;
    let (at, descriptor_len, header) = match Magic::of(storage)? {
        Magic::None => (0, len, None),
        Magic::Hosted => {
            let header = Header::read(storage, len)?;
            let Some((at, len)) = header.descriptor else { return Err(alone()) };
            (at, len, Some(header))
        }
        Magic::Cowd | Magic::Se => return Err(alone()),
    };
    let mut bytes = vec![0; descriptor_len.min(MOST).min(len) as usize];
    let read = read_up_to(storage, &mut bytes, at)?;
    bytes.truncate(read);
    let descriptor = Descriptor::parse(&bytes, at)?;
    if descriptor_len > MOST {
        let message = "the descriptor is longer than is read";
        return Err(Error::new(ErrorKind::Limit, "vmdk.descriptor-length", message)
            .at(at)
            .with_found(format_args!("{descriptor_len} bytes"))
            .with_expected(format_args!("at most {MOST}")));
    }
    // One without a capacity holds a descriptor alone.
    let own = header.filter(|header| header.capacity > 0);
    let is_one =
        matches!(&descriptor.extents[..], [ExtentLine { kind: LineKind::Sparse { .. }, .. }]);
    if own.is_some() && !is_one {
        let message = "the descriptor inside an extent does not describe this extent alone";
        return Err(damaged("vmdk.descriptor", message, at)
            .with_found(format_args!("{} extents", descriptor.extents.len()))
            .with_expected("one with tables"));
    }
    Ok((descriptor, own))
}

fn alone() -> Error {
    let message = "the file is an extent of an image: the descriptor beside it is what is opened";
    unsupported("vmdk.extent-alone", message, 0)
}

impl Bytes {
    fn open(line: &ExtentLine, storage: &Arc<dyn Storage>, pages: NonZeroUsize) -> Result<Self> {
        match line.kind {
            LineKind::Zero => Ok(Self::Zero),
            LineKind::Flat { start, .. } => {
                let len = storage.len()?;
                if start.checked_add(line.size).is_none_or(|end| end > len) {
                    let message = "the file ends before the extent does";
                    return Err(damaged("vmdk.extent-size", message, len)
                        .with_found(format_args!("{len} bytes"))
                        .with_expected(format_args!("{} from {start:#x} on", line.size)));
                }
                Ok(Self::Flat(start))
            }
            LineKind::Sparse { .. } => {
                let sparse = Sparse::open(Arc::clone(storage), pages)?;
                let Header { capacity, grain, .. } = sparse.header;
                // The tables may be for whole grains.
                let is_so = capacity >= line.size && capacity - line.size < grain;
                if capacity == 0 || !is_so {
                    let message = "the extent has another size than its descriptor has for it";
                    return Err(damaged("vmdk.extent-size", message, 0)
                        .with_found(format_args!("{capacity} bytes"))
                        .with_expected(format_args!("{}", line.size)));
                }
                Ok(Self::Sparse(Box::new(sparse)))
            }
        }
    }
}

impl Layer for VmdkLayer {
    fn ids(&self) -> [LayerId; 2] {
        self.ids
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn file_at(&self, offset: u64) -> (&Arc<dyn Storage>, [LayerId; 2]) {
        self.part(offset).map_or((&self.storage, self.ids), |part| (&part.storage, part.ids))
    }

    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        let parts = self.parts.iter().map(|part| &part.storage);
        std::iter::once(&self.storage).chain(parts).collect()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn find(&self, range: Range<u64>) -> Result<(u64, Found)> {
        let part = self.part(range.start)?;
        let start = part.range.start;
        let within = range.start - start..range.end.min(part.range.end) - start;
        let (end, found) = match &part.bytes {
            Bytes::Zero => (within.end, Found::Zeros),
            Bytes::Flat(first) => {
                let (end, found) =
                    find_raw(part.storage.as_ref(), first + within.start..first + within.end)?;
                (end - first, found)
            }
            Bytes::Sparse(sparse) => {
                sparse.find(within).map_err(|error| error.in_file(part.storage.name()))?
            }
        };
        Ok((start + end, found))
    }

    fn unit(&self) -> u64 {
        let grain = |part: &Part| match &part.bytes {
            Bytes::Sparse(sparse) => sparse.header.grain,
            _ => 0,
        };
        self.parts.iter().map(grain).max().unwrap_or(0)
    }

    fn unpack(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let part = self.part(offset)?;
        let Bytes::Sparse(sparse) = &part.bytes else {
            return Err(Error::other("an extent without tables packs nothing"));
        };
        let start = sparse.grain_start(offset - part.range.start);
        let key = part.range.start + start;
        let first = (offset - key) as usize;
        let mut fill = |bytes: &[u8]| match bytes.get(first..first + buf.len()) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::other("the image changed while it was read")),
        };
        let held = || self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = held().as_ref().filter(|(at, _)| *at == key) {
            return fill(bytes);
        }
        // Without the lock: others unpack meanwhile.
        let bytes = sparse.unpacked(start).map_err(|error| error.in_file(part.storage.name()))?;
        fill(&bytes)?;
        *held() = Some((key, bytes));
        Ok(())
    }
}
