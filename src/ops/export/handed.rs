//! Ranges of a disk that the host is asked to share with the file of a copy.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::chain::DiffChain;
use crate::disk::{Disk, LayerId, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::file::VhdxFile;
use crate::mover::PIECE;
use crate::ops::{DiskRun, DiskRuns};
use crate::raw::RawDisk;
use crate::read::{Planned, PlannedSource};
use crate::storage::Storage;
use crate::types::{DiskOffset, FileOffset, KIB, MIB, len};
use crate::write::{Copier, Writer};

/// Shorter runs are read and written: sharing them costs as much, and leaves the copy in pieces.
const LEAST: u64 = 64 * KIB;
/// How many bytes are handed over at once, between two checks for cancellation. The host writes back what is new of them
/// first, and who writes to their file waits meanwhile.
const MOST: u64 = 4 * MIB;

/// Where a copy goes.
pub(super) trait Target {
    /// The unit in which [`copy`](Self::copy) takes bytes.
    fn sector(&self) -> u64;

    /// Has the host copy a range of the disk from this place in another file.
    fn copy(&self, range: &Range<u64>, from: &dyn Storage, at: FileOffset) -> Result<Copied>;

    fn write(&self, bytes: &[u8], at: u64) -> Result<()>;
}

/// Who copied a range.
pub(super) enum Copied {
    Host,
    /// The target itself, after the host had copied so many bytes and refused.
    Target(u64),
    /// Nobody, because the host refused: the range has to be written.
    Nobody,
}

/// A file that becomes the flat disk.
pub(super) struct ToFile<'a>(pub(super) &'a dyn Storage);

/// A dynamic image.
pub(super) struct ToImage<'a> {
    disk: &'a VhdxFile,
    writer: &'a Writer,
    copier: Copier,
}

/// Hands ranges of a disk over to the host.
pub(super) struct HandOver<'a> {
    disk: &'a dyn Disk,
    /// `None` if nothing is to be shared.
    supply: Option<Supply<'a>>,
    file: &'a dyn Storage,
    to: &'a dyn Target,
    has_refused: AtomicBool,
    shared: Cell<u64>,
    /// Bytes that the host did not take.
    written: Cell<u64>,
}

/// Finds the ranges of a disk that can be handed over.
pub(super) struct Shareable<'a> {
    supply: Supply<'a>,
    file: &'a dyn Storage,
    has_refused: &'a AtomicBool,
    sector: u64,
    /// The unit in which the bytes of each layer can be shared, if they can.
    units: HashMap<LayerId, Option<u64>>,
}

/// A disk whose bytes lie in files that are known.
#[derive(Clone, Copy)]
enum Supply<'a> {
    Chain(&'a DiffChain),
    Raw(&'a RawDisk),
}

/// Where bytes of a disk are.
struct Place<'a> {
    file: &'a dyn Storage,
    at: FileOffset,
}

/// Takes a run, with its place if it is data.
type Take<'a> = &'a mut dyn FnMut(Range<u64>, Option<Place<'_>>) -> Result<()>;

impl Target for ToFile<'_> {
    fn sector(&self) -> u64 {
        1
    }

    fn copy(&self, range: &Range<u64>, from: &dyn Storage, at: FileOffset) -> Result<Copied> {
        match self.0.copy_from(from, at.get(), range.start, len(range)) {
            Ok(true) => Ok(Copied::Host),
            Ok(false) => Ok(Copied::Nobody),
            Err(error) => Err(cannot_write(self.0, range.start, error)),
        }
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.0.write_at(bytes, at).map_err(|error| cannot_write(self.0, at, error))
    }
}

impl<'a> ToImage<'a> {
    /// The image that the disk is; `None` if its space has to be its own, or it is another kind of disk.
    pub(super) fn of(disk: &'a dyn Disk) -> Option<Self> {
        let disk = disk.as_any()?.downcast_ref::<VhdxFile>()?;
        let writer = disk.writer()?.as_ref();
        let shares = !writer.core().keeps_blocks();
        shares.then(|| Self { disk, writer, copier: Copier::new(true) })
    }

    pub(super) fn file(&self) -> &dyn Storage {
        self.writer.core().storage()
    }
}

impl Target for ToImage<'_> {
    fn sector(&self) -> u64 {
        self.disk.geometry().logical_sector.into()
    }

    fn copy(&self, range: &Range<u64>, from: &dyn Storage, at: FileOffset) -> Result<Copied> {
        let before = self.copier.shared();
        self.writer.copy_from(DiskOffset(range.start), len(range), from, at, &self.copier)?;
        Ok(match self.copier.is_by_host() {
            true => Copied::Host,
            false => Copied::Target(self.copier.shared() - before),
        })
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.disk.write_at(bytes, at)
    }
}

impl<'a> HandOver<'a> {
    /// From a disk to a target in this file.
    pub(super) fn new(
        disk: &'a dyn Disk,
        file: &'a dyn Storage,
        to: &'a dyn Target,
        share: bool,
    ) -> Self {
        Self {
            disk,
            supply: Supply::of(disk).filter(|_| share),
            file,
            to,
            has_refused: AtomicBool::new(false),
            shared: Cell::new(0),
            written: Cell::new(0),
        }
    }

