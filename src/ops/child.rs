//! The new child that a checkpoint or a revert puts on a layer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use super::{FileChangeKind, Forecast};
use crate::chain::{Operation, path_of};
use crate::create::CreateOptions;
use crate::error::{Error, Result};
use crate::image::Core;
use crate::storage::{
    self, Access, Host, Removal, Storage, cut_name, folder_of, is_file, real_place,
};
use crate::warning::Warning;
use crate::write::OpenImage;

/// Code of the warning that a file in use has lost its name.
const RENAMED: &str = "op.renamed";

/// How to create the new child.
#[derive(Clone, Debug)]
pub(super) struct NewChild {
    pub(super) label: Option<String>,
    pub(super) time: SystemTime,
    pub(super) path: Option<PathBuf>,
    pub(super) block_size: Option<u32>,
    /// Part of the file name if no path is given.
    id: Uuid,
}

impl NewChild {
    pub(super) fn new() -> Self {
        Self {
            label: None,
            time: SystemTime::now(),
            path: None,
            block_size: None,
            id: Uuid::new_v4(),
        }
    }

    /// Returns the path of the new child of `parent`.
    fn child_path(&self, host: &dyn Host, parent: &Core) -> Result<PathBuf> {
        let parent = path_of(parent)?;
        Ok(match &self.path {
            Some(path) => real_place(host, path),
            None => hyper_v_name(parent, self.id),
        })
    }

    pub(super) fn forecast(&self, op: &Operation<'_>, parent: &Core) -> Result<Forecast> {
        let host = op.host().as_ref();
        let path = self.child_path(host, parent)?;
        let options = self.options(parent)?;
        options.check_at(host, &path)?;
        let len = options.file_len();
        let mut forecast = Forecast::on(host, &path)?;
        (forecast.written, forecast.peak) = (len, len);
        forecast.add(&path, FileChangeKind::Created);
        Ok(forecast)
    }

    /// Creates the child, complete and durable, and opens it with the chain's policy.
    pub(super) fn make(&self, op: &Operation<'_>, parent: &Core) -> Result<OpenImage> {
        let path = self.child_path(op.host().as_ref(), parent)?;
        let options = self.options(parent)?;
        options.create_as(op.host().as_ref(), &path, op.policy(), op.writer().is_some())
    }

    fn options(&self, parent: &Core) -> Result<CreateOptions> {
        let options = CreateOptions::child_with(parent, parent.data_write_guid())?;
        let options = match self.block_size {
            Some(bytes) => options.block_size(bytes),
            None => options,
        };
        Ok(options.checkpoint(self.label.clone().unwrap_or_default(), self.time))
    }
}

/// Returns warnings about the child's folder that were not reported when the chain was opened.
pub(super) fn folder_warnings(op: &Operation<'_>, child: &Core) -> Vec<Warning> {
    let images = op.images();
    let others = images.iter().filter(|image| image.id() != child.id());
    let known: Vec<&Warning> = others.flat_map(|image| image.warnings()).collect();
    let told = child.warnings().iter().filter(|warning| warning.code.starts_with("folder."));
    told.filter(|warning| !known.contains(warning)).cloned().collect()
}

/// The outcome of removing a file.
pub(super) struct Removed {
    /// Whether the file is gone.
    pub(super) is_gone: bool,
    pub(super) warning: Option<Warning>,
}

/// Removes the name of an image's file, durably. If the name belongs to another file by now, that file keeps it and
/// a warning says so.
pub(super) fn remove(op: &Operation<'_>, image: &Core) -> Result<Removed> {
    let (host, path) = (op.host().as_ref(), path_of(image)?);
    let failed = |error| Error::io("op.remove", "cannot remove the file", error).in_path(path);
    let removal = storage::remove(host, path, &|path| is_file_of(host, path, image));
    let synced = host.sync_dir(folder_of(path));
    let (code, what) = match removal.map_err(failed)? {
        Removal::Removed => {
            let warning = synced.err().map(|error| {
                let what = "is removed, but may reappear after a crash because its folder cannot be made durable";
                Warning::new("op.not-durable", path.display(), format!("{what}: {error}"))
                    .of_layer(image.id())
            });
            return Ok(Removed { is_gone: true, warning });
        }
        Removal::Gone => ("op.gone", "was removed or renamed by another program meanwhile".into()),
        Removal::Kept => (
            "op.swapped",
            "another file has taken that name, and stays; the image was moved or removed".into(),
        ),
        Removal::LeftAt(place) => (
            "op.swapped",
            format!(
                "another file had taken that name, and then a third one: the former is now {}",
                place.display()
            ),
        ),
    };
    let warning = Warning::new(code, path.display(), what).of_layer(image.id());
    Ok(Removed { is_gone: false, warning: Some(warning) })
}

