//! Merges of layers: what `avhdx merge` asks for, and what gives up a point in time for `avhdx delete`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::ops::forest::{Forest, NodeId};
use avhdx::ops::{FileChangeKind, Forecast, Merge, Merged, Pace};
use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{Layer, LayerId, MergeState, OpenOptions};
use avhdx_seals::CarriedSeals;
use serde::Serialize;
use uuid::Uuid;

use crate::args::{LossFlags, OperationFlags};
use crate::failure::{Exit, Failure, Reply};
use crate::forks::files_beside;
use crate::loss;
use crate::next;
use crate::operation::{self, Subject, paths};
use crate::output::Console;
use crate::point::{Point, folder_of};
use crate::progress::Activity;
use crate::seals;
use crate::shell::argument;
use crate::text::size;
use crate::typed::with_parents;
use crate::values;
use crate::vocabulary::{Answer, shown};

/// How layers are merged.
#[derive(clap::Args, Debug)]
pub(crate) struct HowFlags {
    /// Complete what was interrupted, as it was begun. The image is any file of the chain.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Free merged data step by step, if there is no space for a second copy. The merge must then be completed,
    /// because the merged layer no longer has all its data.
    #[arg(long)]
    low_space: bool,
    /// Discard the data past the end of the merged layer's disk, if that is smaller than the one below.
    #[arg(long)]
    shrink: bool,
    /// Assume that files and folders that cannot be read contain no other children of the images.
    #[arg(long)]
    pub(crate) no_other_children: bool,
    /// Copy at most SIZE bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = values::rate, allow_negative_numbers = true)]
    rate: Option<u64>,
    /// Copy the data even if the file system can share it between the two files.
    #[arg(long)]
    no_share: bool,
    /// Merge layers that are not as their seals say, or whose seals are damaged. The result is not sealed.
    #[arg(long)]
    ignore_seals: bool,
    /// Only print what would be done, and whether there is enough space.
    #[arg(long, conflicts_with = "accept_loss")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) opening: OperationFlags,
    #[command(flatten)]
    pub(crate) loss: LossFlags,
}

/// A merge that is complete. All sizes are in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MergeAnswer {
    #[serde(flatten)]
    done: Moves,
}

/// A point in time, or a branch, that was given up. All sizes are in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DeleteAnswer {
    #[serde(flatten)]
    pub(crate) done: Moves,
    /// The bytes that no point shows any more; 0 unless a branch was removed.
    pub(crate) lost: u64,
}

#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Moves {
    /// The tip if it was merged, which takes all writes from now on; null if the tip stays.
    pub(crate) tip: Option<String>,
    /// The images removed.
    pub(crate) removed: Vec<String>,
    pub(crate) moved: u64,
    /// What writers wrote to both images meanwhile.
    pub(crate) mirrored: u64,
    /// How much of what was moved the file system was asked to share or copy itself.
    pub(crate) handed_over: u64,
    /// What was cut off at the end of the disk.
    pub(crate) cut: u64,
    /// The seal of the resulting layer; left out if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seal: Option<String>,
}

impl Answer for MergeAnswer {
    const SCHEMA: &'static str = "avhdx.merge/1";
}

impl Answer for DeleteAnswer {
    const SCHEMA: &'static str = "avhdx.delete/1";
}

/// A merge as it was requested.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) image: OsString,
    pub(crate) what: What,
    pub(crate) keep_name: bool,
    pub(crate) how: HowFlags,
}

/// What is to be merged.
#[derive(Debug)]
pub(crate) enum What {
    /// The layer that the image selects, into its parent or an ancestor.
    Layer { into: Option<OsString> },
    /// The layer above the point with this identity: the point, called so, is given up.
    Above { point: Uuid, called: String },
}

impl What {
    fn verb(&self) -> &'static str {
        match self {
            Self::Layer { .. } => "merge",
            Self::Above { .. } => "delete",
        }
    }
}

