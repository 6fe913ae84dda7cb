//! What a copy would take, without making it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use avhdx::CreateOptions;
use avhdx::ops::Measure;
use avhdx::storage::{Host, LocalHost, MemStorage};
use avhdx_formats::{qcow2, vhd};

use super::{DiskCopy, image_options};
use crate::args::{CopyFormat, NewImageFlags, u32_size};
use crate::endings;
use crate::failure::{Exit, Failure, Reply};
use crate::input::Input;
use crate::new_file::Place;
use crate::next;
use crate::operation::{self, CopyFacts, CopyForecast};
use crate::output::Console;
use crate::point::folder_of;
use crate::progress::ProgressMeter;

const MIB: u64 = 1 << 20;
/// The largest disk of an image.
const MOST: u64 = 64 << 40;
/// The block sizes of new images.
const BLOCK: u64 = 32 * MIB;
pub(crate) const VHD_BLOCK: u64 = 2 * MIB;
pub(crate) const CLUSTER: u64 = 64 << 10;

/// What a copy takes, in bytes.
struct Needed {
    /// The data of the disk in pages of 4 KiB.
    data: u64,
    peak: u64,
    /// The size of a block, and how many have space at most; none for a copy without blocks.
    block: Option<u64>,
    blocks: Option<u64>,
}

impl DiskCopy {
    /// Prints what [`copy`](Self::copy) would do at most, by the tables of the disk alone. Refuses what that would refuse
    /// before it writes, and a copy for which there is too little space.
    pub(crate) fn foresee(
        &self,
        input: &Input,
        to: CopyFormat,
        asked: Option<CopyFormat>,
        padded: Option<u64>,
        console: &mut Console,
    ) -> Result<Reply, Failure> {
        let place = Place::find(&self.out, &self.flags.replacing, &input.paths(), console)?;
        endings::check_copy(&self.out, asked, self.flags.naming, console)?;
        check_folder(place.target())?;
        let disk = input.disk().geometry().size;
        if to.is_vhd() {
            crate::vhd::options(input, &self.flags.new_image, to, padded, console)?;
        } else if to == CopyFormat::Qcow2 {
            crate::qcow2::options(input, &self.flags.new_image, console)?;
        } else if to != CopyFormat::Raw {
            // A fixed image takes the same options.
            let dynamic = CopyFormat::Vhdx;
            let options = image_options(input, &self.flags.new_image, dynamic, console)?;
            check_options(options, input, self)?;
        }
        let Needed { data, peak, block, blocks } = self.measure(input, to, console)?;
        let virtual_size = match to {
            CopyFormat::Raw => disk,
            _ => padded.unwrap_or(disk.next_multiple_of(sector_of(&self.flags.new_image, input))),
        };
        let peak = peak + padded.map_or(0, |padded| padded - disk);
        let facts = CopyFacts { format: to.name(), virtual_size, block_size: block, blocks };
        let available = available_for(place.target(), &self.out)?;
        let forecast = CopyForecast {
            data: data.min(disk),
            peak,
            available,
            files: vec![(place.target().to_path_buf(), place.replaced_len()?)],
        };
        operation::print_copy_forecast(&forecast, facts, console)?;
        refuse_no_space(&self.out, peak, available)?;
        Ok(Reply::Yes)
    }

    fn measure(&self, input: &Input, to: CopyFormat, console: &Console) -> Result<Needed, Failure> {
        let mut meter = ProgressMeter::of_lookups(console, "measuring");
        let mut run =
            |measure: Measure<'_>| measure.on_progress(|now| meter.report(now)).run(input.disk());
        let data = run(Measure::raw())?.required;
        let block = self.flags.new_image.block.unwrap_or(BLOCK);
        let needed = match to {
            CopyFormat::Raw => return Ok(Needed { data, peak: data, block: None, blocks: None }),
            CopyFormat::Vhd | CopyFormat::VhdFixed => {
                let block = self.flags.new_image.block.unwrap_or(VHD_BLOCK);
                let block = Some(u32_size("--block", block)?).filter(|_| to == CopyFormat::Vhd);
                let needed = vhd::measure(input.disk(), block)?;
                return Ok(Needed {
                    data,
                    peak: needed.required,
                    block: block.map(u64::from),
                    blocks: block.map(|_| needed.blocks),
                });
            }
            CopyFormat::Qcow2 => {
                let cluster = u32_size("--block", self.flags.new_image.block.unwrap_or(CLUSTER))?;
                let needed = qcow2::measure(input.disk(), cluster)?;
                return Ok(Needed {
                    data,
                    peak: needed.required,
                    block: Some(cluster.into()),
                    blocks: Some(needed.clusters),
                });
            }
            CopyFormat::Vhdx => run(Measure::vhdx(block as u32))?,
            CopyFormat::VhdxFixed => run(Measure::vhdx_fixed(block as u32))?,
        };
        let disk = input.disk().geometry().size;
        let tables = needed.fully_allocated.saturating_sub(disk.div_ceil(block) * block);
        Ok(Needed {
            data,
            peak: needed.required + self.beside(input),
            block: Some(block),
            blocks: Some(needed.required.saturating_sub(tables) / block),
        })
    }

