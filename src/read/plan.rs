//! Plans of reads, for callers that move the bytes themselves.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::ask::{Run, Sink};
use super::layers::Layers;
use crate::answers::Answer;
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, Pins, Ticket};
use crate::storage::Storage;
use crate::tables::{Carried, FromMemory, Missing, Stop};
use crate::types::{DiskOffset, FileOffset};

/// Pages that a plan carries along beyond those that it needs for its next step.
const MOST_CARRIED: usize = 256;

/// The result of planning a read, see [`DiffChain::plan_read`](crate::DiffChain::plan_read). Exhaustive on purpose: a
/// caller that moves the bytes has to handle every case.
#[derive(Debug)]
pub enum Planned {
    /// The plan is complete.
    Ready(ReadPlan),
    /// Part of a layer's tables must be read first.
    Load(TableLoad),
}

/// Locates the bytes of a range of the disk, in order.
///
/// The caller moves the bytes: with io_uring, into the memory of a virtual machine, or with [`read`](Self::read).
/// Sectors that are written meanwhile may read as before or as written. Until the plan is dropped, the file ranges
/// that it names are not reused for other bytes of the disk, truncated or returned to the host, whatever is
/// discarded, flushed, merged or closed. Apart from freed space, only merges wait for a plan: a merge that needs
/// exclusive use of one of its layers waits for 10 seconds and is then refused. The plan also keeps the files of the
/// chain open, and dropping the last plan ends the session of a writable tip that was not
/// [closed](crate::DiffChain::close).
///
/// See [`DiffChain::plan_read`](crate::DiffChain::plan_read) for an example.
#[derive(Debug)]
pub struct ReadPlan {
    range: Range<u64>,
    pieces: Pieces,
    held: Held,
}

/// A run of bytes from one source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlannedPiece<'a> {
    /// The range on the disk, in bytes.
    pub range: Range<u64>,
    /// The source of the bytes.
    pub source: PlannedSource<'a>,
}

/// The source of a piece. Exhaustive on purpose, as [`Source`](crate::Source) is: a missed variant would silently
/// lose data.
#[derive(Clone, Debug)]
pub enum PlannedSource<'a> {
    /// Contiguous bytes of a layer's file, from `at` on.
    Data {
        /// Identifies the layer in the chain.
        layer: LayerId,
        /// The file, for reading only. [`Storage::as_fd`] returns its descriptor if it is a file of this machine.
        storage: &'a Arc<dyn Storage>,
        /// Offset of the piece in the file.
        at: FileOffset,
    },
    /// Zeros, without a file.
    Zero,
}

/// Part of a layer's tables that a plan needs and that is not cached.
///
/// Read the bytes in any way and pass them to [`supply`](Self::supply), or call [`load`](Self::load) to do both.
/// Dropping this value abandons the plan.
pub struct TableLoad {
    /// The plan so far.
    plan: ReadPlan,
    carried: Carried,
    missing: Missing,
}

/// An owner of layers that a plan keeps alive while it names ranges in their files.
pub(crate) trait HasLayers: Send + Sync {
    fn layers(&self) -> Layers<'_>;
}

/// Plans the read of a range.
pub(crate) fn plan_read(of: Arc<dyn HasLayers>, range: Range<u64>) -> Result<Planned> {
    let len = range.end.saturating_sub(range.start);
    of.layers().tip().geometry.check_range(range.start, len)?;
    let range = range.start..range.start + len;
    // Pins come before any lookup.
    let plan = ReadPlan { range, pieces: Pieces::default(), held: Held::new(of) };
    plan.go_on(Carried::default())
}

impl ReadPlan {
    /// Plans the rest of the range, with the layers that the chain had at the start.
    fn go_on(mut self, mut carried: Carried) -> Result<Planned> {
        let (mut at, end) = (self.known_end(), self.range.end);
        let mut got_on = false;
        while at < end {
            let layers = self.held.layers();
            let mut rest = Rest { layers, pieces: &mut self.pieces };
            match layers.ask(FromMemory(&carried), DiskOffset(at), end - at, &mut rest) {
                Ok(len) => at += len,
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Missing(missing)) => {
                    if got_on && carried.len() > MOST_CARRIED {
                        carried = Carried::default();
                    }
                    return Ok(Planned::Load(TableLoad { plan: self, carried, missing }));
                }
            }
            carried.share(|id| layers.image(id));
            got_on = true;
        }
        Ok(Planned::Ready(self))
    }

    /// The range of the disk, in bytes.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The pieces of the range, in order, adjacent and never empty. Neighbours that continue each other in a file are
    /// joined.
    pub fn pieces(&self) -> impl Iterator<Item = PlannedPiece<'_>> {
        self.pieces.iter().map(|piece| PlannedPiece {
            range: piece.range.clone(),
            source: match piece.from {
                Source::Zero => PlannedSource::Zero,
                Source::Layer(n, at) => {
                    let image = self.held.image(n);
                    // No replayed log covers the bytes of a plan.
                    PlannedSource::Data { layer: image.id(), storage: image.bare_reader(), at }
                }
            },
        })
    }

    /// Fills `buf`, which must be as long as the range, with the planned bytes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `buf` has another length; [`ErrorKind::Io`] if the host fails.
    pub fn read(&self, buf: &mut [u8]) -> Result<()> {
        let expected = self.range.end - self.range.start;
        if buf.len() as u64 != expected {
            let message = "a buffer that is not as long as the plan's range";
            return Err(wrong_length("plan.buffer-length", message, buf.len(), expected));
        }
        let mut rest = buf;
        for piece in self.pieces.iter() {
            let len = (piece.range.end - piece.range.start) as usize;
            let (now, later) = rest.split_at_mut(len);
            match piece.from {
                Source::Zero => now.fill(0),
                Source::Layer(n, at) => self.held.image(n).read_payload(now, at)?,
            }
            rest = later;
        }
        Ok(())
    }

    /// The offset on the disk up to which the read is planned.
    fn known_end(&self) -> u64 {
        self.pieces.last().map_or(self.range.start, |last| last.range.end)
    }
}

