//! `avhdx verify`: proves a chain by its seals.

use std::ops::Range;
use std::sync::Arc;

use avhdx::{DiffChain, Disk, LayerId, Lock};
use avhdx_files::{Kind, Options, Volumes};
use avhdx_seals::{Hash, SealFinding, Verified, Verify};
use serde::Serialize;

use crate::args::{ImageArg, ReadFlags, range};
use crate::failure::{Failure, Reply};
use crate::input;
use crate::operation;
use crate::output::Console;
use crate::paint::{Look, Painted};
use crate::progress::Activity;
use crate::seals;
use crate::text::{count, size};
use crate::values;
use crate::vocabulary::{Answer, shown};

/// How many files are told of each range.
const MOST_FILES: usize = 100;

/// Prove that a chain, or a range of its disk, is as it was when it was sealed.
///
/// Reads all data that the layers hold, and tells each range that is not as the seals say, the layer, and the files in
/// file systems inside that lie there (exit code 1). A layer that only gave up bytes that read the same without them is
/// as it was. This guards against accident. Who can write to the images can seal them anew: against that guards
/// --root, with a root that seal printed and that was kept elsewhere.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Prove from this offset of the disk on, with --length.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, requires = "length")]
    offset: Option<u64>,
    /// Prove so many bytes of the disk, with --offset.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, requires = "offset")]
    length: Option<u64>,
    /// Compare the root of the chain with HASH, as seal --print printed it.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    root: Option<Hash>,
    /// Do not look which files lie where something changed.
    #[arg(long)]
    no_files: bool,
    /// How many threads read and hash [default: one for each processor, at least 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    #[command(flatten)]
    opening: ReadFlags,
}

fn hash(text: &str) -> Result<Hash, String> {
    Hash::parse(text).ok_or_else(|| "not a hash of 64 hexadecimal digits".into())
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    avhdx_files::silence_caught_panics();
    let options = args.opening.options().lock(Lock::Try);
    let chain = input::chain_with(&args.image.image, &args.opening, &options, console)?;
    let mut verify = Verify::new();
    if let Some(threads) = args.threads {
        verify = verify.threads(threads.into());
    }
    if let (Some(offset), Some(length)) = (args.offset, args.length) {
        verify = verify.range(range(offset, length, chain.geometry().size)?);
    }
    let verified = operation::run_counted(console, |on| verify.on_progress(on).run(&chain))?;
    let activity = Activity::of(console, "looking for files");
    let files = match args.no_files {
        true => vec![Vec::new(); verified.findings.len()],
        false => files_hit(&chain, &verified),
    };
    drop(activity);
    let mut answer = VerifyAnswer::of(&verified, files);
    if let Some(expected) = args.root.filter(|expected| Some(*expected) != verified.root) {
        answer.add_root(args.image.name(), expected, verified.root, chain.geometry().size);
    }
    if console.is_json() {
        console.document(&answer)?;
    } else {
        answer.print(console)?;
    }
    Ok(if answer.whole { Reply::Yes } else { Reply::No })
}

/// What a chain has of what was sealed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VerifyAnswer {
    /// Whether nothing is found.
    whole: bool,
    /// The hash of the chain by its seals; null if a layer below the newest sealed one has none.
    root: Option<String>,
    /// From the tip down.
    layers: Vec<VerifiedLayer>,
    findings: Vec<VerifyFinding>,
    /// Findings of layers that have too many to be listed.
    unlisted: u64,
}

impl Answer for VerifyAnswer {
    const SCHEMA: &'static str = "avhdx.verify/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VerifiedLayer {
    image: String,
    seal: Option<String>,
    /// Whether all that was asked for is as its seal says.
    whole: bool,
    /// `in-use`, `log-pending`, `no-folder` or `not-sealed` of a tip that is no sealed point in time; otherwise null.
    left_out: Option<&'static str>,
    /// By its seal; null without one of its identity.
    hash: Option<String>,
    /// The bytes of data that were read.
    read: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VerifyFinding {
    /// `seal.changed`, `seal.stale`, `seal.missing`, `seal.damaged` or `seal.root`.
    code: &'static str,
    /// The layer; of the root, the image.
    image: String,
    /// The image or the seal that the finding is about.
    file: String,
    message: String,
    /// The range of the disk.
    start: u64,
    length: u64,
    file_offset: Option<u64>,
    found: Option<String>,
    expected: Option<String>,
    /// The files in file systems of that point in time that lie in the range, as `VOLUME: PATH`; at most 100.
    files: Vec<String>,
}

impl VerifyAnswer {
    fn of(verified: &Verified, files: Vec<Vec<String>>) -> Self {
        let layers = verified.layers.iter().map(|layer| VerifiedLayer {
            image: layer.name.clone(),
            seal: layer.seal.as_deref().map(shown),
            whole: layer.is_whole,
            left_out: layer.left_out.map(seals::left_out_name),
            hash: layer.hash.map(|hash| hash.to_string()),
            read: layer.read,
        });
        let name = |id: LayerId| {
            let layer = verified.layers.iter().find(|layer| layer.layer == id);
            layer.map_or_else(String::new, |layer| layer.name.clone())
        };
        let findings = verified.findings.iter().zip(files).map(|(finding, files)| VerifyFinding {
            code: finding.code,
            image: name(finding.layer),
            file: finding.file.clone(),
            message: finding.message.clone(),
            start: finding.range.start,
            length: finding.range.end - finding.range.start,
            file_offset: finding.offset,
            found: finding.found.clone(),
            expected: finding.expected.clone(),
            files,
        });
        Self {
            whole: verified.is_whole(),
            root: verified.root.map(|root| root.to_string()),
            layers: layers.collect(),
            findings: findings.collect(),
            unlisted: verified.unlisted,
        }
    }

