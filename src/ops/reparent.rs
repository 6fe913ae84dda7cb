//! Gives an image another parent without changing its disk.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::child::current_path;
use super::compare::Difference;
use super::pair::DiskPair;
use super::{FileChangeKind, Forecast, Listener, Pace, Progress, WINDOW};
use crate::answers::Owner;
use crate::chain::{DiffChain, Linkage, file_id};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, lock, open_storage};
use crate::options::OpenOptions;
use crate::storage::LockMode;
use crate::storage::{Access, Storage};
use crate::trace::operation;
use crate::types::{DiskOffset, len};
use crate::warning::Warning;
use crate::write::OpenImage;
use crate::write::WritePolicy;
use crate::write::Writer;
use crate::write::edit_len;
use crate::write::locator_edit;
use crate::write::{ItemEdit, LinkPaths, check_named};

/// Code of the refusal if the old parent cannot be read.
const PARENT_LOST: &str = "reparent.parent-lost";

/// Links a differencing image to another parent, for instance after a move, a rename or a copy, without
/// moving a byte of the disk.
///
/// Only the link is rewritten, in one step: the identity and the paths of the new parent. The image keeps its own
/// identity, so that its children are unaffected, unless an [unproven](Self::unproven) link may have changed its disk.
///
/// The wrong parent would turn the disk into a mixture that never existed. Every byte that the image leaves to its
/// parent is therefore read from both parents first, and one difference refuses the change. Bytes known to lie at the
/// same place of the same file are not read: if the parent was only moved or renamed, or if the new parent is an
/// ancestor of the old one, the proof only compares extents. If the old parent is lost there is no proof;
/// [`unproven`](Self::unproven) is the consent to do without.
///
/// The image must not be in use elsewhere. Neither parent is written to.
///
/// ```no_run
/// use avhdx::ops::Reparent;
///
/// let done = Reparent::new("/archive/base.vhdx")
///     .run("/vm/web_1A2B.avhdx")?;
/// println!("{} bytes are the same below both", done.proven);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reparent<'a> {
    base: PathBuf,
    unproven: bool,
    options: OpenOptions,
    pace: Pace,
    progress: Listener<'a>,
}

/// The result of a reparent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reparented {
    /// The path of the image, unless the warning `op.renamed` says that it is unknown.
    pub path: PathBuf,
    /// The path of the parent as recorded in the image; the warning `op.renamed` says if another file has that name
    /// by now.
    pub parent: PathBuf,
    /// The identity of the new parent, \[MS-VHDX\] 2.6.2.6.3.
    pub linkage: Uuid,
    /// Bytes of the disk that the image leaves to its parent and that are the same in both parents.
    pub proven: u64,
    /// Bytes of the disk that the image leaves to its parent, without a proof that they are the same.
    pub unproven: u64,
    /// Warnings from all images that were opened.
    pub warnings: Vec<Warning>,
}

impl<'a> Reparent<'a> {
    /// Makes the image at `base` the parent, with its own parents below it.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        let (options, pace) = (OpenOptions::new(), Pace::new());
        Self { base: base.into(), unproven: false, options, pace, progress: Listener::default() }
    }

    /// Whether to rewrite the link without a proof, as is necessary if the old parent is lost. The disk then depends
    /// on the new parent. If the old parent can be read and the image leaves bytes to it, the image gets a new
    /// identity, and is refused if it has children, for which see
    /// [`OpenOptions::orphan_children`].
    pub fn unproven(mut self, yes: bool) -> Self {
        self.unproven = yes;
        self
    }

    /// How to open the images: the host, the memory budget, and where parents come from, both those
    /// of the image and those of the new parent. Identities are always verified and logs always
    /// replayed.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Limits how fast both parents are read.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do. Reads no data of the disk and changes nothing.
    ///
    /// # Errors
    /// As for `run`, except for bytes that differ.
    pub fn forecast(&self, image: impl AsRef<Path>) -> Result<Forecast> {
        let asked = OpenedPair::new(self, image.as_ref(), Access::Read)?;
        let path = asked.storage.path().unwrap_or(image.as_ref());
        let mut forecast = Forecast::on(asked.options.host_used().as_ref(), path)?;
        forecast.add(path, FileChangeKind::Changed);
        forecast.written = edit_len(&asked.image, &[asked.link()?])?;
        match self.unproven {
            true => drop(asked.refuse_children()?),
            false => forecast.read = asked.bytes_to_read()?,
        }
        Ok(forecast)
    }

    /// Links the image at `image` to the new parent.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::Unproven`] with the code `reparent.differs` if a byte of the new
    /// parent differs from the old one, or with `reparent.parent-lost` if the old one cannot be read;
    /// [`ErrorKind::InvalidInput`] if the image has no parent, if the new parent is the image itself
    /// or one of its descendants, or if their logical sector sizes differ; [`ErrorKind::Merged`] and
    /// [`ErrorKind::Unfinished`] if a merge of either is unfinished; [`ErrorKind::HasChildren`] for an unproven link;
    /// [`ErrorKind::InUse`]; [`ErrorKind::Cancelled`]; for the new parent as
    /// [`OpenOptions::open`](crate::OpenOptions::open). During the change [`ErrorKind::Io`] and
    /// [`ErrorKind::Poisoned`]: the image then has either the old or the new link.
    pub fn run(self, image: impl AsRef<Path>) -> Result<Reparented> {
        let _span = operation("reparent", &image.as_ref().to_string_lossy());
        let mut asked = OpenedPair::new(&self, image.as_ref(), Access::ReadWrite)?;
        let (proven, unproven) = match self.unproven {
            true => (0, asked.bytes_left_to_parent()?),
            false => (asked.prove(&self.pace, &self.progress)?, 0),
        };
        if self.unproven {
            let warnings = asked.refuse_children()?;
            asked.warnings.extend(warnings);
        }
        asked.relink(proven, unproven)
    }
}

