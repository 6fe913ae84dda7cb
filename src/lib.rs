//! Hyper-V virtual disks and their checkpoint chains: VHDX images, `.vhdx` and `.avhdx`.
//!
//! A checkpoint is a differencing image: a child that holds what changed, stacked on read-only
//! parents. This crate opens such a chain anywhere, reads the disk as the machine saw it at any of its
//! points in time, and writes to its tip.
//!
//! # Read a disk
//!
//! ```no_run
//! use avhdx::{Disk, DiffChain};
//!
//! fn main() -> Result<(), avhdx::Error> {
//!     let chain = DiffChain::open("web_1A2B.avhdx")?; // finds its parents by itself
//!     let mut boot_sector = [0; 512];
//!     chain.read_at(&mut boot_sector, 0)?;
//!
//!     // The same disk one checkpoint ago.
//!     let parent = chain.layers()[1].id;
//!     chain.view(parent)?.read_at(&mut boot_sector, 0)?;
//!     Ok(())
//! }
//! ```
//!
//! # Ask where the bytes are
//!
//! ```no_run
//! use avhdx::{DiskExt, DiffChain, OpenOptions, PathSource, Source};
//!
//! fn main() -> Result<(), avhdx::Error> {
//!     // Parents that moved are looked for in other folders; their identity decides.
//!     let parents = PathSource::new().folder("/backup/bases").map(r"D:\vm", "/mnt/vm");
//!     let chain = OpenOptions::new().parents(parents).open("/mnt/vm/web_1A2B.avhdx")?;
//!     for extent in chain.extents(0..1 << 30) {
//!         let extent = extent?;
//!         match extent.source {
//!             Source::Data { layer, at } => println!("{:?}: {layer} at {at}", extent.range),
//!             Source::Zero { .. } | Source::Parent => {}
//!         }
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # The way of a read
//!
//! Every question about a range is first resolved to runs, and only then are bytes moved. A read goes down these
//! stops, one file each, and leaves each once:
//!
//! ```text
//! DiffChain::read_at         the layers of the moment                              chain/disk.rs
//!   └ Layers::read_at          run by run: read, or zeros                            read/bytes.rs
//!       ├ Layers::known, ask     which layer holds the bytes of a span                 read/ask.rs
//!       │   └ AnswerTable::find    if that is cached: its runs                           answers/table.rs
//!       └ Storage::read_exact_at the bytes, through a pending log if there is one      storage/
//! ```
//!
//! [`VhdxFile`] reads the same way, over one layer. If no answer is cached, the third stop asks layer by layer, and
//! caches what it finds:
//!
//! ```text
//! Layers::ask
//!   └ Core::resolve_span       BAT entry, sector bitmap: here, zero, parent          image/resolve.rs
//!       └ Budget::with_page      pages of tables on demand, within a budget            tables/cache.rs
//! ```
//!
//! # The way of a write
//!
//! A write plans, moves its bytes, and only then changes the tables, in memory. They reach the file at a flush, through
//! the log:
//!
//! ```text
//! DiffChain::write_at        the tip's writer, or a refusal                        chain/disk.rs
//!   └ Writer::write_through    a change of its blocks, held until it is done         write/data.rs
//!       ├ ChangeLock             shared with other changes; a freeze excludes them     write/change_lock.rs
//!       ├ BlockLocks             shared in place, exclusive where a state changes      write/block_locks.rs
//!       ├ Core::bat_entry        the state of the block                                image/resolve.rs
//!       ├ Growth::allocate       space for a block that has none                       write/growth.rs
//!       ├ Storage::write_at      the payload                                           storage/
//!       ├ Changed                the entries and bits                                  tables/changed.rs
//!       └ Invalidation           answers that no longer hold                           answers/invalidate.rs
//! ```
//!
//! A planned write takes the same steps without ever waiting, with its bytes moved by the caller in between:
//!
//! ```text
//! DiffChain::plan_write      steps, tables to be read, or what to wait for         write/plan.rs
//!   └ Parts::plan              each block: in place, or reserved space               write/planned.rs
//!       ├ OpenPlans              listed until it ends; a freeze refuses                write/open_plans.rs
//!       ├ Reservations           space that writes to one block share                  write/reserved.rs
//!       └ HeldPages              the table pages that the commit changes               write/held_pages.rs
//! WriteInFlight::commit      the entries and bits, and the answers                 write/plan.rs
//! ```
//!
//! # Map
//!
//! - [`Disk`], [`DiskExt`]: what a virtual disk is to its users. [`VhdxFile`] is one image,
//!   [`DiffChain`] a chain, [`RawDisk`] a file without a format.
//! - [`DiffChain::plan_read`]: where the bytes are, for callers that move them themselves. A [`ReadPlan`] pins what
//!   it names; a [`TableLoad`] says what must be read before it can be made. The repository's `examples/uring`
//!   drives a chain with io_uring that way. [`DiffChain::plan_write`]: where they go, with what must be read
//!   ([`WriteLoad`]) or waited for ([`Wait`]) first. [`DiffChain::plan_flush`]: the steps that make it durable.
//! - [`DiffChain::changes`]: what may differ between two points in time, from the tables alone.
//!   [`ChangeTracking`] tells what changed since a moment, of a chain that stays open.
//! - [`OpenOptions`]: locks, logs, identities, budgets, and where parents come from
//!   ([`ParentSource`], [`PathSource`]).
//! - [`CreateOptions`]: new images and new children. [`Disk::write_at`] and [`Disk::flush`] write them,
//!   when they were opened with [`OpenOptions::writable`].
//!   What was flushed survives any crash and any failure of the host; what else holds after a failure
//!   is said at [`VhdxFile`](VhdxFile#after-a-failure).
//! - [`Budget`]: the memory that chains share, and the files they have in common. [`Counters`]: what they did.
//! - [`Cursor`]: `std::io` over any disk, for the crates that read partitions and file systems. [`Part`]: a partition
//!   as a disk.
//! - [`ops`]: one operation each: exporting, checking, comparing, measuring, explaining, drawing the
//!   forest of checkpoints in a folder.
//!   [`Checkpoint`](ops::Checkpoint), [`Revert`](ops::Revert) and [`Merge`](ops::Merge) change a chain that is in use.
//! - [`storage`]: the bytes and names underneath, to be replaced by stores of other kinds.
//! - [`Error`]: what was wrong, where, what stood there and what should have.
//!
//! An image is taken to be hostile: every length and offset is checked before it is used, no
//! allocation is sized by an unchecked field, and opening for reading changes no byte of any file.
//!
//! # Features
//!
//! Both are off by default, and nothing else depends on them.
//!
//! - `serde`: `Serialize` for facts: what images record ([`ImageInfo`]), layers, points, findings, warnings, forecasts
//!   and [`Error`]. Fields keep their names, words are in kebab-case, offsets and ids are numbers, paths are as
//!   displayed, and times are seconds since 1970-01-01 UTC.
//! - `tracing`: spans and events of what the crate does.
//!
//! Section numbers in brackets are those of \[MS-VHDX\] version 8.0.
#![warn(missing_debug_implementations)]

