//! Copies into a tar archive, which is written from its start to its end.

use std::collections::HashSet;
use std::io::{self, BufWriter, Stdout, Write};
use std::mem;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx_files::{Entry, FileReader, Kind};

use super::header::{MOST_NUMBER, What, header, padding};
use super::report::{Failed, Names, Report, pieces};
use super::source::{Source, is_one};
use super::walk::{Target, lies_in, walk};
use crate::args::ReplaceFlags;
use crate::failure::{Exit, Failure, Reply};
use crate::input;
use crate::new_file::Place;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::screen;
use crate::volume::Tree;

/// Holes are left out in whole units of this size.
const UNIT: u64 = 256 << 10;
/// A file is looked through for holes in so many units, and written in so many pieces: what comes then is one piece.
const MOST_UNITS: u64 = 1 << 26;
const MOST_PIECES: usize = 1 << 20;
/// A file of which no more is stored is read before its header is written.
const LITTLE: u64 = 1 << 20;
/// An archive ends with so many zeros.
const END: usize = 1024;

struct Archiver<'o, 'a> {
    report: &'o mut Report<'a>,
    out: Out<'o>,
    /// The folders on the way, the innermost last.
    folders: Vec<Within>,
    /// The names at the top of the archive.
    tops: HashSet<Vec<u8>>,
    names: Names<Vec<u8>>,
}

/// A folder that is being written.
#[derive(Default)]
struct Within {
    /// The path in the volume.
    path: Vec<u8>,
    /// The path in the archive, with a `/` at its end.
    prefix: Vec<u8>,
    /// The last name in it: a folder is listed by names, so equal ones follow each other.
    last: Vec<u8>,
}

/// Where an archive goes.
struct Out<'a> {
    writer: BufWriter<Sink>,
    /// How much was written.
    at: u64,
    /// What a refusal to write means.
    failed: &'a dyn Fn(&io::Error) -> Failure,
}

enum Sink {
    File { storage: Arc<dyn Storage>, at: u64 },
    Stdout(Stdout),
}

pub(super) fn write(
    tree: &Tree,
    found: Vec<Source>,
    image: String,
    to: &Path,
    overwrite: bool,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let is_single = matches!(&found[..], [only] if !only.is_folder());
    if to == Path::new("-") {
        if screen::width().is_some() {
            let message = "an archive is not for a terminal";
            return Err(Failure::usage("cp.terminal", message));
        }
        input::refuse_own_output(tree.disk())?;
        let meter = ProgressMeter::beside_output(console);
        let mut report = Report::new(tree, image, is_single, meter, console);
        archive(&mut report, Sink::Stdout(io::stdout()), &found, &Failure::stdout)?;
        return report.finish(true);
    }
    let replacing = ReplaceFlags::overwrite(overwrite);
    let file = Place::find(to, &replacing, tree.paths(), console)?.start(console)?;
    let meter = ProgressMeter::endless(console);
    let mut report = Report::new(tree, image, is_single, meter, console);
    let sink = Sink::File { storage: Arc::clone(file.storage()), at: 0 };
    archive(&mut report, sink, &found, &|error| {
        Failure::io("cp.write", format!("{}: the archive cannot be written", to.display()), error)
    })?;
    file.publish(report.console())?;
    report.finish(false)
}

/// Writes an archive.
fn archive(
    report: &mut Report<'_>,
    sink: Sink,
    found: &[Source],
    failed: &dyn Fn(&io::Error) -> Failure,
) -> Result<(), Failure> {
    let out = Out { writer: BufWriter::with_capacity(1 << 20, sink), at: 0, failed };
    let folders = vec![Within::default()];
    let (tops, names) = (HashSet::new(), Names::default());
    let mut archiver = Archiver { report, out, folders, tops, names };
    for source in found {
        archiver.source(source)?;
    }
    archiver.out.write(&[0; END])?;
    archiver.out.flush()
}

