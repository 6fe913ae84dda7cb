//! Removes an image with everything that lies on it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::forecast::check_removable;
use super::forest::{Forest, ForestFinding, NodeId};
use super::{FileChangeKind, Forecast, Listener, Progress};
use crate::chain::PathSource;
use crate::disk::{Disk, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::file::VhdxFile;
use crate::image::Lock;
use crate::options::OpenOptions;
use crate::storage::{
    self, Access, FileKind, Host, LockMode, LockOutcome, Removal, Storage, folder_of, is_file,
    is_temporary_name,
};
use crate::trace::operation;
use crate::warning::Warning;

/// Removes an image of a chain with its children, their children, and so on: a branch, with all the points in time that
/// only it shows. What lies below the image stays as it is.
///
/// Nothing is removed unless every file of the branch is readable and nobody has one open. The files go from the tips
/// down, each only if its name still belongs to the image that was found, so that an interrupted removal leaves a
/// shorter branch of whole images; it can be repeated.
///
/// ```no_run
/// use avhdx::ops::DeleteBranch;
///
/// let branch = DeleteBranch::at("web_old.avhdx");
/// println!("{} bytes would be lost", branch.forecast()?.lost);
/// branch.lose(true).run()?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DeleteBranch<'a> {
    image: PathBuf,
    folders: Vec<PathBuf>,
    source: PathSource,
    may_lose: bool,
    no_other_children: bool,
    progress: Listener<'a>,
}

/// The result of removing a branch.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DeletedBranch {
    /// The removed files, in the order in which they went.
    pub removed: Vec<PathBuf>,
    /// Bytes of data that the removed files held and that no point shows any more.
    pub lost: u64,
    /// Files that stayed, and why; and removals that may not be durable.
    pub warnings: Vec<Warning>,
}

/// An image of the branch, held open until it is removed.
struct Member {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    len: u64,
    data: u64,
}

