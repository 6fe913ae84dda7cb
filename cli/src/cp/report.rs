//! What was copied, what was left out, and what copies are without.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use avhdx_files::{Entry, FileReader};
use serde::Serialize;

use crate::failure::{Exit, Failure, Reply};
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{count, size};
use crate::vocabulary::Answer;
use crate::volume::Tree;

const PIECE: u64 = 1 << 20;

/// What was copied.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CpAnswer {
    image: String,
    /// Each name of a file with several counts.
    files: u64,
    folders: u64,
    links: u64,
    /// Devices and pipes.
    devices: u64,
    /// The bytes of the files, holes included; those of a file with several names once.
    bytes: u64,
    /// How much could not be copied; warnings on standard error tell each.
    left_out: u64,
}

impl Answer for CpAnswer {
    const SCHEMA: &'static str = "avhdx.cp/1";
}

pub(super) struct Report<'a> {
    tree: &'a Tree,
    console: &'a mut Console,
    meter: ProgressMeter,
    done: CpAnswer,
    /// One file was named: what keeps it from being copied ends the verb.
    is_single: bool,
    streams: u64,
    /// Copies of files that were copied under another name before.
    again: u64,
    /// How many copies have not the owner that they have in the volume, or lost special permissions.
    unowned: u64,
    /// How many copies are without their facts, and why the first one is.
    without_facts: Option<(u64, String)>,
}

/// The copies of files with several names, by the numbers of the files.
#[derive(Debug)]
pub(super) struct Names<T>(HashMap<u64, (u32, Option<T>)>);

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Names<T> {
    /// The copy under an earlier name. Forgets it with the last one.
    pub(super) fn earlier(&mut self, entry: &Entry) -> Option<&T> {
        let (id, _) = several(entry)?;
        self.0.get(&id)?.1.as_ref()
    }

    /// Remembers a copy for the names to come.
    pub(super) fn add(&mut self, entry: &Entry, copy: impl FnOnce() -> Option<T>) {
        let Some((id, names)) = several(entry) else { return };
        let (left, known) = self.0.entry(id).or_insert((names, None));
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.0.remove(&id);
        } else if known.is_none() {
            *known = copy();
        }
    }
}

/// The number of a file with several names, and how many they are.
fn several(entry: &Entry) -> Option<(u64, u32)> {
    let names = entry.links().filter(|names| *names > 1)?;
    Some((entry.id()?, names))
}

