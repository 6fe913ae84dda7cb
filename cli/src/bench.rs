//! `avhdx bench`: measures a chain beside bare reads of its files.

mod places;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::time::{Duration, Instant};

use avhdx::{Budget, Counters, Disk, Lock};
use clap::value_parser;
use serde::Serialize;
use serde_json::Value;

use crate::args::{ImageArg, ReadFlags};
use crate::failure::{Failure, Reply};
use crate::input;
use crate::output::Console;
use crate::progress::{Activity, ProgressMeter};
use crate::table::TextTable;
use crate::values;
use crate::vocabulary::Answer;
use crate::writing::WritableImage;
use places::{Sample, data, pages, pieces};

/// Measure how fast a chain is read, beside bare reads of the same bytes from its files.
///
/// Changes nothing without --write. All places are read once before, so that the program and the host's cache are
/// measured, not the storage. Then the chain and bare reads of the same places take turns. The ratio is the chain's rate
/// divided by that of bare reads, with the lower bound of its 95 % confidence interval; A/A compares bare reads with
/// themselves and shows how precise a ratio is on this machine.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The time to measure, in seconds, without warming up.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Do N operations of each kind instead.
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = value_parser!(u64).range(1..))]
    reads: Option<u64>,
    /// The memory budget of the chain.
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, allow_negative_numbers = true, default_value = "64M")]
    budget: u64,
    /// The seed that selects the places.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Also measure writes: write data of the image itself back to its place. The content of the disk and the size of
    /// the file stay the same, but the image gets a new identity, as with every write.
    #[arg(long, conflicts_with_all = ["log", "ignore_id_mismatch"])]
    write: bool,
    #[command(flatten)]
    opening: ReadFlags,
}

impl Args {
    fn budget(&self) -> Budget {
        Budget::new(usize::try_from(self.budget).unwrap_or(usize::MAX))
    }

    /// The time and the number of operations of each kind of work.
    fn limit(&self) -> (Duration, u64) {
        let time = Duration::from_secs(self.seconds) / if self.write { 4 } else { 2 };
        self.reads.map_or((time, u64::MAX), |operations| (Duration::MAX, operations))
    }
}

/// The speed of a chain.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct BenchAnswer {
    image: String,
    layer_count: usize,
    virtual_size: u64,
    /// How much of the disk was searched for data, from its start.
    searched_bytes: u64,
    /// The bytes with data in there.
    data_bytes: u64,
    /// The memory budget of the chain, in bytes.
    budget: u64,
    /// What selects the places.
    seed: u64,
    reads: Reads,
    /// Null without --write.
    writes: Option<Writes>,
}

impl Answer for BenchAnswer {
    const SCHEMA: &'static str = "avhdx.bench/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Reads {
    /// Null without data.
    random_4k: Option<Row>,
    /// Null without data.
    sequential_1m: Option<Row>,
    counters: CounterFacts,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Writes {
    /// Null without data in the tip.
    write_4k: Option<Row>,
    /// The same, with a flush after each.
    write_4k_flushed: Option<Row>,
    counters: CounterFacts,
}

/// Operations of one kind.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Row {
    operations: u64,
    /// The bytes of each operation.
    bytes: usize,
    #[serde(flatten)]
    chain: Speed,
    /// Left out for writes.
    #[serde(flatten)]
    beside: Option<Beside>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Speed {
    /// The median time of an operation, in microseconds.
    median_us: f64,
    /// In megabytes (10⁶ bytes) per second.
    mb_per_s: f64,
}

/// The chain beside bare reads, and those beside themselves. A lower bound is null if there are too few rounds.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Beside {
    bare_median_us: f64,
    bare_mb_per_s: f64,
    /// The chain's rate divided by that of bare reads.
    ratio: f64,
    ratio_low95: Option<f64>,
    aa_ratio: f64,
    aa_ratio_low95: Option<f64>,
}

/// What the library counted.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct CounterFacts {
    index_hits: u64,
    index_misses: u64,
    table_loads: u64,
    evictions: u64,
    flushes: u64,
    log_bytes: u64,
}

