//! The new child that a checkpoint and a revert put on a layer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::{FileChangeKind, Forecast};
use crate::chain::{Operation, path_of};
use crate::error::{Error, Result};
use crate::image::{CreateOptions, VhdxFile, Warning};
use crate::storage::{Host, real_place};

/// What the new child is to be.
#[derive(Clone, Debug)]
pub(super) struct NewChild {
    pub(super) label: Option<String>,
    pub(super) time: SystemTime,
    pub(super) path: Option<PathBuf>,
    pub(super) block_size: Option<u32>,
    /// Part of the name, when none is given.
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

    /// Where the child of `parent` is going to lie.
    fn path_over(&self, host: &dyn Host, parent: &VhdxFile) -> Result<PathBuf> {
        let parent = path_of(parent)?;
        Ok(match &self.path {
            Some(path) => real_place(host, path),
            None => named_like(parent, self.id),
        })
    }

    pub(super) fn forecast(&self, op: &Operation<'_>, parent: &VhdxFile) -> Result<Forecast> {
        let host = op.host().as_ref();
        let path = self.path_over(host, parent)?;
        let options = self.options(parent)?;
        options.check_at(host, &path)?;
        let len = options.file_len();
        let mut forecast = Forecast::on(host, &path)?;
        (forecast.written, forecast.peak) = (len, len);
        forecast.add(&path, FileChangeKind::Created);
        Ok(forecast)
    }

    /// Makes the child, complete and durable, and opens it as the chain was opened.
    pub(super) fn make(&self, op: &Operation<'_>, parent: &VhdxFile) -> Result<Arc<VhdxFile>> {
        let path = self.path_over(op.host().as_ref(), parent)?;
        let options = self.options(parent)?;
        options.create_as(op.host().as_ref(), &path, op.policy()).map(Arc::new)
    }

    fn options(&self, parent: &VhdxFile) -> Result<CreateOptions> {
        let options = CreateOptions::child_with(parent, parent.data_write_guid())?;
        let options = match self.block_size {
            Some(bytes) => options.block_size(bytes),
            None => options,
        };
        Ok(options.checkpoint(self.label.clone().unwrap_or_default(), self.time))
    }
}

/// Takes a file's name away, durably.
pub(super) fn remove(op: &Operation<'_>, path: &Path) -> Result<()> {
    let host = op.host();
    let folder = crate::storage::folder_of(path);
    host.remove(path)
        .and_then(|()| host.sync_dir(folder))
        .map_err(|error| Error::io("op.remove", "cannot remove the file", error).in_path(path))
}

/// Warns of a link that led to a file which is removed.
pub(super) fn dangling(op: &Operation<'_>, via: Option<&Path>) -> Option<Warning> {
    let (via, host) = (via?, op.host());
    let is_left = host.is_link(via).unwrap_or(false) && host.stat(via).is_err();
    is_left.then(|| Warning {
        code: "op.link-left",
        message: format!("{}: leads nowhere now: the file is removed, not the link", via.display()),
    })
}

/// A name beside the parent's, as Hyper-V gives them: the disk's, and a GUID.
fn named_like(parent: &Path, id: Uuid) -> PathBuf {
    let stem = parent.file_stem().unwrap_or_default().to_string_lossy();
    let disk = match stem.rsplit_once('_') {
        Some((disk, guid))
            if !disk.is_empty() && guid.len() == 36 && Uuid::try_parse(guid).is_ok() =>
        {
            disk
        }
        _ => &stem,
    };
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
            // No disk's name would be left.
            (
                "_A0B1C2D3-0000-1111-2222-333344445555.vhdx",
                format!("_A0B1C2D3-0000-1111-2222-333344445555_{name}.avhdx"),
            ),
        ];
        for (parent, child) in cases {
            assert_eq!(named_like(Path::new(parent), id), PathBuf::from(child));
        }
    }
}
