//! Another parent for an image, whose disk stays what it is.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::child::place_of;
use super::compare::{Both, Difference};
use super::{FileChangeKind, Forecast, Pace, Progress, WINDOW, report, window_end};
use crate::chain::{DiffChain, Linkage, file_id};
use crate::disk::{Disk, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    Core, ImagePolicy, LinkPaths, Lock, LogPolicy, Owner, Warning, check_named, lock,
};
use crate::mutants::planted;
use crate::options::OpenOptions;
use crate::storage::{Access, FileId, Storage};
use crate::types::DiskOffset;
use crate::write::ItemEdit;

/// The code of the refusal where the old parent cannot be had.
const PARENT_LOST: &str = "reparent.parent-lost";

/// Links a differencing image to another parent, after a move, a rename or a copy for instance, without
/// moving a byte of the disk.
///
/// Only the link is rewritten, in one step: the identity and the paths of the new parent. What the image
/// itself is known by stays, so that its own children do not notice; unless its disk may become another by an
/// [unproven](Self::unproven) link.
///
/// A wrong parent would make a mixture of the disk that never was. So each byte is first read from both
/// parents where the image looks through to them, and a single one that differs refuses the change. What is
/// known to lie at the same place of the same file is not read: where the parent was only moved or renamed,
/// or where the new one is an ancestor of the old, the proof costs a look at the maps. Where the old parent is
/// lost there is no proof; [`unproven`](Self::unproven) is the consent to go without.
///
/// The image must not be in use elsewhere. Neither parent is written to.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use avhdx::ops::Reparent;
///
/// let done = Reparent::new("/archive/base.vhdx")
///     .run("/vm/web_1A2B.avhdx", &mut |_| ControlFlow::Continue(()))?;
/// println!("{} bytes are the same below both", done.proven);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reparent {
    base: PathBuf,
    unproven: bool,
    options: OpenOptions,
    pace: Pace,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reparented {
    /// Where the image lies, unless the warning `op.renamed` says that nobody knows.
    pub path: PathBuf,
    /// Where its parent lies, as the image has recorded it: the warning `op.renamed` says so where that is by now
    /// another's name.
    pub parent: PathBuf,
    /// The identity of the parent that the image is linked to now, \[MS-VHDX\] 2.6.2.6.3.
    pub linkage: Uuid,
    /// Bytes of the disk that the image leaves to its parent, and that both parents have alike.
    pub proven: u64,
    /// The same, where nothing shows that they are alike.
    pub unproven: u64,
    /// What the user should hear of, from all images that were opened.
    pub warnings: Vec<Warning>,
}

