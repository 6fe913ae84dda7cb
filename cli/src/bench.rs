//! `avhdx bench`: how fast is this chain, on this machine?

mod places;
mod rounds;

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use avhdx::{Budget, Counters, DiffChain, Disk, Lock};
use serde_json::{Value, json};

use crate::args::{self, Format, Opening};
use crate::exit::{Failure, Outcome};
use crate::input;
use crate::output::{Console, Table, size, units};
use crate::writing::Writing;
use places::{Contents, Place, Rng};
use rounds::{Contender, Limit, Ratio, Row, rounded};

const PAGE: u64 = 4 << 10;
const MIB: u64 = 1 << 20;
/// Places that are read over and over.
const PAGES: u64 = 1 << 14;
const PIECES: usize = 1 << 10;
/// Operations in a row by one contender.
const PAGES_AT_ONCE: u64 = 64;
const PIECES_AT_ONCE: u64 = 4;
const BY_EACH_THREAD: u64 = 512;
const THREADS: usize = 2;
/// Kinds of work that share the time.
const ROWS: u32 = 4;

/// Measure how fast a chain is read: beside bare reads of the same bytes from its files.
///
/// Nothing is changed unless --write is given. First all places that are to be read are read once, so that what is
/// measured is the program and the host's cache, not the disk under them, as far as the cache goes. Then the chain
/// and bare reads of the same places in its files take turns. The ratio is the chain's rate by that of bare reads,
/// with the lower bound of its 95 % confidence interval; A/A is bare reads by bare reads, which says how much a
/// ratio is worth on this machine.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// How long to measure, warming up not counted.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Do N operations of each kind instead, however long they take.
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    reads: Option<u64>,
    /// Memory for block tables and for what is remembered of the chain.
    #[arg(long, value_name = "SIZE", value_parser = args::bytes, default_value = "64M")]
    budget: u64,
    /// What decides which places are read.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Measure writes too: bytes are read from where the image itself has data and written back to the same place.
    /// What the disk holds stays the same, and the file does not grow, but its identity changes as with every write.
    #[arg(long, conflicts_with_all = ["log", "ignore_id_mismatch"])]
    write: bool,
    /// With --write: write although a child of the image is found, which is cut off by that.
    #[arg(long, requires = "write")]
    orphan_children: bool,
    /// With --write: look for children in DIR too, beside the folder of the image itself. Can be repeated.
    #[arg(long, value_name = "DIR", requires = "write")]
    children_in: Vec<PathBuf>,
    /// What the input is: a raw disk has no layers to be measured.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    opening: Opening,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    if args.format == Format::Raw {
        let message =
            "a raw disk has no layers and no tables: there is nothing to measure beside bare reads";
        return Err(Failure::usage("bench.raw", message));
    }
    // First, so that what refuses a write does so before anybody waited.
    let (argument, writes) = match args.write {
        true => {
            let (path, writes) = measure_writes(&args, console)?;
            (path, Some(writes))
        }
        false => (args.image.image.clone(), None),
    };
    let options = args.opening.options().lock(Lock::Shared).budget(args.budget());
    let chain = input::chain_with(&argument, &args.opening, &options, console)?;
    let report = Report {
        contents: Contents::of(&chain)?,
        layers: chain.layers().len(),
        size: chain.geometry().size,
        reads: Reads::default(),
        writes,
    };
    let report = Report { reads: Reads::measure(&args, &chain, &report.contents)?, ..report };
    if console.is_json() {
        console.document(&report.json(&args))?;
    } else {
        report.print(&args, console)?;
    }
    Ok(Outcome::Yes)
}

impl Args {
    fn budget(&self) -> Budget {
        Budget::new(usize::try_from(self.budget).unwrap_or(usize::MAX))
    }

    fn limit(&self, share: u32) -> Limit {
        match self.reads {
            Some(reads) => Limit::Operations(reads),
            None => Limit::Time(Duration::from_secs(self.seconds) / share),
        }
    }

    /// How many places to read, and how long to warm up for them.
    fn pages(&self) -> u64 {
        self.reads.map_or(PAGES, |reads| reads.min(PAGES))
    }

    fn name(&self) -> String {
        self.image.image.to_string_lossy().into_owned()
    }
}

/// What reading came to: nothing where there is nothing to be read.
#[derive(Debug, Default)]
struct Reads {
    random: Option<Row>,
    sequential: Option<Row>,
    unwritten: Option<Row>,
    threads: Option<Row>,
    counters: Counters,
}