impl Request {
    pub(crate) fn run(&self, console: &mut Console) -> Result<Reply, Failure> {
        let how = &self.how;
        let mut options = self.opening()?.unfinished(how.resume);
        let mut image = self.image.clone();
        if how.resume {
            let activity = Activity::of(console, "reading the images");
            let (tip, parent) = unfinished(self)?;
            drop(activity);
            image = tip;
            // A tip and its parent that have exchanged their names do not find each other by name.
            if let Some(parent) = parent {
                options = options.parents(how.opening.source().file(parent));
            }
        }
        let inspected = Subject::inspect(&image, &options)?;
        let (merge, child) = self.merge_of(&inspected)?;
        if how.dry_run {
            inspected.warn(&options, console)?;
            let activity = Activity::of(console, "measuring the data");
            let forecast = merge.forecast(&inspected.chain)?;
            drop(activity);
            self.foretell_moved_tip(&forecast, &inspected, console);
            operation::print_forecast(&forecast, console)
                .map_err(|failure| self.suggest_low_space(failure, &merge, &inspected))?;
            return Ok(Reply::Yes);
        }
        // An operation that will be refused must neither replay a log nor accept a loss.
        if how.loss.accept_loss || inspected.is_log_pending() {
            operation::refuse_impossible(merge.forecast(&inspected.chain))
                .map_err(|failure| self.suggest_low_space(failure, &merge, &inspected))?;
        }
        let to_repair = if how.resume { child.path } else { Some(Point::parse(&image).image) };
        operation::note_hyper_v(&inspected.chain, console);
        drop(inspected);
        if let Some(image) = to_repair {
            loss::accept(&image, &how.loss, &options, console)?;
        }
        let subject = Subject::open(&image, &options, console)?;
        subject.resolve_point(console)?;
        let (merge, child) = self.merge_of(&subject)?;
        let (depth, seals) = self.prove_seals(&subject, &child, console)?;
        let mut done =
            operation::run(console, |on| merge.clone().on_progress(on).run(&subject.chain));
        // Several merges of one chain may have been interrupted.
        while let (true, Ok(so_far), Some(_)) =
            (how.resume, &done, operation::being_merged(&subject.chain))
        {
            let so_far = so_far.clone();
            let (next, _) = self.merge_of(&subject)?;
            done = operation::run(console, |on| next.on_progress(on).run(&subject.chain))
                .map(|further| so_far.and(further));
        }
        let done = done.map_err(|failure| self.suggest_low_space(failure, &merge, &subject));
        let left = operation::being_merged(&subject.chain);
        let again = left.as_ref().filter(|_| done.is_err());
        let again = again.and_then(|left| self.resume(&subject, left.id));
        let closed = subject.close();
        let merged = match (done, left) {
            (Ok(merged), _) => merged,
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(_)) if is_lost(&failure) => {
                let failure = failure
                    .also("the merge is not complete, and continues once the loss is accepted");
                let again = again.map(|again| format!("{again} --accept-loss"));
                return Err(again.into_iter().fold(failure, Failure::then));
            }
            (Err(failure), Some(_)) => {
                let failure =
                    failure.also("the disk reads as before, and the merge can be resumed");
                return Err(again.into_iter().fold(failure, Failure::then));
            }
        };
        closed?;
        console.done();
        console.warnings(&merged.warnings);
        let tip = merged.tip.clone().unwrap_or_else(|| Point::parse(&image).image);
        let sealed = seals::carry(seals, &merged.removed, &tip, &self.opening()?, depth, console);
        let seal = sealed.as_ref().ok().and_then(Option::as_deref);
        self.print(&merged, &child.name, seal, console)?;
        sealed?;
        operation::refuse_lost_name(
            &merged.warnings,
            child.path.as_deref(),
            merged.tip.as_deref(),
        )?;
        let resume = merged.tip.as_ref().or(child.path.as_ref());
        let verb = format!("{} --resume", self.what.verb());
        operation::refuse_leftover(&merged.warnings, resume.map(|path| with_parents(&verb, path)))?;
        Ok(Reply::Yes)
    }

    /// The requested merge, and its child.
    fn merge_of(&self, subject: &Subject) -> Result<(Merge<'static>, Layer), Failure> {
        let how = &self.how;
        let (merge, child) = match &self.what {
            _ if how.resume => {
                let child = subject.being_merged()?;
                (Merge::resume(child.id), child)
            }
            What::Layer { into } => {
                let child = subject.point()?.unwrap_or_else(|| subject.tip()).clone();
                let mut merge = Merge::new(child.id);
                if let Some(ancestor) = into {
                    merge = merge.into_layer(subject.layer_of(ancestor)?.id);
                }
                (merge, child)
            }
            What::Above { point, .. } => {
                let child = subject.above(*point)?.clone();
                (Merge::new(child.id), child)
            }
        };
        let pace = Pace::new();
        pace.limit(how.rate);
        let merge = merge
            .keep_name(self.keep_name)
            .low_space(how.low_space)
            .shrink(how.shrink)
            .no_other_children(how.no_other_children)
            .share(!how.no_share)
            .pace(pace);
        let folders = how.opening.children_in.iter();
        let merge = folders.fold(merge, |merge, folder| merge.children_in(folder));
        Ok((merge, child))
    }

    /// The depth of the layer that is merged, and the seals of all that are, which are proven.
    fn prove_seals(
        &self,
        subject: &Subject,
        child: &Layer,
        console: &Console,
    ) -> Result<(usize, Option<CarriedSeals>), Failure> {
        let layers = subject.layers();
        let depth = layers.iter().position(|layer| layer.id == child.id).unwrap_or(0);
        if self.how.resume || self.how.ignore_seals {
            return Ok((depth, None));
        }
        let lowest = match &self.what {
            What::Layer { into: Some(ancestor) } => {
                let ancestor = subject.layer_of(ancestor)?.id;
                layers.iter().position(|layer| layer.id == ancestor).unwrap_or(depth)
            }
            _ => depth + 1,
        };
        let merged = layers.iter().take(lowest + 1).skip(depth).map(|layer| layer.id);
        seals::prove(subject, &merged.collect::<Vec<_>>(), console).map(|seals| (depth, seals))
    }

    /// The options for the chain. The merge itself looks for other children of the layers it changes.
    fn opening(&self) -> Result<OpenOptions, Failure> {
        Ok(self.how.opening.options()?.orphan_children(self.how.no_other_children))
    }

    /// Suggests --low-space, if there is enough space for that only.
    fn suggest_low_space(&self, failure: Failure, merge: &Merge, subject: &Subject) -> Failure {
        if !failure.is("op.space") {
            return failure;
        }
        let less = merge.clone().low_space(true).forecast(&subject.chain);
        let fits = !self.how.low_space && less.is_ok_and(|forecast| forecast.check().is_ok());
        match next::with_flag("--low-space  # frees merged data step by step").filter(|_| fits) {
            Some(command) => failure.then(command),
            None => failure,
        }
    }

    /// Warns that the tip's path will not stay, although it should: files do not exchange names over two folders.
    fn foretell_moved_tip(&self, forecast: &Forecast, subject: &Subject, console: &mut Console) {
        let named = |kind: FileChangeKind| {
            let files = forecast.files.iter().filter(move |file| file.kind == kind);
            files.map(|file| file.path.as_path())
        };
        let tip = subject.tip().path.as_deref();
        let tip = named(FileChangeKind::Removed).find(|removed| Some(*removed) == tip);
        let target = named(FileChangeKind::Changed).next();
        let folder = |path: &Path| LocalHost.canonical(folder_of(path)).ok();
        let Some((tip, target)) = tip.zip(target).filter(|_| self.keep_name) else { return };
        if folder(tip) != folder(target) {
            let message = format!(
                "{}: the disk will be in {} from then on, because the two files do not lie in one folder",
                tip.display(),
                target.display()
            );
            console.warn("merge.name-not-kept", &message);
        }
    }

    /// The command that resumes the merge, with the flags that it needs now.
    fn resume(&self, subject: &Subject, child: LayerId) -> Option<String> {
        let how = &self.how;
        let fits = |low_space: bool| {
            let merge = Merge::resume(child).low_space(low_space).shrink(how.shrink);
            merge.forecast(&subject.chain).is_ok_and(|forecast| forecast.check().is_ok())
        };
        let low_space = how.low_space || !fits(false) && fits(true);
        let flags = [(low_space, " --low-space"), (how.shrink, " --shrink")];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag);
        let verb = format!("{} --resume{}", self.what.verb(), flags.collect::<String>());
        let tip = subject.chain.layers().swap_remove(0);
        Some(with_parents(&verb, tip.path.as_deref()?))
    }

    fn print(
        &self,
        merged: &Merged,
        child: &str,
        seal: Option<&Path>,
        console: &mut Console,
    ) -> Result<(), Failure> {
        let tip = merged.tip.as_ref().map(|tip| tip.display().to_string());
        if console.is_json() {
            let done = Moves {
                tip,
                removed: paths(&merged.removed),
                moved: merged.moved,
                mirrored: merged.mirrored,
                handed_over: merged.handed_over,
                cut: merged.cut,
                seal: seal.map(shown),
            };
            return match self.what {
                What::Layer { .. } => console.document(&MergeAnswer { done }),
                What::Above { .. } => console.document(&DeleteAnswer { done, lost: 0 }),
            };
        }
        // A machine that is configured with another path would not find its disk.
        let is_moved = merged.warnings.iter().any(|warning| warning.code == "merge.name-not-kept");
        if let Some(tip) = tip.as_ref().filter(|_| is_moved) {
            console.line(format!("{tip}: the disk is here now; point the machine to it"))?;
        }
        let moved = size(merged.moved);
        console.line(match &self.what {
            What::Above { called, .. } if !self.how.resume => {
                format!("{called}: deleted, {moved} moved")
            }
            What::Above { .. } => format!("deleted, {moved} moved"),
            What::Layer { .. } => format!("{child}: merged, {moved} moved"),
        })?;
        if merged.cut > 0 {
            let what = "at the end of the disk, which now has the size of the merged layer";
            console.line(format!("  cut       {} {what}", size(merged.cut)))?;
        }
        for removed in &merged.removed {
            console.line(format!("  removed   {}", removed.display()))?;
        }
        if let Some(seal) = seal {
            console.line(format!("  seal      {}", seal.display()))?;
        }
        match tip {
            Some(tip) => {
                console.line(format!("  tip       {tip}, which takes all writes from now on"))
            }
            None => Ok(()),
        }
    }
}