impl<'a> Target<'a> for Archiver<'_, 'a> {
    fn report(&mut self) -> &mut Report<'a> {
        self.report
    }

    fn is_back_in(&mut self, folder: &[u8]) -> bool {
        while self.folders.pop_if(|open| !lies_in(folder, &open.path)).is_some() {}
        self.folders.last().is_some_and(|open| open.path == folder)
    }

    fn enter(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Failure> {
        let Some(name) = self.place(entry, name)? else { return Ok(()) };
        let prefix = [&name[..], b"/"].concat();
        self.out.write(&header(entry, &prefix, &What::Folder))?;
        self.report.count_folder();
        self.report.count_streams(entry);
        let path = entry.path().to_vec();
        self.folders.push(Within { path, prefix, last: Vec::new() });
        Ok(())
    }

    fn one(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Failure> {
        self.add(entry, None, name)
    }
}

impl Archiver<'_, '_> {
    fn source(&mut self, source: &Source) -> Result<(), Failure> {
        if !source.is_folder() {
            return self.add(&source.entry, source.stream.as_deref(), &source.name);
        }
        let depth = self.folders.len();
        // The top of a volume has no name: what it holds goes to the top of the archive.
        if !source.name.is_empty() {
            self.enter(&source.entry, &source.name)?;
            if self.folders.len() == depth {
                return Ok(());
            }
        }
        walk(&source.entry, self)?;
        self.folders.truncate(depth);
        Ok(())
    }

    /// The name in the archive; none if it cannot have one.
    fn place(&mut self, entry: &Entry, name: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        if !is_one(name) {
            self.report.leave_out_name(entry.path())?;
            return Ok(None);
        }
        let is_top = self.folders.len() == 1;
        let Some(folder) = self.folders.last_mut() else { return Ok(None) };
        let whole = [&folder.prefix, name].concat();
        let is_taken = match is_top {
            true => !self.tops.insert(name.to_vec()),
            false => mem::replace(&mut folder.last, name.to_vec()) == name,
        };
        if is_taken {
            let message = format!(
                "{}: something else has this name in the archive",
                self.report.tree().place(entry.path())
            );
            self.report.leave_out(Failure::new(Exit::Refused, "cp.exists", message))?;
            return Ok(None);
        }
        Ok(Some(whole))
    }

    /// Adds a file, a link or a device.
    fn add(&mut self, entry: &Entry, stream: Option<&[u8]>, name: &[u8]) -> Result<(), Failure> {
        if self.report.is_unknown(entry)? {
            return Ok(());
        }
        let Some(name) = self.place(entry, name)? else { return Ok(()) };
        let tree = self.report.tree();
        match entry.kind() {
            Some(Kind::Link) if stream.is_none() => match tree.target(entry) {
                Ok(target) if target.is_empty() || target.contains(&0) => {
                    let place = tree.place(entry.path());
                    let message = format!("{place}: the link leads to no path");
                    self.report.leave_out(Failure::new(Exit::Io, "cp.link", message))
                }
                Ok(target) => {
                    self.out.write(&header(entry, &name, &What::Link(&target)))?;
                    self.report.count_link();
                    Ok(())
                }
                Err(error) => self.report.unread(error),
            },
            Some(kind @ Kind::Other(what)) if stream.is_none() => {
                let number = if what == "fifo" { Some((0, 0)) } else { entry.device() };
                let number = number.filter(|(major, minor)| (*major).max(*minor) <= MOST_NUMBER);
                let Some(number) = number else {
                    return self.report.leave_out_special(entry, "");
                };
                self.out.write(&header(entry, &name, &What::Device(kind, number)))?;
                self.report.count_device();
                Ok(())
            }
            _ => {
                if stream.is_none()
                    && let Some(first) = self.names.earlier(entry)
                {
                    self.out.write(&header(entry, &name, &What::Again(first)))?;
                    self.names.add(entry, || None);
                    self.report.count_file(0);
                    return Ok(());
                }
                match tree.open(entry, stream) {
                    Ok(file) => self.file(entry, file, stream.is_some(), name),
                    Err(error) => self.report.unread(error),
                }
            }
        }
    }

    fn file(
        &mut self,
        entry: &Entry,
        mut file: FileReader<'_>,
        is_stream: bool,
        name: Vec<u8>,
    ) -> Result<(), Failure> {
        let start = self.out.at;
        match self.bytes(entry, &mut file, &name) {
            Ok(()) => {}
            Err(Failed::Write(error)) => return Err((self.out.failed)(&error)),
            Err(Failed::Read(error)) => {
                if error.disk_error().is_none() && self.out.rewind(start)? {
                    return self.report.unread(error);
                }
                let failure = self.report.tree().failure(error);
                return Err(failure.also("the archive ends within this file"));
            }
        }
        self.report.count_file(file.size());
        if !is_stream {
            self.report.count_streams(entry);
            self.names.add(entry, || Some(name));
        }
        Ok(())
    }

    /// Writes the header and the bytes of a file.
    fn bytes(
        &mut self,
        entry: &Entry,
        file: &mut FileReader<'_>,
        name: &[u8],
    ) -> Result<(), Failed> {
        let size = file.size();
        let parts = data(file)?;
        let stored: u64 = parts.iter().map(|part| part.end - part.start).sum();
        let list = if stored < size { list(&parts, size) } else { Vec::new() };
        let what = match list.len() as u64 {
            0 => What::File { size },
            len => What::Sparse { size, stored: len + stored },
        };
        let start = [header(entry, name, &what), list].concat();
        let (out, report) = (&mut self.out, &mut *self.report);
        if stored <= LITTLE {
            let mut all = start;
            for part in parts {
                pieces(file, part, true, |piece, _| {
                    all.extend(piece);
                    Ok(())
                })?;
            }
            out.put(&all)?;
        } else {
            out.put(&start)?;
            for part in parts {
                pieces(file, part, true, |piece, at| {
                    report.show(at);
                    out.put(piece)
                })?;
            }
        }
        Ok(out.put(&vec![0; padding(stored)])?)
    }
}

/// The parts of a file that hold its bytes. The rest are holes.
fn data(file: &mut FileReader<'_>) -> Result<Vec<Range<u64>>, Failed> {
    let len = file.size();
    if len == 0 {
        return Ok(Vec::new());
    }
    // One that is longer than its volume can tell has an end that cannot be read.
    file.read_at(&mut [0], len - 1).map_err(Failed::Read)?;
    let mut parts: Vec<Range<u64>> = Vec::new();
    let (mut at, mut units) = (0, 0);
    while at < len {
        units += 1;
        let is_last = units == MOST_UNITS || parts.len() == MOST_PIECES;
        let hole = file.hole_end(at);
        let hole = if hole == len { len } else { hole / UNIT * UNIT };
        if hole > at && !is_last {
            at = hole;
            continue;
        }
        let end = if is_last { len } else { (at + UNIT).min(len) };
        match parts.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => parts.push(at..end),
        }
        at = end;
    }
    Ok(parts)
}