impl<'a> Report<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        image: String,
        is_single: bool,
        meter: ProgressMeter,
        console: &'a mut Console,
    ) -> Self {
        Self {
            tree,
            console,
            meter,
            done: CpAnswer { image, ..CpAnswer::default() },
            is_single,
            streams: 0,
            again: 0,
            unowned: 0,
            without_facts: None,
        }
    }

    pub(super) fn tree(&self) -> &'a Tree {
        self.tree
    }

    pub(super) fn console(&mut self) -> &mut Console {
        self.console
    }

    /// Leaves something out. Where it is all that was asked for, this fails.
    pub(super) fn leave_out(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.is_single {
            return Err(failure);
        }
        self.done.left_out += 1;
        self.console.left_out(&failure);
        Ok(())
    }

    pub(super) fn leave_out_name(&mut self, path: &[u8]) -> Result<(), Failure> {
        let message = format!("{}: no name for a file here", self.tree.place(path));
        self.leave_out(Failure::new(Exit::Refused, "cp.name", message))
    }

    pub(super) fn leave_out_taken(&mut self, to: &Path) -> Result<(), Failure> {
        let message = format!("{}: something else has this name", to.display());
        self.leave_out(Failure::new(Exit::Refused, "cp.exists", message))
    }

    pub(super) fn leave_out_special(&mut self, entry: &Entry, what: &str) -> Result<(), Failure> {
        let kind = entry.kind().map_or("file".into(), |kind| kind.to_string());
        let message = format!("{}: a {kind} is not copied{what}", self.tree.place(entry.path()));
        self.leave_out(Failure::new(Exit::Refused, "cp.special", message))
    }

    /// Leaves out what cannot be read, unless it is the disk that failed.
    pub(super) fn unread(&mut self, error: avhdx_files::Error) -> Result<(), Failure> {
        let is_of_disk = error.disk_error().is_some();
        let failure = self.tree.failure(error);
        if is_of_disk { Err(failure) } else { self.leave_out(failure) }
    }

    /// Leaves out an entry of which nothing but the name is known. Returns whether it is one.
    pub(super) fn is_unknown(&mut self, entry: &Entry) -> Result<bool, Failure> {
        let Some(problem) = entry.problem() else { return Ok(false) };
        let message = self.tree.problem_of(entry, problem);
        self.leave_out(Failure::new(Exit::Damaged, problem.code(), message))?;
        Ok(true)
    }

    /// Leaves out what this machine refuses.
    pub(super) fn refused(&mut self, to: &Path, error: &io::Error) -> Result<(), Failure> {
        let what = match error.kind() {
            io::ErrorKind::AlreadyExists => return self.leave_out_taken(to),
            io::ErrorKind::StorageFull => "there is no room for it",
            io::ErrorKind::QuotaExceeded => "the quota is used up",
            _ => "this machine refuses it",
        };
        let message = format!("{}: {what}: {error}", to.display());
        self.leave_out(Failure::new(Exit::Io, "cp.refused", message))
    }

    /// Reports later what could not get its facts.
    pub(super) fn unset(&mut self, to: &Path, error: &io::Error) {
        let first = || format!("{}: {error}", to.display());
        self.without_facts.get_or_insert_with(|| (0, first())).0 += 1;
    }

    /// Counts a copy whose owner or special permissions were not asked for.
    pub(super) fn count_unowned(&mut self) {
        self.unowned += 1;
    }

    /// Counts the streams that a copy is without.
    pub(super) fn count_streams(&mut self, entry: &Entry) {
        if self.tree.kind() == "NTFS" {
            // Streams that cannot be listed keep nothing from being copied.
            self.streams += self.tree.streams(entry).map_or(0, |streams| streams.len() as u64);
        }
    }

    /// Counts a copy of a file that was copied under another name before.
    pub(super) fn count_again(&mut self) {
        self.again += 1;
    }

    /// Counts a file, or a further name of one without its bytes.
    pub(super) fn count_file(&mut self, bytes: u64) {
        self.done.files += 1;
        self.done.bytes += bytes;
    }

    pub(super) fn count_folder(&mut self) {
        self.done.folders += 1;
    }

    pub(super) fn count_link(&mut self) {
        self.done.links += 1;
    }

    pub(super) fn count_device(&mut self) {
        self.done.devices += 1;
    }

    /// Shows how far a file is copied.
    pub(super) fn show(&mut self, bytes: u64) {
        self.meter.show_endless(self.done.bytes + bytes);
    }

    /// Ends the report. `is_beside` is whether standard output has the copy itself.
    pub(super) fn finish(self, is_beside: bool) -> Result<Reply, Failure> {
        let Self { console, done, meter, .. } = self;
        drop(meter);
        if self.streams > 0 {
            let streams = number(self.streams, "alternate data stream");
            let verb = if self.streams == 1 { "is" } else { "are" };
            let message = format!(
                "{streams} {verb} not copied; `avhdx ls` lists them, and SRC:STREAM names one"
            );
            console.note("cp.streams", &message);
        }
        if self.again > 0 {
            let copies = number(self.again, "further name");
            let message = format!("{copies} of files with several: each is a copy of its own");
            console.note("cp.names", &message);
        }
        if self.unowned > 0 {
            let copies = number(self.unowned, "entry");
            let message = format!(
                "owners, or setuid, setgid and sticky bits, of {copies} are not set without --owners"
            );
            console.note("cp.owners", &message);
        }
        if let Some((copies, first)) = &self.without_facts {
            let copies = number(*copies, "entry");
            let message = format!(
                "owners, permissions or times of {copies} cannot be set; the first: {first}"
            );
            console.warn("cp.facts", &message);
        }
        console.done();
        let summary = || {
            let CpAnswer { files, folders, links, devices, bytes, .. } = done;
            let mut each =
                vec![number(files, "file"), number(folders, "folder"), number(links, "link")];
            each.extend((devices > 0).then(|| number(devices, "special file")));
            format!("copied {}: {}", each.join(", "), size(bytes))
        };
        if is_beside {
            console.note("cp.archive", &summary());
        } else if console.is_json() {
            console.document(&done)?;
        } else {
            console.line(summary())?;
        }
        let is_whole = done.left_out == 0 && self.without_facts.is_none();
        Ok(if is_whole { Reply::Yes } else { Reply::Losses })
    }
}

fn number(of: u64, noun: &str) -> String {
    count(usize::try_from(of).unwrap_or(usize::MAX), noun)
}

/// Why a file could not be copied.
pub(super) enum Failed {
    /// The volume cannot be read.
    Read(avhdx_files::Error),
    /// This machine refuses to write.
    Write(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// Hands over the bytes of a part of a file, piece by piece, with its holes or without them.
pub(super) fn pieces(
    file: &mut FileReader<'_>,
    part: Range<u64>,
    with_holes: bool,
    mut each: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> Result<(), Failed> {
    let mut buf = vec![0; (part.end - part.start).min(PIECE) as usize];
    let mut at = part.start;
    while at < part.end {
        let behind = if with_holes { at } else { file.hole_end(at) };
        if behind > at {
            at = behind;
            continue;
        }
        let piece = &mut buf[..PIECE.min(part.end - at) as usize];
        file.read_at(piece, at).map_err(Failed::Read)?;
        each(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}
