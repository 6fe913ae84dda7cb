//! The layers of a chain as far as seals are concerned.

use std::path::Path;
use std::sync::Arc;

use avhdx::storage::Host;
use avhdx::{
    DiffChain, Disk, Error, ErrorKind, Layer, Lock, LogPolicy, OpenOptions, Result, VhdxFile,
};

use crate::file::SealFile;
use crate::hash::Identity;

/// Why a layer has no part in what is sealed or proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftOut {
    /// Another program writes to it.
    InUse,
    /// Its log has changes that are not in their places yet.
    LogPending,
    /// Its file is in no folder.
    NoFolder,
    /// It is the tip, and nobody sealed it: there is nothing to prove.
    NotSealed,
}

/// Why a layer cannot be sealed, if it cannot.
///
/// # Errors
/// [`ErrorKind::Unfinished`] for a layer in an unfinished merge, [`ErrorKind::InUse`] for a parent that is written to.
pub(crate) fn left_out(layer: &Layer, image: &VhdxFile, is_tip: bool) -> Result<Option<LeftOut>> {
    let is_in_use = image.warnings().iter().any(|warning| warning.code == "lock.in-use");
    if image.merge_mark().is_some() || image.merge_request().is_some() {
        let message = "a merge of the layer is not complete";
        Err(Error::new(ErrorKind::Unfinished, "seal.unfinished", message).in_file(&layer.name))
    } else if is_in_use && !is_tip {
        let message = "another program writes to a parent";
        Err(Error::new(ErrorKind::InUse, "seal.in-use", message).in_file(&layer.name))
    } else if is_in_use {
        Ok(Some(LeftOut::InUse))
    } else if is_tip && layer.log_pending {
        Ok(Some(LeftOut::LogPending))
    } else {
        Ok(layer.path.is_none().then_some(LeftOut::NoFolder))
    }
}

/// The image of a layer.
pub(crate) fn image_of(chain: &DiffChain, layer: &Layer) -> Result<Arc<VhdxFile>> {
    chain.image(layer.id).ok_or_else(|| {
        let message = "the chain changed meanwhile";
        Error::new(ErrorKind::InUse, "seal.moved", message).in_file(&layer.name)
    })
}

pub(crate) fn identity_of(image: &VhdxFile) -> Identity {
    let geometry = image.geometry();
    Identity {
        data_write_guid: image.data_write_guid(),
        disk_id: image.info().disk_id,
        size: geometry.size,
        sector: geometry.logical_sector,
    }
}

/// The seal beside an image, if it is of this identity. `None` for none, and for that of another.
pub(crate) fn own_seal(host: &dyn Host, path: &Path, is: Identity) -> Result<Option<SealFile>> {
    Ok(SealFile::beside(host, path)?.filter(|seal| seal.identity() == is))
}

/// Refuses an image whose file is not as it was when it was opened.
pub(crate) fn check_same(host: &dyn Host, path: &Path, image: &VhdxFile) -> Result<()> {
    let storage = host.open(path, avhdx::storage::Access::Read)?;
    let options = OpenOptions::new().lock(Lock::None).log(LogPolicy::Ignore).unfinished(true);
    let now = options.open_file(storage)?;
    let header = |image: &VhdxFile| {
        let info = image.info();
        let current = &info.headers[info.current_header];
        (info.disk_id, info.geometry.size, current.clone())
    };
    match header(image) == header(&now) && image.files() == now.files() {
        true => Ok(()),
        false => {
            let message = "the image changed while it was read: its seal stays as it was";
            Err(Error::new(ErrorKind::InUse, "seal.moved", message)
                .in_file(path.display())
                .with_found(now.data_write_guid())
                .with_expected(image.data_write_guid()))
        }
    }
}
