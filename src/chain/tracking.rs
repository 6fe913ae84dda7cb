//! Tells what changed of a chain in use since a moment.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::diff_chain::DiffChain;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::file::read_only;
use crate::write::{ChangeRecord, Record, UnknownReason};

/// Grains within which changes are not told apart, unless the options say otherwise.
const GRAIN: u64 = 64 << 10;
/// The largest grain that the options can ask for.
const MOST_GRAIN: u64 = 1 << 30;
/// Memory of a record, unless the options say otherwise.
const MEMORY: usize = 8 << 20;

/// Tracks which parts of a writable chain change, in memory, for backups that copy only those.
///
/// A backup takes a point and copies the disk. The next one asks what changed since that point, copies only that, and
/// goes on from the point that comes with the answer:
///
/// ```no_run
/// use avhdx::{Disk, OpenOptions, Since, TrackingOptions};
///
/// let chain = OpenOptions::new().writable(true).open("web_77F0.avhdx")?;
/// let tracking = chain.track_changes(TrackingOptions::new())?;
///
/// let mut point = tracking.mark();
/// // Copy the whole disk. Later, and then again and again:
/// point = match tracking.changes_since(&point) {
///     Since::Known(changes) => {
///         for range in changes.ranges {
///             let mut bytes = vec![0; (range.end - range.start) as usize];
///             chain.read_at(&mut bytes, range.start)?;
///             // Store the bytes with their offset.
///         }
///         changes.until
///     }
///     Since::Unknown(reason) => {
///         eprintln!("copying everything: {reason}");
///         tracking.mark()
///         // Copy the whole disk.
///     }
/// };
/// # Ok::<(), avhdx::Error>(())
/// ```
///
/// # What is promised
///
/// Whoever reads the disk after a point was made, and later reads what is returned as changed since that point, has
/// every byte. A change belongs to the period in which it ends:
///
/// - One that ended before the point is seen by every read that begins after it.
/// - One that is under way at the point may be seen in part by such a read. It ends later, and is returned as changed
///   since the point, also if it fails: a failed change may have been made in part.
///
/// Writes, zeroings and discards count, whether or not they were flushed, through any clone of the chain. So does the
/// whole range of a change that leaves its bytes as they were. What is returned is in whole grains, and larger than
/// what changed.
///
/// To copy a disk that stands still, mark first, then make a [`Checkpoint`](crate::ops::Checkpoint) and copy a
/// [view](DiffChain::view) of the frozen layer: changes between the two are copied now and once more with the next
/// backup. Tracking follows the tip, and misses no change on the way.
///
/// # When it is unknown what changed
///
/// Tracking lives in memory and ends with its last handle or with the process. A point of other tracking is answered
/// with [`Since::Unknown`], and so is one from before a merge or a revert, and one from before a foreign write, which
/// [`Since`] explains. Unknown is never reported as unchanged.
///
/// The handle holds the chain open like a clone of it. Several can track the same chain. A write costs one short lock
/// for each of them.
#[derive(Debug)]
pub struct ChangeTracking {
    chain: DiffChain,
    session: Uuid,
    record: Arc<ChangeRecord>,
}

/// How finely changes are tracked, and in how much memory.
#[derive(Clone, Debug)]
pub struct TrackingOptions {
    grain: u64,
    memory: usize,
}

/// A moment from which changes are tracked. A caller may store the three fields, and make the point of them
/// [anew](Self::new); it is of use only to the tracking that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TrackingPoint {
    /// Identifies the tracking, in this process and all others.
    pub session: Uuid,
    /// Counts the points of that tracking, with gaps.
    pub number: u64,
    /// The `DataWriteGuid` of the tip at that moment, \[MS-VHDX\] 2.2.2. It tells which image the point belongs to, not
    /// which bytes: an image that is open for writing keeps its identity while its bytes change.
    pub identity: Uuid,
}

/// The answer of [`ChangeTracking::changes_since`]. Exhaustive on purpose: a caller has to copy everything where it is
/// unknown what changed.
///
/// A foreign write is one by another program, or by another handle of this one, to a file of the chain, where locks do
/// not exclude it ([`Lock`](crate::Lock)). It is recognized by the headers, which every writer of the format
/// changes. One that happens while the chain itself is in the middle of a session is recognized only until the chain
/// writes its own headers the next time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an unknown answer asks for a full copy"]
pub enum Since {
    /// All changes since the point.
    Known(KnownChanges),
    /// Anything may have changed.
    Unknown(UnknownReason),
}