impl From<&Counters> for CounterFacts {
    fn from(counters: &Counters) -> Self {
        Self {
            index_hits: counters.index_hits,
            index_misses: counters.index_misses,
            table_loads: counters.table_loads,
            evictions: counters.evictions,
            flushes: counters.flushes,
            log_bytes: counters.log_bytes,
        }
    }
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    // First, so that a refused write is reported at once.
    let (argument, writes) = match args.write {
        true => measure_writes(&args, console)?,
        false => (args.image.image.clone(), None),
    };
    let options = args.opening.options().lock(Lock::Shared).budget(args.budget());
    let chain = input::chain_with(&argument, &args.opening, &options, console)?;
    let activity = Activity::of(console, "warming up");
    let (data, end) = data(&chain, false)?;
    let (size, limit) = (chain.geometry().size, args.limit());
    let pages = places::warm(&chain, pages(&data, size, args.seed), limit.0)?;
    let pieces = places::warm(&chain, pieces(&data, size), limit.0)?;
    drop(activity);
    let before = chain.counters();
    let row =
        |places: &[Sample], at_once, what| {
            let mut meter = ProgressMeter::of_steps(console, what);
            let longest = places.iter().map(Sample::len).max().unwrap_or_default();
            let mut buf = vec![0; longest];
            row((places.len(), longest), limit, at_once, 3, &mut meter, |contender, i| {
                match contender {
                    0 => Ok(chain.read_at(&mut buf[..places[i].len()], places[i].range.start)?),
                    _ => places[i].read_bare(&mut buf),
                }
            })
        };
    let report = BenchAnswer {
        image: args.image.name(),
        layer_count: chain.layers().len(),
        virtual_size: size,
        searched_bytes: end,
        data_bytes: data.iter().map(|range| range.end - range.start).sum(),
        budget: args.budget,
        seed: args.seed,
        reads: Reads {
            random_4k: row(&pages, 64, "reading at random")?,
            sequential_1m: row(&pieces, 4, "reading in sequence")?,
            counters: CounterFacts::from(&chain.counters().since(&before)),
        },
        writes,
    };
    match console.is_json() {
        true => console.document(&report)?,
        false => {
            let report = serde_json::to_value(&report).unwrap_or_default();
            print("Benchmark", &report, console)?;
        }
    }
    Ok(Reply::Yes)
}

/// Writes data back to its place. Also returns the path of the image: its identity, which may have selected it, changes.
fn measure_writes(
    args: &Args,
    console: &mut Console,
) -> Result<(OsString, Option<Writes>), Failure> {
    let flags = args.opening.writing();
    let options = flags.options()?.budget(args.budget());
    let image = WritableImage::open_with(&args.image, &flags, &options, console, |_| Ok(()))?;
    let path = image.chain().tip().path().map_or(args.image.image.clone(), |path| path.into());
    match write_rows(args, &image, console) {
        Ok(rows) => image.close().map(|()| (path, Some(rows))),
        Err(failure) => Err(image.close_after(failure)),
    }
}

fn write_rows(
    args: &Args,
    image: &WritableImage,
    console: &mut Console,
) -> Result<Writes, Failure> {
    let (chain, mut pages) = (image.chain(), Vec::new());
    for page in places::pages(&data(chain, true)?.0, image.size(), args.seed) {
        let mut data = vec![0; (page.end - page.start) as usize];
        chain.read_at(&mut data, page.start)?;
        pages.push((page.start, data));
    }
    match pages.is_empty() {
        true => console.note("bench.nothing-to-write", "the image has no data of its own to write"),
        false => console
            .note("bench.write", "writes data back to its place; the image gets a new identity"),
    }
    let before = chain.counters();
    let longest = pages.iter().map(|(_, data)| data.len()).max().unwrap_or_default();
    let row = |at_once, flush| {
        let what = if flush { "writing with flushes" } else { "writing" };
        let mut meter = ProgressMeter::of_steps(console, what);
        row((pages.len(), longest), args.limit(), at_once, 1, &mut meter, |_, i| {
            // An interruption waits for the end of a change.
            image.change(|disk| {
                disk.write_at(&pages[i].1, pages[i].0)?;
                if flush { disk.flush() } else { Ok(()) }
            })
        })
    };
    Ok(Writes {
        write_4k: row(64, false)?,
        write_4k_flushed: row(1, true)?,
        counters: CounterFacts::from(&chain.counters().since(&before)),
    })
}