/// Whether the merge failed because a file lost data.
fn is_lost(failure: &Failure) -> bool {
    ["merge.child-lost", "claim.lost", "claim.shared"].iter().any(|code| failure.is(code))
}

/// The tip of the chain whose unfinished merge involves the file, and the tip's parent.
fn unfinished(request: &Request) -> Result<(OsString, Option<PathBuf>), Failure> {
    let file = Point::parse(&request.image).image;
    let file = LocalHost.open(&file, Access::Read).ok().map_or(file, |storage| {
        // The other files are beside this one, not beside a link to it.
        storage.path().map(Path::to_path_buf).unwrap_or_default()
    });
    let opening = &request.how.opening;
    let places = files_beside(&file, &opening.children_in)?;
    let forest = Forest::scan(&places, &opening.source())?;
    let own = LocalHost.canonical(&file).ok();
    let is_own = |path: &Path| own.is_some() && LocalHost.canonical(path).ok() == own;
    let found = forest.nodes().find(|(_, node)| is_own(&node.path));
    // Opening a file that is not an image reports that.
    let Some((mut node, _)) = found else { return Ok((file.into(), None)) };
    let state =
        |id: NodeId| forest.node(id).image.as_ref().ok()?.merge.as_ref().map(|mark| mark.state);
    let is_requested = |id: NodeId| {
        let image = forest.node(id).image.as_ref();
        image.is_ok_and(|image| image.merge.is_none() && image.merge_request.is_some())
    };
    refuse_without_child(&forest, node)?;
    // What is left of a merged file goes with the merges that were requested with it.
    if state(node) == Some(MergeState::Spent)
        && let Some(parent) = forest.node(node).parent()
        && let Some(sibling) = forest.node(parent).children.iter().find(|id| is_requested(**id))
    {
        node = *sibling;
    }
    loop {
        let children = &forest.node(node).children;
        let in_state = |wanted| children.iter().find(|child| state(**child) == Some(wanted));
        let marked = in_state(MergeState::Merging)
            .or_else(|| children.iter().find(|child| is_requested(**child)))
            .or_else(|| in_state(MergeState::Spent));
        node = match (marked, &children[..]) {
            (Some(child), _) | (None, [child]) => *child,
            _ => break,
        };
    }
    let path = |id: NodeId| forest.node(id).path.clone();
    Ok((path(node).into(), forest.node(node).parent().map(path)))
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