impl Reparent {
    /// The image at `base`, with the parents that it has itself, becomes the parent.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        let (options, pace) = (OpenOptions::new(), Pace::new());
        Self { base: base.into(), unproven: false, options, pace }
    }

    /// Whether the link may be rewritten without a proof, as it has to be where the old parent is lost:
    /// the disk is then whatever the new parent makes of it. Where the old parent can be read, and shows through, the
    /// image gets another identity, and is refused where children of it are found, for which see
    /// [`OpenOptions::orphan_children`].
    pub fn unproven(mut self, yes: bool) -> Self {
        self.unproven = yes;
        self
    }

    /// How the images are opened: on which host, within which budget, and where parents come from, those
    /// of the image as well as those of the new parent. Whatever it says, identities are verified and logs
    /// replayed.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// How fast both parents may be read.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// What [`run`](Self::run) is going to do. Nothing is read of the disk, and nothing changed.
    ///
    /// # Errors
    /// As `run`, but for bytes that differ.
    pub fn forecast(&self, image: impl AsRef<Path>) -> Result<Forecast> {
        let asked = Asked::new(self, image.as_ref(), Access::Read)?;
        let path = asked.storage.path().unwrap_or(image.as_ref());
        let mut forecast = Forecast::on(asked.options.host_used().as_ref(), path)?;
        forecast.add(path, FileChangeKind::Changed);
        forecast.written = asked.image.edit_len(&[asked.link()?])?;
        match self.unproven {
            true => drop(asked.refuse_children()?),
            false => forecast.read = asked.bytes_to_read()?,
        }
        Ok(forecast)
    }

    /// Links the image at `image`.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::Unproven`] with the code `reparent.differs` when the new
    /// parent has another byte than the old one, and `reparent.parent-lost` when the old one cannot be read;
    /// [`ErrorKind::InvalidInput`] when the image has no parent, when the new one is the image itself
    /// or has it among its ancestors, and when its sectors are of another size; [`ErrorKind::Merged`] and
    /// [`ErrorKind::Unfinished`] when a merge of either is not over; [`ErrorKind::HasChildren`] for an unproven link;
    /// [`ErrorKind::InUse`];
    /// [`ErrorKind::Cancelled`] when `on` asks to stop; for the new parent as
    /// [`OpenOptions::open`](crate::OpenOptions::open). Afterwards [`ErrorKind::Io`] and
    /// [`ErrorKind::Poisoned`]: the image then has either link.
    pub fn run(
        self,
        image: impl AsRef<Path>,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Reparented> {
        let mut asked = Asked::new(&self, image.as_ref(), Access::ReadWrite)?;
        let (proven, unproven) = match self.unproven {
            true => (0, asked.shows_through()?),
            false => (asked.prove(&self.pace, on)?, 0),
        };
        if self.unproven {
            let warnings = asked.refuse_children()?;
            asked.warnings.extend(warnings);
        }
        asked.relink(proven, unproven)
    }
}

/// The image and its parent to be, which are known to fit together.
struct Asked {
    options: OpenOptions,
    /// The file of the image, locked as long as this lives.
    storage: Arc<dyn Storage>,
    /// The image alone, as it is read.
    image: Core,
    /// Whether its parent locator may be a broken one.
    any_locator: bool,
    base: DiffChain,
    base_path: PathBuf,
    warnings: Vec<Warning>,
}

impl Asked {
    fn new(asked: &Reparent, path: &Path, access: Access) -> Result<Self> {
        let options = asked.options.clone().writable(false).linkage(Linkage::Verify);
        let options = options.log(LogPolicy::Replay);
        let host = options.host_used();
        let storage = host.open(path, access).map_err(|error| {
            Error::io("file.open", "cannot open the file", error).in_path(path).limits_named()
        })?;
        let base = options.open(&asked.base)?;
        // Before the lock, which an image that is its own ancestor would keep from itself.
        check_no_loop(&options, storage.as_ref(), &base)?;
        let policy = ImagePolicy {
            writable: access == Access::ReadWrite,
            children: None,
            ..options.policies().0.clone()
        };
        let mut warnings = Vec::new();
        lock(storage.as_ref(), &policy, &mut warnings)
            .map_err(|error| error.in_file(storage.name()))?;
        // Until it was locked the name, too, was anybody's.
        check_named(host.as_ref(), storage.as_ref())
            .map_err(|error| error.in_file(storage.name()))?;
        let image = look(&storage, &options, asked.unproven)?;
        warnings.extend(base.warnings());
        check_fit(&image, &base)?;
        let base_path = base.tip_image().path().unwrap_or(&asked.base).to_path_buf();
        let any_locator = asked.unproven;
        let options = options.clone();
        let asked = Self { storage, image, any_locator, base, base_path, warnings, options };
        asked.link()?;
        Ok(asked)
    }

    /// The link to the new parent.
    fn link(&self) -> Result<ItemEdit> {
        self.image.locator_edit(self.base.tip_image().data_write_guid(), None, self.paths()?)
    }

