//! What a qcow2 image can be of a disk.

use avhdx_formats::qcow2::CreateOptions;

use crate::args::{NewImageFlags, u32_size};
use crate::failure::Failure;
use crate::input::Input;
use crate::output::Console;

/// A qcow2 image is a whole number of these.
const SECTOR: u64 = 512;

/// The properties of a qcow2 image of a disk. Says where they differ from those of the disk.
pub(crate) fn options(
    input: &Input,
    new_image: &NewImageFlags,
    console: &mut Console,
) -> Result<CreateOptions, Failure> {
    let NewImageFlags { block, sector, physical_sector, log_size } = new_image;
    if sector.is_some() || physical_sector.is_some() || log_size.is_some() {
        let message = "a qcow2 image has neither a log nor a sector size";
        return Err(Failure::usage("usage", message));
    }
    let geometry = input.disk().geometry();
    note_sector(geometry.logical_sector, console);
    let size = geometry.size.checked_next_multiple_of(SECTOR).unwrap_or(geometry.size);
    if size > geometry.size {
        let message = format!(
            "the copy has {size} bytes, {} more than the input: a disk is a whole number of sectors",
            size - geometry.size
        );
        console.warn("convert.padded", &message);
    }
    let options = CreateOptions::new(size);
    Ok(match block {
        Some(bytes) => options.cluster_size(u32_size("--block", *bytes)?),
        None => options,
    })
}

/// Says what QEMU has to be told of a disk with other sectors than usual: the image does not record them.
pub(crate) fn note_sector(sector: u32, console: &mut Console) {
    if u64::from(sector) != SECTOR {
        let message = format!(
            "the image does not record that the disk has sectors of {sector} bytes: give QEMU the properties \
             logical_block_size={sector},physical_block_size={sector} of its device"
        );
        console.note("convert.qemu-sector", &message);
    }
}
