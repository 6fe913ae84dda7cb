//! `avhdx measure`: how many bytes would a copy need?

use avhdx::ops::{Measure, Needed};
use clap::ValueEnum;
use serde_json::json;

use crate::args::{self, Format, Opening, Target};
use crate::exit::{Failure, Outcome};
use crate::input::Input;
use crate::output::{Console, size};

/// Say how many bytes a copy of the disk would need, as it is and fully allocated.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// What the copy would be; without this flag, every format is measured.
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<Target>,
    /// The block size of a VHDX copy, 1M to 256M.
    #[arg(long, value_name = "N", value_parser = args::bytes, default_value = "32M")]
    block_size: u64,
    /// What the input is.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    opening: Opening,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let block_size = u32::try_from(args.block_size)
        .map_err(|_| Failure::usage("measure.block-size", "--block-size is at most 256M"))?;
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let targets = match args.output_format {
        Some(target) => vec![target],
        None => Target::value_variants().to_vec(),
    };
    let mut rows = Vec::new();
    for target in targets {
        let needed = match target {
            Target::Raw => Measure::raw(),
            Target::Vhdx => Measure::vhdx(block_size),
            Target::VhdxFixed => Measure::vhdx_fixed(block_size),
        };
        rows.push((target, needed.run(input.disk())?));
    }
    if console.is_json() {
        console.document(&object(&rows, &input, block_size))?;
    } else {
        for (target, needed) in rows {
            console.line(target.name())?;
            console.line(format!("  required         {}", size(needed.required)))?;
            console.line(format!("  fully allocated  {}", size(needed.fully_allocated)))?;
        }
    }
    Ok(Outcome::Yes)
}

fn object(rows: &[(Target, Needed)], input: &Input, block_size: u32) -> serde_json::Value {
    let copies: Vec<_> = rows
        .iter()
        .map(|(target, needed)| {
            let mut copy = json!({
                "format": target.name(),
                "required": needed.required,
                "fully_allocated": needed.fully_allocated,
            });
            if !matches!(target, Target::Raw) {
                copy["block_size"] = block_size.into();
            }
            copy
        })
        .collect();
    json!({
        "schema": "avhdx.measure/1",
        "virtual_size": input.disk().geometry().size,
        "copies": copies,
    })
}
