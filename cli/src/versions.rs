//! `avhdx versions`: what a file inside the disk was at each point in time.

use std::ffi::OsString;
use std::ops::Range;
use std::sync::Arc;

use avhdx::{DiffChain, Disk, ErrorKind as DiskErrorKind, LayerId, Source};
use avhdx_files::{ErrorKind, FileSystem, Kind, Seen};
use serde::Serialize;

use crate::args::ImageArg;
use crate::digest::Algorithm;
use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::points::Points;
use crate::progress::Activity;
use crate::table::TextTable;
use crate::text::{exact, size};
use crate::vocabulary::Answer;
use crate::volume::{self, VolumeFlags, shown};

/// List the versions of a file: what it was at each point in time, newest first.
///
/// Points with the same number in VERSION have the same bytes there. A point is read only where a layer holds bytes that
/// decide the answer; where none does, it shows what the point below it does. Where the file cannot be read, the others
/// are listed all the same (exit code 8). `avhdx cp IMAGE@-N PATH .` brings one of them back.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The path of the file from the top of the volume.
    #[arg(value_name = "PATH")]
    path: OsString,
    #[command(flatten)]
    volume: VolumeFlags,
}

/// The versions of a file, newest first.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VersionsAnswer {
    image: String,
    path: String,
    versions: Vec<VersionFacts>,
}

impl Answer for VersionsAnswer {
    const SCHEMA: &'static str = "avhdx.versions/1";
}

#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VersionFacts {
    /// What selects the point behind the name of the image, such as `@-1`.
    selector: String,
    /// The label of the point; null without one.
    label: Option<String>,
    /// Equal numbers are equal bytes; the oldest is 1. Null where there is no such file, or it cannot be read.
    version: Option<usize>,
    /// What the path is there; null where there is nothing, or it cannot be read.
    kind: Option<String>,
    /// In bytes; null unless it is a file.
    size: Option<u64>,
    modified: Option<String>,
    sha256: Option<String>,
    /// Why it cannot be read; null if it can, and where there is no such file.
    problem: Option<String>,
}

/// A file at one point.
#[derive(Clone, Debug)]
struct Version {
    kind: Kind,
    size: u64,
    modified: Option<String>,
    sha256: Option<String>,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let chain = args.volume.chain(&args.image, console)?;
    let typed = volume::path(&args.path);
    let points = Points::of(&chain);
    let mut rows: Vec<VersionFacts> = Vec::new();
    let mut last: Option<(Seen<Version>, u64)> = None;
    let mut hashes: Vec<String> = Vec::new();
    let mut is_whole = true;
    let activity = Activity::of(console, "looking at the points in time");
    for (n, layer) in points.layers().iter().enumerate().rev() {
        let view = chain.view(layer.id)?;
        let len = view.geometry().size;
        let is_same = match &last {
            Some((seen, before)) => *before == len && leaves(&chain, layer.id, seen.touched())?,
            None => false,
        };
        if !is_same {
            let seen = args.volume.look(Arc::new(view), |tree| version(tree, &typed));
            last = Some((seen, len));
        }
        let Some((seen, _)) = &last else { continue };
        let found = match &seen.found {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        is_whole &= found.is_ok();
        let label = points.label(layer.id).map(str::to_owned);
        rows.push(facts(n, label, found, &mut hashes));
    }
    drop(activity);
    rows.reverse();
    let (image, path) = (args.image.name(), shown(&typed));
    let reply = if is_whole { Reply::Yes } else { Reply::Losses };
    if rows.iter().all(|row| row.kind.is_none() && row.problem.is_none()) {
        let message = format!("{image}: there is no {path:?} at any point in time");
        return Err(Failure::usage("versions.none", message));
    }
    if console.is_json() {
        console.document(&VersionsAnswer { image, path, versions: rows })?;
        return Ok(reply);
    }
    let columns = ["POINT", "~LABEL", ">VERSION", ">SIZE", "MODIFIED", "SHA-256"];
    let mut table = TextTable::new(&path, &columns);
    for row in &rows {
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let what = match (&row.kind, &row.problem) {
            (_, Some(_)) => "unread".into(),
            (Some(kind), _) if kind != "file" => kind.clone(),
            (Some(_), _) => or(row.size.map(size)),
            (None, _) => "absent".into(),
        };
        table.row([
            row.selector.clone(),
            or(row.label.clone()),
            or(row.version.map(|version| version.to_string())),
            what,
            or(row.modified.clone()),
            or(row.sha256.as_ref().map(|hash| hash[..16].to_owned())),
        ]);
    }
    console.table(table)?;
    for row in rows.iter().filter(|row| row.problem.is_some()) {
        let problem = row.problem.as_deref().unwrap_or_default();
        console.warn("versions.unread", &format!("{image}{}: {problem}", row.selector));
    }
    Ok(reply)
}

fn facts(
    n: usize,
    label: Option<String>,
    found: Result<Option<&Version>, String>,
    hashes: &mut Vec<String>,
) -> VersionFacts {
    let problem = found.as_ref().err().cloned();
    let found = found.ok().flatten();
    let sha256 = found.and_then(|version| version.sha256.clone());
    let version = sha256.as_ref().map(|hash| {
        let known = hashes.iter().position(|known| known == hash);
        known.unwrap_or_else(|| {
            hashes.push(hash.clone());
            hashes.len() - 1
        }) + 1
    });
    VersionFacts {
        selector: format!("@-{n}"),
        label,
        version,
        kind: found.map(|version| version.kind.to_string()),
        size: found.filter(|version| version.kind == Kind::File).map(|version| version.size),
        modified: found.and_then(|version| version.modified.clone()),
        sha256,
        problem,
    }
}

/// Reads the file at a path.
fn version(tree: &FileSystem, typed: &[u8]) -> avhdx_files::Result<Version> {
    let (path, stream) = volume::split(tree, typed);
    let entry = tree.resolve(path)?;
    let modified = entry.times().modified.map(|time| exact(time.seconds, time.nanoseconds));
    let Some(kind) = entry.kind() else {
        // Says why nothing is known of it.
        return tree.open(&entry, stream).map(|file| Version {
            kind: Kind::File,
            size: file.size(),
            modified: None,
            sha256: None,
        });
    };
    if kind != Kind::File && stream.is_none() {
        return Ok(Version { kind, size: 0, modified, sha256: None });
    }
    let (size, sha256) = Algorithm::Sha256.of(tree, &entry, stream)?;
    Ok(Version { kind: Kind::File, size, modified, sha256: Some(sha256) })
}

/// Whether a layer leaves all bytes of these ranges to the layers below it, as its tables tell.
fn leaves(chain: &DiffChain, layer: LayerId, ranges: &[Range<u64>]) -> Result<bool, Failure> {
    let Some(image) = chain.image(layer) else { return Ok(false) };
    let size = image.geometry().size;
    for range in ranges {
        let mut at = range.start;
        while at < range.end.min(size) {
            match image.next_extent(at..range.end.min(size)) {
                Ok(Some(extent)) if extent.source == Source::Parent => at = extent.range.end,
                Ok(_) => return Ok(false),
                // Its log says more than its tables.
                Err(error) if error.kind() == DiskErrorKind::LogOverlay => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}
