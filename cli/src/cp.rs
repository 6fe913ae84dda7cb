//! `avhdx cp`: copies files of a file system inside the disk to this machine.
//!
//! Nothing in an image, and nobody who changes the target meanwhile, makes it write outside of the target: names are
//! checked one by one, a folder is entered only if it is one and no link, and nothing that exists is replaced or changed.
//! What is copied is this user's alone until it has its own permissions.

#[cfg(unix)]
mod by_descriptor;
#[cfg(not(unix))]
mod by_path;
mod facts;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::{FileKind, Host, LocalHost};
use avhdx_files::{Entry, FileReader, FileSystem, Kind};
use serde::Serialize;

use crate::args::ImageArg;
use crate::failure::{Failure, Reply};
use crate::interrupt::{InProgress, Unfinished, in_progress};
use crate::next;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{count, size};
use crate::vocabulary::Answer;
use crate::volume::{self, VolumeFlags, shown};
#[cfg(unix)]
use by_descriptor::{Draft, Folder};
#[cfg(not(unix))]
use by_path::{Draft, Folder};
use facts::Facts;

const PIECE: u64 = 1 << 20;
/// Zeros in whole units of this size are left out of the copy.
const UNIT: usize = 64 << 10;

/// Copy files of a file system inside the disk to this machine.
///
/// Into DEST if that is a folder, else to the name DEST. Times are kept, and the permissions of ext without setuid, setgid
/// and sticky bits; owners, attributes and alternate data streams are not, and each name of a file with several becomes a
/// file of its own. Links are copied as links, also one named as SRC; with a / at its end, what it leads to is copied.
/// Nothing that exists is replaced or changed. What cannot be copied, or not be written here, is reported, and the rest is
/// copied all the same (exit code 8). What is copied is accessible to its owner alone until it is complete. Where the host
/// has no files without names, a killed run leaves its last file as .NAME.HEX.tmp.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Paths from the top of the volume.
    #[arg(value_name = "SRC", num_args = 1.., required = true)]
    sources: Vec<OsString>,
    /// Where the copies go.
    #[arg(value_name = "DEST")]
    out: PathBuf,
    /// Copy folders with all they hold.
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    volume: VolumeFlags,
}

/// What was copied.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CpAnswer {
    image: String,
    files: u64,
    folders: u64,
    links: u64,
    /// The bytes of the files, holes included.
    bytes: u64,
    /// How much could not be copied; warnings on standard error tell each.
    left_out: u64,
}

impl Answer for CpAnswer {
    const SCHEMA: &'static str = "avhdx.cp/1";
}

/// What was named as SRC.
struct Source {
    entry: Entry,
    stream: Option<Vec<u8>>,
    /// The last name as the volume has it; none for its top.
    name: Vec<u8>,
}

struct Copier<'a> {
    tree: &'a FileSystem,
    console: &'a mut Console,
    meter: ProgressMeter,
    done: CpAnswer,
    /// The folders so far, to find two that meet.
    made: HashSet<PathBuf>,
    work: Arc<Work>,
    /// Whether DEST is a new name, so that a host that refuses it refuses all.
    is_named: bool,
    /// How many copies are without their facts, and why the first one is.
    without_facts: Option<(u64, String)>,
    streams: u64,
    /// The files with several names that were copied under one of them.
    several_names: HashSet<u64>,
    again: u64,
}

/// What an interruption has to complete or remove.
#[derive(Debug, Default)]
struct Work(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    draft: Option<Arc<Draft>>,
    /// The folders on the way to what is copied, the innermost last.
    folders: Vec<OpenFolder>,
}