// What the tests from outside crash images with, for tests of what is not public.
#[cfg(all(test, not(loom)))]
extern crate self as avhdx;
#[cfg(all(test, not(loom)))]
#[path = "../tests/kit/src/outcomes.rs"]
#[allow(dead_code)]
mod outcomes;
#[cfg(all(test, not(loom)))]
#[path = "../tests/kit/src/sim/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod sim;
#[cfg(all(test, not(loom)))]
#[path = "../tests/kit/src/stale.rs"]
#[allow(dead_code, unreachable_pub)]
mod stale;

mod answers;
mod chain;
mod counters;
mod create;
mod cursor;
mod disk;
mod error;
mod file;
mod format;
mod image;
mod log;
mod mover;
mod names;
pub mod ops;
mod options;
mod part;
mod raw;
mod read;
pub mod storage;
mod sync;
mod tables;
mod trace;
mod types;
mod warning;
mod write;

pub use chain::{
    Candidate, ChangeTracking, ChangedExtent, ChangedSource, Changes, DiffChain, Followed, FoundBy,
    KnownChanges, Layer, Linkage, ParentSource, PathSource, Point, Since, TrackingOptions,
    TrackingPoint,
};
pub use counters::Counters;
pub use create::CreateOptions;
pub use cursor::{Cursor, DiskExt};
pub use disk::{Disk, Extent, Extents, Geometry, LayerId, Source, Zeroing};
pub use error::{Error, ErrorKind, Result};
pub use file::VhdxFile;
pub use image::{
    BlockCounts, CheckpointMark, HeaderInfo, ImageInfo, ItemInfo, LocatorInfo, Lock, LogGap,
    LogInfo, LogPolicy, LogState, MergeMark, MergeRequest, MergeState, OneFlush, ParentLink,
    RegionInfo,
};
pub use options::OpenOptions;
pub use part::Part;
pub use raw::RawDisk;
pub use read::{Planned, PlannedPiece, PlannedSource, ReadPlan, TableLoad};
pub use tables::Budget;
pub use types::FileOffset;
/// The crate of the identities that calls take and return.
pub use uuid;
pub use warning::Warning;
pub use write::{
    FlushInFlight, FlushPlan, FlushWrite, PlannedFlush, PlannedWrite, UnknownReason, Wait,
    WriteInFlight, WriteLoad, WritePlan, WriteStep,
};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
