//! Executes plans with io_uring, many at a time.
//!
//! A plan lists the bytes of files that make up a range of the disk, and keeps these files open and these
//! bytes in place. Each of its pieces is submitted to the kernel as a separate read, and the plan is dropped
//! when the last one has completed. If tables must be read before there can be a plan, they are read
//! in the same way.

use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use avhdx::storage::Storage;
use avhdx::{Planned, PlannedSource, ReadPlan, TableLoad};
use io_uring::{IoUring, opcode, types};

/// A ring, and the reads in flight.
pub struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    /// Slots that are not in use.
    free: Vec<usize>,
    /// Slots whose reads are complete.
    done: Vec<usize>,
    /// Reads to be submitted.
    queue: Vec<Part>,
    /// Submitted reads, by the number that the kernel returns.
    parts: Vec<Part>,
    free_parts: Vec<usize>,
    in_flight: usize,
}

/// A buffer, and the read that fills it.
#[derive(Default)]
struct Slot {
    token: usize,
    buf: Vec<u8>,
    job: Option<Job>,
    /// How many of its parts are in flight.
    left: usize,
}

/// Keeps the files of a slot open and their bytes in place.
enum Job {
    Read { _plan: ReadPlan },
    Table(TableLoad),
}

/// A read of one file into a part of a slot's buffer.
#[derive(Clone, Copy)]
struct Part {
    slot: usize,
    file: RawFd,
    at: u64,
    from: usize,
    len: usize,
}

