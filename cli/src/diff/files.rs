//! `avhdx diff --files`: lists the files that differ.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use avhdx::ops::Diff;
use avhdx_files::{Change, Compare, Entry, FileChange, Options, Side, Time};
use serde::Serialize;

use crate::failure::{Failure, Reply};
use crate::input::Input;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{count, exact, hex, size};
use crate::vocabulary::Answer;
use crate::volume::shown;

/// What to say where tables tell less.
pub(super) const UNRELATED: &str = "the two have no layer in common: what both hold as data is listed, the same or not; --content compares it";

/// Which files are compared, and how.
pub(super) struct Wanted<'a> {
    /// The arguments that the disks were opened by.
    pub(super) arguments: [&'a OsStr; 2],
    pub(super) volume: Option<&'a str>,
    pub(super) system: bool,
    pub(super) content: bool,
}

pub(super) fn run(
    wanted: &Wanted<'_>,
    inputs: [Input; 2],
    console: &mut Console,
) -> Result<Reply, Failure> {
    avhdx_files::silence_caught_panics();
    let [a, b] = inputs;
    let differences = Diff::new().run(a.disk(), b.disk())?;
    let is_related = differences.has_common_layers();
    if !wanted.content && !is_related {
        console.note("diff.unrelated", UNRELATED);
    }
    let mut failed = None;
    let ranges = differences.map_while(|range| range.map_err(|error| failed = Some(error)).ok());
    let compare = Compare::new()
        .volume(wanted.volume)
        .options(Options::default().system(wanted.system))
        .content(wanted.content)
        .changed(ranges);
    if let Some(error) = failed {
        return Err(error.into());
    }
    let names = wanted.arguments.map(|name| name.to_string_lossy().into_owned());
    let name = |side| match side {
        Side::Before => &names[0],
        Side::After => &names[1],
    };
    let mut changes = compare
        .run(a.into_disk(), b.into_disk())
        .map_err(|unread| Failure::from(unread.error).also(&format!("in {}", name(unread.side))))?;
    for (side, warning) in changes.warnings() {
        console.warn("files.volume", &format!("{}: {warning}", name(side)));
    }
    if !console.is_json() {
        let (change, modified) = ("CHANGE", "MODIFIED (UTC)");
        console.line(format!("{change:<8}{:>14}  {modified:<17} NAME", "SIZE"))?;
    }
    let mut meter = ProgressMeter::endless_beside_output(console);
    let mut totals = Counts::default();
    while let Some(change) = changes.next() {
        let now = changes.totals();
        meter.show_endless(now.read_before + now.read_after);
        match change {
            Ok(change) => {
                totals.note(change.change);
                let answer = DiffFileAnswer::of(&change);
                match console.is_json() {
                    true => console.object(&answer)?,
                    false => console.line(answer.line())?,
                }
            }
            Err(unread) if unread.error.disk_error().is_some() => {
                return Err(Failure::from(unread.error));
            }
            Err(unread) => {
                totals.unread += 1;
                let message = format!("{}: {}", name(unread.side), unread.error);
                console.warn(unread.error.code(), &message);
            }
        }
    }
    drop(meter);
    let costs = changes.totals();
    let [first, second] = names;
    let is_whole = totals.unread == 0;
    let answer = DiffFilesTotalAnswer {
        content: wanted.content,
        counts: totals,
        files: costs.files,
        a: DiffFilesDisk { image: first, bytes_read: costs.read_before },
        b: DiffFilesDisk { image: second, bytes_read: costs.read_after },
    };
    match console.is_json() {
        true => console.object(&answer)?,
        false => answer.lines().iter().try_for_each(|line| console.line(line))?,
    }
    Ok(if is_whole { Reply::Yes } else { Reply::Losses })
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Removed => "removed",
        Change::Kind => "kind",
        Change::Content => "content",
        Change::Renamed => "renamed",
        // And whatever else there will be.
        _ => "facts",
    }
}

/// A file that differs.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiffFileAnswer {
    /// From the top of the volume, with `/` between names, as it is in B, or in A where B has it no more; bytes that are
    /// not Unicode are replaced.
    path: String,
    /// All bytes of the path as two hexadecimal digits each, if they are not Unicode.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    /// `added`, `removed`, `kind` where it is another kind of thing, `content`, `renamed` with the same content, or `facts`
    /// where only those differ.
    change: &'static str,
    /// The path in A, if it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The alternate data streams that are new, gone or others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    streams: Vec<String>,
    /// What it is in A; null if it was added.
    before: Option<FileFacts>,
    /// What it is in B; null if it was removed.
    after: Option<FileFacts>,
}

