//! A disk in memory that knows the crate by its public interface alone.

use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock};

use avhdx::{Disk, Extent, FileOffset, Geometry, LayerId, Result, Source, Zeroing};

/// Pieces that are data as a whole or zeros as a whole.
const PIECE: u64 = 4096;

#[derive(Clone)]
pub struct Ram {
    layer: LayerId,
    geometry: Geometry,
    bytes: Arc<RwLock<Vec<u8>>>,
    /// What a crash leaves.
    durable: Arc<Mutex<Vec<u8>>>,
}

impl Ram {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            layer: LayerId::unique(),
            geometry: Geometry::new(bytes.len() as u64, 512, 4096),
            bytes: Arc::new(RwLock::new(bytes.clone())),
            durable: Arc::new(Mutex::new(bytes)),
        }
    }

    pub fn after_crash(&self) -> Vec<u8> {
        self.durable.lock().unwrap().clone()
    }

    pub fn at_place(&self, layer: LayerId, at: u64, buf: &mut [u8]) {
        assert_eq!(layer, self.layer);
        buf.copy_from_slice(&self.bytes.read().unwrap()[at as usize..][..buf.len()]);
    }
}

impl Disk for Ram {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.geometry.check_range(offset, buf.len() as u64)?;
        self.at_place(self.layer, offset, buf);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.geometry.check_range(offset, buf.len() as u64)?;
        self.bytes.write().unwrap()[offset as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>, _: Zeroing) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        self.geometry.check_range(range.start, len)?;
        self.bytes.write().unwrap()[range.start as usize..][..len as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.durable.lock().unwrap().clone_from(&self.bytes.read().unwrap());
        Ok(())
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.geometry.check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let piece = range.start / PIECE * PIECE..(range.start / PIECE + 1) * PIECE;
        let end = piece.end.min(self.geometry.size);
        let bytes = self.bytes.read().unwrap();
        let is_zero = bytes[piece.start as usize..end as usize].iter().all(|byte| *byte == 0);
        let source = match is_zero {
            true => Source::Zero { layer: Some(self.layer) },
            false => Source::Data { layer: self.layer, at: FileOffset::new(range.start) },
        };
        Ok(Some(Extent { range: range.start..end.min(range.end), source }))
    }
}
