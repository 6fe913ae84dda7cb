//! `avhdx seal`: seals the points in time of a chain.

use avhdx::Lock;
use avhdx_seals::{Outcome, Seal, Sealed, SealedLayer};
use serde::Serialize;

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::input;
use crate::operation;
use crate::output::Console;
use crate::seals;
use crate::text::size;
use crate::vocabulary::{Answer, shown};

/// Seal each point in time of a chain, so that verify can prove that it is as it was.
///
/// Writes IMAGE.seal beside each layer: hashes of the sectors that the layer itself answers for. Layers that have a seal
/// of their identity are not read again. A tip is left out while it is in use or its log is not empty. No image changes.
/// The root hash, kept where nobody who can write to the images reaches it, proves all of it: verify --root.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Only print the hashes of the seals that there are, and the root.
    #[arg(long)]
    print: bool,
    /// Read and seal all layers again, whatever seals they have.
    #[arg(long, conflicts_with = "print")]
    again: bool,
    /// How many threads read and hash [default: one for each processor, at least 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    #[command(flatten)]
    opening: ReadFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.opening.options().lock(Lock::Try);
    let chain = input::chain_with(&args.image.image, &args.opening, &options, console)?;
    let mut seal = Seal::new().again(args.again);
    if let Some(threads) = args.threads {
        seal = seal.threads(threads.into());
    }
    let sealed = match args.print {
        true => seal.look(&chain)?,
        false => operation::run_counted(console, |on| seal.on_progress(on).run(&chain))?,
    };
    console.done();
    for layer in &sealed.layers {
        let left: Vec<_> = layer.left.iter().cloned().collect();
        seals::warn_left(&left, console);
    }
    if console.is_json() {
        console.document(&SealAnswer::of(&sealed))?;
    } else {
        for layer in &sealed.layers {
            let hash = layer.hash.map_or_else(|| "-".repeat(64), |hash| hash.to_string());
            console.line(format!("{hash}  {}  {}", layer.name, outcome(layer, args.print)))?;
        }
        if let Some(root) = sealed.root {
            console.line(format!("{root}  root"))?;
        }
    }
    Ok(if sealed.root.is_some() { Reply::Yes } else { Reply::No })
}

fn outcome(layer: &SealedLayer, is_look: bool) -> String {
    match layer.outcome {
        Outcome::Written => format!("sealed, {} read", size(layer.read)),
        Outcome::Kept if is_look => "sealed".into(),
        Outcome::Kept => "kept".into(),
        Outcome::LeftOut(why) => seals::left_out(why).into(),
        _ => "other".into(),
    }
}

/// The seals of a chain.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct SealAnswer {
    /// The hash of the chain, from the newest sealed layer down; null if a layer below that is not sealed.
    root: Option<String>,
    /// From the tip down.
    layers: Vec<LayerSeal>,
}

impl Answer for SealAnswer {
    const SCHEMA: &'static str = "avhdx.seal/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LayerSeal {
    image: String,
    /// The seal file; null without one.
    seal: Option<String>,
    /// `written`, `kept` or `left-out`.
    outcome: &'static str,
    /// `in-use`, `log-pending`, `no-folder` or `not-sealed`; null unless the layer is left out.
    left_out: Option<&'static str>,
    /// The hash of the layer; null unless it is sealed.
    hash: Option<String>,
    /// The bytes of data that were read.
    read: u64,
}

impl SealAnswer {
    fn of(sealed: &Sealed) -> Self {
        let layers = sealed.layers.iter().map(|layer| LayerSeal {
            image: layer.name.clone(),
            seal: layer.seal.as_deref().map(shown),
            outcome: match layer.outcome {
                Outcome::Written => "written",
                Outcome::Kept => "kept",
                _ => "left-out",
            },
            left_out: match layer.outcome {
                Outcome::LeftOut(why) => Some(seals::left_out_name(why)),
                _ => None,
            },
            hash: layer.hash.map(|hash| hash.to_string()),
            read: layer.read,
        });
        Self { root: sealed.root.map(|root| root.to_string()), layers: layers.collect() }
    }
}