/// Exchanges the names of a layer's file and of its parent's, durably, and tells both. `false` if the host or one of the
/// files cannot.
pub(super) fn exchange_names(op: &Operation<'_>, child: &Core, parent: &Core) -> Result<bool> {
    let host = op.host().as_ref();
    let (of_child, of_parent) = (path_of(child)?.to_owned(), path_of(parent)?.to_owned());
    let is_child = |path: &Path| is_file_of(host, path, child);
    let is_parent = |path: &Path| is_file_of(host, path, parent);
    let failed =
        |error| Error::io("op.rename", "cannot rename the file", error).in_path(&of_parent);
    let exchange = || storage::exchange(host, (&of_child, &is_child), (&of_parent, &is_parent));
    if !exchange().map_err(failed)? {
        return Ok(false);
    }
    if !child.bare_storage().renamed(&of_parent) || !parent.bare_storage().renamed(&of_child) {
        host.exchange(&of_child, &of_parent).map_err(failed)?;
        return Ok(false);
    }
    host.sync_dir(folder_of(&of_child)).map_err(failed)?;
    Ok(true)
}

/// Whether `path` names the image's file. If the host cannot identify files, the headers decide.
fn is_file_of(host: &dyn Host, path: &Path, image: &Core) -> io::Result<bool> {
    let file = image.bare_storage().as_ref();
    if !is_file(host, path, file)? {
        return Ok(false);
    }
    let has_headers =
        |other: &dyn Storage| image.has_headers_of(other).is_ok_and(|are_same| are_same);
    Ok(file.id()?.is_some() || has_headers(host.open(path, Access::Read)?.as_ref()))
}

/// Returns where an image lies at the end of an operation. If another file has its name and the folder has no other
/// name of it, adds a warning and returns `None`.
pub(super) fn current_path(
    host: &dyn Host,
    image: &Core,
    warnings: &mut Vec<Warning>,
) -> Option<PathBuf> {
    let path = image.path()?;
    // If the host cannot tell, the recorded name is the best answer.
    if is_file_of(host, path, image).unwrap_or(true) {
        return Some(path.to_path_buf());
    }
    let place = other_name(host, path, image.bare_storage().as_ref());
    let what = match host.is_link(path) {
        Ok(_) => "another file has taken that name",
        Err(_) => "the file was renamed or removed by another program",
    };
    let now = match &place {
        Some(place) => format!("the image is now {}", place.display()),
        None => "the image was moved or removed".into(),
    };
    let warning = Warning::new(RENAMED, path.display(), format!("{what}; {now}"));
    warnings.push(warning.of_layer(image.id()));
    place
}

/// Finds another name of the file in the folder of `path`.
fn other_name(host: &dyn Host, path: &Path, file: &dyn Storage) -> Option<PathBuf> {
    let id = file.id().ok().flatten()?;
    let is_same = |place: &PathBuf| {
        matches!(host.is_link(place), Ok(false))
            && host.stat(place).is_ok_and(|stat| stat.id == Some(id))
    };
    let mut names = host.list(folder_of(path)).ok()?.into_iter().filter(is_same);
    // Spells the folder as `path` does.
    Some(path.with_file_name(names.next()?.file_name()?))
}

/// Warns if removing a file has left a symbolic link to it dangling.
pub(super) fn dangling_link(op: &Operation<'_>, image: &Core) -> Option<Warning> {
    let (via, host) = (image.via()?, op.host());
    let is_left = host.is_link(via).unwrap_or(false) && host.stat(via).is_err();
    is_left.then(|| {
        let message = "leads nowhere now: the file was removed, but not the link";
        Warning::new("op.link-left", via.display(), message).of_layer(image.id())
    })
}

/// Returns a name beside the parent in Hyper-V's form: the disk's name and a GUID.
fn hyper_v_name(parent: &Path, id: Uuid) -> PathBuf {
    let stem = parent.file_stem().unwrap_or_default().to_string_lossy();
    let disk = match stem.rsplit_once('_') {
        Some((disk, guid))
            if !disk.is_empty() && guid.len() == 36 && Uuid::try_parse(guid).is_ok() =>
        {
            disk
        }
        _ => &stem,
    };
    let disk = cut_name(disk);
    let mut upper = Uuid::encode_buffer();
    let upper = id.hyphenated().encode_upper(&mut upper);
    parent.with_file_name(format!("{disk}_{upper}.avhdx"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_named_after_the_disk() {
        let id = Uuid::from_u128(0xabcd_ef01_2345_6789_abcd_ef01_2345_6789);
        let name = "ABCDEF01-2345-6789-ABCD-EF0123456789";
        let cases = [
            ("/vm/web.vhdx", format!("/vm/web_{name}.avhdx")),
            ("/vm/web_A0B1C2D3-0000-1111-2222-333344445555.avhdx", format!("/vm/web_{name}.avhdx")),
            ("web_1.avhdx", format!("web_1_{name}.avhdx")),
            // Stripping the GUID would leave no disk name.
            (
                "_A0B1C2D3-0000-1111-2222-333344445555.vhdx",
                format!("_A0B1C2D3-0000-1111-2222-333344445555_{name}.avhdx"),
            ),
        ];
        for (parent, child) in cases {
            assert_eq!(hyper_v_name(Path::new(parent), id), PathBuf::from(child));
        }
        let long = format!("/vm/{}.vhdx", "ä".repeat(125));
        let child = format!("/vm/{}_{name}.avhdx", "ä".repeat(100));
        assert_eq!(hyper_v_name(Path::new(&long), id), PathBuf::from(child));
    }
}
