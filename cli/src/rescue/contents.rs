//! What the contents of a ruined disk tell: where its loose blocks lie, and which of its files are whole.

use std::ops::Range;
use std::sync::Arc;

use avhdx::Disk;
use avhdx::ops::{Grade, Piece, Placement, Ruin};
use avhdx_files::evidence::{self, Known};
use serde::Serialize;

use crate::output::Console;
use crate::progress::ProgressMeter;

const MIB: u64 = 1 << 20;

/// Places loose blocks by what is in them, then those between. Returns what was noteworthy.
pub(super) fn place(ruin: &mut Ruin, console: &Console) -> Vec<String> {
    let mut notes = Vec::new();
    for layer in 0..ruin.names().len() {
        // Where nothing is lost, loose blocks are what was freed.
        if !ruin.pieces().any(|piece| piece.grade == Grade::Lost) {
            break;
        }
        let found = {
            let Some(of_file) = ruin.loose(layer) else { continue };
            let ranges: Vec<_> = of_file
                .ranges()
                .iter()
                .map(|range| range.start..range.end.next_multiple_of(MIB))
                .collect();
            if ranges.is_empty() {
                continue;
            }
            let loose = OfLayer { of_file, ranges };
            let known = ranges_of(ruin.pieces(), |grade| grade == Grade::Sure);
            let size = ruin.is_size_sure().then(|| ruin.geometry().size);
            let known = Known {
                disk: &*ruin,
                ranges: &known,
                size,
                block_size: u32::try_from(ruin.block_size()).ok(),
                sector: Some(ruin.geometry().logical_sector),
            };
            let mut meter = ProgressMeter::of_steps(console, "reading loose blocks");
            evidence::place(&known, &loose, &mut |done, total| meter.show(done, total))
        };
        for hit in found.hits {
            let grade = if hit.sure { Grade::Sure } else { Grade::Guessed };
            let (file_offset, disk_offset) = (hit.file_offset, hit.disk_offset);
            let evidence = hit.evidence.into();
            ruin.place(layer, &Placement { file_offset, disk_offset, grade, evidence });
        }
        notes.extend(found.notes);
    }
    ruin.interpolate();
    notes
}

/// Loose ranges of a layer's file.
struct OfLayer<'a> {
    of_file: avhdx::ops::Loose<'a>,
    ranges: Vec<Range<u64>>,
}

impl evidence::Loose for OfLayer<'_> {
    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> avhdx::Result<()> {
        self.of_file.read_at(buf, file_offset)
    }
}

/// The ranges of pieces with such grades, those that meet as one.
fn ranges_of(
    pieces: impl Iterator<Item = Piece>,
    is_it: impl Fn(Grade) -> bool,
) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for piece in pieces.filter(|piece| is_it(piece.grade)) {
        match ranges.last_mut().filter(|last| last.end == piece.range.start) {
            Some(last) => last.end = piece.range.end,
            None => ranges.push(piece.range),
        }
    }
    ranges
}

/// The files of the volumes inside the disk.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct RescuedFiles {
    /// How many files are whole: all of them, and all that leads to them, is certain.
    whole: u64,
    /// How many files are not.
    damaged: u64,
    /// With `--files`: each of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<Vec<RescuedFile>>,
}

/// A file.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct RescuedFile {
    /// The number of the volume in the partition table.
    volume: Option<u32>,
    /// The path from the top of the volume, with marks where it is no text.
    path: String,
    size: u64,
    is_whole: bool,
    /// Bytes of its contents that are not certain.
    not_sure: u64,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Tells which files are whole; `None` where no volume can be read.
pub(super) fn files(disk: &Arc<dyn Disk>, pieces: &[Piece], lists: bool) -> Option<RescuedFiles> {
    let doubtful = ranges_of(pieces.iter().cloned(), |grade| grade != Grade::Sure);
    let mut files = RescuedFiles { list: lists.then(Vec::new), ..RescuedFiles::default() };
    evidence::whole_files(disk, &doubtful, &mut |file| {
        let is_file = matches!(file.kind, Some(avhdx_files::Kind::File) | None);
        if !is_file && file.is_whole {
            return;
        }
        match file.is_whole {
            true => files.whole += 1,
            false => files.damaged += 1,
        }
        if let Some(list) = &mut files.list {
            list.push(RescuedFile {
                volume: file.volume,
                path: String::from_utf8_lossy(&file.path).into_owned(),
                size: file.size,
                is_whole: file.is_whole,
                not_sure: file.lost,
                error: file.error.map(|error| error.to_string()),
            });
        }
    })
    .ok()?;
    (files.whole + files.damaged > 0).then_some(files)
}

impl RescuedFiles {
    /// Whether each file is listed.
    pub(super) fn lists(&self) -> bool {
        self.list.is_some()
    }

    /// The files in one line.
    pub(super) fn line(&self) -> String {
        let Self { whole, damaged, .. } = self;
        format!("files inside: {whole} whole, {damaged} not")
    }

    /// Those listed: how each is, its size and its path.
    pub(super) fn rows(&self) -> impl Iterator<Item = [String; 3]> + '_ {
        self.list.iter().flatten().map(|file| {
            let state = match (file.is_whole, &file.error) {
                (true, _) => "whole".to_owned(),
                (false, Some(_)) => "unreadable".to_owned(),
                (false, None) => format!("{} not sure", crate::text::size(file.not_sure)),
            };
            let volume = file.volume.map_or_else(String::new, |number| number.to_string());
            [state, file.size.to_string(), format!("{volume}:{}", file.path)]
        })
    }
}
