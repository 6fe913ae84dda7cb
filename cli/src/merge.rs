//! `avhdx merge`: a child's content into its parent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::ops::forest::{Forest, NodeId};
use avhdx::ops::{Merge, Merged, Pace};
use avhdx::storage::{Access, FileKind, Host, LocalHost};
use avhdx::{Layer, LayerId, MergeState, OpenOptions};
use serde_json::json;

use crate::args;
use crate::exit::{Exit, Failure, Outcome};
use crate::loss;
use crate::next;
use crate::operation::{self, Subject, paths};
use crate::output::{Console, size};
use crate::point::Point;
use crate::shell::argument;

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
    #[arg(long, value_name = "SIZE", value_parser = args::rate)]
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
    let options = opening(&args)?.unfinished(args.resume);
    let image = if args.resume { unfinished(&args)? } else { args.image.clone() };
    let looked_at = Subject::look(&image, &options)?;
    let (merge, child) = merge_of(&looked_at, &args)?;
    if args.dry_run {
        looked_at.introduce(&options, console)?;
        let forecast = merge.forecast(&looked_at.chain)?;
        operation::foretell("avhdx.merge/1", &forecast, console)
            .map_err(|failure| way_out(failure, &merge, &looked_at, &args))?;
        return Ok(Outcome::Yes);
    }
    // What cannot be done is no reason to change anything, nor to give anything up.
    if args.loss.accept_loss || looked_at.is_log_pending() {
        operation::possible(merge.forecast(&looked_at.chain))
            .map_err(|failure| way_out(failure, &merge, &looked_at, &args))?;
    }
    let damaged = if args.resume { child.path } else { Some(Point::parse(&image).image) };
    drop(looked_at);
    if let Some(image) = damaged {
        loss::accept(&image, &args.loss, &options, console)?;
    }
    let subject = Subject::open(&image, &options, console)?;
    subject.point(console)?;
    let (merge, child) = merge_of(&subject, &args)?;
    let done = operation::run(console, |on| merge.clone().run(&subject.chain, on));
    let done = done.map_err(|failure| way_out(failure, &merge, &subject, &args));
    let again = done.as_ref().err().map(|_| resume(&subject, &args, child.id));
    let state = subject.chain.image(child.id).and_then(|image| image.merge_mark());
    let ended = subject.end();
    let merged = match (done, state) {
        (Ok(merged), _) => merged,
        (Err(failure), None) => return Err(failure),
        (Err(failure), Some(_)) if is_lost(&failure) => {
            let failure = failure.also(
                "the merge is not complete, and goes on when it is agreed to lose what is gone",
            );
            let again = again.flatten().map(|again| format!("{again} --accept-loss"));
            return Err(again.into_iter().fold(failure, Failure::then));
        }
        (Err(failure), Some(_)) => {
            let failure =
                failure.also("the disk reads as before, and the merge can be gone on with");
            return Err(again.into_iter().flatten().fold(failure, Failure::then));
        }
    };
    ended?;
    console.done();
    console.warnings(&merged.warnings);
    say(&merged, &child.name, console)?;
    operation::lost_name(&merged.warnings, child.path.as_deref(), merged.tip.as_deref())?;
    let resume = child.path.map(|child| next::with_parents("merge --resume", &child));
    operation::left_file(&merged.warnings, resume)?;
    Ok(Outcome::Yes)
}

/// The merge that was asked for, and its child.
fn merge_of(subject: &Subject, args: &Args) -> Result<(Merge, Layer), Failure> {
    let (merge, child) = if args.resume {
        let child = subject.being_merged()?.clone();
        (Merge::resume(child.id), child)
    } else {
        let child = subject.point_meant()?.unwrap_or_else(|| subject.tip()).clone();
        let mut merge = Merge::new(child.id);
        if let Some(ancestor) = &args.into {
            merge = merge.into_layer(subject.layer_of(ancestor)?.id);
        }
        (merge, child)
    };
    let pace = Pace::new();
    pace.limit(args.rate);
    let merge = merge
        .low_space(args.low_space)
        .shrink(args.shrink)
        .no_other_children(args.no_other_children)
        .share(!args.no_share)
        .pace(pace);
    let folders = args.opening.children_in.iter();
    let merge = folders.fold(merge, |merge, folder| merge.children_in(folder));
    Ok((merge, child))
}

/// Whether the merge failed for bytes that a file does not have any more.
fn is_lost(failure: &Failure) -> bool {
    ["merge.child-lost", "claim.lost", "claim.shared"].iter().any(|code| failure.is(code))
}

/// How the chain is opened. The merge looks for other children of what it changes by itself.
fn opening(args: &Args) -> Result<OpenOptions, Failure> {
    Ok(args.opening.options()?.orphan_children(args.no_other_children))
}

/// Names the way that needs less space, where space is what lacks and that is one.
fn way_out(failure: Failure, merge: &Merge, subject: &Subject, args: &Args) -> Failure {
    if !failure.is("op.space") {
        return failure;
    }
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
    refuse_without_child(&forest, node)?;
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

/// Refuses to go on with a merge into this image where its child cannot be had.
fn refuse_without_child(forest: &Forest, target: NodeId) -> Result<(), Failure> {
    let node = forest.node(target);
    let mark = node.image.as_ref().ok().and_then(|image| image.merge.as_ref());
    let Some(mark) = mark.filter(|mark| mark.state == MergeState::Target) else { return Ok(()) };
    let of_child = |id: &NodeId| forest.node(*id).data_write_guid == Some(mark.other);
    let mut found = forest.nodes().map(|(id, _)| id).filter(of_child).peekable();
    if found.peek().is_none() {
        let (path, child) = (node.path.display(), &mark.name);
        let message = format!("{path}: {child}, which is being merged into it, was not found");
        return Err(Failure::new(Exit::Parent, "merge.child-missing", message));
    }
    let error = found.find_map(|id| forest.node(id).image.as_ref().err().map(|e| (id, e)));
    error.map_or(Ok(()), |(id, error)| {
        let child = forest.node(id).path.display();
        let message = format!("{child}: cannot be merged as it is: {}", error.message());
        let check = format!("avhdx check --layer {}", argument(&forest.node(id).path));
        Err(Failure::new(Exit::Damaged, error.code(), message).then(check))
    })
}
