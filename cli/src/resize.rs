//! `avhdx resize`: gives a disk another size.

use std::path::Path;

use avhdx::ops::{Resize, ResizeForecast, Resized};
use avhdx::{DiffChain, Disk};
use serde::Serialize;

use crate::args::{ImageArg, OperationFlags};
use crate::failure::{Exit, Failure, Reply};
use crate::gpt::{Gpt, has_gpt};
use crate::operation::{self, Subject};
use crate::output::Console;
use crate::partitions::fitting_size;
use crate::progress::Activity;
use crate::text::size;
use crate::typed;
use crate::values;
use crate::vocabulary::Answer;
use crate::writing::below_the_tip;

/// Give a disk another size: a base, or the tip of a chain.
///
/// New space reads as zeros. A disk does not shrink over bytes other than zeros without --shrink. A kill or a crash
/// leaves the old size or the new one. The partitions and file systems of a guest stay as they are, and so does the
/// GPT, unless --fix-gpt moves its second copy to the new end.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The new size, or with + or - before it, by how much the disk gets larger or smaller.
    #[arg(value_name = "SIZE", value_parser = new_size, allow_hyphen_values = true)]
    #[arg(required_unless_present = "to_fit")]
    size: Option<NewSize>,
    /// Make the disk as small as its partitions allow: to the end of the last one, with the GPT behind it. Without
    /// partitions, to the last byte that is not zero.
    #[arg(long, conflicts_with = "size")]
    to_fit: bool,
    /// Agree to lose the bytes behind the new end.
    #[arg(long)]
    shrink: bool,
    /// Move the second copy of the GPT to the new end of the disk, and the last usable sector with it.
    #[arg(long)]
    fix_gpt: bool,
    /// Resize the image even if it has a child, which loses its parent.
    #[arg(long)]
    orphan_children: bool,
    /// Only print what would be done, and whether there is enough space.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    opening: OperationFlags,
}

/// A size as typed.
#[derive(Clone, Copy, Debug)]
enum NewSize {
    To(u64),
    Larger(u64),
    Smaller(u64),
}

/// A disk that was resized. All sizes are in bytes.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ResizeAnswer {
    image: String,
    virtual_size_before: u64,
    virtual_size: u64,
    file_size: u64,
    /// Whether the second copy of the GPT was moved to the new end.
    gpt_moved: bool,
}

impl Answer for ResizeAnswer {
    const SCHEMA: &'static str = "avhdx.resize/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.opening.options()?.orphan_children(args.orphan_children);
    let inspected = Subject::inspect(&args.image.image, &options)?;
    if inspected.point()?.is_some_and(|layer| layer.id != inspected.tip().id) {
        return Err(below_the_tip(&args.image));
    }
    let plan = Plan::of(&args, &inspected.chain)?;
    if args.dry_run {
        inspected.warn(&options, console)?;
        let activity = Activity::of(console, "looking at the end of the disk");
        let forecast = plan.forecast(&args, &inspected.chain)?;
        drop(activity);
        operation::print_resize_forecast(&forecast, console)?;
        plan.tell(console);
        if plan.gpt.is_some() {
            console.note(
                "resize.gpt-moves",
                "the second copy of the GPT moves to the end of the disk",
            );
        }
        plan.check(&forecast, &args)?;
        return Ok(Reply::Yes);
    }
    // An operation that will be refused must not replay a log.
    if inspected.is_log_pending() {
        plan.check(&plan.forecast(&args, &inspected.chain)?, &args)?;
    }
    drop(inspected);
    let subject = Subject::open(&args.image.image, &options, console)?;
    let plan = Plan::of(&args, &subject.chain)?;
    let resized = plan.run(&args, &subject.chain, console)?;
    subject.close()?;
    console.done();
    plan.tell(console);
    console.warnings(&resized.warnings);
    print(&args.image.name(), &resized, plan.gpt.is_some(), console)?;
    Ok(Reply::Yes)
}

impl Args {
    fn path(&self) -> &Path {
        Path::new(&self.image.image)
    }

    fn resize(&self, to: u64) -> Resize<'static> {
        let resize = Resize::to(to).shrink(self.shrink).orphan_children(self.orphan_children);
        let folders = self.opening.children_in.iter();
        folders.fold(resize, |resize, folder| resize.children_in(folder))
    }
}

/// A resize that the partitions allow.
struct Plan {
    from: u64,
    to: u64,
    /// The table whose second copy follows the end.
    gpt: Option<Gpt>,
    /// Whether there is a table that stays as it is.
    leaves_gpt: bool,
    /// Whether there is no table to move.
    lacks_gpt: bool,
}

