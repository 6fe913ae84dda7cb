//! Copies to folders of this machine.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

use avhdx::storage::{FileKind, Host, LocalHost};
use avhdx_files::{Entry, FileReader, Kind};

#[cfg(unix)]
use super::by_descriptor::{self as host, Draft, Folder, Made};
#[cfg(not(unix))]
use super::by_path::{self as host, Draft, Folder, Made};
use super::facts::{Facts, Wanted, is_unowned};
use super::report::{Failed, Names, Report, pieces};
use super::source::{Source, safe};
use super::walk::{Target, lies_in, walk};
use super::work::{OpenFolder, Work};
use crate::failure::{Exit, Failure, Reply};
use crate::interrupt::{InProgress, in_progress};
use crate::next;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::volume::Tree;

/// Zeros in whole units of this size are left out of the copy.
const UNIT: usize = 64 << 10;

struct Copier<'a> {
    report: Report<'a>,
    wanted: Wanted,
    /// The folders so far, to find two that meet: names may be equal for this machine alone.
    entered: HashSet<host::Place>,
    work: Arc<Work>,
    /// Whether DEST is a new name, so that a host that refuses it refuses all.
    is_named: bool,
    names: Names<Made>,
    /// The user and the group that copies have.
    own: Option<(u32, u32)>,
}