    /// The way to the new parent.
    fn paths(&self) -> Result<LinkPaths<'_>> {
        let file = file_id(self.base.tip_image().bare_storage().as_ref())?;
        Ok(LinkPaths::To { host: self.options.host_used().as_ref(), parent: &self.base_path, file })
    }

    /// Bytes of the disk that the image leaves to its parent.
    fn shows_through(&self) -> Result<u64> {
        through(&self.image).try_fold(0, |sum, range| Ok(sum + len(&range?)))
    }

    /// Whether what could be read over the old parent may be another disk over the new one, of which nothing is
    /// proven.
    fn may_change(&self) -> Result<bool> {
        let link = self.image.parent_link().ok().flatten();
        let guid = self.base.tip_image().data_write_guid();
        if link.is_some_and(|link| link.accepts(guid)) || self.shows_through()? == 0 {
            return Ok(false);
        }
        Ok(match self.old_parent() {
            Ok(old) => old.is_some(),
            // Without its parent it was no disk to anybody.
            Err(error) => error.code() != PARENT_LOST,
        })
    }

    /// Refuses an image with children whose disk may become another, and warns of those that had none.
    fn refuse_children(&self) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        let guid = self.image.data_write_guid();
        let search = self.options.child_search();
        let refused = search.refuse_children(self.storage.as_ref(), guid, &mut warnings);
        match refused {
            Err(error) if self.may_change()? && !planted("children-of-the-unproven-ignored") => {
                return Err(error);
            }
            Err(error) if error.kind() == ErrorKind::HasChildren => {
                let message = format!("{error}: its disk, too, is what the new parent makes of it");
                warnings.push(Warning { code: "reparent.child", message });
            }
            refused => refused?,
        }
        Ok(warnings)
    }

    /// Compares both parents wherever the image looks through; how many bytes that were.
    fn prove(&self, pace: &Pace, on: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<u64> {
        let size = self.image.geometry().size;
        report(on, 0, size)?;
        let Some(old) = self.old_parent()? else {
            report(on, size, size)?;
            return Ok(0);
        };
        let mut both = self.both(&old)?;
        let (mut proven, mut reported) = (0, 0);
        for range in through(&self.image) {
            let range = range?;
            let mut at = range.start;
            while at < range.end {
                let (_, disks) = both.ahead(at, range.end)?;
                let bytes = disks * (window_end(at, range.end) - at);
                let mut go_on = || on(Progress { done: at, total: size });
                if bytes > 0 && pace.wait(bytes, &mut go_on).is_break() {
                    return Err(Error::cancelled());
                }
                let (end, difference) = both.step(at, range.end)?;
                if let Some(difference) = difference {
                    return Err(self.differs(difference));
                }
                at = end;
                if at - reported >= WINDOW {
                    report(on, at, size)?;
                    reported = at;
                }
            }
            proven += len(&range);
        }
        report(on, size, size)?;
        Ok(proven)
    }

    /// How many bytes of data a proof reads.
    fn bytes_to_read(&self) -> Result<u64> {
        let Some(old) = self.old_parent()? else { return Ok(0) };
        let mut both = self.both(&old)?;
        let mut bytes = 0;
        for range in through(&self.image) {
            let range = range?;
            let mut at = range.start;
            while at < range.end {
                let (end, read) = both.foresee(at, range.end)?;
                bytes += read;
                at = end;
            }
        }
        Ok(bytes)
    }

    /// The disk that the image looks through to now, `None` where it cannot be had and nothing of it is seen.
    fn old_parent(&self) -> Result<Option<DiffChain>> {
        let opened = look(&self.storage, &self.options, false)
            .and_then(|image| self.options.open_chain(crate::VhdxFile::own(image)))
            .and_then(|chain| chain.view(chain.layers()[1].id));
        match opened {
            Ok(old) => Ok(Some(old)),
            // It is there, or may be.
            Err(error)
                if matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse | ErrorKind::Limit) =>
            {
                Err(error)
            }
            Err(why) => match self.shows_through()? {
                0 => Ok(None),
                lost => Err(parent_lost(&self.image, lost, &why)),
            },
        }
    }

    /// Both parents side by side, with the files that they have in common known.
    fn both<'a>(&'a self, old: &'a DiffChain) -> Result<Both<'a>> {
        let mut both = Both::new(old, &self.base);
        let files = files_of(old)?;
        for (file, layer) in files_of(&self.base)? {
            if let Some((_, same)) = files.iter().find(|(other, _)| *other == file) {
                both.same_file(*same, layer);
            }
        }
        Ok(both)
    }

    fn differs(&self, difference: Difference) -> Error {
        let byte = |byte: Option<u8>| match byte {
            Some(byte) => format!("{byte:#04x}"),
            None => "a disk that ended before".to_owned(),
        };
        let message = format!(
            "not the parent that it takes: the disk would be another from byte {} on",
            difference.offset
        );
        Error::new(ErrorKind::Unproven, "reparent.differs", message)
            .in_file(self.image.name())
            .with_found(format_args!("{} in {}", byte(difference.b), self.base.tip_image().name()))
            .with_expected(format_args!("{} as in the parent that it has", byte(difference.a)))
    }

    fn relink(self, proven: u64, unproven: u64) -> Result<Reparented> {
        let is_another = unproven > 0 && self.may_change()?;
        let Self { options, storage, image, any_locator, base, base_path, mut warnings } = self;
        drop(image);
        // The lock is held already, and children know the image by what does not change.
        let policy = ImagePolicy {
            writable: true,
            children: None,
            lock: Lock::None,
            any_locator,
            ..options.policies().0.clone()
        };
        let image = Core::from_storage(storage, &policy)?;
        warnings.extend(image.warnings().iter().cloned());
        if is_another {
            // First: a crash in between leaves the same disk by another name.
            image.begin_with_next_identity()?;
        }
        let linkage = base.tip_image().data_write_guid();
        let file = file_id(base.tip_image().bare_storage().as_ref())?;
        let host = options.host_used().as_ref();
        if planted("link-in-two-steps") {
            image.relink(linkage, None, LinkPaths::Keep)?;
        }
        image.relink(linkage, None, LinkPaths::To { host, parent: &base_path, file })?;
        image.close()?;
        let known = image.path().map(Path::to_path_buf).unwrap_or_default();
        place_of(host, &base.tip_image(), &mut warnings);
        let path = place_of(host, &image, &mut warnings).unwrap_or(known);
        Ok(Reparented { path, parent: base_path, linkage, proven, unproven, warnings })
    }
}

