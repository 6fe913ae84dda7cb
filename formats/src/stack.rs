//! Images over each other, as one disk.

use std::fmt::Debug;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Builder};

use avhdx::storage::{FileId, Storage};
use avhdx::{Error, Extent, FileOffset, Geometry, LayerId, Result, Source};

/// From how many packed bytes on several threads are faster than one.
const MANY: usize = 128 << 10;
/// The most bytes that are unpacked in each of several threads at once.
const MOST_UNIT: u64 = 2 << 20;
/// How many threads a read uses at most: each takes the memory of a packed cluster.
const MOST_THREADS: usize = 4;

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// In the file, at this offset.
    Data(u64),
    /// In the file, packed.
    Packed,
    Zeros,
    /// In the image below.
    Below,
}

/// One image of several.
pub(crate) trait Layer: Debug + Send + Sync {
    /// Identifies its bytes in extents: those in the file, and those that are packed.
    fn ids(&self) -> [LayerId; 2];

    fn storage(&self) -> &Arc<dyn Storage>;

    /// The file of the bytes at an offset of the disk, and what identifies them, for images of several files. What
    /// [`find`](Self::find) finds together lies in one.
    fn file_at(&self, offset: u64) -> (&Arc<dyn Storage>, [LayerId; 2]) {
        let _ = offset;
        (self.storage(), self.ids())
    }

    /// All files.
    fn storages(&self) -> Vec<&Arc<dyn Storage>> {
        vec![self.storage()]
    }

    /// Bytes of its disk.
    fn size(&self) -> u64;

    /// Finds the bytes at the start of a range that is not empty and within the disk, and how far they are together.
    fn find(&self, range: Range<u64>) -> Result<(u64, Found)>;

    /// How many bytes are unpacked at once, whichever of them are asked for.
    fn unit(&self) -> u64 {
        0
    }

    /// Fills `buf` with the packed bytes at `offset`, which [`find`](Self::find) found together.
    fn unpack(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _ = (buf, offset);
        Err(Error::other("this format packs nothing"))
    }
}

/// The disk of layers, of which the first one counts.
#[derive(Debug)]
pub(crate) struct Stack<L>(pub(crate) Vec<L>);

/// What was found in a stack.
enum At<'a, L> {
    Data(&'a L, u64),
    Packed(&'a L),
    Zeros,
}

impl<L: Layer> Stack<L> {
    pub(crate) fn top(&self) -> &L {
        &self.0[0]
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry::new(self.top().size(), 512, 512)
    }

    fn find(&self, range: Range<u64>) -> Result<(u64, At<'_, L>)> {
        let mut end = range.end;
        for layer in &self.0 {
            // An image below may be shorter. What is behind its end is zeros, whatever images further below have there.
            if range.start >= layer.size() {
                return Ok((end, At::Zeros));
            }
            let (until, found) = layer.find(range.start..end.min(layer.size()))?;
            end = until;
            match found {
                Found::Data(at) => return Ok((end, At::Data(layer, at))),
                Found::Packed => return Ok((end, At::Packed(layer))),
                Found::Zeros => return Ok((end, At::Zeros)),
                Found::Below => {}
            }
        }
        Ok((end, At::Zeros))
    }

    pub(crate) fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        let mut packed = Vec::new();
        while !buf.is_empty() {
            let (end, found) = self.find(offset..offset + buf.len() as u64)?;
            let (now, rest) = buf.split_at_mut((end - offset) as usize);
            match found {
                At::Zeros => now.fill(0),
                At::Packed(layer) => packed.push(Packed { layer, buf: now, offset }),
                At::Data(layer, at) => read(layer.file_at(offset).0.as_ref(), now, at)?,
            }
            (buf, offset) = (rest, end);
        }
        unpack(packed)
    }

    pub(crate) fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.geometry().check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let (end, found) = self.find(range.clone())?;
        let source = match found {
            At::Data(layer, at) => {
                let [data, _] = layer.file_at(range.start).1;
                Source::Data { layer: data, at: FileOffset::new(at) }
            }
            // Packed bytes lie at no place as they are: their own layer has them where the disk does.
            At::Packed(layer) => {
                let [_, packed] = layer.file_at(range.start).1;
                Source::Data { layer: packed, at: FileOffset::new(range.start) }
            }
            At::Zeros => Source::Zero { layer: None },
        };
        Ok(Some(Extent { range: range.start..end, source }))
    }

    pub(crate) fn files(&self) -> Vec<FileId> {
        let storages = self.0.iter().flat_map(Layer::storages);
        storages.filter_map(|storage| storage.id().ok().flatten()).collect()
    }
}

/// Packed bytes that are found together, and where they go.
struct Packed<'a, L> {
    layer: &'a L,
    buf: &'a mut [u8],
    offset: u64,
}

/// Unpacks, where that takes long in several threads, each with one piece at a time.
fn unpack<L: Layer>(packed: Vec<Packed<'_, L>>) -> Result<()> {
    let one = |Packed { layer, buf, offset }: Packed<'_, L>| layer.unpack(buf, offset);
    let bytes: usize = packed.iter().map(|piece| piece.buf.len()).sum();
    let is_large = packed.iter().any(|piece| piece.layer.unit() > MOST_UNIT);
    let threads = if bytes < MANY || is_large { 1 } else { processors().min(packed.len()) };
    if threads < 2 {
        return packed.into_iter().try_for_each(one);
    }
    let rest = Mutex::new(packed.into_iter());
    let next = || rest.lock().unwrap_or_else(PoisonError::into_inner).next();
    // A thread that fails takes no more; the others end with what is left.
    let work = || std::iter::from_fn(next).try_for_each(one);
    thread::scope(|scope| {
        let spawn = |_| Builder::new().name("avhdx unpack".into()).spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..threads).filter_map(spawn).collect();
        let own = work();
        others.into_iter().fold(own, |done, other| match other.join() {
            Ok(others) => done.and(others),
            Err(panic) => resume_unwind(panic),
        })
    })
}

/// The processors that this process may use, up to as many as are worth it.
fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    let count = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (*COUNT.get_or_init(count)).min(MOST_THREADS)
}

/// Finds the bytes at the start of a range in a file that is a disk as it is. Its holes are zeros.
pub(crate) fn find_raw(storage: &dyn Storage, range: Range<u64>) -> Result<(u64, Found)> {
    let data = storage.next_data(range.start);
    let data = data.map_err(|error| Error::from(error).in_file(storage.name()).at(range.start))?;
    Ok(match data {
        Some(data) if data.start <= range.start => {
            // A hole that is made meanwhile may end the data before it starts.
            let end = data.end.max(range.start + 1).min(range.end);
            (end, Found::Data(range.start))
        }
        Some(data) => (data.start.min(range.end), Found::Zeros),
        None => (range.end, Found::Zeros),
    })
}

/// Reads bytes of an image.
pub(crate) fn read(storage: &dyn Storage, buf: &mut [u8], at: u64) -> Result<()> {
    storage.read_exact_at(buf, at).map_err(|error| {
        let error = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), "the file became shorter since it was opened")
            }
            _ => error,
        };
        Error::from(error).in_file(storage.name()).at(at)
    })
}
