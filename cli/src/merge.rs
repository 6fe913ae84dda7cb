//! `avhdx merge`: a child's content into its parent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::ops::forest::{Forest, NodeId};
use avhdx::ops::{Merge, Merged, Pace};
use avhdx::storage::{Access, FileKind, Host, LocalHost};
use avhdx::{LayerId, MergeState};
use serde_json::json;

use crate::args;
use crate::exit::{Failure, Outcome};
use crate::next;
use crate::operation::{self, Subject, paths};
use crate::output::{Console, size};
use crate::point::Point;

/// Merge an image into its parent, and remove it: the point in time between the two is given up.
///
/// CHILD is a tip, or a layer below one: TIP@SEL, whose child is then linked to the parent. Ctrl-C, kill or a
/// crash at any time lose nothing: the chain reads as before, and --resume goes on.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The image that is merged, as a tip or as a layer below one: TIP@SEL.
    #[arg(value_name = "CHILD")]
    image: OsString,
    /// Merge all from CHILD down into ANCESTOR, a layer's file or @SEL [default: the parent alone].
    #[arg(long, value_name = "ANCESTOR", conflicts_with = "resume")]
    into: Option<OsString>,
    /// Go on with a merge that was interrupted. CHILD is any file that it concerns.
    #[arg(long)]
    resume: bool,
    /// Free what is merged step by step, where there is no space for all of it twice. The merge can then only go
    /// on, for the child has no longer all its bytes.
    #[arg(long)]
    low_space: bool,
    /// Lose the data behind the end of CHILD's disk, where that is smaller than the parent's.
    #[arg(long)]
    shrink: bool,
    /// Take it that the images have no other children, where a file or folder cannot be looked at.
    #[arg(long)]
    no_other_children: bool,
    /// Copy at most SIZE bytes a second.
    #[arg(long, value_name = "SIZE", value_parser = args::bytes)]
    rate: Option<u64>,
    /// Copy the bytes even where the file system could share them between the two files.
    #[arg(long)]
    no_share: bool,
    /// Only say what would be done, and whether there is the space for it.
    #[arg(long, conflicts_with = "accept_loss")]
    dry_run: bool,
    #[command(flatten)]
    opening: args::Chain,
    #[command(flatten)]
    loss: args::Loss,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let (subject, merge, child) = if args.resume {
        let options = args.opening.options()?.unfinished(true);
        let subject = Subject::open_with(&unfinished(&args)?, &options, console)?;
        let child = subject.being_merged()?.clone();
        (subject, Merge::resume(child.id), child)
    } else {
        let subject = Subject::open_accepting(&args.image, &args.opening, &args.loss, console)?;
        let child = subject.layer(console)?.clone();
        let mut merge = Merge::new(child.id);
        if let Some(ancestor) = &args.into {
            merge = merge.into_layer(subject.layer_of(ancestor, console)?.id);
        }
        (subject, merge, child)
    };
    let pace = Pace::new();
    pace.limit(args.rate);
    let mut merge = merge
        .low_space(args.low_space)
        .shrink(args.shrink)
        .no_other_children(args.no_other_children)
        .share(!args.no_share)
        .pace(pace);
    for folder in &args.opening.children_in {
        merge = merge.children_in(folder);
    }
    let way_out = |failure: Failure| match failure.is("op.space") {
        true => with_less_space(failure, &merge, &subject, &args),
        false => failure,
    };
    if args.dry_run {
        let forecast = merge.forecast(&subject.chain)?;
        operation::foretell("avhdx.merge/1", &forecast, console).map_err(way_out)?;
        return Ok(Outcome::Yes);
    }
    let done = operation::run(console, |on| merge.clone().run(&subject.chain, on));
    let done = done.map_err(way_out);
    let again = done.as_ref().err().map(|_| resume(&subject, &args, child.id));
    let state = subject.chain.image(child.id).and_then(|image| image.merge_mark());
    let ended = subject.end();
    let merged = match (done, state) {
        (Ok(merged), _) => merged,
        (Err(failure), None) => return Err(failure),
        (Err(failure), Some(_)) => {
            let failure =
                failure.also("the disk reads as before, and the merge can be gone on with");
            return Err(again.into_iter().flatten().fold(failure, Failure::then));
        }
    };
    ended?;
    console.warnings(&merged.warnings);
    say(&merged, &child.name, console)?;
    Ok(Outcome::Yes)
}

