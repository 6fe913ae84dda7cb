//! `avhdx cp`: copies files of a file system inside the disk to this machine.
//!
//! Nothing in an image can make it write outside of the target: names are checked one by one, a folder is entered only if
//! it is one and no link, nothing that exists is replaced, and links are made after all files.
#![allow(clippy::disallowed_methods)] // times, rights and links of files that were just made

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Draft, FileKind, Host, LocalHost};
use avhdx_files::{Entry, FileReader, FileSystem, Kind, Time};
use serde::Serialize;

use crate::args::ImageArg;
use crate::failure::{Failure, Reply};
use crate::interrupt::{InProgress, in_progress};
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{count, size};
use crate::vocabulary::Answer;
use crate::volume::{self, VolumeFlags, shown};

const PIECE: u64 = 1 << 20;
/// Zeros in whole units of this size are left out of the copy.
const UNIT: usize = 64 << 10;

/// Copy files of a file system inside the disk to this machine.
///
/// Into DEST if that is a folder, else to the name DEST. Times are kept, and the permissions of ext without setuid, setgid
/// and sticky bits; owners and attributes are not. Links are copied as links. Nothing that exists is replaced. What cannot
/// be copied is reported, and the rest is copied all the same (exit code 8).
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Paths from the top of the volume.
    #[arg(value_name = "SRC", num_args = 1.., required = true)]
    sources: Vec<OsString>,
    /// Where the copies go.
    #[arg(value_name = "DEST")]
    to: PathBuf,
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

struct Copier<'a> {
    tree: &'a FileSystem,
    console: &'a mut Console,
    meter: ProgressMeter,
    done: CpAnswer,
    /// The names that were given, to find two files that meet.
    made: HashSet<PathBuf>,
    links: Vec<(PathBuf, Entry)>,
    /// Folders whose times are set at the end.
    folders: Vec<(PathBuf, Entry)>,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let tree = args.volume.open(&args.image, console)?;
    let (to, sources) = (args.to.as_path(), &args.sources);
    let into_folder = LocalHost.stat(to).is_ok_and(|stat| stat.kind == FileKind::Folder);
    if sources.len() > 1 && !into_folder {
        let message = format!("{}: several files go to a folder, which this is not", to.display());
        return Err(Failure::usage("cp.not-folder", message));
    }
    // All of them are found before anything is copied.
    let mut found = Vec::new();
    for source in sources {
        let (entry, stream) = volume::find(&tree, &volume::path(source))?;
        if entry.kind() == Some(Kind::Folder) && stream.is_none() && !args.recursive {
            let message = format!("{}: this is a folder", shown(entry.path()));
            return Err(Failure::usage("cp.folder", message));
        }
        found.push((entry, stream));
    }
    let meter = ProgressMeter::endless(console);
    let done = CpAnswer { image: args.image.name(), ..CpAnswer::default() };
    let (made, links, folders) = (HashSet::new(), Vec::new(), Vec::new());
    let mut copier = Copier { tree: &tree, console, meter, done, made, links, folders };
    for (entry, stream) in found {
        let mut name = entry.name().to_vec();
        if let Some(stream) = &stream {
            name.extend([b":", &stream[..]].concat());
        }
        let target = match into_folder {
            // The top of a volume has no name: what it holds goes into the folder.
            true if name.is_empty() => to.to_path_buf(),
            true => match safe(&name) {
                Some(name) => to.join(name),
                None => {
                    copier.leave_out(
                        "cp.name",
                        &format!("{}: no name for a file here", shown(&name)),
                    );
                    continue;
                }
            },
            false => to.to_path_buf(),
        };
        if entry.kind() == Some(Kind::Folder) && stream.is_none() {
            copier.folder(entry, target, to)?;
        } else {
            copier.one(entry, stream.as_deref(), target)?;
        }
    }
    copier.finish()
}