    /// Bytes at most that an image takes beside those that are measured: a longer log, and a table that tells of other
    /// sectors.
    fn beside(&self, input: &Input) -> u64 {
        let log = self.flags.new_image.log_size.unwrap_or(MIB).saturating_sub(MIB);
        let sector = u64::from(input.disk().geometry().logical_sector);
        log + if sector_of(&self.flags.new_image, input) == sector { 0 } else { MIB }
    }
}

/// The logical sector size of a copy.
fn sector_of(flags: &NewImageFlags, input: &Input) -> u64 {
    match flags.sector {
        Some(sector) => sector,
        None if input.has_sectors() => input.disk().geometry().logical_sector.into(),
        None => 512,
    }
}

/// Refuses a folder in which no file can be made, as far as that is known without making one that has a name.
pub(crate) fn check_folder(target: &Path) -> Result<(), Failure> {
    let refusals = [
        io::ErrorKind::NotFound,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::ReadOnlyFilesystem,
    ];
    match LocalHost.create_unnamed(target) {
        Err(error) if refusals.contains(&error.kind()) => {
            let message = format!("{}: cannot create the file", target.display());
            Err(Failure::io("output.create", message, &error))
        }
        _ => Ok(()),
    }
}

/// Refuses options of an image that the format does not allow: such an image, a small one, is made in memory.
fn check_options(options: CreateOptions, input: &Input, copy: &DiskCopy) -> Result<(), Failure> {
    let sector = sector_of(&copy.flags.new_image, input);
    let disk = input.disk().geometry().size;
    let small = if (1..=MOST).contains(&disk) { MIB } else { disk.next_multiple_of(sector.max(1)) };
    let log = copy.flags.new_image.log_size.filter(|log| *log == 0 || !log.is_multiple_of(MIB));
    let options = match (copy.flags.new_image.log_size, log) {
        (Some(_), None) => options.log_size(MIB as u32),
        _ => options,
    };
    let made = options.size(small).create_in(&LocalHost, Arc::new(MemStorage::new(Vec::new())));
    made.map(drop).map_err(|error| {
        let name = error.file().map(str::to_owned);
        let failure = Failure::from(error);
        match name {
            Some(name) => failure.renamed(&name, &copy.out.display().to_string()),
            None => failure,
        }
    })
}

/// The space that is free for a file; `out` is how the user names it.
pub(crate) fn available_for(target: &Path, out: &Path) -> Result<Option<u64>, Failure> {
    LocalHost.free_space(folder_of(target)).map_err(|error| {
        let message = format!("{}: cannot tell how much space is free", out.display());
        Failure::io("op.free-space", message, &error)
    })
}

/// Refuses a copy for which there is too little space.
pub(crate) fn refuse_no_space(
    out: &Path,
    peak: u64,
    available: Option<u64>,
) -> Result<(), Failure> {
    let Some(available) = available.filter(|available| *available < peak) else { return Ok(()) };
    let message = format!(
        "{}: {} bytes of space are missing; nothing was changed: found {available} bytes free, expected at least \
         {peak}",
        out.display(),
        peak - available
    );
    let failure = Failure::new(Exit::Io, "op.space", message);
    let elsewhere = next::elsewhere(Path::new("OUT"));
    let command = elsewhere.map(|words| format!("{words}  # OUT: a file on a volume with room"));
    Err(command.into_iter().fold(failure, Failure::then))
}
