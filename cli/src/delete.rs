//! `avhdx delete`: gives up a point in time, or a branch.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::Layer;
use avhdx::ops::{DeleteBranch, DeletedBranch};

use crate::failure::{Exit, Failure, Reply};
use crate::forks::{self, Other};
use crate::merging::{DeleteAnswer, HowFlags, Moves, Request, What};
use crate::operation::{self, Subject, paths};
use crate::output::Console;
use crate::progress::Activity;
use crate::seals;
use crate::shell::argument;
use crate::text::{count, size};
use crate::typed::with_parents;

/// Give up a point in time and keep all others: its data goes where the points that need it find it.
///
/// The layer above the point is merged into the point's file. If that layer is the tip, the disk stays under the tip's
/// path. Ctrl-C, kill or a crash lose no data at any time: every other point reads as before, and --resume continues.
///
/// With --subtree, the point's file and every image on top of it are removed instead: a branch, with all that only it
/// shows.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The tip, with the point in time to give up: IMAGE@-1, IMAGE@LABEL, IMAGE@NAME, IMAGE@GUIDPREFIX.
    #[arg(value_name = "IMAGE@SEL")]
    image: OsString,
    /// Remove the point and all points above it, in every branch, instead of keeping them.
    #[arg(long, conflicts_with = "resume")]
    subtree: bool,
    /// With --subtree: agree to lose the bytes that no other point shows.
    #[arg(long, requires = "subtree")]
    lose_branch: bool,
    /// If the point below the tip is given up, let the disk go on under the path of that point's file.
    #[arg(long)]
    move_tip: bool,
    #[command(flatten)]
    how: HowFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { image, how, .. } = args;
    if how.resume {
        let what = What::Above { point: uuid::Uuid::nil(), called: String::new() };
        return Request { image, what, keep_name: false, how }.run(console);
    }
    let options = how.opening.options()?;
    let inspected = Subject::inspect(&image, &options)?;
    // Resolved once: what the selector means may change on the way.
    let point = inspected.required_point()?.clone();
    if args.subtree {
        let below = inspected.below(point.id).is_some();
        drop(inspected);
        return delete_branch(&point, below, args.lose_branch, &how, console);
    }
    if point.id == inspected.tip().id {
        return Err(refuse_tip(&inspected));
    }
    let activity = Activity::of(console, "looking for branches");
    let others = forks::others(&inspected, &point, &how.opening)?;
    drop(activity);
    if !others.is_empty() {
        return Err(refuse_fork(&point, &others));
    }
    let called = inspected.called(&point);
    drop(inspected);
    let what = What::Above { point: point.data_write_guid, called };
    Request { image, what, keep_name: !args.move_tip, how }.run(console)
}

/// The tip is the present; going back to an earlier point, or removing a branch, are other wishes.
fn refuse_tip(subject: &Subject) -> Failure {
    let image = subject.image.display();
    let message = format!("{image}: the tip is the present, not a point that can be given up");
    let failure = Failure::usage("delete.tip", message);
    let Some(tip) =
        subject.tip().path.as_deref().filter(|_| subject.below(subject.tip().id).is_some())
    else {
        return failure.then(with_parents("points", &subject.image));
    };
    let selected = |selector: &str| {
        let mut image = tip.as_os_str().to_owned();
        image.push(selector);
        PathBuf::from(image)
    };
    failure
        .then(with_parents("points", tip))
        .then(format!(
            "{}  # goes back one point",
            with_parents("revert --delete-newer", &selected("@-1"))
        ))
        .then(format!(
            "{}  # removes the tip as a branch",
            with_parents("delete --subtree --dry-run", &selected("@-0"))
        ))
}

/// A point on which several branches lie: all but one must go first.
fn refuse_fork(point: &Layer, others: &[Other]) -> Failure {
    let name = &point.name;
    let message = format!(
        "{name}: {} of it {} in the way: the point's data cannot go to all of them",
        count(others.len(), "other child").replace("childs", "children"),
        if others.len() == 1 { "is" } else { "are" }
    );
    let failure = Failure::new(Exit::Refused, "delete.fork", message);
    others.iter().fold(failure, |failure, other| {
        if other.is_left_over {
            let command = with_parents("merge --resume", &other.path);
            return failure.then(format!("{command}  # removes what a merge left behind"));
        }
        let mut tip = other.path.as_os_str().to_owned();
        tip.push("@-0");
        let command = with_parents("delete --subtree --dry-run", Path::new(&tip));
        failure.then(format!("{command}  # shows what that branch holds")).or_else(format!(
            "{}  # removes it",
            with_parents("delete --subtree --lose-branch", Path::new(&tip))
        ))
    })
}

fn delete_branch(
    point: &Layer,
    has_parent: bool,
    may_lose: bool,
    how: &HowFlags,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let path = point.path.as_deref().filter(|_| has_parent).ok_or_else(|| {
        let message = format!(
            "{}: the base is below every point, and cannot be removed as a branch",
            point.name
        );
        let failure = Failure::usage("delete.base", message);
        point.path.iter().fold(failure, |failure, path| {
            failure.then(format!(
                "avhdx tree {}  # shows the branches",
                argument(crate::point::folder_of(path))
            ))
        })
    })?;
    let mut delete = DeleteBranch::at(path)
        .parents(how.opening.source())
        .no_other_children(how.no_other_children)
        .lose(may_lose);
    for folder in &how.opening.children_in {
        delete = delete.children_in(folder);
    }
    if how.dry_run {
        let activity = Activity::of(console, "measuring the branch");
        let forecast = delete.forecast()?;
        drop(activity);
        operation::print_forecast(&forecast, console)?;
        return Ok(Reply::Yes);
    }
    let done = operation::run(console, |on| delete.on_progress(on).run())?;
    console.done();
    console.warnings(&done.warnings);
    seals::sweep(&done.removed, console);
    print(&done, &point.name, console)?;
    operation::refuse_leftover(&done.warnings, None)?;
    Ok(Reply::Yes)
}

fn print(done: &DeletedBranch, name: &str, console: &mut Console) -> Result<(), Failure> {
    if console.is_json() {
        let done_in = Moves { removed: paths(&done.removed), ..Moves::default() };
        return console.document(&DeleteAnswer { done: done_in, lost: done.lost });
    }
    console.line(format!("{name}: branch removed, {} lost", size(done.lost)))?;
    for removed in &done.removed {
        console.line(format!("  removed   {}", removed.display()))?;
    }
    Ok(())
}