/// The list of the parts of a file with holes, as it comes before their bytes.
fn list(parts: &[Range<u64>], size: u64) -> Vec<u8> {
    // It tells the end of the file too.
    let end = size..size;
    let is_open = parts.last().is_none_or(|last| last.end < size);
    let all: Vec<_> = parts.iter().chain(is_open.then_some(&end)).collect();
    let mut list = format!("{}\n", all.len());
    for part in all {
        list += &format!("{}\n{}\n", part.start, part.end - part.start);
    }
    let mut list = list.into_bytes();
    list.resize(list.len() + padding(list.len() as u64), 0);
    list
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.put(bytes).map_err(|error| (self.failed)(&error))
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(|error| (self.failed)(&error))
    }

    /// Takes back what was written behind a place. Returns whether that is possible, or there is nothing to take back.
    fn rewind(&mut self, start: u64) -> Result<bool, Failure> {
        if self.at == start {
            return Ok(true);
        }
        self.flush()?;
        match self.writer.get_mut() {
            Sink::Stdout(_) => return Ok(false),
            Sink::File { storage, at } => {
                storage.set_len(start).map_err(|error| (self.failed)(&error))?;
                *at = start;
            }
        }
        self.at = start;
        Ok(true)
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(buf),
            Self::File { storage, at } => {
                storage.write_at(buf, *at)?;
                *at += buf.len() as u64;
                Ok(buf.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File { .. } => Ok(()),
        }
    }
}