/// Who takes part where reads are measured.
const CHAIN: usize = 0;
const BARE: usize = 1;
const AGAIN: usize = 2;

impl Reads {
    fn measure(args: &Args, chain: &DiffChain, contents: &Contents) -> Result<Self, Failure> {
        let (size, mut rng) = (chain.geometry().size, Rng::new(args.seed));
        let pages = contents.data.pages(args.pages(), PAGE, size, false, &mut rng);
        let pieces = contents.data.pieces(MIB, size).take(PIECES);
        let unwritten = contents.unwritten.pages(args.pages(), PAGE, size, true, &mut rng);
        let [pages, pieces, unwritten] =
            [Place::of(chain, pages)?, Place::of(chain, pieces)?, Place::of(chain, unwritten)?];
        let [pages, pieces, unwritten] = [
            warmed_up(args, chain, pages)?,
            warmed_up(args, chain, pieces)?,
            warmed_up(args, chain, unwritten)?,
        ];
        let (before, limit) = (chain.counters(), args.limit(ROWS));
        let mut new = Self {
            random: beside_bare(chain, &pages, limit, PAGES_AT_ONCE)?,
            sequential: beside_bare(chain, &pieces, limit, PIECES_AT_ONCE)?,
            ..Self::default()
        };
        if !unwritten.is_empty() {
            let buf = buffer(&unwritten);
            let contender = by_chain(chain, &unwritten, &buf);
            let bytes = longest(&unwritten);
            new.unwritten = Some(Row::measure(limit, PAGES_AT_ONCE, bytes, vec![contender])?);
        }
        if !pages.is_empty() {
            let by_chain = threaded(&pages, |place, buf| place.read(chain, buf));
            let bare = threaded(&pages, |place, buf| place.read_bare(buf));
            let again = threaded(&pages, |place, buf| place.read_bare(buf));
            let at_once = BY_EACH_THREAD * THREADS as u64;
            let contenders = vec![by_chain, bare, again];
            new.threads = Some(Row::measure(limit, at_once, longest(&pages), contenders)?);
        }
        new.counters = chain.counters().since(&before);
        Ok(new)
    }
}

/// Reads all of these places, by the chain and bare, as far as that gets in a fair time, and leaves out the rest.
fn warmed_up(
    args: &Args,
    chain: &DiffChain,
    mut places: Vec<Place>,
) -> Result<Vec<Place>, Failure> {
    let start = Instant::now();
    let mut buf = vec![0; longest(&places) as usize];
    let mut warm = 0;
    for place in &places {
        place.read(chain, &mut buf)?;
        place.read_bare(&mut buf)?;
        warm += 1;
        if matches!(args.limit(ROWS), Limit::Time(time) if start.elapsed() >= time) {
            break;
        }
    }
    places.truncate(warm);
    Ok(places)
}

fn longest(places: &[Place]) -> u64 {
    places.iter().map(|place| place.range.end - place.range.start).max().unwrap_or_default()
}

/// The chain, bare reads of the same, and those once more.
fn beside_bare(
    chain: &DiffChain,
    places: &[Place],
    limit: Limit,
    at_once: u64,
) -> Result<Option<Row>, Failure> {
    if places.is_empty() {
        return Ok(None);
    }
    let buf = buffer(places);
    let bare = || one_by_one(places, &buf, |place, buf| place.read_bare(buf));
    let contenders = vec![by_chain(chain, places, &buf), bare(), bare()];
    Row::measure(limit, at_once, longest(places), contenders).map(Some)
}

fn by_chain<'a>(
    chain: &'a DiffChain,
    places: &'a [Place],
    buf: &'a RefCell<Vec<u8>>,
) -> Contender<'a> {
    one_by_one(places, buf, |place, buf| place.read(chain, buf))
}

/// For all contenders: where in memory bytes are read to makes a difference.
fn buffer(places: &[Place]) -> RefCell<Vec<u8>> {
    RefCell::new(vec![0; longest(places) as usize])
}

fn one_by_one<'a>(
    places: &'a [Place],
    buf: &'a RefCell<Vec<u8>>,
    mut read: impl FnMut(&Place, &mut [u8]) -> Result<(), Failure> + 'a,
) -> Contender<'a> {
    Box::new(move |numbers| {
        let mut buf = buf.borrow_mut();
        let start = Instant::now();
        for number in numbers {
            read(&places[(number % places.len() as u64) as usize], &mut buf)?;
        }
        Ok(start.elapsed())
    })
}