/// Names the way that needs less space, where that is one.
fn with_less_space(failure: Failure, merge: &Merge, subject: &Subject, args: &Args) -> Failure {
    let less = merge.clone().low_space(true).forecast(&subject.chain);
    let fits = !args.low_space && less.is_ok_and(|forecast| forecast.check().is_ok());
    match next::with_flag("--low-space  # frees what is merged step by step").filter(|_| fits) {
        Some(command) => failure.then(command),
        None => failure,
    }
}

/// The command that goes on with the merge as things are now, if one does.
fn resume(subject: &Subject, args: &Args, child: LayerId) -> Option<String> {
    let fits = |low_space: bool| {
        let merge = Merge::resume(child).low_space(low_space).shrink(args.shrink);
        merge.forecast(&subject.chain).is_ok_and(|forecast| forecast.check().is_ok())
    };
    let low_space = args.low_space || !fits(false) && fits(true);
    let flags = [(low_space, " --low-space"), (args.shrink, " --shrink")];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag);
    let verb = std::iter::once("merge --resume").chain(flags).collect::<String>();
    Some(next::with_parents(&verb, subject.tip().path.as_deref()?))
}

fn say(merged: &Merged, child: &str, console: &mut Console) -> Result<(), Failure> {
    let tip = merged.tip.as_ref().map(|tip| tip.display().to_string());
    if console.is_json() {
        return console.document(&json!({
            "schema": "avhdx.merge/1",
            "dry_run": false,
            "tip": tip,
            "removed": paths(&merged.removed),
            "moved": merged.moved,
            "mirrored": merged.mirrored,
            "handed_over": merged.handed_over,
            "cut": merged.cut,
        }));
    }
    console.line(format!("{child}: merged, {} moved", size(merged.moved)))?;
    if merged.cut > 0 {
        let what = "off the end of the disk, which is as small as that of the merged layer now";
        console.line(format!("  cut       {} {what}", size(merged.cut)))?;
    }
    for removed in &merged.removed {
        console.line(format!("  removed   {}", removed.display()))?;
    }
    match tip {
        Some(tip) => console.line(format!("  the tip is {tip}, to be written to from now on")),
        None => Ok(()),
    }
}

/// The tip of the chain in which a merge is under way that concerns the file.
fn unfinished(args: &Args) -> Result<OsString, Failure> {
    let file = Point::parse(&args.image).image;
    let file = LocalHost.open(&file, Access::Read).ok().map_or(file, |storage| {
        // The others lie where the file does, not where a link to it does.
        storage.path().map(Path::to_path_buf).unwrap_or_default()
    });
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut places = Vec::new();
    for folder in [&folder].into_iter().chain(&args.opening.children_in) {
        let names = LocalHost.list(folder).map_err(|error| {
            let message =
                format!("{}: cannot look for the images of the merge there", folder.display());
            Failure::io("children.folder", message, &error)
        })?;
        let is_file =
            |path: &PathBuf| LocalHost.stat(path).is_ok_and(|stat| stat.kind == FileKind::File);
        places.extend(names.into_iter().filter(is_file));
    }
    let forest = Forest::scan(&places, &args.opening.source())?;
    let own = LocalHost.canonical(&file).ok();
    let is_own = |path: &Path| own.is_some() && LocalHost.canonical(path).ok() == own;
    let found = forest.nodes().find(|(_, node)| is_own(&node.path));
    // What is no image is told so by whoever opens it.
    let Some((mut node, _)) = found else { return Ok(file.into()) };
    let state =
        |id: NodeId| forest.node(id).image.as_ref().ok()?.merge.as_ref().map(|mark| mark.state);
    loop {
        let children = &forest.node(node).children;
        let in_state = |wanted| children.iter().find(|child| state(**child) == Some(wanted));
        let marked = in_state(MergeState::Merging).or_else(|| in_state(MergeState::Spent));
        node = match (marked, &children[..]) {
            (Some(child), _) | (None, [child]) => *child,
            _ => return Ok(forest.node(node).path.clone().into()),
        };
    }
}