#[derive(Debug)]
struct OpenFolder {
    folder: Arc<Folder>,
    /// The path in the volume.
    path: Vec<u8>,
    /// What it gets once all in it is copied; none if it was there before.
    facts: Option<Facts>,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let tree = args.volume.open(&args.image, console)?;
    let (to, sources) = (args.out.as_path(), &args.sources);
    let into_folder = LocalHost.stat(to).is_ok_and(|stat| stat.kind == FileKind::Folder);
    if sources.len() > 1 && !into_folder {
        return Err(no_folder(to, "several files go to a folder, which this is not"));
    }
    // All of them are found before anything is copied.
    let mut found = Vec::new();
    for typed in sources {
        let source = find(&tree, &volume::path(typed))?;
        if source.is_folder() && !args.recursive {
            let message = format!("{}: this is a folder", shown(source.entry.path()));
            return Err(Failure::usage("cp.folder", message));
        }
        found.push(source);
    }
    let end = to.as_os_str().as_encoded_bytes().last();
    let is_named_as_folder = end.is_some_and(|end| std::path::is_separator(char::from(*end)));
    let to_file = !into_folder && found.iter().any(|source| !source.is_folder());
    if to_file && is_named_as_folder || !into_folder && to.file_name().is_none() {
        return Err(no_folder(to, "there is no such folder"));
    }
    let above = to.parent().filter(|_| !into_folder).unwrap_or(to);
    let top = Folder::open(above).map_err(|error| unusable(to, above, &error))?;
    top.check_writable().map_err(|error| unusable(to, above, &error))?;
    let work = Arc::new(Work::default());
    let mut copier = Copier {
        tree: &tree,
        meter: ProgressMeter::endless(console),
        console,
        done: CpAnswer { image: args.image.name(), ..CpAnswer::default() },
        made: HashSet::new(),
        work: Arc::clone(&work),
        is_named: !into_folder,
        without_facts: None,
        streams: 0,
        several_names: HashSet::new(),
        again: 0,
    };
    *in_progress() = InProgress::Copies(work);
    let copied = copier.copy(found, &Arc::new(top), to.file_name().filter(|_| !into_folder));
    // Folders get their facts whatever ended the copy.
    copier.leave(|_| false);
    *in_progress() = InProgress::Nothing;
    copied.and_then(|()| copier.finish())
}

/// Finds what was typed. The last name is followed if it is a link and a `/` comes after it, or a stream is named.
fn find(tree: &FileSystem, typed: &[u8]) -> Result<Source, Failure> {
    let (path, stream) = volume::split(tree, typed);
    let entry = tree.lookup(path)?;
    let mut name = entry.name().to_vec();
    let has_backslash = !tree.kind().starts_with("ext");
    let is_followed =
        path.ends_with(b"/") || has_backslash && path.ends_with(b"\\") || stream.is_some();
    let is_link = entry.kind() == Some(Kind::Link);
    let entry = if is_link && is_followed { tree.resolve(path)? } else { entry };
    if let Some(stream) = stream {
        name.extend([b":", stream].concat());
    }
    Ok(Source { entry, stream: stream.map(<[u8]>::to_vec), name })
}

fn no_folder(to: &Path, what: &str) -> Failure {
    let failure = Failure::usage("cp.not-folder", format!("{}: {what}", to.display()));
    match LocalHost.stat(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => after_mkdir(failure, to),
        _ => failure,
    }
}

/// DEST, or the folder that it lies in, cannot be used.
fn unusable(to: &Path, above: &Path, error: &io::Error) -> Failure {
    let message = format!("{}: nothing can be written there", to.display());
    let failure = Failure::io("cp.write", message, error);
    match error.kind() {
        io::ErrorKind::NotFound => {
            after_mkdir(failure.hint("the folder that DEST lies in has to exist"), above)
        }
        _ => failure,
    }
}

/// Suggests the command typed, once there is a folder.
fn after_mkdir(failure: Failure, folder: &Path) -> Failure {
    let folder = crate::shell::words(&[folder.as_os_str().to_owned()]);
    match next::again() {
        Some(again) => failure.then(format!("mkdir -p -- {folder} && {again}")),
        None => failure,
    }
}

impl Source {
    fn is_folder(&self) -> bool {
        self.entry.kind() == Some(Kind::Folder) && self.stream.is_none()
    }
}

