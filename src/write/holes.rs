//! Gives unused space of the file back to the host while everything stays in its place.
//!
//! No table changes, and the file keeps its length. Space is unused if neither the tables nor an entry of the log name it:
//!
//! 1. With all changes kept out, the session ends: the log is empty, and the tables in memory are those in the file. The
//!    holes between claims leave the allocator. What lies behind the last claim is punched at once, because new blocks are
//!    allocated there.
//! 2. The holes are punched, and given back to the allocator, which expects no particular contents in them.
//! 3. Sectors that a block does not have are punched with all changes kept out and the session ended, some blocks at a
//!    time. Bits are never cleared, so neither a reader nor an earlier table can name them.

use std::ops::Range;
use std::time::Duration;

use super::compact::Before;
use super::space::Freed;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Claim, Packing};

/// How many blocks are looked at while changes are kept out.
const AT_ONCE: usize = 256;
/// Bytes that are punched at a time outside of blocks.
const PIECE: u64 = 1 << 30;
/// How long freed space waits for readers, before and while changes are kept out.
const PATIENCE: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(50);

impl Writer {
    /// Refuses a host that is known to keep all space of a file. One that can give it back in other files may still
    /// refuse this one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], and [`ErrorKind::Io`] if the host fails.
    pub(crate) fn check_punches(&self) -> Result<()> {
        self.punch_hole(0..0)
    }

    /// Punches all unused space; returns how many of these bytes the host stored data for. `before` is called with the
    /// length of each part.
    ///
    /// # Errors
    /// Those of `before` and of a flush; [`ErrorKind::Unsupported`] if the host refuses to punch;
    /// [`ErrorKind::InUse`] while planned writes are open. What was punched until then stays so.
    pub(crate) fn punch_unused(&self, before: Before<'_>) -> Result<u64> {
        let (packing, mut punched) = self.take_holes(before)?;
        let holes: Result<()> = packing.holes(packing.end()).try_for_each(|hole| {
            let mut at = hole.start;
            while at < hole.end {
                let piece = at..hole.end.min(at + PIECE);
                before(piece.end - piece.start)?;
                punched += self.give_to_host(piece.clone())?;
                at = piece.end;
            }
            Ok(())
        });
        self.give_holes_back(&packing);
        holes?;
        let mut claims = Vec::new();
        let mut punch_all = |claims: &mut Vec<Claim>| {
            if claims.is_empty() {
                return Ok(());
            }
            before(claims.iter().map(|claim| claim.len).sum())?;
            punched += self.punch_within(claims)?;
            claims.clear();
            Ok(())
        };
        self.core.each_claim(|claim| {
            if claim.may_have_gaps() {
                claims.push(claim);
            }
            if claims.len() < AT_ONCE { Ok(()) } else { punch_all(&mut claims) }
        })?;
        punch_all(&mut claims)?;
        Ok(punched)
    }

    /// Ends the session, punches what lies behind the last claim, and takes the holes before it out of the allocator.
    fn take_holes(&self, before: Before<'_>) -> Result<(Packing, u64)> {
        self.check_claims()?;
        self.commit()?;
        self.wait_for_readers(PATIENCE, before);
        let _alone = self.change_alone()?;
        self.end_session_alone()?;
        self.wait_for_readers(SHORT, &mut |_| Ok(()));
        let mut packing = self.core.packing(|_| Ok(true))?;
        let released: Vec<Freed> =
            self.released().iter().flat_map(|released| released.freed.clone()).collect();
        let kept = self.space.kept(self.core.layout.block_size());
        for Freed { at, len } in [kept, released].concat() {
            packing.keep(at.get(), len);
        }
        let punched = self.give_to_host(packing.end()..self.file_len())?;
        self.space.set_aside(packing.end());
        Ok((packing, punched))
    }

    /// Punches what these blocks leave unused of their space.
    fn punch_within(&self, claims: &[Claim]) -> Result<u64> {
        let _alone = self.change_alone()?;
        self.end_session_alone()?;
        let mut punched = 0;
        for claim in claims {
            if self.core.bat_entry(claim.index)? == claim.entry {
                self.core.each_gap(claim, |gap| {
                    punched += self.give_to_host(gap)?;
                    Ok(())
                })?;
            }
        }
        Ok(punched)
    }

    /// Punches a part of the file; returns how many bytes of it the host stored data for.
    fn give_to_host(&self, range: Range<u64>) -> Result<u64> {
        let range = range.start..range.end.min(self.file_len());
        if range.is_empty() {
            return Ok(0);
        }
        let stored = self.core.stored_in(range.clone())?;
        self.punch_hole(range)?;
        Ok(stored)
    }

    fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        let at = range.start;
        let is_punched = self.file.punch(range).map_err(|error| {
            Error::io("space.punch", "cannot return space to the host", error)
                .in_file(self.file.name())
                .at(at)
        })?;
        if is_punched {
            return Ok(());
        }
        let message = "the host cannot take back a part of a file";
        Err(Error::new(ErrorKind::Unsupported, "compact.punch", message)
            .in_file(self.file.name())
            .at(at)
            .with_found("a host or a file system that refuses to punch a hole")
            .with_expected("one that does, as most of Linux"))
    }
}