pub(super) fn run(
    tree: &Tree,
    found: Vec<Source>,
    image: String,
    to: &Path,
    wanted: Wanted,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let into_folder = LocalHost.stat(to).is_ok_and(|stat| stat.kind == FileKind::Folder);
    if found.len() > 1 && !into_folder {
        return Err(no_folder(to, "several files go to a folder, which this is not"));
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
    let is_single = matches!(&found[..], [only] if !only.is_folder());
    let meter = ProgressMeter::endless(console);
    let work = Arc::new(Work::default());
    let mut copier = Copier {
        report: Report::new(tree, image, is_single, meter, console),
        wanted,
        entered: HashSet::new(),
        work: Arc::clone(&work),
        is_named: !into_folder,
        names: Names::default(),
        own: host::own(),
    };
    *in_progress() = InProgress::Copies(work);
    let copied = copier.copy(found, &Arc::new(top), to.file_name().filter(|_| !into_folder));
    // Folders get their facts whatever ended the copy.
    copier.leave(|_| false);
    *in_progress() = InProgress::Nothing;
    copied.and_then(|()| copier.report.finish(false))
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

impl<'a> Target<'a> for Copier<'a> {
    fn report(&mut self) -> &mut Report<'a> {
        &mut self.report
    }

    fn is_back_in(&mut self, folder: &[u8]) -> bool {
        self.leave(|open| lies_in(folder, open));
        self.work.open().folders.last().is_some_and(|open| open.path == folder)
    }

    fn enter(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Failure> {
        let Some(folder) = self.innermost() else { return Ok(()) };
        match safe(name) {
            Some(name) => self.make_folder(entry, &folder, &name).map(drop),
            None => self.report.leave_out_name(entry.path()),
        }
    }

    fn one(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Failure> {
        let Some(folder) = self.innermost() else { return Ok(()) };
        match safe(name) {
            Some(name) => self.copy_one(entry, None, &folder, &name),
            None => self.report.leave_out_name(entry.path()),
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
                        self.report.leave_out_name(&source.name)?;
                        continue;
                    }
                },
            };
            match name {
                Some(name) if !source.is_folder() => {
                    self.copy_one(&source.entry, source.stream.as_deref(), top, &name)?;
                    continue;
                }
                Some(name) if !self.make_folder(&source.entry, top, &name)? => continue,
                Some(_) => {}
                None => {
                    let (folder, path) = (Arc::clone(top), source.entry.path().to_vec());
                    self.work.open().folders.push(OpenFolder { folder, path, facts: None });
                }
            }
            walk(&source.entry, self)?;
            self.leave(|_| false);
        }
        Ok(())
    }

    fn innermost(&self) -> Option<Arc<Folder>> {
        self.work.open().folders.last().map(|open| Arc::clone(&open.folder))
    }

    /// Leaves out what this machine refuses. Where DEST itself is what was to be made, this ends the copy.
    fn not_made(&mut self, to: &Path, above: &Path, error: &io::Error) -> Result<(), Failure> {
        let is_dest = self.is_named && self.work.open().folders.is_empty();
        if is_dest && error.kind() != io::ErrorKind::AlreadyExists {
            return Err(unusable(to, above, error));
        }
        self.report.refused(to, error)
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
                self.report.unset(left.folder.path(), &error);
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
        let in_progress_now = in_progress();
        let made = above.make(name).and_then(|(folder, is_made)| {
            let is_met = !self.entered.insert(folder.place()?);
            Ok((folder, is_made, is_met && !is_made))
        });
        match made {
            // Another folder of the volume went there.
            Ok((_, _, true)) => {
                drop(in_progress_now);
                self.report.leave_out_taken(&to)?;
                Ok(false)
            }
            Ok((folder, is_made, false)) => {
                let (folder, path) = (Arc::new(folder), entry.path().to_vec());
                let facts = is_made.then(|| Facts::of(entry, self.wanted));
                self.work.open().folders.push(OpenFolder { folder, path, facts });
                drop(in_progress_now);
                if is_made {
                    self.report.count_folder();
                    self.count_unowned(entry);
                }
                self.report.count_streams(entry);
                Ok(true)
            }
            Err(error) => {
                drop(in_progress_now);
                self.not_made(&to, above.path(), &error)?;
                Ok(false)
            }
        }
    }

    /// Counts what is without its owner because nobody asked for it.
    fn count_unowned(&mut self, entry: &Entry) {
        if !self.wanted.owners && is_unowned(entry, self.own) {
            self.report.count_unowned();
        }
    }

    /// Copies a file, a link or a device.
    fn copy_one(
        &mut self,
        entry: &Entry,
        stream: Option<&[u8]>,
        above: &Folder,
        name: &OsStr,
    ) -> Result<(), Failure> {
        if self.report.is_unknown(entry)? {
            return Ok(());
        }
        if above.has(name) {
            return self.report.leave_out_taken(&above.path().join(name));
        }
        match entry.kind() {
            Some(Kind::Link) if stream.is_none() => self.link(entry, above, name),
            Some(Kind::Other(kind)) if stream.is_none() => self.special(entry, kind, above, name),
            _ if stream.is_none() && self.link_to_earlier(entry, above, name)? => Ok(()),
            _ => match self.report.tree().open(entry, stream) {
                Ok(file) => self.file(entry, file, stream.is_some(), above, name),
                Err(error) => self.report.unread(error),
            },
        }
    }

    /// Makes a further name of a file that was copied under another. Returns whether all is done.
    fn link_to_earlier(
        &mut self,
        entry: &Entry,
        above: &Folder,
        name: &OsStr,
    ) -> Result<bool, Failure> {
        let Some(made) = self.names.earlier(entry) else { return Ok(false) };
        match above.name_again(made, name) {
            Ok(()) => {
                self.names.add(entry, || None);
                self.report.count_file(0);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.report.leave_out_taken(&above.path().join(name))?;
                Ok(true)
            }
            // The host has no further names, or the copy is no longer there.
            Err(_) => {
                self.report.count_again();
                Ok(false)
            }
        }
    }

    fn link(&mut self, entry: &Entry, above: &Folder, name: &OsStr) -> Result<(), Failure> {
        let target = match self.report.tree().target(entry) {
            Ok(target) => target,
            Err(error) => return self.report.unread(error),
        };
        let to = above.path().join(name);
        match above.link(&target, name) {
            Ok(()) => {
                self.report.count_link();
                if let Err(error) = above.set_link(name, &Facts::of(entry, self.wanted)) {
                    self.report.unset(&to, &error);
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.report.leave_out_taken(&to)
            }
            Err(error) => {
                let message = format!("{}: the link cannot be made: {error}", to.display());
                self.report.leave_out(Failure::new(Exit::Io, "cp.link", message))
            }
        }
    }

    /// Makes a device or a pipe, if they are wanted.
    fn special(
        &mut self,
        entry: &Entry,
        kind: &str,
        above: &Folder,
        name: &OsStr,
    ) -> Result<(), Failure> {
        let Some(device) = host::Device::of(kind, entry.device()) else {
            return self.report.leave_out_special(entry, "");
        };
        if !self.wanted.devices {
            return self.report.leave_out_special(entry, " without --devices");
        }
        let to = above.path().join(name);
        match above.make_device(device, name, &Facts::of(entry, self.wanted)) {
            Ok(unset) => {
                self.report.count_device();
                self.count_unowned(entry);
                if let Some(error) = unset {
                    self.report.unset(&to, &error);
                }
                Ok(())
            }
            Err(error) => self.not_made(&to, above.path(), &error),
        }
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
            Err(error) => Err(Failed::Write(error)),
        };
        let in_progress_now = in_progress();
        self.work.open().draft = None;
        let published = match filled {
            Ok(()) => draft.publish(name, &Facts::of(entry, self.wanted)),
            Err(Failed::Read(error)) => {
                draft.discard();
                drop(in_progress_now);
                return self.report.unread(error);
            }
            Err(Failed::Write(error)) => Err(error),
        };
        let longest = published.as_ref().err().and_then(|error| longest(&draft, &file, error));
        draft.discard();
        drop(in_progress_now);
        match (published, longest) {
            (Ok(unset), _) => {
                self.report.count_file(file.size());
                if let Some(error) = unset {
                    self.report.unset(&to, &error);
                }
                if !is_stream {
                    self.count_unowned(entry);
                    self.report.count_streams(entry);
                    self.names.add(entry, || draft.made(&to));
                }
                Ok(())
            }
            (Err(_), Some(most)) => {
                let (to, bytes) = (to.display(), file.size());
                let message =
                    format!("{to}: a file of {bytes} bytes, and one there has at most {most}");
                self.report.leave_out(Failure::new(Exit::Io, "cp.too-long", message))
            }
            (Err(error), None) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    self.report.refused(&to, &error)
                }
                _ => self.not_made(&to, above.path(), &error),
            },
        }
    }

    /// Writes the bytes of a file without its holes.
    fn fill(&mut self, file: &mut FileReader<'_>, draft: &Draft) -> Result<(), Failed> {
        let (len, report) = (file.size(), &mut self.report);
        pieces(file, 0..len, false, |piece, at| {
            let mut place = 0;
            for units in
                piece.chunks(UNIT).collect::<Vec<_>>().chunk_by(|a, b| is_zeros(a) == is_zeros(b))
            {
                let len = units.iter().map(|unit| unit.len()).sum::<usize>();
                if !is_zeros(units[0]) {
                    draft.write_at(&piece[place..place + len], at + place as u64)?;
                }
                place += len;
            }
            report.show(at + piece.len() as u64);
            Ok(())
        })
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
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
