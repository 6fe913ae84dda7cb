//! `avhdx measure`: computes the size of a copy.

use std::ops::ControlFlow;

use avhdx::ops::{Measure, Measured};
use clap::ValueEnum;
use serde::Serialize;

use crate::args::{CopyFormat, Format, ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::input::Input;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::size;
use crate::values;
use crate::vocabulary::Answer;

/// Print how many bytes a copy of the disk needs, now and fully allocated.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The format of the copy [default: all formats].
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<CopyFormat>,
    /// The block size of a VHDX copy, 1M to 256M.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, default_value = "32M")]
    block_size: u64,
    /// The format of the input.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let block_size = u32::try_from(args.block_size)
        .map_err(|_| Failure::usage("measure.block-size", "--block-size can be at most 256M"))?;
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let targets = match args.output_format {
        Some(target) => vec![target],
        None => CopyFormat::value_variants().to_vec(),
    };
    let mut rows = Vec::new();
    let mut meter = ProgressMeter::of_lookups(console, "measuring");
    let copies = targets.len() as u128;
    for (target, before) in targets.into_iter().zip(0..) {
        let needed = match target {
            CopyFormat::Raw => Measure::raw(),
            CopyFormat::Vhdx => Measure::vhdx(block_size),
            CopyFormat::VhdxFixed => Measure::vhdx_fixed(block_size),
        };
        // One bar for all copies.
        let needed = needed.on_progress(|now| {
            let of_one = |done: u64| (u128::from(now.total) * before + u128::from(done)) / copies;
            meter.show(of_one(now.done) as u64, now.total);
            ControlFlow::Continue(())
        });
        rows.push((target, needed.run(input.disk())?));
    }
    drop(meter);
    if console.is_json() {
        console.document(&MeasureAnswer::of(&args, &rows, &input))?;
    } else {
        for (target, needed) in rows {
            console.line(target.name())?;
            console.line(format!("  required         {}", size(needed.required)))?;
            console.line(format!("  fully allocated  {}", size(needed.fully_allocated)))?;
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
    /// Null for a raw disk.
    block_size: Option<u64>,
}

impl MeasureAnswer {
    fn of(args: &Args, rows: &[(CopyFormat, Measured)], input: &Input) -> Self {
        let copies = rows.iter().map(|(target, needed)| MeasuredCopy {
            format: target.name(),
            required: needed.required,
            fully_allocated: needed.fully_allocated,
            block_size: Some(args.block_size).filter(|_| !matches!(target, CopyFormat::Raw)),
        });
        Self {
            image: args.image.name(),
            virtual_size: input.disk().geometry().size,
            copies: copies.collect(),
        }
    }
}
