//! `avhdx ls`: lists files of a file system inside the disk, or the volumes of the disk.

use std::ffi::OsString;

use avhdx_files::{Entry, Kind, Time, Volume};
use serde::Serialize;

use crate::args::ImageArg;
use crate::digest::Algorithm;
use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::table::TextTable;
use crate::text::{exact, hex, size};
use crate::vocabulary::Answer;
use crate::volume::{self, Tree, VolumeFlags, shown};

/// The digits of a hash of either kind.
const HASH_WIDTH: usize = 64;

/// List the files of a file system inside the disk.
///
/// FAT, NTFS, ext2, ext3 and ext4 are read; other kinds are named. What cannot be read is reported, and the rest is listed
/// all the same (exit code 8); with --hash, that is each file whose bytes cannot be read. With --json, one object per file
/// with its times, its number and its streams.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The path of a folder or a file from the top of the volume [default: the top].
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    /// List what lies in folders below too.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Read each file, and show a hash of its bytes and of those of its streams.
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    hash: Option<Algorithm>,
    /// List the volumes of the disk instead.
    #[arg(long, conflicts_with_all = ["path", "recursive", "hash"])]
    volumes: bool,
    #[command(flatten)]
    volume: VolumeFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    if args.volumes {
        return volumes(&args, console);
    }
    let tree = args.volume.open(&args.image, console)?;
    let typed = args.path.as_deref().map_or(Vec::new(), volume::path);
    let (entry, stream) = volume::find(&tree, &typed)?;
    let mut is_whole = true;
    if !console.is_json() {
        let hash =
            args.hash.map_or(String::new(), |hash| format!("{:<HASH_WIDTH$} ", hash.title()));
        console
            .line(format!("{:<8}{:>14}  {:<17} {hash}NAME", "TYPE", "SIZE", "MODIFIED (UTC)"))?;
    }
    if entry.kind() != Some(Kind::Folder) || stream.is_some() {
        is_whole = list(&tree, &entry, args.hash, console)?;
    } else if args.recursive {
        for entry in tree.walk(&entry) {
            match entry {
                Ok(entry) => is_whole &= list(&tree, &entry, args.hash, console)?,
                Err(error) => is_whole = report(&tree, error, console)?,
            }
        }
    } else {
        for entry in tree.read_dir(&entry).map_err(|error| tree.failure(error))? {
            is_whole &= list(&tree, &entry, args.hash, console)?;
        }
    }
    Ok(if is_whole { Reply::Yes } else { Reply::Losses })
}

/// Tells what could not be read. Returns that something could not, unless it is the disk that failed.
fn report(tree: &Tree, error: avhdx_files::Error, console: &mut Console) -> Result<bool, Failure> {
    if error.disk_error().is_some() {
        return Err(tree.failure(error));
    }
    console.warn(error.code(), &tree.told(&error));
    Ok(false)
}

/// Lists an entry. Returns whether all of it is known.
fn list(
    tree: &Tree,
    entry: &Entry,
    algorithm: Option<Algorithm>,
    console: &mut Console,
) -> Result<bool, Failure> {
    let mut is_whole = true;
    if let Some(problem) = entry.problem() {
        console.warn(problem.code(), &tree.problem_of(entry, problem));
        is_whole = false;
    }
    let target = match entry.kind() {
        Some(Kind::Link) => tree.target(entry).map(Some),
        _ => Ok(None),
    };
    let streams = match entry.problem() {
        None if tree.kind() == "NTFS" => tree.streams(entry),
        _ => Ok(Vec::new()),
    };
    let target = match target {
        Ok(target) => target,
        Err(error) => {
            is_whole = report(tree, error, console)?;
            None
        }
    };
    let streams = match streams {
        Ok(streams) => streams,
        Err(error) => {
            is_whole = report(tree, error, console)?;
            Vec::new()
        }
    };
    let mut hash = |stream: Option<&[u8]>| -> Result<Option<Hash>, Failure> {
        let Some(algorithm) = algorithm else { return Ok(None) };
        match algorithm.of(tree, entry, stream) {
            Ok((_, value)) => Ok(Some(Hash { algorithm, value })),
            Err(error) => {
                is_whole = report(tree, error, console)?;
                Ok(None)
            }
        }
    };
    let of_file = if entry.kind() == Some(Kind::File) { hash(None)? } else { None };
    let mut all = Vec::new();
    for stream in streams {
        let hash = hash(Some(&stream.name))?;
        all.push(Stream { name: shown(&stream.name), size: stream.size, hash });
    }
    let mut answer = LsAnswer::of(entry, target.as_deref(), all);
    answer.hash = of_file;
    if console.is_json() {
        console.object(&answer)?;
    } else {
        answer.lines(algorithm.is_some()).iter().try_for_each(|line| console.line(line))?;
    }
    Ok(is_whole)
}