impl<'a> DeleteBranch<'a> {
    /// Removes the image at `path`, which must have a parent, and everything on top of it.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            image: path.into(),
            folders: Vec::new(),
            source: PathSource::new(),
            may_lose: false,
            no_other_children: false,
            progress: Listener::default(),
        }
    }

    /// Consents to losing the bytes that no other point shows. Without it, [`run`](Self::run) is refused.
    pub fn lose(mut self, yes: bool) -> Self {
        self.may_lose = yes;
        self
    }

    /// Adds a folder to search for children, besides the folder of the image.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Asserts that files and folders that cannot be read hold no further images of the branch.
    pub fn no_other_children(mut self, yes: bool) -> Self {
        self.no_other_children = yes;
        self
    }

    /// The host, and where parents are looked for.
    pub fn parents(mut self, source: PathSource) -> Self {
        self.source = source;
        self
    }

    /// Calls `on` before each file; progress counts files. A break stops it with [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do, without changing anything. The bytes that will be lost are
    /// [`Forecast::lost`].
    ///
    /// # Errors
    /// The errors of `run` that are found before anything is changed, except for a missing consent.
    pub fn forecast(&self) -> Result<Forecast> {
        let members = self.members()?;
        let mut forecast = Forecast::on(self.host(), &self.image)?;
        for member in &members {
            forecast.freed = forecast.freed.saturating_add(member.len);
            forecast.lost = forecast.lost.saturating_add(member.data);
            forecast.add(&member.path, FileChangeKind::Removed);
        }
        self.check_removable(&members)?;
        Ok(forecast)
    }

    /// Removes the files.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::InvalidInput`] if the image has no parent;
    /// [`ErrorKind::WouldLose`] without [consent](Self::lose); [`ErrorKind::InUse`] if somebody has one of the files
    /// open; [`ErrorKind::Unfinished`] if one of them is part of an unfinished merge; [`ErrorKind::HasChildren`] if
    /// there may be more images that cannot be looked for; the errors of opening the files. Later:
    /// [`ErrorKind::Cancelled`].
    pub fn run(self) -> Result<DeletedBranch> {
        let name = self.image.display().to_string();
        let _span = operation("delete-branch", &name);
        let members = self.members()?;
        let lost: u64 = members.iter().map(|member| member.data).sum();
        if !self.may_lose {
            let message = "the branch has bytes that no other point shows";
            return Err(Error::new(ErrorKind::WouldLose, "delete.branch", message)
                .in_path(&self.image)
                .with_found(match members.len() {
                    1 => format!("{lost} bytes of data in 1 file"),
                    count => format!("{lost} bytes of data in {count} files"),
                })
                .with_expected("consent to lose them"));
        }
        self.check_removable(&members)?;
        let mut deleted = DeletedBranch::default();
        let total = members.len() as u64;
        for (done, member) in members.iter().enumerate() {
            self.progress.report(done as u64, total)?;
            match self.remove(member) {
                Ok(warning) => {
                    deleted.removed.push(member.path.clone());
                    deleted.lost = deleted.lost.saturating_add(member.data);
                    deleted.warnings.extend(warning);
                }
                Err(kept) => {
                    deleted.warnings.push(kept);
                    break;
                }
            }
        }
        _ = self.progress.report(total, total);
        Ok(deleted)
    }

    fn host(&self) -> &dyn Host {
        self.source.its_host()
    }

    /// Refuses members in a folder from which the host does not allow files to be removed. Asks once for each folder.
    fn check_removable(&self, members: &[Member]) -> Result<()> {
        let mut asked = HashSet::new();
        let mut paths = members.iter().map(|member| member.path.as_path());
        paths.try_for_each(|path| match asked.insert(folder_of(path)) {
            true => check_removable(self.host(), path),
            false => Ok(()),
        })
    }

    /// Removes the name of a file; the warning of a failure says why it stays.
    fn remove(&self, member: &Member) -> std::result::Result<Option<Warning>, Warning> {
        let path = &member.path;
        let is_ours = |path: &Path| is_file(self.host(), path, member.storage.as_ref());
        let kept = |what: String| Warning::new("delete.kept", path.display(), what);
        match storage::remove(self.host(), path, &is_ours) {
            Ok(Removal::Removed | Removal::Gone) => {}
            Ok(Removal::Kept) => {
                return Err(kept("stays: another file has taken that name".into()));
            }
            Ok(Removal::LeftAt(place)) => {
                let what = "another file had taken that name, and is now";
                return Err(kept(format!("{what} {}", place.display())));
            }
            Err(error) => return Err(kept(format!("stays: {error}"))),
        }
        Ok(self.host().sync_dir(folder_of(path)).err().map(|error| {
            let what = "is removed, but may reappear after a crash";
            Warning::new("op.not-durable", path.display(), format!("{what}: {error}"))
        }))
    }

    /// The images of the branch, open and locked, from the tips down.
    fn members(&self) -> Result<Vec<Member>> {
        let host = self.host();
        let root = host.open(&self.image, Access::Read).map_err(|error| {
            Error::io("file.open", "cannot open the file", error).in_path(&self.image)
        })?;
        let forest = Forest::scan(self.places(root.as_ref())?, &self.source)?;
        let is_root = |path: &Path| is_file(host, path, root.as_ref()).unwrap_or(false);
        let node = forest.nodes().find(|(_, node)| is_root(&node.path)).map(|(id, _)| id);
        let Some(node) = node else {
            // Opening it says why it is none of the images.
            OpenOptions::new().lock(Lock::Try).open_file(root)?;
            return Err(Error::in_use("another program, which renamed it").in_path(&self.image));
        };
        if forest.node(node).image.is_ok() && forest.node(node).link.is_none() {
            let message = "the image is the base, on which every point in time rests";
            return Err(Error::new(ErrorKind::InvalidInput, "delete.base", message)
                .in_path(&self.image)
                .with_found("an image without a parent")
                .with_expected("a branch"));
        }
        self.refuse_unknown(&forest)?;
        let mut branch = vec![node];
        let mut next = 0;
        while let Some(id) = branch.get(next).copied() {
            next += 1;
            let guid = forest.node(id).data_write_guid;
            let children: Vec<_> =
                guid.into_iter().flat_map(|guid| forest.children_of(guid)).collect();
            if !children.is_empty() {
                refuse_copies(&forest, id)?;
            }
            for child in children {
                if !branch.contains(&child) {
                    branch.push(child);
                }
            }
        }
        // Each comes after all that it lies on.
        branch.reverse();
        let members: Vec<Member> =
            branch.iter().map(|id| self.member(&forest, *id)).collect::<Result<_>>()?;
        Ok(members)
    }

    /// The files of the folders that are searched.
    fn places(&self, root: &dyn Storage) -> Result<Vec<PathBuf>> {
        let host = self.host();
        let own = [root.path(), root.via()].into_iter().flatten().map(folder_of);
        let mut places = Vec::new();
        for folder in own.chain(self.folders.iter().map(PathBuf::as_path)) {
            let names = host.list(folder).map_err(|error| {
                Error::io("image.children", "cannot search for the images of the branch", error)
                    .in_path(folder)
            })?;
            let is_file =
                |path: &PathBuf| host.stat(path).map_or(true, |stat| stat.kind == FileKind::File);
            let names = names.into_iter().filter(|name| !is_temporary_name(name));
            // A file of the current folder is shown as it would be typed.
            let shown =
                |path: PathBuf| path.strip_prefix(".").map_or(path.clone(), Path::to_path_buf);
            places.extend(names.filter(is_file).map(shown));
        }
        Ok(places)
    }

    /// Refuses to go on where images of the branch may have stayed unseen.
    fn refuse_unknown(&self, forest: &Forest) -> Result<()> {
        let unread = forest.findings().iter().find_map(|finding| match finding {
            ForestFinding::Unreadable { path, error } => Some((path, error)),
            _ => None,
        });
        let mut nodes = forest.nodes().map(|(_, node)| node);
        // Without its link, nobody knows what it lies on.
        let damaged = || {
            nodes.find_map(|node| match &node.image {
                Err(error) if node.link.is_none() => Some((&node.path, error)),
                _ => None,
            })
        };
        match unread.or_else(damaged).filter(|_| !self.no_other_children) {
            Some((path, error)) => Err(Error::new(
                ErrorKind::HasChildren,
                "delete.children-unknown",
                "the branch may have more images",
            )
            .in_path(&self.image)
            .with_found(format_args!(
                "{}, which could not be examined: {}",
                path.display(),
                error.message()
            ))
            .with_expected(
                "files that can be read, or the assurance that they are not of the branch",
            )),
            None => Ok(()),
        }
    }

    fn member(&self, forest: &Forest, id: NodeId) -> Result<Member> {
        let node = forest.node(id);
        let path = node.path.clone();
        let storage = self.host().open(&path, Access::ReadWrite).map_err(|error| {
            Error::io("file.open", "cannot open the file for writing", error).in_path(&path)
        })?;
        match storage.try_lock(LockMode::Exclusive) {
            Ok(LockOutcome::InUse(by)) => {
                let expected = "a file that nobody else has open";
                return Err(Error::in_use(by).in_path(&path).with_expected(expected));
            }
            Ok(LockOutcome::Locked) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(error) => {
                return Err(Error::io("lock.failed", "cannot lock the file", error).in_path(&path));
            }
        }
        let options = OpenOptions::new().lock(Lock::None);
        let image = options.open_file(Arc::clone(&storage))?;
        if Some(image.data_write_guid()) != node.data_write_guid {
            return Err(Error::in_use("another program, which wrote to it").in_path(&path));
        }
        if let Some(mark) = image.merge_mark() {
            let message = "a merge that involves the image must be resumed first";
            return Err(Error::new(ErrorKind::Unfinished, "merge.other", message)
                .in_path(&path)
                .with_section("2.6.2.6.3")
                .with_found(format_args!("the mark of a merge with {}", mark.name))
                .with_expected("an image without a merge mark"));
        }
        let (len, data) = (node.file_len, data_of(&image)?);
        Ok(Member { path, storage, len, data })
    }
}

/// Bytes of the disk that the image holds itself.
fn data_of(image: &VhdxFile) -> Result<u64> {
    let (mut at, mut data) = (0, 0);
    let size = image.geometry().size;
    while let Some(extent) = image.next_extent(at..size)? {
        at = extent.range.end;
        if let Source::Data { .. } = extent.source {
            data += extent.range.end - extent.range.start;
        }
    }
    Ok(data)
}

/// Refuses an image of which there is a copy: the children lie on either.
fn refuse_copies(forest: &Forest, id: NodeId) -> Result<()> {
    let guid = forest.node(id).data_write_guid;
    let other = forest.nodes().find(|(other, node)| *other != id && node.data_write_guid == guid);
    let Some((_, other)) = other else { return Ok(()) };
    let message = "there are two images of one point, and what lies on it belongs to both";
    Err(Error::new(ErrorKind::HasChildren, "delete.copies", message)
        .in_path(&forest.node(id).path)
        .with_found(format_args!("{} with the same identity", other.path.display()))
        .with_expected("one image of each point"))
}
