//! A disk that is read as far as it goes: what cannot be read is zeros, and listed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::FileId;
use avhdx::{Disk, ErrorKind, Extent, FileOffset, Geometry, LayerId, Result, Source};

/// The unit that is given up.
const SECTOR: u64 = 512;
/// How much is taken for data where the disk cannot tell what it is.
const STEP: u64 = 64 << 10;

/// Reads another disk, and zeros where that fails.
pub(crate) struct Keeping {
    disk: Arc<dyn Disk>,
    unknown: LayerId,
    /// Ends by start; they neither overlap nor touch.
    lost: Mutex<BTreeMap<u64, u64>>,
}

impl Keeping {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, unknown: LayerId::unique(), lost: Mutex::default() }
    }

    /// The ranges that could not be read so far.
    pub(crate) fn lost(&self) -> Vec<Range<u64>> {
        self.locked().iter().map(|(start, end)| *start..*end).collect()
    }

    fn attempt(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let error = match self.disk.read_at(buf, at) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !matches!(error.kind(), ErrorKind::Io | ErrorKind::Damaged | ErrorKind::Other) {
            return Err(error);
        }
        let len = buf.len() as u64;
        let half = (at + len / 2) / SECTOR * SECTOR;
        if len <= SECTOR || half <= at {
            buf.fill(0);
            self.lose(at..at + len);
            return Ok(());
        }
        let (first, second) = buf.split_at_mut((half - at) as usize);
        self.attempt(first, at)?;
        self.attempt(second, half)
    }

    fn lose(&self, range: Range<u64>) {
        let mut lost = self.locked();
        let (mut start, mut end) = (range.start, range.end);
        while let Some((s, e)) = lost.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if e < start {
                break;
            }
            lost.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        lost.insert(start, end);
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Keeping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeping").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Disk for Keeping {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        self.attempt(buf, offset)
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        match self.disk.next_extent(range.clone()) {
            // Reading tells what is there.
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Damaged) => {
                let end = range.end.min((range.start / STEP + 1) * STEP);
                let at = FileOffset::new(range.start);
                let source = Source::Data { layer: self.unknown, at };
                Ok(Some(Extent { range: range.start..end, source }))
            }
            found => found,
        }
    }

    fn files(&self) -> Vec<FileId> {
        self.disk.files()
    }
}

#[cfg(test)]
mod tests {
    use avhdx::Error;

    use super::*;

    /// Two sectors of it, at 1,024 and at 4,096, cannot be read.
    struct Torn;

    impl Disk for Torn {
        fn geometry(&self) -> Geometry {
            Geometry::new(8192, 512, 512)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            let end = offset + buf.len() as u64;
            if [1024, 4096].iter().any(|bad| *bad < end && offset < bad + 512) {
                return Err(Error::new(ErrorKind::Io, "test.torn", "torn"));
            }
            buf.fill(9);
            Ok(())
        }
        fn next_extent(&self, _: Range<u64>) -> Result<Option<Extent>> {
            Err(Error::new(ErrorKind::Damaged, "test.torn", "torn"))
        }
    }

    #[test]
    fn what_cannot_be_read_is_zeros_and_listed_and_nothing_else() {
        let disk = Keeping::new(Arc::new(Torn));
        let mut bytes = vec![1; 8192];
        disk.read_at(&mut bytes, 0).unwrap();
        let is_lost = |at: usize| (1024..1536).contains(&at) || (4096..4608).contains(&at);
        assert!(
            bytes.iter().enumerate().all(|(at, byte)| *byte == if is_lost(at) { 0 } else { 9 })
        );
        assert_eq!(disk.lost(), [1024..1536, 4096..4608]);
        assert_eq!(disk.next_extent(0..8192).unwrap().unwrap().range, 0..8192);
        assert!(disk.read_at(&mut bytes, 1).is_err(), "outside of the disk");
    }
}
