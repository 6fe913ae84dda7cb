//! `--accept-loss`: a damaged image is repaired before a verb changes it.

use std::ops::ControlFlow;
use std::path::Path;

use avhdx::OpenOptions;
use avhdx::ops::{AcceptLoss, Loss, LossKind, Losses};

use crate::args::LossFlags;
use crate::failure::Failure;
use crate::output::Console;
use crate::table::TextTable;
use crate::text::size;
use crate::vocabulary::{AcceptedLoss, LostRange};

/// Repairs the image if the flags allow it. Prints the losses first.
pub(crate) fn accept(
    image: &Path,
    consent: &LossFlags,
    options: &OpenOptions,
    console: &mut Console,
) -> Result<(), Failure> {
    if !consent.accept_loss {
        return Ok(());
    }
    let mut accept = AcceptLoss::new().options(options.clone());
    if let Some(report) = &consent.loss_report {
        accept = accept.report(report);
    }
    let mut printed = Ok(());
    let done = accept.run(image, &mut |losses| {
        printed = print(image, losses, console);
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    printed?;
    done?;
    console.repaired();
    Ok(())
}

fn print(image: &Path, losses: &Losses, console: &mut Console) -> Result<(), Failure> {
    let report = losses.report.as_deref().map(|path| path.display().to_string());
    let report = report.unwrap_or_default();
    let is_any =
        losses.list.iter().any(|loss| !matches!(loss.kind, LossKind::Unmapped | LossKind::Merged));
    console.lose(accepted(losses, &report), is_any);
    let image = image.display();
    let message = format!(
        "{image}: damaged, repaired with your consent: {} of the disk are lost; {report} has the list",
        size(losses.bytes())
    );
    console.note("loss.accepted", &message);
    if console.is_json() {
        return Ok(());
    }
    let mut table = TextTable::new("Losses", &[">offset", ">bytes", "what", ">file offset"]);
    for Loss { range, kind, at, .. } in &losses.list {
        let len = range.end - range.start;
        table.row([range.start.to_string(), len.to_string(), what(*kind).into(), at.to_string()]);
    }
    if losses.list.is_empty() {
        table.remark("none that the disk shows");
    }
    console.table(table)?;
    console.flush()
}

fn what(kind: LossKind) -> &'static str {
    match kind {
        LossKind::Lost => "lost; zeros from now on",
        LossKind::Rest => "the rest of a block; zeros from now on",
        LossKind::Bits => "lost with its sector bitmap; zeros from now on",
        LossKind::Shared => "kept as it reads; may belong to another block",
        LossKind::Merged => "already merged into the parent",
        LossKind::Unmapped => "unmapped; zeros as before",
        _ => kind.name(),
    }
}

fn accepted(losses: &Losses, report: &str) -> AcceptedLoss {
    let one = |Loss { range, kind, at, .. }: &Loss| LostRange {
        offset: range.start,
        length: range.end - range.start,
        what: kind.name(),
        file_offset: at.get(),
    };
    AcceptedLoss {
        report: report.to_owned(),
        bytes: losses.bytes(),
        list: losses.list.iter().map(one).collect(),
    }
}
