//! `avhdx measure`: computes the size of a copy.

use std::ops::ControlFlow;

use avhdx::ErrorKind;
use avhdx::ops::Measure;
use avhdx_formats::{qcow2, vhd};
use clap::ValueEnum;
use serde::Serialize;

use crate::args::{CopyFormat, Format, ImageArg, ReadFlags};
use crate::copying::{CLUSTER, VHD_BLOCK};
use crate::failure::{Failure, Reply};
use crate::input::Input;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::size;
use crate::values;
use crate::vocabulary::Answer;

/// The block size of a VHDX copy.
const BLOCK: u64 = 32 << 20;

/// Print how many bytes a copy of the disk needs, now and fully allocated.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The format of the copy [default: all formats].
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<CopyFormat>,
    /// The block size of a VHDX or VHD copy, or with -O qcow2 the cluster size [default: 32M for VHDX, 2M for VHD, 64K for
    /// qcow2].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    block_size: Option<u64>,
    /// The format of the input [default: by the ending of its name, else VHDX].
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let block_size = u32::try_from(args.block_size.unwrap_or(BLOCK))
        .map_err(|_| Failure::usage("measure.block-size", "--block-size can be at most 256M"))?;
    let is_for = |target| args.output_format == Some(target);
    let cluster = args.block_size.filter(|_| is_for(CopyFormat::Qcow2));
    let cluster = cluster.map_or(CLUSTER as u32, |_| block_size);
    let vhd_block = args.block_size.map_or(VHD_BLOCK as u32, |_| block_size);
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let disk = input.disk();
    let geometry = disk.geometry();
    let targets: Vec<CopyFormat> = match args.output_format {
        Some(target) => vec![target],
        // No VHD image can be of every disk.
        None => {
            let is_vhd_possible = geometry.logical_sector == 512 && geometry.size <= vhd::MAX_SIZE;
            let all = CopyFormat::value_variants().iter().copied();
            all.filter(|target| is_vhd_possible || !target.is_vhd()).collect()
        }
    };
    let mut rows = Vec::new();
    let mut meter = ProgressMeter::of_lookups(console, "measuring");
    let copies = targets.len() as u128;
    for (target, before) in targets.into_iter().zip(0..) {
        let block = match target {
            CopyFormat::Raw | CopyFormat::VhdFixed => None,
            CopyFormat::Vhd => Some(vhd_block),
            CopyFormat::Qcow2 => Some(cluster),
            CopyFormat::Vhdx | CopyFormat::VhdxFixed => Some(block_size),
        };
        // One bar for all copies.
        let mut run = |measure: Measure<'_>| {
            let measure = measure.on_progress(|now| {
                let of_one =
                    |done: u64| (u128::from(now.total) * before + u128::from(done)) / copies;
                meter.show(of_one(now.done) as u64, now.total);
                ControlFlow::Continue(())
            });
            measure.run(disk).map(|needed| (needed.required, needed.fully_allocated))
        };
        let needed = match target {
            CopyFormat::Raw => run(Measure::raw()),
            CopyFormat::Vhdx => run(Measure::vhdx(block_size)),
            CopyFormat::VhdxFixed => run(Measure::vhdx_fixed(block_size)),
            CopyFormat::Vhd | CopyFormat::VhdFixed => {
                vhd::measure(disk, block).map(|needed| (needed.required, needed.fully_allocated))
            }
            CopyFormat::Qcow2 => qcow2::measure(disk, cluster)
                .map(|needed| (needed.required, needed.fully_allocated)),
        };
        match needed {
            Ok((required, full)) => rows.push(MeasuredCopy::of(target, required, full, block)),
            // Of all formats, those are left out that have no such disk.
            Err(error)
                if args.output_format.is_none()
                    && error.kind() == ErrorKind::InvalidInput
                    && error.code().starts_with("new-") => {}
            Err(error) => return Err(error.into()),
        }
    }
    drop(meter);
    if console.is_json() {
        console.document(&MeasureAnswer {
            image: args.image.name(),
            virtual_size: geometry.size,
            copies: rows,
        })?;
    } else {
        for row in rows {
            console.line(row.format)?;
            console.line(format!("  required         {}", size(row.required)))?;
            console.line(format!("  fully allocated  {}", size(row.fully_allocated)))?;
        }
    }
    Ok(Reply::Yes)
}

/// How many bytes copies of a disk need.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MeasureAnswer {
    image: String,
    virtual_size: u64,
    copies: Vec<MeasuredCopy>,
}

impl Answer for MeasureAnswer {
    const SCHEMA: &'static str = "avhdx.measure/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MeasuredCopy {
    format: &'static str,
    /// The bytes needed now.
    required: u64,
    /// The bytes needed once every block is allocated.
    fully_allocated: u64,
    /// Null for a copy without blocks.
    block_size: Option<u64>,
}

impl MeasuredCopy {
    fn of(target: CopyFormat, required: u64, fully_allocated: u64, block: Option<u32>) -> Self {
        let (format, block_size) = (target.name(), block.map(u64::from));
        Self { format, required, fully_allocated, block_size }
    }
}
