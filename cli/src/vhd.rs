//! What VHD images can be of a disk.

use avhdx_formats::vhd::{AzureRule, CreateOptions, azure_size};

use crate::args::{CopyFormat, NewImageFlags, u32_size};
use crate::failure::Failure;
use crate::input::Input;
use crate::next;
use crate::output::Console;

/// The sectors of a VHD image.
const SECTOR: u64 = 512;

/// The properties of a VHD image of a disk. Says where they differ from those of the disk.
pub(crate) fn options(
    input: &Input,
    new_image: &NewImageFlags,
    format: CopyFormat,
    padded: Option<u64>,
    console: &mut Console,
) -> Result<CreateOptions, Failure> {
    let NewImageFlags { block, sector, physical_sector, log_size } = new_image;
    if physical_sector.is_some() || log_size.is_some() {
        let message = "a VHD image has neither a log nor a physical sector size";
        return Err(Failure::usage("usage", message));
    }
    if block.is_some() && format == CopyFormat::VhdFixed {
        let message = "a fixed VHD image has no blocks: --block is for dynamic ones";
        return Err(Failure::usage("usage", message));
    }
    if let Some(sector) = sector.filter(|sector| *sector != SECTOR) {
        let message = format!("the sectors of a VHD image have 512 bytes, not {sector}");
        return Err(Failure::usage("usage", message));
    }
    let geometry = input.disk().geometry();
    if u64::from(geometry.logical_sector) != SECTOR {
        if sector.is_none() {
            let message = format!(
                "the disk has sectors of {} bytes, a VHD image of 512: partition tables count in sectors",
                geometry.logical_sector
            );
            let failure = Failure::usage("convert.vhd-sector", message);
            return Err(next::with_flag("--sector 512").into_iter().fold(failure, Failure::then));
        }
        let message = format!(
            "the sector size changes from {} to 512 bytes: partition tables count in sectors",
            geometry.logical_sector
        );
        console.warn("convert.sector-size", &message);
    }
    let whole = geometry.size.checked_next_multiple_of(SECTOR).unwrap_or(geometry.size);
    let size = padded.unwrap_or(whole);
    if size > geometry.size {
        let why = match padded {
            Some(_) => "zeros behind its end",
            None => "a disk is a whole number of sectors",
        };
        let more = size - geometry.size;
        let message = format!("the copy has {size} bytes, {more} more than the input: {why}");
        console.warn("convert.padded", &message);
    }
    let options = match format {
        CopyFormat::VhdFixed => CreateOptions::fixed(size),
        _ => CreateOptions::dynamic(size),
    };
    Ok(match block {
        Some(bytes) => options.block_size(u32_size("--block", *bytes)?),
        None => options,
    })
}

/// The size of a copy for Azure: the disk's own, or with `pad` the next one that Azure takes.
pub(crate) fn size_for_azure(input: &Input, pad: bool) -> Result<u64, Failure> {
    let geometry = input.disk().geometry();
    azure_size(geometry, pad).map_err(|rule| {
        let found = match rule {
            AzureRule::Sector => format!("{} bytes", geometry.logical_sector),
            _ => format!("{} bytes", geometry.size),
        };
        let failure = Failure::usage("convert.azure", format!("{rule}: found {found}"));
        let is_mended = !pad && azure_size(geometry, true).is_ok();
        let again = next::with_flag("--pad").filter(|_| is_mended);
        again.into_iter().fold(failure, Failure::then)
    })
}