    fn add_root(&mut self, image: String, expected: Hash, found: Option<Hash>, size: u64) {
        self.whole = false;
        self.findings.push(VerifyFinding {
            code: "seal.root",
            file: image.clone(),
            image,
            message: "the chain is not the one whose root was kept".into(),
            start: 0,
            length: size,
            file_offset: None,
            found: Some(found.map_or_else(|| "no root".into(), |found| found.to_string())),
            expected: Some(expected.to_string()),
            files: Vec::new(),
        });
    }

    fn print(&self, console: &mut Console) -> Result<(), Failure> {
        for layer in &self.layers {
            let is = match layer.left_out {
                Some("in-use") => "left out: in use".into(),
                Some("log-pending") => "left out: its log is not empty".into(),
                Some(_) => "left out: not sealed".into(),
                None if layer.whole => format!("whole, {} read", size(layer.read)),
                None => "NOT AS SEALED".to_owned(),
            };
            let look = if is == "NOT AS SEALED" { Look::Broken } else { Look::Plain };
            let line = Painted::new(Look::Plain, format!("{}  ", layer.image)).with(look, is);
            console.painted(&line)?;
        }
        for finding in &self.findings {
            let VerifyFinding { code, file, message, start, length, .. } = finding;
            let at = finding.file_offset.map(|at| format!(" at {at:#x}")).unwrap_or_default();
            console.line("")?;
            console.line(format!("{file}"))?;
            console.line(format!("  {code}: {message}{at}"))?;
            console.line(format!("    disk      {} at {start:#x}", size(*length)))?;
            for (name, value) in [("found", &finding.found), ("expected", &finding.expected)] {
                if let Some(value) = value {
                    console.line(format!("    {name:<9} {value}"))?;
                }
            }
            for file in &finding.files {
                console.line(format!("    file      {file}"))?;
            }
        }
        if self.unlisted > 0 {
            console.line(format!("and {} more ranges", self.unlisted))?;
        }
        console.line("")?;
        let verdict = if self.whole { "Whole" } else { "NOT WHOLE" };
        let look = if self.whole { Look::Plain } else { Look::Broken };
        let findings = count(self.findings.len(), "finding");
        let root = self.root.as_deref().map(|root| format!(", root {root}")).unwrap_or_default();
        let line = Painted::new(look, verdict).with(Look::Plain, format!(": {findings}{root}"));
        console.painted(&line)
    }
}

/// The files that lie where bytes changed, for each finding.
fn files_hit(chain: &DiffChain, verified: &Verified) -> Vec<Vec<String>> {
    let mut hit = vec![Vec::new(); verified.findings.len()];
    for layer in &verified.layers {
        let own =
            |finding: &SealFinding| finding.layer == layer.layer && finding.code == "seal.changed";
        let own: Vec<usize> = (0..hit.len()).filter(|n| own(&verified.findings[*n])).collect();
        if own.is_empty() {
            continue;
        }
        let ranges: Vec<_> = own.iter().map(|n| verified.findings[*n].range.clone()).collect();
        let Ok(view) = chain.view(layer.layer) else { continue };
        let Ok(volumes) = Volumes::of(Arc::new(view)) else { continue };
        for volume in volumes.iter().filter(|volume| volume.is_readable()) {
            let Range { start, end } = volume.range();
            let within = |range: &Range<u64>| {
                let both = range.start.max(start)..range.end.min(end);
                (both.start < both.end).then(|| both.start - start..both.end - start)
            };
            let parts: Vec<Range<u64>> = ranges.iter().filter_map(within).collect();
            if parts.is_empty() {
                continue;
            }
            let Ok(system) = volume.open_with(Options::default().system(true)) else { continue };
            let Ok(root) = system.root() else { continue };
            // What cannot be read is not told: a check of the file system tells more.
            for entry in system.walk(&root).flatten() {
                let streams = system.streams(&entry).unwrap_or_default();
                let contents = (entry.kind() == Some(Kind::File)).then_some(None);
                let streams = streams.iter().map(|stream| Some(&stream.name[..]));
                let streams: Vec<Option<&[u8]>> = contents.into_iter().chain(streams).collect();
                let lies_in = |parts: &[Range<u64>]| {
                    let mut streams = streams.iter();
                    streams.any(|name| system.lies_in(&entry, *name, parts).unwrap_or(false))
                };
                if !lies_in(&parts) {
                    continue;
                }
                let path = String::from_utf8_lossy(entry.path()).into_owned();
                for (n, range) in own.iter().zip(&ranges) {
                    let is_hit = within(range).is_some_and(|part| lies_in(&[part]));
                    if is_hit && hit[*n].len() < MOST_FILES {
                        hit[*n].push(format!("{}: /{path}", volume.name()));
                    }
                }
            }
        }
    }
    hit
}