fn volumes(args: &Args, console: &mut Console) -> Result<Reply, Failure> {
    let volumes = args.volume.volumes(&args.image, console)?;
    let answer = VolumesAnswer {
        image: args.image.name(),
        scheme: volumes.scheme().map(str::to_owned),
        disk_id: volumes.id().map(str::to_owned),
        volumes: volumes.iter().map(VolumeFacts::of).collect(),
    };
    if console.is_json() {
        console.document(&answer)?;
        return Ok(Reply::Yes);
    }
    let title = answer.scheme.as_deref().unwrap_or("no partition table");
    let mut table = TextTable::new(title, &[">NUMBER", "HOLDS", ">SIZE", "TYPE", "~LABEL", "~ID"]);
    for volume in &answer.volumes {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        table.row([
            volume.number.map_or("-".into(), |number| number.to_string()),
            volume.file_system.clone(),
            size(volume.size),
            text(&volume.partition_type),
            text(if volume.label.is_some() { &volume.label } else { &volume.name }),
            text(&volume.id),
        ]);
    }
    console.table(table)?;
    Ok(Reply::Yes)
}

/// A file, a folder or a link.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LsAnswer {
    /// From the top of the volume, with `/` between names; bytes that are not Unicode are replaced.
    path: String,
    /// All bytes of the path as two hexadecimal digits each, if they are not Unicode.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    /// `file`, `folder`, `link`, the name of a device, or `unknown`.
    kind: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<String>,
    /// When anything of the file changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accessed: Option<String>,
    /// The file record of NTFS, the inode of ext, or the first cluster of FAT.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// How many names the file has.
    #[serde(skip_serializing_if = "Option::is_none")]
    links: Option<u32>,
    /// The permissions of Unix, in octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    /// The attributes of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<u32>,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The alternate data streams of NTFS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    streams: Vec<Stream>,
    /// A hash of the bytes of the file, if one is asked for and they can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<Hash>,
    /// The code of the error with which the bytes of the file are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl Answer for LsAnswer {
    const SCHEMA: &'static str = "avhdx.ls/1";
}

/// A stream of a file besides its contents.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Stream {
    name: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<Hash>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Hash {
    algorithm: Algorithm,
    /// In hexadecimal digits.
    value: String,
}

impl LsAnswer {
    fn of(entry: &Entry, target: Option<&[u8]>, streams: Vec<Stream>) -> Self {
        let path = entry.path();
        let hex = || hex(path);
        let time = |time: Option<Time>| time.map(|time| exact(time.seconds, time.nanoseconds));
        let times = entry.times();
        Self {
            path: shown(path),
            path_hex: std::str::from_utf8(path).is_err().then(hex),
            kind: entry.kind().map_or("unknown".into(), |kind| kind.to_string()),
            size: entry.size(),
            created: time(times.created),
            modified: time(times.modified),
            changed: time(times.changed),
            accessed: time(times.accessed),
            id: entry.id(),
            links: entry.links(),
            mode: entry.mode().map(|mode| format!("{mode:04o}")),
            uid: entry.owner().map(|(uid, _)| uid),
            gid: entry.owner().map(|(_, gid)| gid),
            attributes: entry.attributes(),
            target: target.map(shown),
            streams,
            hash: None,
            refused: entry.refusal().map(|(code, _)| code.to_owned()),
        }
    }

    /// The entry in text, and a line for each stream.
    fn lines(&self, has_hash: bool) -> Vec<String> {
        let modified = self.modified.as_deref().and_then(|time| time.get(..16));
        let modified = modified.map_or("-".into(), |time| time.replace('T', " "));
        let mut name = self.path.clone();
        if let Some(target) = &self.target {
            name += &format!(" -> {target}");
        }
        if let Some(code) = &self.refused {
            name += &format!("  (not read: {code})");
        }
        let line = |kind: &str, size: u64, hash: Option<&Hash>, name: &str| {
            let hash = hash.map_or("-", |hash| &hash.value);
            let hash = if has_hash { format!("{hash:<HASH_WIDTH$} ") } else { String::new() };
            format!("{kind:<8}{size:>14}  {modified:<17} {hash}{name}")
        };
        let mut lines = vec![line(&self.kind, self.size, self.hash.as_ref(), &name)];
        for stream in &self.streams {
            let name = format!("{}:{}", self.path, stream.name);
            lines.push(line("stream", stream.size, stream.hash.as_ref(), &name));
        }
        lines
    }
}

/// The volumes of a disk.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VolumesAnswer {
    image: String,
    /// `GPT` or `MBR`; null for a disk without a table.
    scheme: Option<String>,
    /// The identity of the disk in its table.
    disk_id: Option<String>,
    volumes: Vec<VolumeFacts>,
}

impl Answer for VolumesAnswer {
    const SCHEMA: &'static str = "avhdx.volumes/1";
}

/// A volume.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VolumeFacts {
    /// The number in the table; null for a disk without one.
    number: Option<u32>,
    /// What the volume holds, by its own bytes.
    file_system: String,
    /// Whether its files can be listed and read.
    readable: bool,
    offset: u64,
    size: u64,
    /// By the table.
    partition_type: Option<String>,
    /// The name in the table.
    name: Option<String>,
    /// The label of the file system.
    label: Option<String>,
    /// The identity of the partition.
    id: Option<String>,
}

impl VolumeFacts {
    fn of(volume: &Volume) -> Self {
        Self {
            number: volume.number(),
            file_system: volume.content().to_string(),
            readable: volume.is_readable(),
            offset: volume.range().start,
            size: volume.size(),
            partition_type: volume.kind().map(str::to_owned),
            name: volume.partition_name().map(str::to_owned),
            label: volume.label().map(str::to_owned),
            id: volume.id().map(str::to_owned),
        }
    }
}