/// Lets the contenders (the chain; or the chain, bare reads and bare reads again) do the same operations in turn, `at_once`
/// per round. `work` takes a contender and the index of a place. `None` without places.
fn row(
    (places, bytes): (usize, usize),
    (time, operations): (Duration, u64),
    at_once: u64,
    contenders: usize,
    meter: &mut ProgressMeter,
    mut work: impl FnMut(usize, usize) -> Result<(), Failure>,
) -> Result<Option<Row>, Failure> {
    if places == 0 {
        return Ok(None);
    }
    let (start, mut done, mut seconds) = (Instant::now(), 0, vec![Vec::new(); contenders]);
    while done < operations && (done == 0 || start.elapsed() < time) {
        let (round, now) = (seconds[0].len(), at_once.min(operations - done));
        for turn in 0..contenders {
            // Rotates and reverses the order: no contender always follows the same other.
            let is_forward = (round / contenders).is_multiple_of(2);
            let turn = if is_forward { turn } else { contenders - 1 - turn };
            let contender = (turn + round) % contenders;
            let start = Instant::now();
            for number in done..done + now {
                work(contender, (number % places as u64) as usize)?;
            }
            seconds[contender].push(start.elapsed().as_secs_f64() / now as f64);
        }
        done += now;
        // Between two rounds, which are what is measured.
        match operations {
            u64::MAX => {
                meter.show(start.elapsed().min(time).as_millis() as u64, time.as_millis() as u64)
            }
            operations => meter.show(done, operations),
        }
    }
    Ok(Some(statistics(done, bytes, &seconds)))
}

/// A row, from the seconds per operation by contender and round.
fn statistics(operations: u64, bytes: usize, seconds: &[Vec<f64>]) -> Row {
    let rounded = |value: f64| (value * 1e3).round() / 1e3;
    let speed = |times: &[f64]| {
        let (median, _) = median(times.to_vec());
        Speed { median_us: rounded(median * 1e6), mb_per_s: rounded(bytes as f64 / median / 1e6) }
    };
    let beside = match seconds {
        [chain, bare, again] => {
            // By round: a slow phase of the machine slows all contenders.
            let ratio = |times: &[f64]| {
                let ratios = bare.iter().zip(times).map(|(bare, time)| bare / time).collect();
                let (median, low) = median(ratios);
                (rounded(median), low.map(rounded))
            };
            let Speed { median_us, mb_per_s } = speed(bare);
            let ((ratio_, ratio_low95), (aa_ratio, aa_ratio_low95)) = (ratio(chain), ratio(again));
            Some(Beside {
                bare_median_us: median_us,
                bare_mb_per_s: mb_per_s,
                ratio: ratio_,
                ratio_low95,
                aa_ratio,
                aa_ratio_low95,
            })
        }
        _ => None,
    };
    Row { operations, bytes, chain: speed(&seconds[0]), beside }
}

/// The median, and the lower bound of its 95 % confidence interval: an order statistic, by the sign test with its normal
/// approximation. Too few values have none.
fn median(mut values: Vec<f64>) -> (f64, Option<f64>) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let rank = ((n as f64 - 1.96 * (n as f64).sqrt()) / 2.0).max(0.0) as usize;
    let low = rank.checked_sub(1).map(|at| values[at]);
    ((values[(n - 1) / 2] + values[n / 2]) / 2.0, low)
}

/// Prints an object as a table, and the objects in it after that.
fn print(title: &str, object: &Value, console: &mut Console) -> Result<(), Failure> {
    let (mut table, mut inner) = (TextTable::fields(title), Vec::new());
    for (name, value) in object.as_object().into_iter().flatten() {
        let name = name.replace('_', " ");
        match value {
            Value::Object(_) => inner.push((format!("{title}, {name}"), value)),
            Value::String(text) => table.field(&name, text),
            Value::Null => table.field(&name, "-"),
            number => table.field(&name, number),
        }
    }
    if inner.is_empty() || object.as_object().is_some_and(|all| all.len() > inner.len()) {
        console.table(table)?;
    }
    inner.iter().try_for_each(|(title, object)| print(title, object, console))
}