/// The image as it reads now, under a lock that is held already.
fn look(storage: &Arc<dyn Storage>, options: &OpenOptions, any_locator: bool) -> Result<Core> {
    let policy = ImagePolicy {
        lock: Lock::None,
        children: None,
        any_locator,
        ..options.policies().0.clone()
    };
    Core::from_storage(Arc::clone(storage), &policy)
}

/// The ranges of its disk that an image leaves to its parent, in order.
fn through(image: &Core) -> impl Iterator<Item = Result<Range<u64>>> + '_ {
    let size = image.geometry().size;
    let mut at = 0;
    std::iter::from_fn(move || {
        let mut start = None;
        while at < size {
            let run = match image.resolve(DiskOffset(at), size - at) {
                Ok(run) => run,
                Err(error) => {
                    at = size;
                    return Some(Err(error));
                }
            };
            match (run.owner, start) {
                (Owner::Parent, None) => start = Some(at),
                (Owner::Parent, Some(_)) | (_, None) => {}
                (_, Some(start)) => return Some(Ok(start..at)),
            }
            at += run.len;
        }
        start.map(|start| Ok(start..size))
    })
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// What tells the files of a chain from others, where the host has such a thing.
fn files_of(chain: &DiffChain) -> Result<Vec<((FileId, Uuid), LayerId)>> {
    let mut files = Vec::new();
    for image in chain.images() {
        if let Some(file) = file_id(image.storage())? {
            files.push(((file, image.data_write_guid()), image.id()));
        }
    }
    Ok(files)
}

