//! Disks of other formats than VHDX.

use std::ffi::OsStr;
use std::fmt;
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx::{Disk, LayerId};
use avhdx_formats::Warning;
use avhdx_formats::qcow2::{Qcow2Disk, Qcow2Image};
use avhdx_formats::vhd::{VhdDisk, VhdImage};
use avhdx_formats::vmdk::{VmdkDisk, VmdkImage};

use crate::args::ReadFlags;
use crate::failure::Failure;
use crate::next;
use crate::output::Console;
use crate::point::Point;

/// A disk, and the images that it is read from.
pub(crate) struct Foreign {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) images: Vec<ForeignImage>,
}

/// An image of another format.
#[derive(Clone, Debug)]
pub(crate) struct ForeignImage {
    pub(crate) files: Vec<ForeignFile>,
    pub(crate) has_parent: bool,
}

/// A file of an image.
#[derive(Clone, Debug)]
pub(crate) struct ForeignFile {
    /// What its data have in extents.
    pub(crate) ids: Vec<LayerId>,
    pub(crate) name: String,
    pub(crate) path: Option<PathBuf>,
}

impl From<VhdDisk> for Foreign {
    fn from(disk: VhdDisk) -> Self {
        let image = |image: VhdImage| ForeignImage {
            files: vec![ForeignFile { ids: vec![image.layer], name: image.name, path: image.path }],
            has_parent: image.parent_id.is_some(),
        };
        Self { images: disk.images().map(image).collect(), disk: Arc::new(disk) }
    }
}

impl From<Qcow2Disk> for Foreign {
    fn from(disk: Qcow2Disk) -> Self {
        let image = |image: Qcow2Image| ForeignImage {
            files: vec![ForeignFile {
                ids: vec![image.layer, image.packed],
                name: image.name,
                path: image.path,
            }],
            has_parent: image.backing.is_some(),
        };
        Self { images: disk.images().map(image).collect(), disk: Arc::new(disk) }
    }
}

impl From<VmdkDisk> for Foreign {
    fn from(disk: VmdkDisk) -> Self {
        let image = |image: VmdkImage| {
            let own = ForeignFile { ids: Vec::new(), name: image.name, path: image.path };
            let extents = image.extents.into_iter().filter_map(|extent| {
                let ids = vec![extent.layer, extent.packed];
                Some(ForeignFile { ids, name: extent.name?, path: extent.path })
            });
            ForeignImage {
                files: iter::once(own).chain(extents).collect(),
                has_parent: image.parent.is_some(),
            }
        };
        Self { images: disk.images().map(image).collect(), disk: Arc::new(disk) }
    }
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreign").field("images", &self.images).finish_non_exhaustive()
    }
}

/// Opens a VHD image, and its parents where a flag says where they are.
pub(crate) fn vhd(
    argument: &OsStr,
    opening: &ReadFlags,
    console: &mut Console,
) -> Result<VhdDisk, Failure> {
    let disk = opening.vhd_options().open(path(argument)?)?;
    warn(disk.warnings(), console);
    Ok(disk)
}

/// Opens a qcow2 image, and its backing files where a flag says where they are.
pub(crate) fn qcow2(
    argument: &OsStr,
    opening: &ReadFlags,
    console: &mut Console,
) -> Result<Qcow2Disk, Failure> {
    let disk = opening.qcow2_options().open(path(argument)?)?;
    warn(disk.warnings(), console);
    Ok(disk)
}

/// Opens a VMDK image, and its parents where a flag says where they are.
pub(crate) fn vmdk(
    argument: &OsStr,
    opening: &ReadFlags,
    console: &mut Console,
) -> Result<VmdkDisk, Failure> {
    let disk = opening.vmdk_options().open(path(argument)?)?;
    warn(disk.warnings(), console);
    Ok(disk)
}

/// Prints what is odd about images.
pub(crate) fn warn(warnings: &[Warning], console: &mut Console) {
    for warning in warnings {
        console.warn(warning.code, &format!("{}: {}", warning.file, warning.message));
    }
}

/// The path of an image that has no points in time.
pub(crate) fn path(argument: &OsStr) -> Result<PathBuf, Failure> {
    let Point { image, selector } = Point::parse(argument);
    if selector.is_none() {
        return Ok(image);
    }
    let message = format!(
        "{}: only images of VHDX have points in time; this one is opened as it is",
        argument.to_string_lossy()
    );
    Err(Failure::usage("point.foreign", message))
}

/// The first bytes of formats that have some.
const SIGNATURES: &[(&[u8], &str, &str)] = &[
    (b"vhdxfile", "vhdx", "a VHDX image"),
    (b"conectix", "vhd", "a VHD image"),
    (b"QFI\xfb", "qcow2", "a qcow2 image"),
    (b"KDMV", "vmdk", "a VMDK image"),
];

/// Refuses a file whose name is for a raw disk and whose bytes begin as those of an image: only the user knows which it is.
pub(crate) fn refuse_doubtful(storage: &dyn Storage, name: &str) -> Result<(), Failure> {
    let mut head = [0; 8];
    let read = storage.read_at(&mut head, 0).unwrap_or(0);
    let is_so = |(bytes, ..): &&(&[u8], &str, &str)| head[..read].starts_with(bytes);
    let Some((_, format, what)) = SIGNATURES.iter().find(is_so) else { return Ok(()) };
    let message =
        format!("{name}: the name is for a raw disk, the first bytes are those of {what}");
    let failure = Failure::usage("file.doubtful", message);
    let failure =
        failure.hint("-f says the format: never by the bytes alone, which a guest can write");
    let either = [format!("-f {format}"), "-f raw".to_owned()];
    Err(either.iter().filter_map(|flag| next::with_flag(flag)).fold(failure, Failure::then))
}