/// Several threads that read different places at once, from when all are ready until the last is done.
fn threaded<'a>(
    places: &'a [Place],
    read: impl Fn(&Place, &mut [u8]) -> Result<(), Failure> + Sync + 'a,
) -> Contender<'a> {
    let len = longest(places) as usize;
    Box::new(move |numbers| {
        let ready = Barrier::new(THREADS + 1);
        let work = |first: u64| {
            let mut buf = vec![0; len];
            ready.wait();
            let mut numbers = (numbers.start + first..numbers.end).step_by(THREADS);
            let place = |number| &places[(number % places.len() as u64) as usize];
            numbers.try_for_each(|number| read(place(number), &mut buf))
        };
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> =
                (0..THREADS as u64).map(|first| scope.spawn(move || work(first))).collect();
            ready.wait();
            let start = Instant::now();
            for thread in threads {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(start.elapsed())
        })
    })
}

/// What writing came to: nothing where the image itself has no data.
#[derive(Debug, Default)]
struct Writes {
    write: Option<Row>,
    flushed: Option<Row>,
    counters: Counters,
}

/// Writes back what is there. Says where the image lies, too: it has another identity now, which it can no longer be
/// named by.
fn measure_writes(args: &Args, console: &mut Console) -> Result<(OsString, Writes), Failure> {
    let writing = args.opening.writing(args.orphan_children, &args.children_in);
    let options = writing.options().budget(args.budget());
    let image = Writing::open_with(&args.image.image, &writing, &options, console, |_| Ok(()))?;
    let path = image.chain().tip().path().map(|path| path.as_os_str().to_owned());
    let path = path.unwrap_or_else(|| args.image.image.clone());
    match writes_of(args, &image, console) {
        Ok(writes) => image.end().map(|()| (path, writes)),
        Err(failure) => Err(image.end_after(failure)),
    }
}

fn writes_of(args: &Args, image: &Writing, console: &mut Console) -> Result<Writes, Failure> {
    let chain = image.chain();
    let contents = Contents::of(chain)?;
    let mut rng = Rng::new(args.seed);
    let pages = contents.in_tip.pages(args.pages(), PAGE, image.size(), true, &mut rng);
    if pages.is_empty() {
        console
            .note("bench.nothing-to-write", "the image has no data of its own: nothing is written");
        return Ok(Writes::default());
    }
    let message = "bytes are read from the image and written back to the same places: what the disk holds stays \
                   the same, the identity of the image changes";
    console.note("bench.write", message);
    let start = chain.counters();
    let limit = args.limit(ROWS);
    let row = |flush: bool, at_once: u64| {
        let mut buf = vec![0; PAGE as usize];
        let write: Contender<'_> = Box::new(|numbers| {
            let mut time = Duration::ZERO;
            for number in numbers {
                let page = &pages[(number % pages.len() as u64) as usize];
                let buf = &mut buf[..(page.end - page.start) as usize];
                chain.read_at(buf, page.start)?;
                // An interruption comes between two writes, and closes the image.
                image.change(|disk| {
                    let start = Instant::now();
                    disk.write_at(buf, page.start)?;
                    if flush {
                        disk.flush()?;
                    }
                    time += start.elapsed();
                    Ok(())
                })?;
            }
            Ok(time)
        });
        Row::measure(limit, at_once, PAGE, vec![write])
    };
    let (write, flushed) = (row(false, PAGES_AT_ONCE)?, row(true, 1)?);
    let counters = chain.counters().since(&start);
    Ok(Writes { write: Some(write), flushed: Some(flushed), counters })
}

/// All that is told.
#[derive(Debug)]
struct Report {
    contents: Contents,
    layers: usize,
    size: u64,
    reads: Reads,
    writes: Option<Writes>,
}

impl Report {
    fn json(&self, args: &Args) -> Value {
        let alone = |row: &Option<Row>| row.as_ref().map(|row| row.json(CHAIN));
        let Reads { random, sequential, unwritten, threads, counters } = &self.reads;
        let writes = self.writes.as_ref().map(|writes| {
            json!({
                "write_4k": alone(&writes.write),
                "write_4k_flushed": alone(&writes.flushed),
                "counters": counts(&writes.counters),
            })
        });
        json!({
            "schema": "avhdx.bench/1",
            "image": args.name(),
            "layers": self.layers,
            "virtual_size": self.size,
            "looked_at": self.contents.end,
            "data": self.contents.data.total(),
            "budget": args.budget,
            "seed": args.seed,
            "reads": {
                "random_4k": random.as_ref().map(with_bare),
                "sequential_1m": sequential.as_ref().map(with_bare),
                "unwritten_4k": alone(unwritten),
                "random_4k_two_threads": threads.as_ref().map(with_bare),
                "counters": counts(counters),
            },
            "writes": writes,
        })
    }