impl Work {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unfinished for Work {
    fn abandon(&self) {
        let mut open = self.open();
        if let Some(draft) = open.draft.take() {
            draft.discard();
        }
        while let Some(OpenFolder { folder, facts, .. }) = open.folders.pop() {
            drop(facts.map(|facts| folder.set(&facts)));
        }
    }
}

impl Copier<'_> {
    /// Copies all to their names in `top`, or one to `name`.
    fn copy(
        &mut self,
        found: Vec<Source>,
        top: &Arc<Folder>,
        name: Option<&OsStr>,
    ) -> Result<(), Failure> {
        for source in found {
            let name = match name {
                Some(name) => Some(name.to_owned()),
                // The top of a volume has no name: what it holds goes into the folder.
                None if source.name.is_empty() => None,
                None => match safe(&source.name) {
                    Some(name) => Some(name),
                    None => {
                        self.leave_out_name(&source.name);
                        continue;
                    }
                },
            };
            match name {
                name if source.is_folder() => self.folder(source.entry, top, name)?,
                Some(name) => self.one(&source.entry, source.stream.as_deref(), top, &name)?,
                None => {}
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, code: &'static str, message: &str) {
        self.done.left_out += 1;
        self.console.warn(code, message);
    }

    fn leave_out_name(&mut self, path: &[u8]) {
        self.leave_out("cp.name", &format!("{}: no name for a file here", shown(path)));
    }

    fn leave_out_taken(&mut self, to: &Path) {
        self.leave_out("cp.exists", &format!("{}: something else has this name", to.display()));
    }

    /// Leaves out what cannot be read, unless it is the disk that failed.
    fn unread(&mut self, error: avhdx_files::Error) -> Result<(), Failure> {
        if error.disk_error().is_some() {
            return Err(error.into());
        }
        self.leave_out(error.code(), &error.to_string());
        Ok(())
    }

    /// Leaves out what this machine refuses.
    fn refused(&mut self, to: &Path, error: &io::Error) {
        let what = match error.kind() {
            io::ErrorKind::AlreadyExists => return self.leave_out_taken(to),
            io::ErrorKind::StorageFull => "there is no room for it: ",
            io::ErrorKind::QuotaExceeded => "the quota is used up: ",
            _ => "this machine refuses it: ",
        };
        self.leave_out("cp.refused", &format!("{}: {what}{error}", to.display()));
    }

    /// As [`refused`](Self::refused), but where DEST itself is what was to be made, this ends the copy.
    fn not_made(&mut self, to: &Path, above: &Path, error: &io::Error) -> Result<(), Failure> {
        let is_dest = self.is_named && self.work.open().folders.is_empty();
        if is_dest && error.kind() != io::ErrorKind::AlreadyExists {
            return Err(unusable(to, above, error));
        }
        self.refused(to, error);
        Ok(())
    }

    /// Reports later what could not get its facts.
    fn unset(&mut self, to: &Path, error: &io::Error) {
        let first = || format!("{}: {error}", to.display());
        self.without_facts.get_or_insert_with(|| (0, first())).0 += 1;
    }

    /// Copies a folder and what lies in it, to a name in `top` or into that itself.
    fn folder(
        &mut self,
        entry: Entry,
        top: &Arc<Folder>,
        name: Option<OsString>,
    ) -> Result<(), Failure> {
        let tree = self.tree;
        match name {
            Some(name) if !self.make_folder(&entry, top, &name)? => return Ok(()),
            Some(_) => {}
            None => {
                let (folder, path) = (Arc::clone(top), entry.path().to_vec());
                self.work.open().folders.push(OpenFolder { folder, path, facts: None });
            }
        }
        for entry in tree.walk(&entry) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.unread(error)?;
                    continue;
                }
            };
            let path = entry.path();
            // A name may hold what separates names elsewhere.
            let above = &path[..path.len() - entry.name().len()];
            let above = above.strip_suffix(b"/").unwrap_or(above);
            self.leave(|open| lies_in(above, open));
            // What lies in a folder that was left out is left out with it.
            let folder = match self.work.open().folders.last() {
                Some(open) if open.path == above => Arc::clone(&open.folder),
                _ => continue,
            };
            let Some(name) = safe(entry.name()) else {
                self.leave_out_name(path);
                continue;
            };
            if entry.kind() == Some(Kind::Folder) {
                self.make_folder(&entry, &folder, &name)?;
            } else {
                self.one(&entry, None, &folder, &name)?;
            }
        }
        self.leave(|_| false);
        Ok(())
    }

    /// Leaves the innermost folders, up to one that `stays`: all in them is copied.
    fn leave(&mut self, stays: impl Fn(&[u8]) -> bool) {
        let work = Arc::clone(&self.work);
        loop {
            let mut open = work.open();
            let Some(left) = open.folders.pop_if(|open| !stays(&open.path)) else { break };
            let set = left.facts.map_or(Ok(()), |facts| left.folder.set(&facts));
            drop(open);
            if let Err(error) = set {
                self.unset(left.folder.path(), &error);
            }
        }
    }

    /// Makes a folder, or takes one that was there before, and enters it. Returns whether there is one.
    fn make_folder(
        &mut self,
        entry: &Entry,
        above: &Folder,
        name: &OsStr,
    ) -> Result<bool, Failure> {
        let to = above.path().join(name);
        if !self.made.insert(to.clone()) {
            self.leave_out_taken(&to);
            return Ok(false);
        }
        let in_progress_now = in_progress();
        match above.make(name) {
            Ok((folder, is_made)) => {
                self.done.folders += u64::from(is_made);
                let (folder, path) = (Arc::new(folder), entry.path().to_vec());
                let facts = is_made.then(|| Facts::of(entry));
                self.work.open().folders.push(OpenFolder { folder, path, facts });
                drop(in_progress_now);
                self.count_streams(entry);
                Ok(true)
            }
            Err(error) => {
                drop(in_progress_now);
                self.not_made(&to, above.path(), &error)?;
                Ok(false)
            }
        }
    }

    /// Copies a file or a link.
    fn one(
        &mut self,
        entry: &Entry,
        stream: Option<&[u8]>,
        above: &Folder,
        name: &OsStr,
    ) -> Result<(), Failure> {
        if let Some(problem) = entry.problem() {
            let message = format!("{}: {problem}", shown(entry.path()));
            self.leave_out(problem.code(), &message);
            return Ok(());
        }
        if above.has(name) {
            self.leave_out_taken(&above.path().join(name));
            return Ok(());
        }
        match entry.kind() {
            Some(Kind::Link) if stream.is_none() => self.link(entry, above, name),
            Some(Kind::Other(kind)) if stream.is_none() => {
                let message = format!("{}: a {kind} is not copied", shown(entry.path()));
                self.leave_out("cp.special", &message);
                Ok(())
            }
            _ => {
                let tree = self.tree;
                match tree.open(entry, stream) {
                    Ok(file) => self.file(entry, file, stream.is_some(), above, name),
                    Err(error) => self.unread(error),
                }
            }
        }
    }

    fn link(&mut self, entry: &Entry, above: &Folder, name: &OsStr) -> Result<(), Failure> {
        let target = match self.tree.target(entry) {
            Ok(target) => target,
            Err(error) => return self.unread(error),
        };
        let to = above.path().join(name);
        match above.link(&target, name) {
            Ok(()) => {
                self.done.links += 1;
                if let Err(error) = above.set_link_times(name, &Facts::of(entry)) {
                    self.unset(&to, &error);
                }
            }
            Err(error) => {
                let message = format!("{}: the link cannot be made: {error}", to.display());
                self.leave_out("cp.link", &message);
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        entry: &Entry,
        mut file: FileReader<'_>,
        is_stream: bool,
        above: &Folder,
        name: &OsStr,
    ) -> Result<(), Failure> {
        let to = above.path().join(name);
        let in_progress_now = in_progress();
        let draft = match above.start(name) {
            Ok(draft) => Arc::new(draft),
            Err(error) => {
                drop(in_progress_now);
                return self.not_made(&to, above.path(), &error);
            }
        };
        self.work.open().draft = Some(Arc::clone(&draft));
        drop(in_progress_now);
        let filled = match draft.set_len(file.size()) {
            Ok(()) => self.fill(&mut file, &draft),
            Err(error) => Err(error),
        };
        let in_progress_now = in_progress();
        self.work.open().draft = None;
        let published = match filled {
            Ok(Ok(())) => draft.publish(name, &Facts::of(entry)),
            Ok(Err(error)) => {
                draft.discard();
                drop(in_progress_now);
                return self.unread(error);
            }
            Err(error) => Err(error),
        };
        let longest = published.as_ref().err().and_then(|error| longest(&draft, &file, error));
        draft.discard();
        drop(in_progress_now);
        match (published, longest) {
            (Ok(unset), _) => {
                self.done.files += 1;
                self.done.bytes += file.size();
                if let Some(error) = unset {
                    self.unset(&to, &error);
                }
                if !is_stream {
                    self.count_streams(entry);
                    self.count_names(entry);
                }
                Ok(())
            }
            (Err(_), Some(most)) => {
                let (to, bytes) = (to.display(), file.size());
                let message =
                    format!("{to}: a file of {bytes} bytes, and one there has at most {most}");
                self.leave_out("cp.too-long", &message);
                Ok(())
            }
            (Err(error), None) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    self.refused(&to, &error);
                    Ok(())
                }
                _ => self.not_made(&to, above.path(), &error),
            },
        }
    }

    /// Writes the bytes of a file without its holes. The outer error is of this machine, the inner one of the volume.
    fn fill(
        &mut self,
        file: &mut FileReader<'_>,
        draft: &Draft,
    ) -> io::Result<avhdx_files::Result<()>> {
        let len = file.size();
        let mut buf = vec![0; len.min(PIECE) as usize];
        let mut at = 0;
        while at < len {
            let behind = file.hole_end(at);
            if behind > at {
                at = behind;
                continue;
            }
            let piece = &mut buf[..PIECE.min(len - at) as usize];
            if let Err(error) = file.read_at(piece, at) {
                return Ok(Err(error));
            }
            for (place, unit) in (at..).step_by(UNIT).zip(piece.chunks(UNIT)) {
                if unit.iter().any(|byte| *byte != 0) {
                    draft.write_at(unit, place)?;
                }
            }
            at += piece.len() as u64;
            self.meter.show(self.done.bytes + at, 0);
        }
        Ok(Ok(()))
    }

    /// Counts the streams that a copy is without.
    fn count_streams(&mut self, entry: &Entry) {
        if self.tree.kind() == "NTFS" {
            // Streams that cannot be listed keep nothing from being copied.
            self.streams += self.tree.streams(entry).map_or(0, |streams| streams.len() as u64);
        }
    }

    /// Counts the copies of files that were copied under another name before.
    fn count_names(&mut self, entry: &Entry) {
        let several = entry.links().is_some_and(|links| links > 1);
        if let (true, Some(id)) = (several, entry.id())
            && !self.several_names.insert(id)
        {
            self.again += 1;
        }
    }

    fn finish(self) -> Result<Reply, Failure> {
        let Self { console, done, meter, .. } = self;
        drop(meter);
        let number = |of: u64, noun| count(usize::try_from(of).unwrap_or(usize::MAX), noun);
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
        if let Some((copies, first)) = &self.without_facts {
            let copies = number(*copies, "entry");
            let message =
                format!("the permissions or times of {copies} cannot be set; the first: {first}");
            console.warn("cp.facts", &message);
        }
        console.done();
        if console.is_json() {
            console.document(&done)?;
        } else {
            let CpAnswer { files, folders, links, bytes, .. } = done;
            let (files, folders, links) =
                (number(files, "file"), number(folders, "folder"), number(links, "link"));
            console.line(format!("copied {files}, {folders}, {links}: {}", size(bytes)))?;
        }
        let is_whole = done.left_out == 0 && self.without_facts.is_none();
        Ok(if is_whole { Reply::Yes } else { Reply::Losses })
    }
}

