//! A disk as far as it could be read.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::anatomy::fill;
use super::grade::{Grade, Piece, Trace};
use super::layer::{From, Layer, Run};
use super::place::Placement;
use crate::disk::{Disk, Extent, Geometry, Source};
use crate::error::Result;
use crate::storage::{FileId, Storage};
use crate::types::FileOffset;

/// A disk of which parts may be guessed, lost, or a missing parent's. Those that are lost read as zeros.
///
/// Made by [`Rescue`](super::Rescue). It is a read-only [`Disk`], so that it can be copied and searched as any other.
/// [`pieces`](Self::pieces) says what its bytes are worth.
#[derive(Debug)]
pub struct Ruin {
    /// From the image that was asked for down.
    pub(super) layers: Vec<Layer>,
    /// Why the last layer has no parent although it should.
    pub(super) missing: Option<String>,
}

/// The unclaimed data of one file, see [`Ruin::loose`].
#[derive(Debug)]
pub struct Loose<'a> {
    layer: &'a Layer,
    ranges: Vec<Range<u64>>,
}

/// The pieces of a disk, in order; see [`Ruin::pieces`].
#[derive(Debug)]
pub struct Pieces<'a> {
    ruin: &'a Ruin,
    at: u64,
    ahead: Option<Piece>,
}

/// A run, and the layer whose file has it.
struct FromLayer<'a> {
    run: Run,
    layer: Option<&'a Layer>,
}

impl Ruin {
    /// How sure the bytes are, from the start of the disk to its end, with neighbours of the same grade and evidence joined.
    ///
    /// A range that the host fails to read becomes known when it is read: after a copy, the pieces tell of all of them.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces { ruin: self, at: 0, ahead: None }
    }

    /// What was found, guessed and missed in the files.
    pub fn traces(&self) -> Vec<Trace> {
        let of_layer = |layer: &Layer| {
            let file = layer.name().to_owned();
            let traces = layer.anatomy.traces.list.iter();
            let traces = traces.map(move |(grade, text)| Trace {
                file: file.clone(),
                grade: *grade,
                text: text.clone(),
            });
            traces.collect::<Vec<_>>()
        };
        let mut traces: Vec<Trace> = self.layers.iter().flat_map(of_layer).collect();
        if let (Some(why), Some(last)) = (&self.missing, self.layers.last()) {
            traces.push(Trace {
                file: last.name().to_owned(),
                grade: Grade::ParentMissing,
                text: format!("the parent is missing: {why}"),
            });
        }
        traces
    }

    /// Whether the size of the disk is certain.
    pub fn is_size_sure(&self) -> bool {
        self.layers[0].shape.is_size_sure
    }

    /// Size of the image's payload blocks in bytes. Without a table to tell, it is the smallest one.
    pub fn block_size(&self) -> u64 {
        self.layers[0].shape.layout.block_size()
    }

    /// The names of the files that supply the disk, the image itself first.
    pub fn names(&self) -> Vec<&str> {
        self.layers.iter().map(Layer::name).collect()
    }

    /// The paths of these files, as far as they have any.
    pub fn paths(&self) -> Vec<PathBuf> {
        let paths = self.layers.iter().filter_map(|layer| layer.anatomy.careful.path());
        paths.map(Path::to_path_buf).collect()
    }

    /// The data of a file that no entry of its table names; 0 is the image itself, 1 its parent. `None` for a layer that there is
    /// not.
    pub fn loose(&self, layer: usize) -> Option<Loose<'_>> {
        let layer = self.layers.get(layer)?;
        Some(Loose { layer, ranges: layer.still_loose() })
    }

    /// Places a block of loose data, and returns whether it lies there now.
    ///
    /// Refused is what an intact entry contradicts, and what is not loose. Two placements that contradict each other make the block
    /// guessed if they are equally sure; else the surer one counts. A block of a child is guessed at best, because
    /// what is around the bytes may be its parent's.
    pub fn place(&mut self, layer: usize, placement: &Placement) -> bool {
        self.layers.get_mut(layer).is_some_and(|layer| layer.place(placement))
    }

    /// Places the loose blocks between two sure ones that lie as far apart in the file as on the disk: guessed. Returns how many.
    pub fn interpolate(&mut self) -> u64 {
        self.layers.iter_mut().map(Layer::interpolate).sum()
    }

    /// The start of a range that lies within the disk and is not empty.
    fn run(&self, at: u64, mut len: u64) -> FromLayer<'_> {
        let mut worst: Option<(Grade, Cow<'static, str>)> = None;
        let graded = |mut run: Run, worst: Option<(Grade, Cow<'static, str>)>| {
            if let Some((grade, evidence)) = worst.filter(|(grade, _)| *grade > run.grade) {
                (run.grade, run.evidence) = (grade, evidence);
            }
            run
        };
        for layer in &self.layers {
            if at >= layer.size() {
                let grade = if layer.shape.is_size_sure { Grade::Sure } else { Grade::Guessed };
                let evidence = "behind the end of the parent's disk".into();
                let run = Run { len, from: From::Zero, grade, evidence };
                return FromLayer { run: graded(run, worst), layer: None };
            }
            let run = layer.run(at, len.min(layer.size() - at));
            len = run.len;
            if run.from != From::Parent {
                return FromLayer { run: graded(run, worst), layer: Some(layer) };
            }
            if worst.as_ref().is_none_or(|(grade, _)| run.grade > *grade) {
                worst = Some((run.grade, run.evidence));
            }
        }
        let grade = Grade::ParentMissing;
        let evidence = "the parent's, which is missing".into();
        FromLayer { run: Run { len, from: From::Lost, grade, evidence }, layer: None }
    }

    /// The piece that starts here.
    fn piece(&self, at: u64) -> Piece {
        let FromLayer { run, layer } = self.run(at, self.size() - at);
        let Run { mut len, from, mut grade, mut evidence } = run;
        if let (From::File(place), Some(layer)) = (from, layer)
            && let Some(unread) = layer.anatomy.careful.first_unread(place..place + len)
        {
            if unread.start == place {
                len = unread.end - place;
                grade = Grade::Lost;
                evidence = "the host cannot read the file here".into();
            } else {
                len = unread.start - place;
            }
        }
        Piece { range: at..at + len, grade, evidence }
    }

    fn size(&self) -> u64 {
        self.layers[0].size()
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let size = self.ruin.size();
        let mut step = || {
            if let Some(piece) = self.ahead.take() {
                return Some(piece);
            }
            if self.at >= size {
                return None;
            }
            let piece = self.ruin.piece(self.at);
            self.at = piece.range.end;
            Some(piece)
        };
        let mut piece = step()?;
        while let Some(next) = step() {
            if next.grade != piece.grade || next.evidence != piece.evidence {
                self.ahead = Some(next);
                break;
            }
            piece.range.end = next.range.end;
        }
        Some(piece)
    }
}