impl Plan {
    fn of(args: &Args, chain: &DiffChain) -> Result<Self, Failure> {
        let (from, name) = (chain.geometry().size, args.image.name());
        let to = match args.size {
            Some(size) => size.of(from, &name)?,
            None => fitting_size(chain, &name, args.fix_gpt)?,
        };
        let has_gpt = (to != from || args.fix_gpt) && has_gpt(chain)?;
        // A size that no disk has is refused by its own name.
        let sector = u64::from(chain.geometry().logical_sector);
        let is_size = to.is_multiple_of(sector);
        let gpt = match has_gpt && args.fix_gpt && is_size {
            true => Some(Gpt::resume(chain, &name, Some(to)).map_err(|failure| {
                let without = format!("{} {to}", typed::with_parents("resize", args.path()));
                let without = format!("{without}  # leaves the GPT as it is");
                if to > from { failure.or_else(without) } else { failure }
            })?),
            false => None,
        };
        if let Some(gpt) = &gpt {
            gpt.check_size(to).map_err(|failure| {
                let fitting = typed::with_parents("resize", args.path());
                let fitting = format!("{fitting} --to-fit --fix-gpt --dry-run");
                failure.then(format!("{fitting}  # says how small the disk can get"))
            })?;
            if !args.shrink {
                gpt.check_place(chain, to)?;
            }
        }
        // Also for a disk of that size whose copy did not follow, as after a failure.
        let gpt = gpt.filter(|gpt| to != from || !gpt.ends_with(to));
        if has_gpt && gpt.is_none() && to < from && is_size {
            let message = format!(
                "{name}: the disk has a GPT, whose second copy in the last sectors would be cut off"
            );
            return Err(Failure::new(Exit::Refused, "resize.gpt", message));
        }
        let leaves_gpt = has_gpt && !args.fix_gpt;
        Ok(Self { from, to, gpt, leaves_gpt, lacks_gpt: args.fix_gpt && !has_gpt })
    }

    /// Tells what the guest will find.
    fn tell(&self, console: &mut Console) {
        if self.leaves_gpt {
            let message = "the second copy of the GPT stays where the disk ended: the guest can use the new space once \
                           it has moved that copy, as --fix-gpt does";
            console.note("resize.gpt-stays", message);
        }
        if self.lacks_gpt {
            console.note("resize.no-gpt", "the disk has no GPT: --fix-gpt has nothing to move");
        }
        if self.gpt.as_ref().is_some_and(Gpt::is_torn) {
            let message = "the second copy of the GPT was in parts, as an interrupted --fix-gpt leaves it: it is made \
                           anew from the first one";
            console.note("resize.gpt-torn", message);
        }
    }

    /// The forecast, with what the GPT takes.
    fn forecast(&self, args: &Args, chain: &DiffChain) -> Result<ResizeForecast, Failure> {
        let mut forecast = args.resize(self.to).forecast(chain)?;
        if let Some(gpt) = &self.gpt {
            let place = gpt.place(self.to);
            let block = u64::from(chain.tip().block_size());
            // At most: the blocks may be there already.
            let blocks = place.end.div_ceil(block) - place.start / block;
            forecast.needs.written += place.end - place.start;
            forecast.needs.peak += blocks * block;
            forecast.file_len_after += blocks * block;
        }
        Ok(forecast)
    }

    /// Refuses to lose bytes without consent. The former second copy of the GPT is none of them.
    fn check(&self, forecast: &ResizeForecast, args: &Args) -> Result<(), Failure> {
        match (&self.gpt, forecast.first_cut) {
            (Some(gpt), Some(at)) if at >= gpt.backup_start() && !args.shrink => {
                Ok(forecast.needs.check()?)
            }
            _ => Ok(forecast.check()?),
        }
    }

    /// A GPT follows before the disk shrinks, and after it has grown.
    fn run(&self, args: &Args, chain: &DiffChain, console: &Console) -> Result<Resized, Failure> {
        let resize = args.resize(self.to);
        if let Some(gpt) = &self.gpt {
            self.check(&self.forecast(args, chain)?, args)?;
            if self.to < self.from {
                gpt.move_backup(chain, self.to)?;
            }
        }
        let resized = operation::run(console, |on| resize.on_progress(on).run(chain))?;
        if let Some(gpt) = self.gpt.as_ref().filter(|_| self.to >= self.from) {
            gpt.move_backup(chain, self.to).map_err(|failure| {
                let again = typed::with_parents("resize", args.path());
                let again = format!("{again} {} --fix-gpt  # moves the copy", self.to);
                let message =
                    format!("the disk has {} bytes now, and the second copy of its GPT is still to be moved", self.to);
                failure.also(&message).then(again)
            })?;
        }
        Ok(resized)
    }
}

impl NewSize {
    /// The new size of a disk of `now` bytes.
    fn of(self, now: u64, name: &str) -> Result<u64, Failure> {
        let (to, change) = match self {
            Self::To(size) => (Some(size), size),
            Self::Larger(by) => (now.checked_add(by), by),
            Self::Smaller(by) => (now.checked_sub(by).filter(|to| *to > 0), by),
        };
        to.ok_or_else(|| {
            let message = format!(
                "{name}: a disk of {} cannot change by {} bytes, and keep a size",
                size(now),
                change
            );
            Failure::usage("resize.size", message)
        })
    }
}

fn new_size(text: &str) -> Result<NewSize, String> {
    let by = |text| match values::bytes(text)? {
        0 => Err("a change by no bytes changes nothing".to_owned()),
        bytes => Ok(bytes),
    };
    match text.as_bytes() {
        [b'+', ..] => by(&text[1..]).map(NewSize::Larger),
        [b'-', ..] => by(&text[1..]).map(NewSize::Smaller),
        _ => values::size(text).map(NewSize::To),
    }
}

fn print(
    name: &str,
    resized: &Resized,
    gpt_moved: bool,
    console: &mut Console,
) -> Result<(), Failure> {
    let &Resized { from, to, file_len, .. } = resized;
    if console.is_json() {
        return console.document(&ResizeAnswer {
            image: name.into(),
            virtual_size_before: from,
            virtual_size: to,
            file_size: file_len,
            gpt_moved,
        });
    }
    let line = match from == to {
        true => format!("{name}: the disk has {} already", size(to)),
        false => format!("{name}: the disk has {}, {} before", size(to), size(from)),
    };
    console.line(line)?;
    if gpt_moved {
        console.line("  the second copy of the GPT lies at the end of the disk")?;
    }
    Ok(())
}
