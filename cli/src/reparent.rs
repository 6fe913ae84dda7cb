//! `avhdx reparent`: another parent for an image.

use avhdx::ops::{Pace, Reparent};
use serde_json::json;

use crate::args;
use crate::exit::{Failure, Outcome};
use crate::input::{self, Resolved};
use crate::operation;
use crate::output::{Console, size};
use crate::point::Point;

/// Link an image to another parent, after a move or a copy for instance, without moving a byte of the disk.
///
/// Each byte that the image leaves to its parent is first compared in both parents; one that differs refuses the
/// change. What is known to lie at the same place of the same file is not read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// The image that becomes the parent, or a point in time of its chain: BASE@SEL.
    #[arg(long, value_name = "BASE")]
    onto: std::ffi::OsString,
    /// Change the link without a proof, as where the old parent is lost: the disk is then what BASE makes of it.
    #[arg(long)]
    unproven: bool,
    /// With --unproven: change the link although a child of IMAGE is found, which is cut off by that: IMAGE gets
    /// another identity, for its disk may be another.
    #[arg(long, requires = "unproven")]
    orphan_children: bool,
    /// Look for children of IMAGE in DIR too, beside its own folder. Can be repeated.
    #[arg(long, value_name = "DIR", requires = "unproven")]
    children_in: Vec<std::path::PathBuf>,
    /// Read at most SIZE bytes a second.
    #[arg(long, value_name = "SIZE", value_parser = args::rate)]
    rate: Option<u64>,
    /// Only say what would be done, and how much has to be read for the proof.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    opening: args::Finding,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    args::look_into(&args.children_in)?;
    let options = args.opening.options().orphan_children(args.orphan_children);
    let options =
        args.children_in.iter().fold(options, |options, folder| options.children_in(folder));
    // The image may be one whose chain cannot be opened.
    let image = match Point::parse(&args.image.image) {
        Point { image, selector: None } => image,
        _ => input::resolve(&args.image.image, &options, console)?.path,
    };
    let Resolved { path: base, .. } = input::resolve(&args.onto, &options, console)?;
    let pace = Pace::new();
    pace.limit(args.rate);
    let reparent = Reparent::new(&base).unproven(args.unproven).options(options).pace(pace);
    if args.dry_run {
        let forecast = reparent.forecast(&image)?;
        operation::foretell("avhdx.reparent/1", &forecast, console)?;
        return Ok(Outcome::Yes);
    }
    let done = operation::run(console, |on| reparent.run(&image, on))?;
    console.warnings(&done.warnings);
    let [image, base] = [&done.path, &done.parent].map(|path| path.display().to_string());
    console.done();
    if console.is_json() {
        console.document(&json!({
            "schema": "avhdx.reparent/1",
            "dry_run": false,
            "image": image,
            "parent": base,
            "linkage": done.linkage.to_string(),
            "proven": done.proven,
            "unproven": done.unproven,
        }))?;
    } else {
        console.line(format!("{image}: its parent is {base}, {}", done.linkage))?;
        match done.unproven {
            0 => console.line(format!("  {} are alike below both parents", size(done.proven)))?,
            unproven => {
                console.line(format!("  nothing shows that {} are alike", size(unproven)))?
            }
        }
    }
    Ok(Outcome::Yes)
}
