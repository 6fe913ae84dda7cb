//! `avhdx repair`: puts right what a check finds, as far as the file proves what belongs there.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use avhdx::OpenOptions;
use avhdx::ops::{Remedy, Repair, RepairPlan, Severity, UndoRepair, Undone};
use serde::Serialize;

use crate::args::{ImageArg, OperationFlags};
use crate::failure::{Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::point::{Point, folder_of};
use crate::shell::argument;
use crate::text::size;
use crate::typed;
use crate::vocabulary::{Answer, LostRange, shown};

/// Repair an image as far as the file itself proves what belongs there, and say what is left.
///
/// Damaged headers and tables are restored from their copies, a pending log is replayed, blocks that share bytes get a copy
/// each, and what no reader looks at is put right. What would be a guess is left, with the reason. The disk reads as
/// before, unless --accept-loss gives lost blocks up. An undo file beside the image restores every byte. Exit code 1 if
/// something is left, 8 if data was given up.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// Only print what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Restore IMAGE as it was before the repair that wrote FILE, complete or interrupted. Refused if IMAGE was changed
    /// since.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "undo_file", "accept_loss"])]
    undo: Option<PathBuf>,
    /// The file for what the repair overwrites; it must not exist [default: IMAGE.undo].
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    undo_file: Option<PathBuf>,
    /// Give up what is lost: lost blocks read as zeros from then on, and IMAGE gets a new identity.
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    opening: OperationFlags,
}

/// What a repair did, or would do.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RepairAnswer {
    dry_run: bool,
    image: String,
    /// In the order in which they are done.
    steps: Vec<Step>,
    /// What stays as it is.
    left: Vec<Left>,
    /// The ranges of the disk that were given up, or may hold the bytes of others.
    losses: Vec<LostRange>,
    lost_bytes: u64,
    /// The file that restores the image; null if nothing was changed.
    undo_file: Option<String>,
    undo_bytes: u64,
    /// The bytes by which the image grows.
    grows: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Step {
    /// The codes of the findings that are put right.
    codes: Vec<&'static str>,
    message: String,
    /// Whether the disk reads otherwise afterwards.
    changes_disk: bool,
    /// The bytes of the image that change.
    bytes: u64,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Left {
    code: &'static str,
    severity: &'static str,
    image: String,
    message: String,
    file_offset: Option<u64>,
    why: String,
    /// What puts it right.
    next: Option<String>,
}

impl Answer for RepairAnswer {
    const SCHEMA: &'static str = "avhdx.repair/1";
}

/// A repair that was undone.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct UndoAnswer {
    image: String,
    undo_file: String,
    /// What the repair had done before: `complete`, `interrupted` or `nothing`.
    repair: &'static str,
}

impl Answer for UndoAnswer {
    const SCHEMA: &'static str = "avhdx.repair-undo/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.opening.options()?;
    let image = match Point::parse(&args.image.image) {
        Point { image, selector: None } => image,
        _ => input::resolve(&args.image.image, &options, console)?.path,
    };
    if let Some(undo) = &args.undo {
        return undo_repair(&image, undo, options, console);
    }
    let mut repair = Repair::new().options(options).accept_loss(args.accept_loss);
    if let Some(path) = &args.undo_file {
        repair = repair.undo_file(path);
    }
    let (plan, undo) = match args.dry_run {
        true => (repair.plan(&image)?, None),
        false => {
            let done = repair.run(&image, &mut |_| ControlFlow::Continue(()))?;
            console.done();
            (done.plan, done.undo)
        }
    };
    let answer = RepairAnswer::of(&plan, &image, undo.as_deref(), args.dry_run);
    if console.is_json() {
        console.document(&answer)?;
    } else {
        text(&answer, &plan, console)?;
    }
    let is_wrong = |severity: Severity| severity < Severity::Info;
    let is_left = plan.left.iter().any(|left| is_wrong(left.finding.severity));
    Ok(match (is_left, plan.lost_bytes() > 0) {
        (true, _) => Reply::No,
        (false, true) => Reply::Losses,
        (false, false) => Reply::Yes,
    })
}

