//! `avhdx rescue`: copies what is left of a ruined image, and says what it is worth.

mod contents;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::Disk;
use avhdx::ops::{Grade, Piece, Rescue, Ruin};
use contents::RescuedFiles;
use serde::Serialize;

use crate::args::{
    CopyFormat, ImageArg, NamingFlags, NewImageFlags, ReadFlags, ReplaceFlags, u32_size,
};
use crate::copying::{Copied, CopyFlags, DiskCopy};
use crate::endings;
use crate::failure::{Failure, Reply};
use crate::input::{self, Input};
use crate::new_file::Place;
use crate::output::Console;
use crate::table::TextTable;
use crate::text::size;
use crate::values;
use crate::vocabulary::Answer;

/// How many pieces are printed as text.
const MOST_ROWS: usize = 1000;

/// Copy what is left of a damaged image, or of a chain with a missing parent, and map what is sure, guessed and lost.
///
/// Lost headers, region tables and metadata are looked for by their signatures, a lost block allocation table by what its
/// entries must be, and lost entries in the log, in older tables, and by what lies in the blocks: structures of file systems
/// that say where they are. What is lost reads as zeros in OUT. No input is
/// changed. The program exits with 8 if anything is guessed, lost or a missing parent's.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The file to make.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The format of the copy [default: by the ending of OUT: .raw and .img are raw, .vhd a dynamic VHD,
    /// .qcow2 qcow2, others VHDX].
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<CopyFormat>,
    /// Write the map to a new file as GNU ddrescue has it: + sure, ? guessed, * a missing parent's, - lost.
    #[arg(long, value_name = "FILE")]
    mapfile: Option<PathBuf>,
    /// List the files inside, with those that are whole.
    #[arg(long)]
    files: bool,
    /// The size of the disk, whatever the image says.
    #[arg(long, value_name = "N", value_parser = values::size, allow_negative_numbers = true)]
    size: Option<u64>,
    /// The size of the image's blocks, whatever it says.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    block: Option<u64>,
    /// The sector size of the disk, whatever the image says.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    sector: Option<u64>,
    #[command(flatten)]
    naming: NamingFlags,
    #[command(flatten)]
    replacing: ReplaceFlags,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { image, out, output_format, mapfile, .. } = args;
    let format = endings::copy_format(&out, output_format);
    if out.as_os_str() == "-" {
        let message = "what is rescued goes to a file: standard output is passed once";
        return Err(Failure::usage("usage", message));
    }
    if mapfile.as_ref() == Some(&out) {
        return Err(Failure::usage("usage", "--mapfile names the file of the copy"));
    }
    let mut rescue = Rescue::new().options(args.opening.options());
    if let Some(bytes) = args.size {
        rescue = rescue.size(bytes);
    }
    if let Some(bytes) = args.block {
        rescue = rescue.block_size(u32_size("--block", bytes)?);
    }
    if let Some(bytes) = args.sector {
        rescue = rescue.sector_size(u32_size("--sector", bytes)?);
    }
    let path = input::resolve(&image.image, &args.opening.inspecting(), console)?.path;
    let mut ruin = rescue.open(&path)?;
    for note in contents::place(&mut ruin, console) {
        console.note("rescue.contents", &note);
    }
    let inputs = ruin.paths();
    let map_place = match &mapfile {
        Some(path) => Some(Place::find(path, &args.replacing, &inputs, console)?),
        None => None,
    };
    let flags = CopyFlags {
        verify: false,
        no_share: true,
        dry_run: false,
        naming: args.naming,
        replacing: args.replacing,
        new_image: NewImageFlags::none(),
        opening: args.opening,
    };
    let copy = DiskCopy { image, out, flags };
    let input = Input::Ruin(Box::new(ruin));
    let copied = copy.copy(&input, format, output_format, None, console)?;
    let Input::Ruin(ruin) = input else { return Ok(Reply::Yes) };
    let ruin: Arc<Ruin> = Arc::from(ruin);
    // What the host could not read is known by now.
    let pieces: Vec<Piece> = ruin.pieces().collect();
    if let Some(place) = map_place {
        let file = place.start(console)?;
        let text = as_mapfile(&copy.image.name(), &pieces);
        let written = file.storage().write_at(text.as_bytes(), 0);
        let written = written.and_then(|()| file.storage().flush());
        written.map_err(|error| file.failure(error.into()))?;
        file.publish(console)?;
    }
    let is_whole = ruin.is_size_sure() && pieces.iter().all(|piece| piece.grade == Grade::Sure);
    let files = contents::files(&(Arc::clone(&ruin) as Arc<dyn Disk>), &pieces, args.files);
    print(&copy, &copied, format, &ruin, &pieces, files, console)?;
    Ok(if is_whole { Reply::Yes } else { Reply::Losses })
}