impl Loose<'_> {
    /// The ranges of the file, in whole MiB except at its end.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Fills `buf` from the file. What cannot be read is zeros.
    pub fn read_at(&self, buf: &mut [u8], file_offset: u64) -> Result<()> {
        self.layer.anatomy.careful.fill(buf, file_offset);
        Ok(())
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        self.layer.name()
    }
}

impl Disk for Ruin {
    fn geometry(&self) -> Geometry {
        let shape = &self.layers[0].shape;
        let sector = shape.layout.sector_size() as u32;
        Geometry::new(self.size(), sector, shape.physical_sector)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let FromLayer { run, layer } = self.run(offset, buf.len() as u64);
            let (now, rest) = buf.split_at_mut(run.len as usize);
            match (run.from, layer) {
                (From::File(place), Some(layer)) => {
                    fill(layer.anatomy.storage.as_ref(), now, place);
                }
                _ => now.fill(0),
            }
            offset += run.len;
            buf = rest;
        }
        Ok(())
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.geometry().check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let FromLayer { run, layer } = self.run(range.start, len);
        let id = layer.map(|layer| layer.id);
        let source = match (run.from, id) {
            (From::File(at), Some(layer)) => Source::Data { layer, at: FileOffset::new(at) },
            _ => Source::Zero { layer: id },
        };
        Ok(Some(Extent { range: range.start..range.start + run.len, source }))
    }

    fn files(&self) -> Vec<FileId> {
        let ids = self.layers.iter();
        ids.filter_map(|layer| layer.anatomy.careful_id()).collect()
    }
}