/// The image and its new parent, opened and known to fit together.
struct OpenedPair {
    options: OpenOptions,
    /// The image's file, locked while this value lives.
    storage: Arc<dyn Storage>,
    /// The image alone, opened for reading.
    image: Core,
    /// Whether a damaged parent locator is acceptable.
    any_locator: bool,
    base: DiffChain,
    base_path: PathBuf,
    warnings: Vec<Warning>,
}

impl OpenedPair {
    fn new(asked: &Reparent, path: &Path, access: Access) -> Result<Self> {
        let options = asked.options.clone().writable(false).linkage(Linkage::Verify);
        let options = options.log(LogPolicy::Replay);
        let host = options.host_used();
        let storage = open_storage(host.as_ref(), path, access)?;
        let base = options.open(&asked.base)?;
        // Before locking: an image among its own ancestors is open for reading here and would refuse the lock.
        check_no_loop(&options, storage.as_ref(), &base)?;
        let mode = match access {
            Access::ReadWrite => LockMode::Exclusive,
            Access::Read => LockMode::Shared,
        };
        let mut warnings = Vec::new();
        lock(storage.as_ref(), options.policies().0.lock, mode, &mut warnings)
            .map_err(|error| error.in_file(storage.name()))?;
        // Before the lock, the name could still have been given to another file.
        check_named(host.as_ref(), storage.as_ref())
            .map_err(|error| error.in_file(storage.name()))?;
        let image = open_for_reading(&storage, &options, asked.unproven)?;
        warnings.extend(base.warnings());
        check_fits(&image, &base)?;
        let base_path = base.tip_image().path().unwrap_or(&asked.base).to_path_buf();
        let any_locator = asked.unproven;
        let options = options.clone();
        let asked = Self { storage, image, any_locator, base, base_path, warnings, options };
        asked.link()?;
        Ok(asked)
    }

    /// Returns the metadata edit that links the image to the new parent.
    fn link(&self) -> Result<ItemEdit> {
        locator_edit(&self.image, self.base.tip_image().data_write_guid(), None, self.paths()?)
    }