impl Ring {
    /// A ring for this many reads at a time; an error if the kernel does not provide one.
    pub fn new(depth: usize) -> io::Result<Self> {
        // A read of a few KiB is usually one piece, rarely more than two.
        let ring = IoUring::new((2 * depth).next_power_of_two() as u32)?;
        if !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a kernel before 5.5"));
        }
        Ok(Self {
            ring,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).collect(),
            done: Vec::new(),
            queue: Vec::new(),
            parts: Vec::new(),
            free_parts: Vec::new(),
            in_flight: 0,
        })
    }

    /// Whether another read can be started.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether no read is in flight.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Starts a read. There must be room for it. It is submitted by the next [`wait`](Self::wait).
    pub fn start(&mut self, token: usize, planned: Planned) -> Result<(), Box<dyn Error>> {
        let slot = self.free.pop().ok_or("as many reads as there may be are under way")?;
        self.slots[slot].token = token;
        self.begin(slot, planned)
    }

    /// Waits until at least one read is complete, and passes on all that are: the token and the bytes.
    pub fn wait(&mut self, mut each: impl FnMut(usize, &[u8])) -> Result<(), Box<dyn Error>> {
        if self.in_flight > 0 {
            self.enter(usize::from(self.done.is_empty()))?;
            self.reap()?;
        }
        for slot in std::mem::take(&mut self.done) {
            match self.slots[slot].job.take() {
                Some(Job::Table(load)) => {
                    let planned = load.supply(&self.slots[slot].buf)?;
                    self.begin(slot, planned)?;
                }
                Some(Job::Read { .. }) | None => {
                    each(self.slots[slot].token, &self.slots[slot].buf);
                    self.free.push(slot);
                }
            }
        }
        Ok(())
    }

    /// Starts reading what was planned into a free slot.
    fn begin(&mut self, slot: usize, planned: Planned) -> Result<(), Box<dyn Error>> {
        let (buf, queue) = (&mut self.slots[slot].buf, &mut self.queue);
        let mut read = |buf: &mut [u8], file: &dyn Storage, at: u64, from: usize, len: usize| {
            match file.as_fd() {
                Some(fd) => {
                    queue.push(Part { slot, file: fd.as_raw_fd(), at, from, len });
                    Ok(())
                }
                // Not a file of this machine.
                None => file.read_exact_at(&mut buf[from..from + len], at),
            }
        };
        let job = match planned {
            Planned::Ready(plan) => {
                let range = plan.range();
                buf.resize((range.end - range.start) as usize, 0);
                for piece in plan.pieces() {
                    let from = (piece.range.start - range.start) as usize;
                    let len = (piece.range.end - piece.range.start) as usize;
                    match piece.source {
                        PlannedSource::Zero => buf[from..from + len].fill(0),
                        PlannedSource::Data { storage, at, .. } => {
                            read(buf, storage.as_ref(), at.get(), from, len)?;
                        }
                    }
                }
                Job::Read { _plan: plan }
            }
            Planned::Load(load) => {
                buf.resize(load.len(), 0);
                read(buf, load.storage().as_ref(), load.at().get(), 0, load.len())?;
                Job::Table(load)
            }
        };
        self.slots[slot].job = Some(job);
        if self.queue.is_empty() {
            self.done.push(slot);
        }
        while let Some(part) = self.queue.pop() {
            self.ask_for(part)?;
        }
        Ok(())
    }

    /// Queues a read, submitting the queue if it is full.
    fn ask_for(&mut self, part: Part) -> io::Result<()> {
        while self.ring.submission().is_full() {
            self.enter(0)?;
        }
        let number = self.free_parts.pop().unwrap_or(self.parts.len());
        match self.parts.get_mut(number) {
            Some(place) => *place = part,
            None => self.parts.push(part),
        }
        self.push(number);
        Ok(())
    }

    /// Pushes a part's piece of its buffer to the queue, which has room.
    #[allow(unsafe_code)]
    fn push(&mut self, number: usize) {
        let Part { slot, file, at, from, len } = self.parts[number];
        let slot = &mut self.slots[slot];
        assert!(slot.job.is_some() && len <= slot.buf.len() && from <= slot.buf.len() - len);
        let place = slot.buf.as_mut_ptr().wrapping_add(from);
        let entry = opcode::Read::new(types::Fd(file), place, len as u32).offset(at).build();
        // SAFETY: The kernel writes `len` bytes from `place` on, which were checked above to lie within the slot's
        // buffer. Until the part has completed, nothing accesses that buffer, changes its length or drops it: that
        // happens only to slots that are free or done, which a slot with parts in flight is not, and to all slots
        // when the ring is dropped, which waits for the parts first. If the ring is leaked, so is the buffer. The
        // descriptor stays open as long: the slot's job, dropped after the last part has completed, keeps the file.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(number as u64)) };
        assert!(pushed.is_ok(), "there was room for it");
        slot.left += 1;
        self.in_flight += 1;
    }

    /// Submits the queue and waits until `wanted` parts have completed.
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wanted) {
                // Busy: completed parts must be reaped first.
                Err(error) if error.raw_os_error() == Some(16) && wanted > 0 => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }

    /// The number of a completed part, and the kernel's result.
    fn next_back(&mut self) -> Option<(usize, i32)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        Some((entry.user_data() as usize, entry.result()))
    }

    /// Reaps all completed parts, and requests again what they lack.
    fn reap(&mut self) -> io::Result<()> {
        let mut failed = None;
        while let Some((number, result)) = self.next_back() {
            let part = self.parts[number];
            self.slots[part.slot].left -= 1;
            self.free_parts.push(number);
            let again = match result {
                // Interrupted, or try again.
                -4 | -11 => Some(part),
                ..0 => {
                    failed = Some(io::Error::from_raw_os_error(-result));
                    None
                }
                0 => {
                    failed = Some(io::ErrorKind::UnexpectedEof.into());
                    None
                }
                read if (read as usize) < part.len => {
                    let read = read as usize;
                    let (at, from) = (part.at + read as u64, part.from + read);
                    Some(Part { at, from, len: part.len - read, ..part })
                }
                _ => None,
            };
            if let Some(part) = again {
                self.ask_for(part)?;
            } else if self.slots[part.slot].left == 0 && failed.is_none() {
                self.done.push(part.slot);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write to the buffers.
        while self.in_flight > 0 {
            if self.enter(1).is_err() {
                // Leaking the memory is better than letting the kernel write to freed memory.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            while self.next_back().is_some() {}
        }
    }
}