impl Answer for DiffFileAnswer {
    const SCHEMA: &'static str = "avhdx.diff-file/1";
}

/// What is known of a file at one of two points.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct FileFacts {
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
}

impl DiffFileAnswer {
    fn of(change: &FileChange) -> Self {
        let path = change.path();
        let from = change.before.as_ref().map(Entry::path).filter(|from| *from != path);
        Self {
            path: shown(path),
            path_hex: std::str::from_utf8(path).is_err().then(|| hex(path)),
            change: word(change.change),
            from: from.map(shown),
            streams: change.streams.iter().map(|name| shown(name)).collect(),
            before: change.before.as_ref().map(FileFacts::of),
            after: change.after.as_ref().map(FileFacts::of),
        }
    }

    fn line(&self) -> String {
        let facts = self.after.as_ref().or(self.before.as_ref());
        let modified = facts.and_then(|facts| facts.modified.as_deref()?.get(..16));
        let modified = modified.map_or("-".into(), |time| time.replace('T', " "));
        let size = facts.map_or(0, |facts| facts.size);
        let mut name = self.path.clone();
        if let Some(from) = &self.from {
            name += &format!("  (was {from})");
        }
        if !self.streams.is_empty() {
            name += &format!("  (streams: {})", self.streams.join(", "));
        }
        format!("{:<8}{size:>14}  {modified:<17} {name}", self.change)
    }
}

impl FileFacts {
    fn of(entry: &Entry) -> Self {
        let time = |time: Option<Time>| time.map(|time| exact(time.seconds, time.nanoseconds));
        let times = entry.times();
        Self {
            kind: entry.kind().map_or("unknown".into(), |kind| kind.to_string()),
            size: entry.size(),
            created: time(times.created),
            modified: time(times.modified),
            changed: time(times.changed),
            id: entry.id(),
            links: entry.links(),
            mode: entry.mode().map(|mode| format!("{mode:04o}")),
            uid: entry.owner().map(|(uid, _)| uid),
            gid: entry.owner().map(|(_, gid)| gid),
            attributes: entry.attributes(),
        }
    }
}

/// How many files differ, and what it took to find out, after the last of them.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiffFilesTotalAnswer {
    /// Whether bytes of files were compared, or only what says where they are.
    content: bool,
    #[serde(flatten)]
    counts: Counts,
    /// The files, folders and links that were looked at.
    files: u64,
    a: DiffFilesDisk,
    b: DiffFilesDisk,
}

impl Answer for DiffFilesTotalAnswer {
    const SCHEMA: &'static str = "avhdx.diff-files-total/1";
}

#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Counts {
    added: u64,
    removed: u64,
    kind: u64,
    /// Whose content is another; without --content, or may be.
    #[serde(rename = "other_content")]
    content: u64,
    renamed: u64,
    facts: u64,
    /// What could not be read: a line on standard error for each.
    unread: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiffFilesDisk {
    image: String,
    /// The bytes of the disk that were read.
    bytes_read: u64,
}

impl Counts {
    fn note(&mut self, change: Change) {
        *match change {
            Change::Added => &mut self.added,
            Change::Removed => &mut self.removed,
            Change::Kind => &mut self.kind,
            Change::Content => &mut self.content,
            Change::Renamed => &mut self.renamed,
            _ => &mut self.facts,
        } += 1;
    }

    /// Each change with its number, of those there are.
    fn words(&self) -> BTreeMap<&'static str, u64> {
        let all = [
            (Change::Added, self.added),
            (Change::Removed, self.removed),
            (Change::Kind, self.kind),
            (Change::Content, self.content),
            (Change::Renamed, self.renamed),
            (Change::Facts, self.facts),
        ];
        let all = all.into_iter().filter(|(_, number)| *number > 0);
        all.map(|(change, number)| (word(change), number)).collect()
    }
}

impl DiffFilesTotalAnswer {
    fn lines(&self) -> Vec<String> {
        let words = self.counts.words();
        let sum: u64 = words.values().sum();
        let each = words.iter().map(|(word, number)| format!("{number} {word}"));
        let each = each.collect::<Vec<_>>().join(", ");
        let each = if each.is_empty() { each } else { format!(": {each}") };
        let mut lines = vec![format!("{}{each}", count(sum as usize, "change"))];
        if self.counts.unread > 0 {
            lines.push(format!("{} could not be read", self.counts.unread));
        }
        let [a, b] = [self.a.bytes_read, self.b.bytes_read].map(size);
        lines.push(format!("{} looked at; read {a} of A and {b} of B", self.files));
        lines
    }
}