    /// What can be handed over; `None` if nothing can.
    pub(super) fn shareable(&self) -> Option<Shareable<'_>> {
        let (file, has_refused) = (self.file, &self.has_refused);
        let (sector, units) = (self.to.sector(), HashMap::new());
        Some(Shareable { supply: self.supply?, file, has_refused, sector, units })
    }

    /// Has the host copy a range of the disk. What it does not take is read and written, zeros and all: the host may have
    /// left anything there.
    pub(super) fn hand_over(&self, range: Range<u64>) -> Result<()> {
        let Some(supply) = self.supply else { return self.by_hand(range) };
        let done = supply.each_run(range.clone(), &mut |run, place| {
            // The target reads as zeros until it is written to.
            let Some(Place { file: from, at }) = place else { return Ok(()) };
            let sector = self.to.sector();
            if run.start % sector != 0 || run.end % sector != 0 {
                return self.by_hand(run);
            }
            match self.to.copy(&run, from, at) {
                Ok(Copied::Host) => self.shared.set(self.shared.get() + len(&run)),
                Ok(Copied::Target(by_host)) => {
                    self.has_refused.store(true, Ordering::Relaxed);
                    self.shared.set(self.shared.get() + by_host);
                    self.written.set(self.written.get() + len(&run) - by_host);
                }
                Ok(Copied::Nobody) => {
                    self.has_refused.store(true, Ordering::Relaxed);
                    return self.by_hand(run);
                }
                // A failure to read and one to write each say which file it is.
                Err(_) => return self.by_hand(run),
            }
            Ok(())
        });
        match done {
            // Before the first run: what lies at no place in a file can be read.
            Err(error) if error.kind() == ErrorKind::LogOverlay => self.by_hand(range),
            done => done,
        }
    }

    /// Bytes that the host took.
    pub(super) fn shared(&self) -> u64 {
        self.shared.get()
    }

    /// Bytes that the host did not take, after all.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    fn by_hand(&self, range: Range<u64>) -> Result<()> {
        let mut buf = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(PIECE);
            buf.resize(step as usize, 0);
            self.disk.read_at(&mut buf, at)?;
            self.to.write(&buf, at)?;
            self.written.set(self.written.get() + step);
            at += step;
        }
        Ok(())
    }
}

impl Shareable<'_> {
    /// The first range to hand over of the run that contains `at`, from there on. It goes on into the runs behind if they
    /// can be shared from their starts.
    pub(super) fn next_part(
        &mut self,
        runs: &mut DiskRuns<'_>,
        at: u64,
    ) -> Result<Option<Range<u64>>> {
        let Some(mut part) = self.part(&runs.at(at)?, at) else { return Ok(None) };
        let most = part.start.saturating_add(MOST).min(runs.size);
        while part.end < most {
            match self.part(&runs.at(part.end)?, part.end) {
                Some(next) if next.start == part.end => part.end = next.end,
                _ => break,
            }
        }
        part.end = part.end.min(most);
        Ok(Some(part))
    }

    /// The part of a run from `at` on that can be shared, in whole units. It lies in whole units of the target's file as
    /// well: blocks of images and raw disks begin at multiples of 1 MiB, so that offsets on the disk tell.
    fn part(&mut self, run: &DiskRun, at: u64) -> Option<Range<u64>> {
        let Some(Source::Data { layer, at: place }) = run.source else { return None };
        if self.has_refused.load(Ordering::Relaxed) {
            return None;
        }
        let (supply, file) = (self.supply, self.file);
        let unit = self.units.entry(layer).or_insert_with(|| supply.sharing_unit(layer, file));
        let unit = (*unit)?.max(self.sector);
        let start = at.checked_next_multiple_of(unit)?;
        let end = run.end / unit * unit;
        let is_aligned = place.get() % unit == run.start % unit;
        (is_aligned && start.checked_add(LEAST)? <= end).then_some(start..end)
    }
}

impl<'a> Supply<'a> {
    fn of(disk: &'a dyn Disk) -> Option<Self> {
        let disk = disk.as_any()?;
        let chain = disk.downcast_ref().map(Self::Chain);
        chain.or_else(|| disk.downcast_ref().map(Self::Raw))
    }

    /// The unit in which `file` can share the bytes of this layer.
    fn sharing_unit(self, layer: LayerId, file: &dyn Storage) -> Option<u64> {
        match self {
            Self::Raw(disk) => file.sharing_unit(disk.storage()),
            Self::Chain(chain) => {
                let image = chain.images().into_iter().find(|image| image.id() == layer)?;
                file.sharing_unit(image.bare_storage().as_ref())
            }
        }
    }

    /// Passes on the runs of a range in order, with their places if they are data. While `take` is called, a place holds
    /// the bytes of the disk.
    ///
    /// # Errors
    /// Those of `take`. Before, those of the tables: [`ErrorKind::LogOverlay`] if a pending log supplies some of the
    /// bytes.
    fn each_run(self, range: Range<u64>, take: Take<'_>) -> Result<()> {
        match self {
            Self::Chain(chain) => {
                let mut planned = chain.plan_read(range)?;
                let plan = loop {
                    planned = match planned {
                        Planned::Ready(plan) => break plan,
                        Planned::Load(tables) => tables.load()?,
                    };
                };
                plan.pieces().try_for_each(|piece| match piece.source {
                    PlannedSource::Zero => take(piece.range, None),
                    PlannedSource::Data { storage, at, .. } => {
                        take(piece.range, Some(Place { file: storage.as_ref(), at }))
                    }
                })
            }
            Self::Raw(disk) => {
                let mut at = range.start;
                while let Some(extent) = disk.next_extent(at..range.end)? {
                    at = extent.range.end;
                    let place = match extent.source {
                        Source::Data { at, .. } => Some(Place { file: disk.storage(), at }),
                        Source::Zero { .. } | Source::Parent => None,
                    };
                    take(extent.range, place)?;
                }
                Ok(())
            }
        }
    }
}

/// The error of a host that cannot write the copy.
pub(super) fn cannot_write(to: &dyn Storage, at: u64, error: io::Error) -> Error {
    Error::io("export.write", "cannot write the copy", error).in_file(to.name()).at(at)
}
