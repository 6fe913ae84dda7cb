//! Decides which changes may become durable together with their payload, in any order.
//!
//! A log entry that is durable without its payload exposes what the space of the payload held before. That is as good as
//! no change where the disk read as zeros, and the space is *fresh*: zeros, from durable growth of the file in this
//! session, on a host on which a lost write leaves zeros. Every other entry must follow its payload:
//!
//! - where a parent's data showed through, zeros would take its place;
//! - reused space exposes another block's bytes;
//! - growth that is not durable yet may be lost with the log entry left, and the host may fill it by other bytes;
//! - some hosts show bytes of removed files where a write was lost.
//!
//! A change that exposes no space, as a discard, needs no order on any host.

use super::writer::Writer;
use crate::answers::Owner;
use crate::error::Result;
use crate::read::Layers;
use crate::tables::{FromFile, Order, PageSource};
use crate::types::{DiskOffset, FileOffset};

impl Writer {
    /// The order that a change needs that exposes parts of `len` bytes of space at `place`. `read_zeros` tells whether
    /// these parts read as zeros before. The block is locked.
    ///
    /// # Errors
    /// Those of `read_zeros`.
    pub(super) fn order_in(
        &self,
        place: FileOffset,
        len: u64,
        read_zeros: impl FnOnce() -> Result<bool>,
    ) -> Result<Order> {
        let is_free = self.has_one_flush && self.space.is_fresh(place, len) && read_zeros()?;
        Ok(if is_free { Order::Any } else { Order::PayloadFirst })
    }

    /// Whether these bytes are known to read as zeros wherever the image itself holds none of them. `disk` reads the
    /// image with its parents. A parent whose tables cannot be read is not known to.
    ///
    /// # Errors
    /// If the tables of the image itself cannot be read.
    pub(super) fn read_zeros(
        &self,
        disk: Option<Layers<'_>>,
        at: DiskOffset,
        len: u64,
    ) -> Result<bool> {
        self.read_zeros_with(FromFile, disk, at, len)
    }

    /// The same, with table pages from this source.
    pub(super) fn read_zeros_with<S: PageSource>(
        &self,
        source: S,
        disk: Option<Layers<'_>>,
        at: DiskOffset,
        len: u64,
    ) -> Result<bool, S::Stop> {
        let Some(disk) = disk.filter(|disk| disk.tip().id() == self.core.id()) else {
            return Ok(false);
        };
        let (mut at, end) = (at, at + len);
        while at < end {
            let run = self.core.resolve_with(source, at, end.0 - at.0)?;
            if run.owner == Owner::Parent && !disk.are_zeros_below_tip(source, at, run.len) {
                return Ok(false);
            }
            at = at + run.len;
        }
        Ok(true)
    }
}
