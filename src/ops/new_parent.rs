//! An image and the parent that it is to get.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::held::HeldImage;
use crate::answers::Owner;
use crate::chain::{DiffChain, file_id};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, open_storage};
use crate::options::OpenOptions;
use crate::storage::{Access, Storage};
use crate::types::{DiskOffset, len};
use crate::write::{ItemEdit, LinkPaths, OpenImage, Writer, edit_len, locator_edit};

/// The image and its new parent, opened and known to fit together.
pub(super) struct NewParent {
    pub(super) held: HeldImage,
    pub(super) base: DiffChain,
    pub(super) base_path: PathBuf,
}

impl NewParent {
    /// Opens both, the image under an exclusive lock if it is to be written to. With `any_locator`, its parent locator
    /// may be damaged.
    pub(super) fn open(
        options: &OpenOptions,
        path: &Path,
        base_path: &Path,
        access: Access,
        any_locator: bool,
    ) -> Result<Self> {
        let options = HeldImage::careful(options);
        let storage = open_storage(options.host_used().as_ref(), path, access)?;
        let base = options.open(base_path)?;
        // Before locking: an image among its own ancestors is open for reading here and would refuse the lock.
        check_no_loop(&options, storage.as_ref(), &base)?;
        let mut held = HeldImage::hold(&options, storage, access, any_locator)?;
        held.warnings.extend(base.warnings());
        check_fits(&held.image, &base)?;
        let base_path = base.tip_image().path().unwrap_or(base_path).to_path_buf();
        let new = Self { held, base, base_path };
        new.link()?;
        Ok(new)
    }

    /// Bytes that the new link writes, in whole pages; 0 if it is the present one.
    pub(super) fn link_len(&self) -> Result<u64> {
        edit_len(&self.held.image, &[self.link()?])
    }

    /// Returns the metadata edit that links the image to the new parent.
    fn link(&self) -> Result<ItemEdit> {
        locator_edit(&self.held.image, self.base.tip_image().data_write_guid(), None, self.paths()?)
    }

    /// Returns the paths to the new parent.
    fn paths(&self) -> Result<LinkPaths<'_>> {
        let file = file_id(self.base.tip_image().bare_storage().as_ref())?;
        Ok(LinkPaths::To {
            host: self.held.options.host_used().as_ref(),
            parent: &self.base_path,
            file,
        })
    }

    /// Counts the bytes of the disk that the image leaves to its parent.
    pub(super) fn bytes_left_to_parent(&self) -> Result<u64> {
        left_to_parent(&self.held.image).try_fold(0, |sum, range| Ok(sum + len(&range?)))
    }

    /// Opens the disk below the image as it is linked now.
    pub(super) fn old_parent(&self) -> Result<DiffChain> {
        let image = OpenImage { core: Arc::new(self.held.again()?), writer: None };
        let chain = self.held.options.open_chain(crate::VhdxFile::own(image))?;
        chain.view(chain.layers()[1].id)
    }

    /// Links the image to the new parent, durably and at once.
    pub(super) fn relink(&self, writer: &Writer) -> Result<()> {
        writer.relink(self.base.tip_image().data_write_guid(), None, self.paths()?)
    }
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
    if image.merge_request().is_some() {
        let message = "a merge of this image into its parent was requested";
        return Err(Error::new(ErrorKind::Unfinished, "link.unfinished", message)
            .in_file(image.name())
            .with_found("the request of a merge into the present parent")
            .with_expected("the merge to be resumed first"));
    }
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