/// Refuses a parent that is the image itself, or has it among its ancestors.
fn check_no_loop(options: &OpenOptions, image: &dyn Storage, base: &DiffChain) -> Result<()> {
    let own = file_id(image)?;
    let place =
        |path: Option<&Path>| path.and_then(|path| options.host_used().canonical(path).ok());
    for layer in base.images() {
        let is_same = match (own, file_id(layer.storage())?) {
            (Some(own), Some(other)) => own == other,
            _ => layer.path().is_some() && place(layer.path()) == place(image.path()),
        };
        if is_same && !planted("loop-not-seen-by-a-reparent") {
            return Err(leads_back(image.name(), base, layer.id() == base.tip_image().id()));
        }
    }
    Ok(())
}

fn leads_back(image: &str, base: &DiffChain, is_itself: bool) -> Error {
    let base = base.tip_image();
    let (code, found) = match is_itself {
        true => ("reparent.self", "the image itself".to_owned()),
        false => ("reparent.loop", format!("{image} among the ancestors of {}", base.name())),
    };
    Error::new(ErrorKind::InvalidInput, code, "an image cannot be its own ancestor")
        .in_file(image)
        .with_section("2.6.2.6")
        .with_found(found)
        .with_expected("a parent that does without the image")
}

/// Refuses an image that has no link, and a parent that cannot lie below it.
fn check_fit(image: &Core, base: &DiffChain) -> Result<()> {
    let refuse = |code, message: &str| {
        Error::new(ErrorKind::InvalidInput, code, message).in_file(image.name())
    };
    check_no_merge(image)?;
    check_no_merge(&base.tip_image())?;
    let Some(link) = image.parent_link()? else {
        let message = "an image without a parent cannot be linked to one";
        return Err(refuse("reparent.no-parent", message)
            .with_section("2.6.2.6")
            .with_expected("a differencing image"));
    };
    for layer in base.images() {
        // Some writers leave a child its parent's identity; one that has the same link is a copy.
        if layer.data_write_guid() == image.data_write_guid()
            && !link.linkage.is_nil()
            && layer.parent_link()?.is_some_and(|other| other.linkage == link.linkage)
        {
            let message = "an image cannot have a copy of itself for an ancestor";
            return Err(refuse("reparent.loop", message)
                .with_section("2.6.2.6")
                .with_found(format_args!("its identity and its link in {}", layer.name())));
        }
    }
    let (above, below) = (image.geometry().logical_sector, base.geometry().logical_sector);
    if above != below {
        let message = "a parent of another logical sector size";
        return Err(refuse("reparent.sector-size", message)
            .with_section("2.6.2.4")
            .with_found(below)
            .with_expected(above));
    }
    Ok(())
}

/// Refuses an image that a merge is about to remove, or is filling.
fn check_no_merge(image: &Core) -> Result<()> {
    image.check_point()?;
    let Some(mark) = image.merge_mark() else { return Ok(()) };
    let message = "the image is being merged into its parent, and goes when that is complete";
    Err(Error::new(ErrorKind::Unfinished, "reparent.unfinished", message)
        .in_file(image.name())
        .with_found(format_args!("the mark of a merge into {}", mark.name))
        .with_expected("the merge to be resumed first"))
}

fn parent_lost(image: &Core, bytes: u64, why: &dyn fmt::Display) -> Error {
    let message = format!("its parent cannot be read to prove the new one by: {why}");
    Error::new(ErrorKind::Unproven, PARENT_LOST, message)
        .in_file(image.name())
        .with_found(format_args!("{bytes} bytes of the disk that nothing proves"))
        .with_expected("the parent that it has, or consent to go without a proof")
}
