//! `avhdx resize`: gives a disk another size.

use avhdx::ops::{Resize, ResizeForecast, Resized};
use avhdx::{DiffChain, Disk};
use serde::Serialize;

use crate::args::{ImageArg, OperationFlags};
use crate::failure::{Exit, Failure, Reply};
use crate::operation::{self, Subject};
use crate::output::Console;
use crate::partitions;
use crate::progress::Activity;
use crate::text::size;
use crate::values;
use crate::vocabulary::Answer;
use crate::writing::below_the_tip;

/// Give a disk another size: a base, or the tip of a chain.
///
/// New space reads as zeros. A disk does not shrink over bytes other than zeros without --shrink. A kill or a crash
/// leaves the old size or the new one. The partitions and file systems of a guest stay as they are.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The new size, or with + or - before it, by how much the disk gets larger or smaller.
    #[arg(value_name = "SIZE", value_parser = new_size, allow_hyphen_values = true)]
    size: NewSize,
    /// Agree to lose the bytes behind the new end.
    #[arg(long)]
    shrink: bool,
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
    let resize = args.resize_of(&inspected.chain)?;
    if args.dry_run {
        inspected.warn(&options, console)?;
        let activity = Activity::of(console, "looking at the end of the disk");
        let forecast = resize.forecast(&inspected.chain)?;
        drop(activity);
        operation::print_resize_forecast(&forecast, console)?;
        return Ok(Reply::Yes);
    }
    // An operation that will be refused must not replay a log.
    if inspected.is_log_pending() {
        refuse_impossible(resize.forecast(&inspected.chain))?;
    }
    drop(inspected);
    let subject = Subject::open(&args.image.image, &options, console)?;
    let resize = args.resize_of(&subject.chain)?;
    let resized = operation::run(console, |on| resize.on_progress(on).run(&subject.chain))?;
    subject.close()?;
    console.done();
    console.warnings(&resized.warnings);
    print(&args.image.name(), &resized, console)?;
    Ok(Reply::Yes)
}

impl Args {
    /// The resize of this chain. Refuses what its partitions do not allow.
    fn resize_of(&self, chain: &DiffChain) -> Result<Resize<'static>, Failure> {
        let now = chain.geometry().size;
        let to = self.size.of(now, &self.image.name())?;
        if to < now && partitions::has_gpt(chain)? {
            let message = format!(
                "{}: the disk has a GPT, whose second copy in the last sectors would be cut off",
                self.image.name()
            );
            return Err(Failure::new(Exit::Refused, "resize.gpt", message));
        }
        let resize = Resize::to(to).shrink(self.shrink).orphan_children(self.orphan_children);
        let folders = self.opening.children_in.iter();
        Ok(folders.fold(resize, |resize, folder| resize.children_in(folder)))
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

/// Refuses a resize that would fail even after the log is replayed.
fn refuse_impossible(forecast: avhdx::Result<ResizeForecast>) -> Result<(), Failure> {
    Ok(forecast?.check()?)
}

fn print(name: &str, resized: &Resized, console: &mut Console) -> Result<(), Failure> {
    let &Resized { from, to, file_len, .. } = resized;
    if console.is_json() {
        return console.document(&ResizeAnswer {
            image: name.into(),
            virtual_size_before: from,
            virtual_size: to,
            file_size: file_len,
        });
    }
    let line = match from == to {
        true => format!("{name}: the disk has {} already", size(to)),
        false => format!("{name}: the disk has {}, {} before", size(to), size(from)),
    };
    console.line(line)?;
    Ok(())
}