/// Whether a path is that of the folder, or lies below it.
fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    let rest = path.strip_prefix(folder);
    rest.is_some_and(|rest| folder.is_empty() || rest.is_empty() || rest.starts_with(b"/"))
}

/// How long a file can be there, if it is the length that was refused.
fn longest(draft: &Draft, file: &FileReader<'_>, error: &io::Error) -> Option<u64> {
    let is_of_length =
        matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput);
    if !is_of_length || draft.set_len(file.size()).is_ok() {
        return None;
    }
    let (mut fits, mut fails) = (0, file.size());
    while fails - fits > 1 {
        let middle = fits + (fails - fits) / 2;
        match draft.set_len(middle) {
            Ok(()) => fits = middle,
            Err(_) => fails = middle,
        }
    }
    Some(fits)
}

/// The name as one of this machine, if it is no more than one name here.
fn safe(name: &[u8]) -> Option<OsString> {
    let is_one =
        !matches!(name, [] | [b'.'] | [b'.', b'.']) && !name.contains(&b'/') && !name.contains(&0);
    if !is_one {
        return None;
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        Some(OsString::from_vec(name.to_vec()))
    }
    #[cfg(not(unix))]
    {
        // Names that mean a device, a stream or another name to Windows.
        let name = std::str::from_utf8(name).ok()?;
        let base = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
        let is_port =
            |kind: &str| base.strip_prefix(kind).is_some_and(|rest| rest.chars().count() == 1);
        let is_device = matches!(&base[..], "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
            || is_port("COM")
            || is_port("LPT");
        let is_odd = name.contains(|c: char| c.is_control() || "\\:*?\"<>|".contains(c));
        (!is_device && !is_odd && !name.ends_with(['.', ' '])).then(|| name.into())
    }
}
