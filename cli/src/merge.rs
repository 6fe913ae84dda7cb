//! `avhdx merge`: merges a child into its parent.

use std::ffi::OsString;

use crate::failure::{Failure, Reply};
use crate::merging::{HowFlags, Request, What};
use crate::output::Console;

/// Merge an image into its parent and remove it. The point in time between the two is lost.
///
/// CHILD is a tip or a layer below one (TIP@SEL); the layer above is then linked to the parent. Ctrl-C, kill or a crash
/// lose no data at any time: the chain reads as before, and --resume continues.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The image to merge: a tip, or a layer below one as TIP@SEL.
    #[arg(value_name = "CHILD")]
    image: OsString,
    /// Merge CHILD and all layers between into ANCESTOR, a layer's file or @SEL [default: the parent].
    #[arg(long, value_name = "ANCESTOR", conflicts_with = "resume")]
    into: Option<OsString>,
    /// If CHILD is a tip, give its name to the file that it is merged into: the disk stays under the same path.
    #[arg(long)]
    keep_name: bool,
    #[command(flatten)]
    how: HowFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { image, into, keep_name, how } = args;
    Request { image, what: What::Layer { into }, keep_name, how }.run(console)
}