    /// Returns the paths to the new parent.
    fn paths(&self) -> Result<LinkPaths<'_>> {
        let file = file_id(self.base.tip_image().bare_storage().as_ref())?;
        Ok(LinkPaths::To { host: self.options.host_used().as_ref(), parent: &self.base_path, file })
    }

    /// Counts the bytes of the disk that the image leaves to its parent.
    fn bytes_left_to_parent(&self) -> Result<u64> {
        left_to_parent(&self.image).try_fold(0, |sum, range| Ok(sum + len(&range?)))
    }

    /// Whether the disk, so far readable over the old parent, may read differently over the new one without a proof.
    fn may_change(&self) -> Result<bool> {
        let link = self.image.parent_link().ok().flatten();
        let guid = self.base.tip_image().data_write_guid();
        if link.is_some_and(|link| link.accepts(guid)) || self.bytes_left_to_parent()? == 0 {
            return Ok(false);
        }
        Ok(match self.old_parent() {
            Ok(old) => old.is_some(),
            // Without its parent, the disk could not be read at all.
            Err(error) => error.code() != PARENT_LOST,
        })
    }

    /// Refuses an image with children if its disk may change, and otherwise warns about the children.
    fn refuse_children(&self) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        let guid = self.image.data_write_guid();
        let search = self.options.child_search();
        let refused = search.refuse_children(self.storage.as_ref(), guid, &mut warnings);
        match refused {
            Err(error) if self.may_change()? => {
                return Err(error);
            }
            Err(error) if error.kind() == ErrorKind::HasChildren => {
                let name = self.storage.name();
                let error = error.text_about(name);
                let message = format!("{error}: its disk, too, depends on the new parent");
                warnings.push(Warning::new("reparent.child", name, message));
            }
            refused => refused?,
        }
        Ok(warnings)
    }

    /// Compares both parents wherever the image leaves bytes to them; returns how many bytes that is.
    fn prove(&self, pace: &Pace, progress: &Listener<'_>) -> Result<u64> {
        let size = self.image.geometry().size;
        progress.report(0, size)?;
        let Some(old) = self.old_parent()? else {
            progress.report(size, size)?;
            return Ok(0);
        };
        let mut both = DiskPair::new(&old, &self.base)?;
        let (mut proven, mut reported) = (0, 0);
        for range in left_to_parent(&self.image) {
            let range = range?;
            let mut at = range.start;
            while at < range.end {
                let (_, bytes) = both.predict(at, range.end)?;
                let mut go_on = || progress.call(Progress::new(at, size));
                if bytes > 0 && pace.wait(bytes, &mut go_on).is_break() {
                    return Err(Error::cancelled());
                }
                let (end, difference) = both.step(at, range.end)?;
                if let Some(difference) = difference {
                    return Err(self.differs(difference));
                }
                at = end;
                if at - reported >= WINDOW {
                    progress.report(at, size)?;
                    reported = at;
                }
            }
            proven += len(&range);
        }
        progress.report(size, size)?;
        Ok(proven)
    }

    /// Counts the bytes of data that a proof reads.
    fn bytes_to_read(&self) -> Result<u64> {
        let Some(old) = self.old_parent()? else { return Ok(0) };
        let mut both = DiskPair::new(&old, &self.base)?;
        let mut bytes = 0;
        for range in left_to_parent(&self.image) {
            let range = range?;
            let mut at = range.start;
            while at < range.end {
                let (end, read) = both.predict(at, range.end)?;
                bytes += read;
                at = end;
            }
        }
        Ok(bytes)
    }

    /// Opens the disk below the image, or returns `None` if it cannot be opened and the image leaves no bytes to it.
    fn old_parent(&self) -> Result<Option<DiffChain>> {
        let opened = open_for_reading(&self.storage, &self.options, false)
            .and_then(|core| {
                let image = OpenImage { core: Arc::new(core), writer: None };
                self.options.open_chain(crate::VhdxFile::own(image))
            })
            .and_then(|chain| chain.view(chain.layers()[1].id));
        match opened {
            Ok(old) => Ok(Some(old)),
            // It exists, or may exist.
            Err(error)
                if matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse | ErrorKind::Limit) =>
            {
                Err(error)
            }
            Err(why) => match self.bytes_left_to_parent()? {
                0 => Ok(None),
                lost => Err(parent_lost(&self.image, lost, &why)),
            },
        }
    }

    fn differs(&self, difference: Difference) -> Error {
        let byte = |byte: Option<u8>| match byte {
            Some(byte) => format!("{byte:#04x}"),
            None => "the end of the disk".to_owned(),
        };
        let message = format!(
            "not the same parent: the disk would change from byte {} on",
            difference.offset
        );
        Error::new(ErrorKind::Unproven, "reparent.differs", message)
            .in_file(self.image.name())
            .with_found(format_args!("{} in {}", byte(difference.b), self.base.tip_image().name()))
            .with_expected(format_args!("{} as in the present parent", byte(difference.a)))
    }

    fn relink(self, proven: u64, unproven: u64) -> Result<Reparented> {
        let is_another = unproven > 0 && self.may_change()?;
        let Self { options, storage, image, any_locator, base, base_path, mut warnings } = self;
        drop(image);
        // The lock is already held. Children are not searched for: what they know the image by does not change.
        let policy = ImagePolicy { lock: Lock::None, any_locator, ..options.policies().0.clone() };
        let policy = WritePolicy::of(policy);
        let writer = Writer::open(storage, &policy, Vec::new())?;
        let image = writer.core();
        warnings.extend(image.warnings().iter().cloned());
        if is_another {
            // First: after a crash in between, the disk is the same under a new identity.
            writer.begin_with_next_identity()?;
        }
        let linkage = base.tip_image().data_write_guid();
        let file = file_id(base.tip_image().bare_storage().as_ref())?;
        let host = options.host_used().as_ref();
        writer.relink(linkage, None, LinkPaths::To { host, parent: &base_path, file })?;
        writer.close()?;
        let known = image.path().map(Path::to_path_buf).unwrap_or_default();
        current_path(host, &base.tip_image(), &mut warnings);
        let path = current_path(host, image, &mut warnings).unwrap_or(known);
        Ok(Reparented { path, parent: base_path, linkage, proven, unproven, warnings })
    }
}