fn print(
    copy: &DiskCopy,
    copied: &Copied,
    format: CopyFormat,
    ruin: &Ruin,
    pieces: &[Piece],
    files: Option<RescuedFiles>,
    console: &mut Console,
) -> Result<(), Failure> {
    let bytes_of = |grade| {
        let pieces = pieces.iter().filter(|piece| piece.grade == grade);
        pieces.map(|piece| piece.range.end - piece.range.start).sum::<u64>()
    };
    let answer = RescueAnswer {
        image: copy.image.name(),
        output: shown(&copy.out),
        format: format.name(),
        virtual_size: ruin.geometry().size,
        is_size_sure: ruin.is_size_sure(),
        sure: bytes_of(Grade::Sure),
        guessed: bytes_of(Grade::Guessed),
        parent_missing: bytes_of(Grade::ParentMissing),
        lost: bytes_of(Grade::Lost),
        found: traces(ruin),
        map: pieces.iter().map(RescuedPiece::of).collect(),
        files,
    };
    let lists = answer.files.as_ref().is_some_and(RescuedFiles::lists);
    if console.is_json() {
        return console.document(&answer);
    }
    let mut found = TextTable::new("Found", &["grade", "what", "file"]);
    for trace in &answer.found {
        found.row([trace.grade.into(), trace.text.clone(), trace.file.clone()]);
    }
    if answer.found.is_empty() {
        found.remark("all structures in their places");
    }
    console.table(found)?;
    let mut map = TextTable::new("Map", &[">offset", ">bytes", "grade", "evidence"]);
    for piece in answer.map.iter().take(MOST_ROWS) {
        let (offset, length) = (piece.offset.to_string(), piece.length.to_string());
        map.row([offset, length, piece.grade.into(), piece.evidence.clone()]);
    }
    if let Some(more) = answer.map.len().checked_sub(MOST_ROWS).filter(|more| *more > 0) {
        map.remark(format!("{more} more: --json and --mapfile have all"));
    }
    console.table(map)?;
    if let Some(files) = answer.files.as_ref().filter(|_| lists) {
        let mut table = TextTable::new("Files", &["state", ">bytes", "volume:path"]);
        files.rows().for_each(|row| table.row(row));
        console.table(table)?;
    }
    console.line(copy.line(copied))?;
    let &RescueAnswer { sure, guessed, parent_missing, lost, .. } = &answer;
    let mut line = format!("{} sure, {} guessed, {} lost", size(sure), size(guessed), size(lost));
    if parent_missing > 0 {
        line += &format!(", {} of a missing parent", size(parent_missing));
    }
    if !answer.is_size_sure {
        line += "; the size of the disk is a guess";
    }
    console.line(line)?;
    match &answer.files {
        Some(files) => console.line(files.line()),
        None => Ok(()),
    }
}

fn traces(ruin: &Ruin) -> Vec<FoundTrace> {
    let trace = |trace: avhdx::ops::Trace| FoundTrace {
        file: trace.file,
        grade: trace.grade.name(),
        text: trace.text,
    };
    ruin.traces().into_iter().map(trace).collect()
}

fn shown(path: &Path) -> String {
    crate::vocabulary::shown(path)
}

/// The map in the form of GNU ddrescue: positions and sizes in bytes, without gaps.
fn as_mapfile(image: &str, pieces: &[Piece]) -> String {
    let status = |grade| match grade {
        Grade::Sure => '+',
        Grade::Lost => '-',
        Grade::ParentMissing => '*',
        _ => '?',
    };
    let mut text = format!(
        "# Mapfile. Created by avhdx rescue of {}\n\
         # + sure, ? guessed, * a missing parent's, - lost\n\
         # current_pos  current_status  current_pass\n\
         0x00000000     +               1\n\
         #      pos        size  status\n",
        image.escape_debug()
    );
    let mut pieces =
        pieces.iter().map(|piece| (piece.range.clone(), status(piece.grade))).peekable();
    while let Some((mut range, status)) = pieces.next() {
        while let Some((next, _)) = pieces.next_if(|(_, next)| *next == status) {
            range.end = next.end;
        }
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "{:#010X}  {:#010X}  {status}", range.start, range.end - range.start);
    }
    text.replace("0X", "0x")
}

/// What was rescued.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RescueAnswer {
    image: String,
    /// The file made.
    output: String,
    format: &'static str,
    virtual_size: u64,
    /// Whether the size of the disk is certain.
    is_size_sure: bool,
    /// Bytes of the disk that are certain.
    sure: u64,
    guessed: u64,
    /// Bytes that a missing parent has; zeros in the copy.
    parent_missing: u64,
    /// Bytes that were not found; zeros in the copy.
    lost: u64,
    /// What was found, guessed and missed in the files.
    found: Vec<FoundTrace>,
    /// The whole disk, in order.
    map: Vec<RescuedPiece>,
    /// The files inside, where a volume can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<RescuedFiles>,
}

impl Answer for RescueAnswer {
    const SCHEMA: &'static str = "avhdx.rescue/1";
}

/// Something that was found, guessed or missed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct FoundTrace {
    file: String,
    /// `sure`, `guessed`, `parent-missing` or `lost`.
    grade: &'static str,
    text: String,
}

/// A range of the disk.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RescuedPiece {
    offset: u64,
    length: u64,
    /// `sure`, `guessed`, `parent-missing` or `lost`.
    grade: &'static str,
    /// What says so.
    evidence: String,
}

impl RescuedPiece {
    fn of(piece: &Piece) -> Self {
        Self {
            offset: piece.range.start,
            length: piece.range.end - piece.range.start,
            grade: piece.grade.name(),
            evidence: piece.evidence.to_string(),
        }
    }
}