impl TableLoad {
    /// The layer whose tables are needed.
    pub fn layer(&self) -> LayerId {
        self.missing.image
    }

    /// The layer's file, for reading only. If a pending log was replayed over it in memory, it has no descriptor: the
    /// file itself may hold older tables.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        self.image().reader()
    }

    /// Offset of the bytes in the file.
    pub fn at(&self) -> FileOffset {
        self.missing.at
    }

    /// Number of bytes needed, never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        Carried::PAGE
    }

    /// Continues with these bytes, which must be those of the file: they are also cached for other readers once they
    /// have advanced the plan.
    ///
    /// The plan always advances, however small the [`Budget`](crate::Budget) is. Bytes of the tip's tables are
    /// requested again only after a flush of a writable tip.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the number of bytes differs from [`len`](Self::len), and as for
    /// [`DiffChain::plan_read`](crate::DiffChain::plan_read).
    pub fn supply(self, bytes: &[u8]) -> Result<Planned> {
        if bytes.len() != self.len() {
            let message = "another number of bytes of a table than was asked for";
            let error = wrong_length("plan.table-length", message, bytes.len(), self.len() as u64);
            return Err(error.in_file(self.image().name()).at(self.at().get()));
        }
        self.image().note_table_load();
        self.go_on(bytes)
    }

    fn go_on(mut self, bytes: &[u8]) -> Result<Planned> {
        self.carried.take(self.missing, bytes);
        self.plan.go_on(self.carried)
    }

    /// Reads the bytes and continues.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the host fails, and as for [`DiffChain::plan_read`](crate::DiffChain::plan_read).
    pub fn load(self) -> Result<Planned> {
        let page = self.image().page_in_file(self.at())?;
        self.go_on(&page[..])
    }

    fn image(&self) -> &Core {
        let found = self.plan.held.layers().image(self.missing.image);
        found.unwrap_or_else(|| unreachable!("the chain asked this layer"))
    }
}

fn wrong_length(code: &'static str, message: &str, found: usize, expected: u64) -> Error {
    Error::new(ErrorKind::InvalidInput, code, message)
        .with_found(format_args!("{found} bytes"))
        .with_expected(format_args!("{expected} bytes"))
}

/// Layers and pins that a plan holds.
struct Held {
    of: Arc<dyn HasLayers>,
    ticket: Option<Ticket>,
}

impl Held {
    fn new(of: Arc<dyn HasLayers>) -> Self {
        let ticket = of.layers().tip().pins().map(Pins::enter);
        Self { of, ticket }
    }

    fn layers(&self) -> Layers<'_> {
        self.of.layers()
    }

    fn image(&self, layer: usize) -> &Core {
        &self.layers().layers[layer].image
    }

    fn let_go(&mut self) {
        let ticket = self.ticket.take();
        if let (Some(pins), Some(ticket)) = (self.layers().tip().pins(), ticket) {
            pins.leave(&ticket);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Runs of bytes, joined where they continue each other. Most plans have only one, which is stored inline.
#[derive(Debug, Default)]
struct Pieces {
    first: Option<Piece>,
    others: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    from: Source,
}

/// A layer's index in the chain and an offset in its file, or zeros.
#[derive(Clone, Copy, Debug)]
enum Source {
    Layer(usize, FileOffset),
    Zero,
}

impl Pieces {
    fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.first.iter().chain(&self.others)
    }

    fn last(&self) -> Option<&Piece> {
        self.others.last().or(self.first.as_ref())
    }

    fn push(&mut self, range: Range<u64>, from: Source) {
        if range.is_empty() {
            return;
        }
        let Some(last) = self.others.last_mut().or(self.first.as_mut()) else {
            self.first = Some(Piece { range, from });
            return;
        };
        let continues = match (last.from, from) {
            (Source::Layer(a, at), Source::Layer(b, next)) => {
                a == b && at + (last.range.end - last.range.start) == next
            }
            (Source::Zero, Source::Zero) => true,
            _ => false,
        };
        match continues {
            true => last.range.end = range.end,
            false => self.others.push(Piece { range, from }),
        }
    }
}

/// Collects the runs found.
struct Rest<'a, 'p> {
    layers: Layers<'a>,
    pieces: &'p mut Pieces,
}

impl Sink for Rest<'_, '_> {
    fn take(&mut self, Run { at, len, answer }: Run) -> Result<()> {
        let DiskOffset(start) = at;
        match answer {
            Answer::Here { layer, at } => {
                let image = &self.layers.layers[layer].image;
                image.check_no_overlay(at, len)?;
                // A replayed log may extend the image beyond the file.
                let there = image.len_in_file(at, len);
                self.pieces.push(start..start + there, Source::Layer(layer, at));
                self.pieces.push(start + there..start + len, Source::Zero);
            }
            Answer::Zero { .. } => self.pieces.push(start..start + len, Source::Zero),
            Answer::Open { .. } => return Err(self.layers.parent_required(at)),
        }
        Ok(())
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.layers().layers.iter().map(|layer| layer.id());
        f.debug_list().entries(layers).finish()
    }
}

impl fmt::Debug for TableLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableLoad")
            .field("layer", &self.layer())
            .field("at", &self.at())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
