//! What one layer holds by itself, into an image over what is below.

use std::ops::Range;

use avhdx::{DiffChain, Disk, DiskExt, ErrorKind, Extent, Source, VhdxFile, Zeroing};
use avhdx_formats::qcow2::{Measured, Measurer, NewQcow2};

const PIECE: u64 = 1 << 20;
/// The unit of a log, whose changes lie at no place in the file.
const LOG_UNIT: u64 = 4096;

/// Copies what an image holds by itself, data and zeros, as `view`, its disk, reads. `below` is the disk of what is below.
/// Returns how many bytes of data that are.
pub(super) fn copy(
    image: &VhdxFile,
    view: &DiffChain,
    below: Option<&DiffChain>,
    new: &NewQcow2,
) -> avhdx::Result<u64> {
    let cluster = u64::from(new.cluster_size());
    let mut written = 0;
    parts(image, view, below, cluster, |part| match part {
        Part::Zeros(range) => new.write_zeroes(range, Zeroing::MayUnmap),
        Part::Data(range) => {
            written += copy_data(view, range, below, new)?;
            Ok(())
        }
    })?;
    Ok(written)
}

/// The bytes of data that an image holds by itself, at most, and what the copy takes.
pub(super) fn measure(
    image: &VhdxFile,
    view: &DiffChain,
    below: Option<&DiffChain>,
    cluster: u32,
) -> avhdx::Result<(u64, Measured)> {
    let mut measurer = Measurer::new(view.geometry().size, cluster)?;
    let mut data = 0;
    parts(image, view, below, cluster.into(), |part| {
        match part {
            Part::Zeros(range) => measurer.zeros(range),
            Part::Data(range) => {
                data += range.end - range.start;
                measurer.data(range);
            }
        }
        Ok(())
    })?;
    Ok((data, measurer.measured()))
}

/// A part of what an image holds.
enum Part {
    Data(Range<u64>),
    /// Zeros over something else.
    Zeros(Range<u64>),
}

/// Hands over the parts in the order of the disk.
fn parts(
    image: &VhdxFile,
    view: &DiffChain,
    below: Option<&DiffChain>,
    cluster: u64,
    mut each: impl FnMut(Part) -> avhdx::Result<()>,
) -> avhdx::Result<()> {
    let size = view.geometry().size;
    let mut at = 0;
    while at < size {
        let (range, source) = match image.next_extent(at..size) {
            Ok(Some(extent)) => (extent.range, Some(extent.source)),
            Ok(None) => break,
            // What waits in the log is data.
            Err(error) if error.kind() == ErrorKind::LogOverlay => {
                (at..((at / LOG_UNIT + 1) * LOG_UNIT).min(size), None)
            }
            Err(error) => return Err(error),
        };
        at = range.end;
        match source {
            Some(Source::Parent) => {}
            Some(Source::Zero { .. }) => {
                zeros(range, below, cluster, |range| each(Part::Zeros(range)))?;
            }
            Some(Source::Data { .. }) | None => each(Part::Data(range))?,
        }
    }
    Ok(())
}

/// Hands over the parts of zeros below which there is something else, in whole clusters as far as the zeros go.
fn zeros(
    range: Range<u64>,
    below: Option<&DiffChain>,
    cluster: u64,
    mut each: impl FnMut(Range<u64>) -> avhdx::Result<()>,
) -> avhdx::Result<()> {
    let Some(below) = below else { return Ok(()) };
    let end = range.end.min(below.geometry().size);
    let mut next = range.start;
    for extent in below.extents(range.start.min(end)..end) {
        let found = match extent {
            Ok(Extent { source: Source::Zero { .. }, .. }) => continue,
            Ok(Extent { range, .. }) => range,
            // What waits in a log has no place: all of it may be something else.
            Err(error) if error.kind() == ErrorKind::LogOverlay => return each(next..range.end),
            Err(error) => return Err(error),
        };
        let start = (found.start / cluster * cluster).max(next);
        let end = found.end.next_multiple_of(cluster).min(range.end);
        if start < end {
            each(start..end)?;
            next = end;
        }
    }
    Ok(())
}

/// Copies data in pieces. Zeros take no space.
fn copy_data(
    view: &DiffChain,
    range: Range<u64>,
    below: Option<&DiffChain>,
    new: &NewQcow2,
) -> avhdx::Result<u64> {
    let cluster = u64::from(new.cluster_size());
    let mut buf = vec![0; PIECE.max(cluster) as usize];
    let (mut at, mut written) = (range.start, 0);
    while at < range.end {
        // Pieces end with clusters.
        let end = ((at / PIECE + 1) * PIECE).min(range.end);
        let piece = &mut buf[..(end - at) as usize];
        view.read_at(piece, at)?;
        let mut start = at;
        // The first part may begin within a cluster.
        let mut rest = &piece[..];
        while !rest.is_empty() {
            let len = (cluster - start % cluster).min(rest.len() as u64);
            let (part, others) = rest.split_at(len as usize);
            if part.iter().any(|byte| *byte != 0) {
                new.write_at(part, start)?;
                written += len;
            } else {
                zeros(start..start + len, below, cluster, |range| {
                    new.write_zeroes(range, Zeroing::MayUnmap)
                })?;
            }
            (start, rest) = (start + len, others);
        }
        at = end;
    }
    Ok(written)
}
