//! `avhdx merge`: merges a child into its parent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::ops::forest::{Forest, NodeId};
use avhdx::ops::{Merge, Merged, Pace};
use avhdx::storage::{Access, FileKind, Host, LocalHost};
use avhdx::{Layer, LayerId, MergeState, OpenOptions};
use serde::Serialize;

use crate::args::{LossFlags, OperationFlags};
use crate::failure::{Exit, Failure, Reply};
use crate::loss;
use crate::next;
use crate::operation::{self, Subject, paths};
use crate::output::Console;
use crate::point::{Point, folder_of};
use crate::shell::argument;
use crate::text::size;
use crate::typed::with_parents;
use crate::values;
use crate::vocabulary::Answer;

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
    /// Continue an interrupted merge. CHILD is any of its files.
    #[arg(long)]
    resume: bool,
    /// Free merged data step by step, if there is no space for a second copy. The merge must then be completed,
    /// because the child no longer has all its data.
    #[arg(long)]
    low_space: bool,
    /// Discard the data past the end of CHILD's disk, if that is smaller than the parent's.
    #[arg(long)]
    shrink: bool,
    /// Assume that files and folders that cannot be read contain no other children of the images.
    #[arg(long)]
    no_other_children: bool,
    /// Copy at most SIZE bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = values::rate, allow_negative_numbers = true)]
    rate: Option<u64>,
    /// Copy the data even if the file system can share it between the two files.
    #[arg(long)]
    no_share: bool,
    /// Only print what would be done, and whether there is enough space.
    #[arg(long, conflicts_with = "accept_loss")]
    dry_run: bool,
    #[command(flatten)]
    opening: OperationFlags,
    #[command(flatten)]
    loss: LossFlags,
}

/// A merge that is complete. All sizes are in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MergeAnswer {
    /// The new tip, which takes all writes from now on; null if the tip stays.
    tip: Option<String>,
    /// The images removed.
    removed: Vec<String>,
    moved: u64,
    /// What writers wrote to both images meanwhile.
    mirrored: u64,
    /// What was moved while writers waited.
    handed_over: u64,
    /// What was cut off at the end of the disk.
    cut: u64,
}

impl Answer for MergeAnswer {
    const SCHEMA: &'static str = "avhdx.merge/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = opening(&args)?.unfinished(args.resume);
    let image = if args.resume { unfinished(&args)? } else { args.image.clone() };
    let inspected = Subject::inspect(&image, &options)?;
    let (merge, child) = merge_of(&inspected, &args)?;
    if args.dry_run {
        inspected.warn(&options, console)?;
        let forecast = merge.forecast(&inspected.chain)?;
        operation::print_forecast(&forecast, console)
            .map_err(|failure| suggest_low_space(failure, &merge, &inspected, &args))?;
        return Ok(Reply::Yes);
    }
    // An operation that will be refused must neither replay a log nor accept a loss.
    if args.loss.accept_loss || inspected.is_log_pending() {
        operation::refuse_impossible(merge.forecast(&inspected.chain))
            .map_err(|failure| suggest_low_space(failure, &merge, &inspected, &args))?;
    }
    let to_repair = if args.resume { child.path } else { Some(Point::parse(&image).image) };
    drop(inspected);
    if let Some(image) = to_repair {
        loss::accept(&image, &args.loss, &options, console)?;
    }
    let subject = Subject::open(&image, &options, console)?;
    subject.resolve_point(console)?;
    let (merge, child) = merge_of(&subject, &args)?;
    let done = operation::run(console, |on| merge.clone().run(&subject.chain, on));
    let done = done.map_err(|failure| suggest_low_space(failure, &merge, &subject, &args));
    let again = done.as_ref().err().map(|_| resume(&subject, &args, child.id));
    let state = subject.chain.image(child.id).and_then(|image| image.merge_mark());
    let closed = subject.close();
    let merged = match (done, state) {
        (Ok(merged), _) => merged,
        (Err(failure), None) => return Err(failure),
        (Err(failure), Some(_)) if is_lost(&failure) => {
            let failure =
                failure.also("the merge is not complete, and continues once the loss is accepted");
            let again = again.flatten().map(|again| format!("{again} --accept-loss"));
            return Err(again.into_iter().fold(failure, Failure::then));
        }
        (Err(failure), Some(_)) => {
            let failure = failure.also("the disk reads as before, and the merge can be resumed");
            return Err(again.into_iter().flatten().fold(failure, Failure::then));
        }
    };
    closed?;
    console.done();
    console.warnings(&merged.warnings);
    print(&merged, &child.name, console)?;
    operation::refuse_lost_name(&merged.warnings, child.path.as_deref(), merged.tip.as_deref())?;
    let resume = child.path.map(|child| with_parents("merge --resume", &child));
    operation::refuse_leftover(&merged.warnings, resume)?;
    Ok(Reply::Yes)
}

