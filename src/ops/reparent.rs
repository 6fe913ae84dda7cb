//! Gives an image another parent without changing its disk.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::child::current_path;
use super::compare::Difference;
use super::held::HeldImage;
use super::new_parent::{NewParent, left_to_parent};
use super::pair::DiskPair;
use super::{FileChangeKind, Forecast, Listener, Pace, Progress, WINDOW};
use crate::chain::DiffChain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Core;
use crate::options::OpenOptions;
use crate::storage::Access;
use crate::trace::operation;
use crate::types::len;
use crate::warning::Warning;

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
        let asked = self.open(image.as_ref(), Access::Read)?;
        let path = asked.held.storage.path().unwrap_or(image.as_ref());
        let mut forecast = Forecast::on(asked.held.options.host_used().as_ref(), path)?;
        forecast.add(path, FileChangeKind::Changed);
        forecast.written = asked.link_len()?;
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
        let mut asked = self.open(image.as_ref(), Access::ReadWrite)?;
        let (proven, unproven) = match self.unproven {
            true => (0, asked.bytes_left_to_parent()?),
            false => (asked.prove(&self.pace, &self.progress)?, 0),
        };
        if self.unproven {
            let warnings = asked.refuse_children()?;
            asked.held.warnings.extend(warnings);
        }
        asked.finish(proven, unproven)
    }

    fn open(&self, image: &Path, access: Access) -> Result<NewParent> {
        NewParent::open(&self.options, image, &self.base, access, self.unproven)
    }
}

/// What a reparent asks of an image and its new parent.
impl NewParent {
    /// Whether the disk, so far readable over the old parent, may read differently over the new one without a proof.
    fn may_change(&self) -> Result<bool> {
        let link = self.held.image.parent_link().ok().flatten();
        let guid = self.base.tip_image().data_write_guid();
        if link.is_some_and(|link| link.accepts(guid)) || self.bytes_left_to_parent()? == 0 {
            return Ok(false);
        }
        Ok(match self.old_to_compare() {
            Ok(old) => old.is_some(),
            // Without its parent, the disk could not be read at all.
            Err(error) => error.code() != PARENT_LOST,
        })
    }

    /// Refuses an image with children if its disk may change, and otherwise warns about the children.
    fn refuse_children(&self) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        let guid = self.held.image.data_write_guid();
        let search = self.held.options.child_search();
        let refused = search.refuse_children(self.held.storage.as_ref(), guid, &mut warnings);
        match refused {
            Err(error) if self.may_change()? => {
                return Err(error);
            }
            Err(error) if error.kind() == ErrorKind::HasChildren => {
                let name = self.held.storage.name();
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
        let size = self.held.image.geometry().size;
        progress.report(0, size)?;
        let Some(old) = self.old_to_compare()? else {
            progress.report(size, size)?;
            return Ok(0);
        };
        let mut both = DiskPair::new(&old, &self.base)?;
        let (mut proven, mut reported) = (0, 0);
        for range in left_to_parent(&self.held.image) {
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
        let Some(old) = self.old_to_compare()? else { return Ok(0) };
        let mut both = DiskPair::new(&old, &self.base)?;
        let mut bytes = 0;
        for range in left_to_parent(&self.held.image) {
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
    fn old_to_compare(&self) -> Result<Option<DiffChain>> {
        match self.old_parent() {
            Ok(old) => Ok(Some(old)),
            // It exists, or may exist.
            Err(error)
                if matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse | ErrorKind::Limit) =>
            {
                Err(error)
            }
            Err(why) => match self.bytes_left_to_parent()? {
                0 => Ok(None),
                lost => Err(parent_lost(&self.held.image, lost, &why)),
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
            .in_file(self.held.image.name())
            .with_found(format_args!("{} in {}", byte(difference.b), self.base.tip_image().name()))
            .with_expected(format_args!("{} as in the present parent", byte(difference.a)))
    }

    fn finish(mut self, proven: u64, unproven: u64) -> Result<Reparented> {
        let is_another = unproven > 0 && self.may_change()?;
        let writer = self.held.writer()?;
        let image = writer.core();
        self.held.warnings.extend(image.warnings().iter().cloned());
        if is_another {
            // First: after a crash in between, the disk is the same under a new identity.
            writer.begin_with_next_identity()?;
        }
        self.relink(&writer)?;
        writer.close()?;
        let Self { held: HeldImage { options, mut warnings, .. }, base, base_path: parent } = self;
        let host = options.host_used().as_ref();
        let linkage = base.tip_image().data_write_guid();
        let known = image.path().map(Path::to_path_buf).unwrap_or_default();
        current_path(host, &base.tip_image(), &mut warnings);
        let path = current_path(host, image, &mut warnings).unwrap_or(known);
        Ok(Reparented { path, parent, linkage, proven, unproven, warnings })
    }
}

fn parent_lost(image: &Core, bytes: u64, why: &dyn fmt::Display) -> Error {
    let message =
        format!("its present parent cannot be read to prove that the new one is the same: {why}");
    Error::new(ErrorKind::Unproven, PARENT_LOST, message)
        .in_file(image.name())
        .with_found(format_args!("{bytes} bytes of the disk without a proof"))
        .with_expected("the present parent, or consent to link without a proof")
}