/// Opens the image for reading, under a lock that is already held.
fn open_for_reading(
    storage: &Arc<dyn Storage>,
    options: &OpenOptions,
    any_locator: bool,
) -> Result<Core> {
    let policy = ImagePolicy { lock: Lock::None, any_locator, ..options.policies().0.clone() };
    Core::open(Arc::clone(storage), &policy)
}

/// The ranges of the disk that the image leaves to its parent, in order.
fn left_to_parent(image: &Core) -> impl Iterator<Item = Result<Range<u64>>> + '_ {
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

/// Refuses a parent that is the image itself or has it as an ancestor.
fn check_no_loop(options: &OpenOptions, image: &dyn Storage, base: &DiffChain) -> Result<()> {
    let own = file_id(image)?;
    let place =
        |path: Option<&Path>| path.and_then(|path| options.host_used().canonical(path).ok());
    for layer in base.images() {
        let is_same = match (own, file_id(layer.storage())?) {
            (Some(own), Some(other)) => own == other,
            _ => layer.path().is_some() && place(layer.path()) == place(image.path()),
        };
        if is_same {
            return Err(refuse_loop(image.name(), base, layer.id() == base.tip_image().id()));
        }
    }
    Ok(())
}

fn refuse_loop(image: &str, base: &DiffChain, is_itself: bool) -> Error {
    let base = base.tip_image();
    let (code, found) = match is_itself {
        true => ("reparent.self", "the image itself".to_owned()),
        false => ("reparent.loop", format!("{image} among the ancestors of {}", base.name())),
    };
    Error::new(ErrorKind::InvalidInput, code, "an image cannot be its own ancestor")
        .in_file(image)
        .with_section("2.6.2.6")
        .with_found(found)
        .with_expected("a parent that is not based on the image")
}

/// Refuses an image that has no link, and a parent that does not fit below it.
fn check_fits(image: &Core, base: &DiffChain) -> Result<()> {
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
        // Some writers give a child its parent's identity; if the link is the same too, it is a copy.
        if layer.data_write_guid() == image.data_write_guid()
            && !link.linkage.is_nil()
            && layer.parent_link()?.is_some_and(|other| other.linkage == link.linkage)
        {
            let message = "an image cannot have a copy of itself as an ancestor";
            return Err(refuse("reparent.loop", message)
                .with_section("2.6.2.6")
                .with_found(format_args!("its identity and its link in {}", layer.name())));
        }
    }
    let (above, below) = (image.geometry().logical_sector, base.geometry().logical_sector);
    if above != below {
        let message = "the parent has another logical sector size";
        return Err(refuse("reparent.sector-size", message)
            .with_section("2.6.2.4")
            .with_found(below)
            .with_expected(above));
    }
    Ok(())
}

/// Refuses an image that an unfinished merge will remove or is filling.
fn check_no_merge(image: &Core) -> Result<()> {
    image.check_point()?;
    let Some(mark) = image.merge_mark() else { return Ok(()) };
    let message = "an unfinished merge of this image into its parent will remove it";
    Err(Error::new(ErrorKind::Unfinished, "reparent.unfinished", message)
        .in_file(image.name())
        .with_found(format_args!("the mark of a merge into {}", mark.name))
        .with_expected("the merge to be resumed first"))
}

fn parent_lost(image: &Core, bytes: u64, why: &dyn fmt::Display) -> Error {
    let message =
        format!("its present parent cannot be read to prove that the new one is the same: {why}");
    Error::new(ErrorKind::Unproven, PARENT_LOST, message)
        .in_file(image.name())
        .with_found(format_args!("{bytes} bytes of the disk without a proof"))
        .with_expected("the present parent, or consent to link without a proof")
}