/// The requested merge, and its child.
fn merge_of(subject: &Subject, args: &Args) -> Result<(Merge, Layer), Failure> {
    let (merge, child) = if args.resume {
        let child = subject.being_merged()?.clone();
        (Merge::resume(child.id), child)
    } else {
        let child = subject.point()?.unwrap_or_else(|| subject.tip()).clone();
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

/// Whether the merge failed because a file lost data.
fn is_lost(failure: &Failure) -> bool {
    ["merge.child-lost", "claim.lost", "claim.shared"].iter().any(|code| failure.is(code))
}

/// The options for the chain. The merge itself looks for other children of the layers it changes.
fn opening(args: &Args) -> Result<OpenOptions, Failure> {
    Ok(args.opening.options()?.orphan_children(args.no_other_children))
}

/// Suggests --low-space, if there is enough space for that only.
fn suggest_low_space(failure: Failure, merge: &Merge, subject: &Subject, args: &Args) -> Failure {
    if !failure.is("op.space") {
        return failure;
    }
    let less = merge.clone().low_space(true).forecast(&subject.chain);
    let fits = !args.low_space && less.is_ok_and(|forecast| forecast.check().is_ok());
    match next::with_flag("--low-space  # frees merged data step by step").filter(|_| fits) {
        Some(command) => failure.then(command),
        None => failure,
    }
}

/// The command that resumes the merge, with the flags that it needs now.
fn resume(subject: &Subject, args: &Args, child: LayerId) -> Option<String> {
    let fits = |low_space: bool| {
        let merge = Merge::resume(child).low_space(low_space).shrink(args.shrink);
        merge.forecast(&subject.chain).is_ok_and(|forecast| forecast.check().is_ok())
    };
    let low_space = args.low_space || !fits(false) && fits(true);
    let flags = [(low_space, " --low-space"), (args.shrink, " --shrink")];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag);
    let verb = std::iter::once("merge --resume").chain(flags).collect::<String>();
    Some(with_parents(&verb, subject.tip().path.as_deref()?))
}

fn print(merged: &Merged, child: &str, console: &mut Console) -> Result<(), Failure> {
    let tip = merged.tip.as_ref().map(|tip| tip.display().to_string());
    if console.is_json() {
        return console.document(&MergeAnswer {
            tip,
            removed: paths(&merged.removed),
            moved: merged.moved,
            mirrored: merged.mirrored,
            handed_over: merged.handed_over,
            cut: merged.cut,
        });
    }
    console.line(format!("{child}: merged, {} moved", size(merged.moved)))?;
    if merged.cut > 0 {
        let what = "at the end of the disk, which now has the size of the merged layer";
        console.line(format!("  cut       {} {what}", size(merged.cut)))?;
    }
    for removed in &merged.removed {
        console.line(format!("  removed   {}", removed.display()))?;
    }
    match tip {
        Some(tip) => console.line(format!("  tip       {tip}, which takes all writes from now on")),
        None => Ok(()),
    }
}

/// The tip of the chain whose unfinished merge involves the file.
fn unfinished(args: &Args) -> Result<OsString, Failure> {
    let file = Point::parse(&args.image).image;
    let file = LocalHost.open(&file, Access::Read).ok().map_or(file, |storage| {
        // The other files are beside this one, not beside a link to it.
        storage.path().map(Path::to_path_buf).unwrap_or_default()
    });
    let folder = folder_of(&file).to_path_buf();
    let mut places = Vec::new();
    for folder in [&folder].into_iter().chain(&args.opening.children_in) {
        let names = LocalHost.list(folder).map_err(|error| {
            let message = format!(
                "{}: cannot list the folder to find the images of the merge",
                folder.display()
            );
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
    // Opening a file that is not an image reports that.
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

/// Refuses to resume a merge into this image if its child is missing or damaged.
fn refuse_without_child(forest: &Forest, target: NodeId) -> Result<(), Failure> {
    let node = forest.node(target);
    let mark = node.image.as_ref().ok().and_then(|image| image.merge.as_ref());
    let Some(mark) = mark.filter(|mark| mark.state == MergeState::Target) else { return Ok(()) };
    let of_child = |id: &NodeId| forest.node(*id).data_write_guid == Some(mark.other);
    let mut found = forest.nodes().map(|(id, _)| id).filter(of_child).peekable();
    if found.peek().is_none() {
        let (path, child) = (node.path.display(), &mark.name);
        let message = format!("{path}: the child of its unfinished merge, {child}, was not found");
        return Err(Failure::new(Exit::Parent, "merge.child-missing", message));
    }
    let error = found.find_map(|id| forest.node(id).image.as_ref().err().map(|e| (id, e)));
    error.map_or(Ok(()), |(id, error)| {
        let child = forest.node(id).path.display();
        let message = format!("{child}: cannot be merged: {}", error.message());
        let check = format!("avhdx check --layer {}", argument(&forest.node(id).path));
        Err(Failure::new(Exit::Damaged, error.code(), message).then(check))
    })
}
