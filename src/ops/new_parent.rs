//! An image and the parent that it is to get.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::answers::Owner;
use crate::chain::{DiffChain, Linkage, file_id};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, lock, open_storage};
use crate::options::OpenOptions;
use crate::storage::{Access, LockMode, Storage};
use crate::types::{DiskOffset, len};
use crate::warning::Warning;
use crate::write::{
    ItemEdit, LinkPaths, OpenImage, WritePolicy, Writer, check_named, edit_len, locator_edit,
};

/// The image and its new parent, opened and known to fit together.
pub(super) struct NewParent {
    pub(super) options: OpenOptions,
    /// The image's file, locked while this value lives.
    pub(super) storage: Arc<dyn Storage>,
    /// The image alone, opened for reading.
    pub(super) image: Core,
    /// Whether a damaged parent locator is acceptable.
    any_locator: bool,
    pub(super) base: DiffChain,
    pub(super) base_path: PathBuf,
    pub(super) warnings: Vec<Warning>,
}

impl NewParent {
    /// Opens both, the image under an exclusive lock if it is to be written to.
    pub(super) fn open(
        options: &OpenOptions,
        path: &Path,
        base_path: &Path,
        access: Access,
        any_locator: bool,
    ) -> Result<Self> {
        let options = options.clone().writable(false).linkage(Linkage::Verify);
        let options = options.log(LogPolicy::Replay);
        let host = options.host_used();
        let storage = open_storage(host.as_ref(), path, access)?;
        let base = options.open(base_path)?;
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
        let image = open_for_reading(&storage, &options, any_locator)?;
        warnings.extend(base.warnings());
        check_fits(&image, &base)?;
        let base_path = base.tip_image().path().unwrap_or(base_path).to_path_buf();
        let options = options.clone();
        let new = Self { options, storage, image, any_locator, base, base_path, warnings };
        new.link()?;
        Ok(new)
    }

    /// Bytes that the new link writes, in whole pages; 0 if it is the present one.
    pub(super) fn link_len(&self) -> Result<u64> {
        edit_len(&self.image, &[self.link()?])
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
    pub(super) fn bytes_left_to_parent(&self) -> Result<u64> {
        left_to_parent(&self.image).try_fold(0, |sum, range| Ok(sum + len(&range?)))
    }

    /// Opens the disk below the image as it is linked now.
    pub(super) fn old_parent(&self) -> Result<DiffChain> {
        let core = open_for_reading(&self.storage, &self.options, false)?;
        let image = OpenImage { core: Arc::new(core), writer: None };
        let chain = self.options.open_chain(crate::VhdxFile::own(image))?;
        chain.view(chain.layers()[1].id)
    }

    /// Opens the image for writing. The lock is already held. Children are not searched for: what they know the image by
    /// does not change.
    pub(super) fn writer(&self) -> Result<Writer> {
        let lock = Lock::None;
        let any_locator = self.any_locator;
        let policy = ImagePolicy { lock, any_locator, ..self.options.policies().0.clone() };
        Writer::open(Arc::clone(&self.storage), &WritePolicy::of(policy), Vec::new())
    }

    /// Links the image to the new parent, durably and at once.
    pub(super) fn relink(&self, writer: &Writer) -> Result<()> {
        writer.relink(self.base.tip_image().data_write_guid(), None, self.paths()?)
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
pub(super) fn left_to_parent(image: &Core) -> impl Iterator<Item = Result<Range<u64>>> + '_ {
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
        true => ("link.self", "the image itself".to_owned()),
        false => ("link.loop", format!("{image} among the ancestors of {}", base.name())),
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
        return Err(refuse("link.no-parent", message)
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
            return Err(refuse("link.loop", message)
                .with_section("2.6.2.6")
                .with_found(format_args!("its identity and its link in {}", layer.name())));
        }
    }
    let (above, below) = (image.geometry().logical_sector, base.geometry().logical_sector);
    if above != below {
        let message = "the parent has another logical sector size";
        return Err(refuse("link.sector-size", message)
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
    Err(Error::new(ErrorKind::Unfinished, "link.unfinished", message)
        .in_file(image.name())
        .with_found(format_args!("the mark of a merge into {}", mark.name))
        .with_expected("the merge to be resumed first"))
}