impl RepairAnswer {
    fn of(plan: &RepairPlan, image: &Path, undo: Option<&Path>, dry_run: bool) -> Self {
        let steps = plan.steps.iter().map(|step| Step {
            codes: step.codes.clone(),
            message: step.meaning.clone(),
            changes_disk: step.changes_visible,
            bytes: step.bytes,
        });
        let left = plan.left.iter().map(|left| Left {
            code: left.finding.code,
            severity: match left.finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                _ => "info",
            },
            image: left.finding.layer.clone(),
            message: left.finding.message.clone(),
            file_offset: left.finding.offset,
            why: left.why.clone(),
            next: left.next.and_then(|next| command(next, image)),
        });
        let losses = plan.losses.iter().map(|loss| LostRange {
            offset: loss.range.start,
            length: loss.range.end - loss.range.start,
            what: loss.kind.name(),
            file_offset: loss.at.get(),
        });
        Self {
            dry_run,
            image: shown(image),
            steps: steps.collect(),
            left: left.collect(),
            losses: losses.collect(),
            lost_bytes: plan.lost_bytes(),
            undo_file: undo.map(shown),
            undo_bytes: plan.undo_bytes,
            grows: plan.grows,
        }
    }
}

/// The command that puts a finding right.
fn command(remedy: Remedy, image: &Path) -> Option<String> {
    Some(match remedy {
        Remedy::Relink => format!("avhdx relink {}", argument(folder_of(image))),
        Remedy::Reparent => typed::with_parents("reparent --onto PARENT", image),
        Remedy::Compact => format!("avhdx compact {}", argument(image)),
        Remedy::Copy => format!("{} OUT", typed::with_parents("convert -O vhdx", image)),
        other => typed::with_parents(other.name(), image),
    })
}

fn text(answer: &RepairAnswer, plan: &RepairPlan, console: &mut Console) -> Result<(), Failure> {
    let image = &answer.image;
    for Step { codes, message, changes_disk, bytes } in &answer.steps {
        console.line(format!("{message}"))?;
        let disk =
            if *changes_disk { "the disk reads otherwise" } else { "the disk reads the same" };
        console.line(format!("  {}: {} changed, {disk}", codes.join(", "), size(*bytes)))?;
    }
    for LostRange { offset, length, what, .. } in &answer.losses {
        console.line(format!("{what}: {length} bytes of the disk from {offset} on"))?;
    }
    if !answer.left.is_empty() {
        console.line("left as it is:")?;
    }
    for Left { code, severity, image: of, message, file_offset, why, next } in &answer.left {
        let at = file_offset.map(|offset| format!(" at {offset:#x}")).unwrap_or_default();
        let of = if of == image { String::new() } else { format!("{of}: ") };
        console.line(format!("  {severity:7}  {of}{code}: {message}{at}"))?;
        console.line(format!("           because {why}"))?;
        if let Some(next) = next {
            console.line(format!("           next: {next}"))?;
        }
    }
    let would = if answer.dry_run { "would be " } else { "" };
    match (&answer.undo_file, answer.steps.is_empty()) {
        (_, true) if answer.left.is_empty() => console.line(format!("{image}: nothing to repair")),
        (_, true) => console.line(format!("{image}: nothing that can be repaired; not changed")),
        (undo, false) => {
            let lost = plan.lost_bytes();
            let lost = if lost > 0 { format!(", {} given up", size(lost)) } else { String::new() };
            console.line(format!("{image}: {would}repaired{lost}"))?;
            let bytes = size(answer.undo_bytes);
            match undo {
                None => console.line(format!("  an undo file of {bytes} would be written first")),
                Some(undo) => {
                    let (undo, image) = (argument(Path::new(undo)), argument(Path::new(image)));
                    console.line(format!("  avhdx repair --undo {undo} {image}  # restores it"))
                }
            }
        }
    }
}

fn undo_repair(
    image: &Path,
    undo: &Path,
    options: OpenOptions,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let undone = UndoRepair::new().options(options).run(image, undo)?;
    console.done();
    let (name, file) = (shown(image), shown(undo));
    let (repair, what) = match undone {
        Undone::Complete => ("complete", "as before the repair"),
        Undone::Interrupted => ("interrupted", "as before the repair, which was interrupted"),
        _ => ("nothing", "as before the repair already"),
    };
    if console.is_json() {
        console.document(&UndoAnswer { image: name, undo_file: file, repair })?;
    } else {
        console.line(format!("{name}: {what}; {file} is needed no more"))?;
    }
    Ok(Reply::Yes)
}