/// All changes between two points.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownChanges {
    /// The point that was asked about.
    pub from: TrackingPoint,
    /// The point at which the answer was taken, to ask about the next time: no change falls between an answer and the
    /// next one.
    pub until: TrackingPoint,
    /// The unit of the ranges in bytes. It grows when the memory would not suffice otherwise, also for changes in the
    /// past.
    pub grain: u64,
    /// The changed ranges of the disk in bytes: ascending, apart from each other, and in whole grains except at the
    /// end of the disk.
    pub ranges: Vec<Range<u64>>,
}

impl DiffChain {
    /// Tracks the changes of this chain from now on, until the handle is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] if the chain is not open for writing, or is a view; [`ErrorKind::InvalidInput`] with the
    /// code `tracking.grain` for a grain that the options do not allow.
    pub fn track_changes(&self, options: TrackingOptions) -> Result<ChangeTracking> {
        let TrackingOptions { grain, memory } = options;
        if !grain.is_power_of_two() || !(512..=MOST_GRAIN).contains(&grain) {
            let message = "changes cannot be tracked in grains of this size";
            return Err(Error::new(ErrorKind::InvalidInput, "tracking.grain", message)
                .with_found(grain)
                .with_expected(format_args!("a power of two from 512 to {MOST_GRAIN}")));
        }
        let record = Arc::new(ChangeRecord::new(grain, memory));
        loop {
            let stack = self.stack_now();
            let Some(writer) = &stack.writer else { return Err(read_only(stack.tip().name())) };
            // Waits for the end of a freeze, which may want the lock taken below.
            writer.record_changes(&[Arc::downgrade(&record)]);
            let mut views = self.live.views();
            if self.stack().writer.as_ref().is_some_and(|now| Arc::ptr_eq(now, writer)) {
                views.records.push(Arc::downgrade(&record));
                break;
            }
        }
        Ok(ChangeTracking { chain: self.clone(), session: Uuid::new_v4(), record })
    }
}

impl ChangeTracking {
    /// Identifies this tracking: its points carry it, and those of no other.
    pub fn session(&self) -> Uuid {
        self.session
    }

    /// Makes a point. Reads that begin afterwards see all changes that ended before it.
    pub fn mark(&self) -> TrackingPoint {
        self.end_period(&mut self.record.lock())
    }

    /// Returns what changed since a point, with the point of this moment. The same point can be asked about any number
    /// of times.
    ///
    /// Reads the headers of all files of the chain to rule out a foreign write. The ranges take up at most twice the
    /// memory of the options.
    pub fn changes_since(&self, point: &TrackingPoint) -> Since {
        if point.session != self.session {
            return Since::Unknown(UnknownReason::OtherSession);
        }
        let (until, known) = {
            let mut record = self.record.lock();
            // Within the lock: a change is either in the answer or after its point.
            (self.end_period(&mut record), record.since(point.number, self.chain.geometry().size))
        };
        let known = known.and_then(|known| self.check_files().map(|()| known));
        match known {
            Ok((ranges, grain)) => {
                Since::Known(KnownChanges { from: *point, until, grain, ranges })
            }
            Err(reason) => Since::Unknown(reason),
        }
    }

    fn end_period(&self, record: &mut Record) -> TrackingPoint {
        let identity = self.chain.stack().tip().data_write_guid();
        TrackingPoint { session: self.session, number: record.end_period(), identity }
    }

    /// Makes all points unknown if a file of the chain has other headers than this chain gave it.
    fn check_files(&self) -> Result<(), UnknownReason> {
        for image in self.chain.images() {
            match image.has_known_headers() {
                Ok(true) => {}
                Ok(false) => {
                    self.record.lock().lose(UnknownReason::ForeignWrite);
                    return Err(UnknownReason::ForeignWrite);
                }
                Err(_) => return Err(UnknownReason::Unverified),
            }
        }
        Ok(())
    }
}

impl TrackingOptions {
    /// Grains of 64 KiB, in 8 MiB of memory.
    pub fn new() -> Self {
        Self { grain: GRAIN, memory: MEMORY }
    }

    /// The unit in bytes within which changes are not told apart: a power of two from 512 to 1 GiB.
    pub fn grain(mut self, bytes: u64) -> Self {
        self.grain = bytes;
        self
    }

    /// The memory that the record of changes takes up at most, in bytes; at least some 2 KiB. A grain takes 4 bytes,
    /// and only parts of the disk that change are recorded. When the memory would not suffice, the grains are doubled:
    /// nothing is lost, but more is returned.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }
}

impl Default for TrackingOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl TrackingPoint {
    /// A point with these fields, as they were stored.
    pub fn new(session: Uuid, number: u64, identity: Uuid) -> Self {
        Self { session, number, identity }
    }
}