    fn print(&self, args: &Args, console: &mut Console) -> Result<(), Failure> {
        let mut facts = Table::fields(&args.name());
        facts.field("layers", self.layers);
        facts.field("disk", size(self.size));
        facts.field("data", size(self.contents.data.total()));
        facts.field("budget", units(args.budget));
        facts.field("seed", args.seed);
        if self.contents.end < self.size {
            let end = units(self.contents.end);
            facts.remark(format!(
                "Only the first {end} of the disk are looked at: it is in very many pieces."
            ));
        }
        console.table(facts)?;
        let Reads { random, sequential, unwritten, threads, counters } = &self.reads;
        let columns = [
            "reads",
            ">times",
            ">µs",
            ">MB/s",
            ">bare µs",
            ">MB/s",
            ">ratio",
            ">at least",
            ">A/A",
            ">at least",
        ];
        let mut table =
            Table::new("Reads by the chain, and bare reads of the same bytes", &columns);
        let rows = [
            ("random 4 KiB", random),
            ("sequential 1 MiB", sequential),
            ("random 4 KiB, 2 threads", threads),
        ];
        for (name, row) in rows {
            let Some(row) = row else { continue };
            let ratios = [row.ratio(CHAIN, BARE), row.ratio(AGAIN, BARE)];
            let ratios = ratios
                .iter()
                .flat_map(|ratio| [two(ratio.median), ratio.low.map_or("-".into(), two)]);
            let bare = [three(row.micros(BARE)), whole(row.rate(BARE))];
            table.row(by_chain_cells(name, row).into_iter().chain(bare).chain(ratios));
        }
        if let Some(row) = unwritten {
            let nothing = std::iter::repeat_n("-".to_owned(), 6);
            table.row(by_chain_cells("never written, 4 KiB", row).into_iter().chain(nothing));
        }
        if random.is_none() {
            table.remark("The chain holds no data that could be read.");
        }
        console.table(table)?;
        if let Some(writes) = &self.writes {
            let mut table =
                Table::new("Writes by the chain", &["writes", ">times", ">µs", ">MB/s"]);
            for (name, row) in
                [("random 4 KiB", &writes.write), ("the same with a flush", &writes.flushed)]
            {
                row.iter().for_each(|row| table.row(by_chain_cells(name, row)));
            }
            if writes.write.is_none() {
                table.remark("The image has no data of its own: nothing was written.");
            }
            console.table(table)?;
            print_counts("Counted while that was written", &writes.counters, console)?;
        }
        print_counts("Counted while that was read", counters, console)
    }
}

fn by_chain_cells(name: &str, row: &Row) -> [String; 4] {
    let times = row.operations().to_string();
    [name.to_owned(), times, three(row.micros(CHAIN)), whole(row.rate(CHAIN))]
}

fn with_bare(row: &Row) -> Value {
    let mut object = row.json(CHAIN);
    object["bare_median_us"] = rounded(row.micros(BARE)).into();
    object["bare_mb_per_s"] = rounded(row.rate(BARE)).into();
    let ratios = [("ratio", CHAIN), ("aa_ratio", AGAIN)];
    for (name, who) in ratios {
        let Ratio { median, low } = row.ratio(who, BARE);
        object[name] = rounded(median).into();
        object[format!("{name}_low95")] = low.map(rounded).into();
    }
    object
}

fn counts(counters: &Counters) -> Value {
    json!({
        "index_hits": counters.index_hits,
        "index_misses": counters.index_misses,
        "table_loads": counters.table_loads,
        "evictions": counters.evictions,
        "flushes": counters.flushes,
        "log_bytes": counters.log_bytes,
    })
}

fn print_counts(title: &str, counters: &Counters, console: &mut Console) -> Result<(), Failure> {
    let mut table = Table::fields(title);
    table.field("index hits", counters.index_hits);
    table.field("index misses", counters.index_misses);
    table.field("table loads", counters.table_loads);
    table.field("evictions", counters.evictions);
    table.field("flushes", counters.flushes);
    table.field("log bytes", counters.log_bytes);
    console.table(table)
}

fn two(value: f64) -> String {
    format!("{value:.2}")
}

fn three(value: f64) -> String {
    format!("{value:.3}")
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}