impl Copier<'_> {
    fn leave_out(&mut self, code: &'static str, message: &str) {
        self.done.left_out += 1;
        self.console.warn(code, message);
    }

    /// Leaves out what cannot be read, unless it is the disk that failed.
    fn unread(&mut self, error: avhdx_files::Error) -> Result<(), Failure> {
        if error.disk_error().is_some() {
            return Err(error.into());
        }
        self.leave_out(error.code(), &error.to_string());
        Ok(())
    }

    /// Copies a folder and what lies in it. `typed` is DEST, which may be a link: the user named it.
    fn folder(&mut self, top: Entry, to: PathBuf, typed: &Path) -> Result<(), Failure> {
        // The folders that exist here, by their paths there.
        let mut places = HashMap::from([(top.path().to_vec(), to.clone())]);
        let tree = self.tree;
        let walk = tree.walk(&top);
        if !self.make_folder(&to, to == typed)? {
            return Ok(());
        }
        self.folders.push((to, top));
        for entry in walk {
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
            // What lies in a folder that was left out is left out with it.
            let Some(folder) = places.get(above) else { continue };
            let Some(name) = safe(entry.name()) else {
                self.leave_out("cp.name", &format!("{}: no name for a file here", shown(path)));
                continue;
            };
            let to = folder.join(name);
            if entry.kind() != Some(Kind::Folder) {
                self.one(entry, None, to)?;
            } else if self.make_folder(&to, false)? {
                places.insert(path.to_vec(), to.clone());
                self.folders.push((to, entry));
            }
        }
        Ok(())
    }

    /// Makes a folder, or takes one that was there before. Returns whether there is one.
    fn make_folder(&mut self, to: &Path, is_typed: bool) -> Result<bool, Failure> {
        let is_new = self.made.insert(to.to_path_buf());
        match std::fs::create_dir(to) {
            Ok(()) => {
                self.done.folders += 1;
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let message = format!("{}: cannot make the folder", to.display());
                return Err(Failure::io("cp.write", message, &error));
            }
        }
        let is_folder = std::fs::symlink_metadata(to).is_ok_and(|found| found.is_dir());
        if is_new && (is_folder || is_typed && to.is_dir()) {
            return Ok(true);
        }
        self.leave_out("cp.exists", &format!("{}: something else has this name", to.display()));
        Ok(false)
    }

    /// Copies a file or a link.
    fn one(&mut self, entry: Entry, stream: Option<&[u8]>, to: PathBuf) -> Result<(), Failure> {
        if let Some(problem) = entry.problem() {
            let message = format!("{}: {problem}", shown(entry.path()));
            self.leave_out(problem.code(), &message);
            return Ok(());
        }
        if !self.made.insert(to.clone()) || LocalHost.is_link(&to).unwrap_or(false) {
            self.leave_out("cp.exists", &format!("{}: something else has this name", to.display()));
            return Ok(());
        }
        match entry.kind() {
            Some(Kind::Link) if stream.is_none() => self.links.push((to, entry)),
            Some(Kind::Other(kind)) if stream.is_none() => {
                let message = format!("{}: a {kind} is not copied", shown(entry.path()));
                self.leave_out("cp.special", &message);
            }
            _ => {
                let tree = self.tree;
                match tree.open(&entry, stream) {
                    Ok(file) => self.file(&entry, file, &to)?,
                    Err(error) => self.unread(error)?,
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry, mut file: FileReader<'_>, to: &Path) -> Result<(), Failure> {
        let name = to.display();
        let failed = |error: io::Error| {
            Failure::io("cp.write", format!("{name}: cannot write the file"), &error)
        };
        let mut in_progress_now = in_progress();
        let draft = Arc::new(Draft::new(&LocalHost, to).map_err(failed)?);
        *in_progress_now = InProgress::Draft(Arc::clone(&draft));
        drop(in_progress_now);
        let fits = draft.storage().set_len(file.size());
        let copied = match &fits {
            Ok(()) => self.fill(&mut file, &draft),
            Err(_) => Ok(Ok(())),
        };
        let mut in_progress_now = in_progress();
        *in_progress_now = InProgress::Nothing;
        if let Err(error) = fits {
            draft.discard();
            drop(in_progress_now);
            let bytes = file.size();
            self.leave_out("cp.too-long", &format!("{name}: a file of {bytes} bytes: {error}"));
            return Ok(());
        }
        match copied {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                draft.discard();
                drop(in_progress_now);
                return self.unread(error);
            }
            Err(error) => {
                draft.discard();
                return Err(failed(error));
            }
        }
        match draft.publish(None) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                drop(in_progress_now);
                self.leave_out("cp.exists", &format!("{name}: something else has this name"));
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        }
        drop(in_progress_now);
        self.done.files += 1;
        set_facts(to, entry).map_err(failed)
    }

    /// Writes the bytes of a file without its holes. The outer error is of this machine, the inner one of the volume.
    fn fill(
        &mut self,
        file: &mut FileReader<'_>,
        draft: &Draft<'_>,
    ) -> io::Result<avhdx_files::Result<()>> {
        let (len, storage) = (file.size(), draft.storage());
        let before = self.done.bytes;
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
                self.done.bytes = before;
                return Ok(Err(error));
            }
            for (place, unit) in (at..).step_by(UNIT).zip(piece.chunks(UNIT)) {
                if unit.iter().any(|byte| *byte != 0) {
                    storage.write_at(unit, place)?;
                }
            }
            at += piece.len() as u64;
            self.done.bytes = before + at;
            self.meter.show(self.done.bytes, 0);
        }
        self.done.bytes = before + len;
        Ok(Ok(()))
    }

    fn finish(mut self) -> Result<Reply, Failure> {
        for (to, entry) in std::mem::take(&mut self.links) {
            let target = match self.tree.target(&entry) {
                Ok(target) => target,
                Err(error) => {
                    self.unread(error)?;
                    continue;
                }
            };
            match make_link(&target, &to) {
                Ok(()) => self.done.links += 1,
                Err(error) => {
                    let message = format!("{}: the link cannot be made: {error}", to.display());
                    self.leave_out("cp.link", &message);
                }
            }
        }
        // What is put into a folder changes its times: the innermost come first.
        for (to, entry) in std::mem::take(&mut self.folders).into_iter().rev() {
            set_facts(&to, &entry).map_err(|error| {
                Failure::io("cp.write", format!("{}: cannot set its times", to.display()), &error)
            })?;
        }
        let Self { console, done, meter, .. } = self;
        drop(meter);
        console.done();
        if console.is_json() {
            console.document(&done)?;
        } else {
            let CpAnswer { files, folders, links, bytes, .. } = done;
            let number = |of: u64, noun| count(usize::try_from(of).unwrap_or(usize::MAX), noun);
            let (files, folders, links) =
                (number(files, "file"), number(folders, "folder"), number(links, "link"));
            console.line(format!("copied {files}, {folders}, {links}: {}", size(bytes)))?;
        }
        Ok(if done.left_out == 0 { Reply::Yes } else { Reply::Losses })
    }
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

#[cfg(unix)]
fn make_link(target: &[u8], at: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), at)
}

#[cfg(not(unix))]
fn make_link(_: &[u8], _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives a file that was just made the permissions and times of the entry.
fn set_facts(at: &Path, entry: &Entry) -> io::Result<()> {
    let times = entry.times();
    let moment = |time: Option<Time>| {
        let time = time?;
        let since = std::time::Duration::new(time.seconds.unsigned_abs(), 0);
        let whole = match time.seconds < 0 {
            true => std::time::UNIX_EPOCH.checked_sub(since),
            false => std::time::UNIX_EPOCH.checked_add(since),
        };
        whole?.checked_add(std::time::Duration::from_nanos(time.nanoseconds.into()))
    };
    let mut set = std::fs::FileTimes::new();
    if let Some(modified) = moment(times.modified) {
        set = set.set_modified(modified);
    }
    if let Some(accessed) = moment(times.accessed) {
        set = set.set_accessed(accessed);
    }
    let file = std::fs::File::open(at)?;
    file.set_times(set)?;
    #[cfg(unix)]
    if let Some(mode) = entry.mode() {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(u32::from(mode & 0o777)))?;
    }
    Ok(())
}
