//! Executes plans of reads and writes with io_uring, many at a time.
//!
//! A plan lists the bytes of files that make up a range of the disk, and keeps these files open and these
//! bytes in place. Each of its pieces is submitted to the kernel as a separate read, and the plan is dropped
//! when the last one has completed. If tables must be read before there can be a plan, they are read
//! in the same way. A write does the same with its steps, and is committed when the last one has completed.

use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx::{
    DiffChain, FlushInFlight, Planned, PlannedFlush, PlannedSource, PlannedWrite, ReadPlan,
    TableLoad, WriteInFlight, WriteLoad,
};
use io_uring::{IoUring, opcode, types};

use crate::place::FilePlace;

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

/// A buffer, and the read that fills it or the write that takes it.
#[derive(Default)]
struct Slot {
    token: usize,
    buf: Vec<u8>,
    /// The offset and the bytes of a write that is being planned.
    data: (u64, Vec<u8>),
    job: Option<Job>,
    /// How many of its parts are in flight.
    left: usize,
}

/// Keeps the files of a slot open and their bytes in place.
enum Job {
    Read {
        _plan: ReadPlan,
    },
    Table(TableLoad),
    Write(WriteInFlight),
    /// Tables that the plan of a write needs.
    WriteTable(WriteLoad, DiffChain),
    Flush(FlushInFlight),
    /// What another plan named.
    Bare {
        _places: Arc<[FilePlace]>,
    },
}

/// A read of one file into a part of a slot's buffer, or a write from there.
#[derive(Clone, Copy)]
struct Part {
    slot: usize,
    file: RawFd,
    at: u64,
    from: usize,
    len: usize,
    op: Op,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Read,
    Write,
    /// Flushes the file.
    Sync,
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

    /// Starts a write. There must be room for it.
    pub fn start_write(
        &mut self,
        token: usize,
        chain: &DiffChain,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), Box<dyn Error>> {
        let range = at..at + bytes.len() as u64;
        let slot = self.free.pop().ok_or("as many writes as there may be are under way")?;
        self.slots[slot].token = token;
        self.slots[slot].data.0 = at;
        self.slots[slot].data.1.clear();
        self.slots[slot].data.1.extend_from_slice(bytes);
        self.begin_write(slot, chain, chain.plan_write(range)?)
    }

    /// Makes all writes durable. None may be in flight: one that has to wait for the flush would wait for ever, in this
    /// thread.
    pub fn flush(&mut self, chain: &DiffChain) -> Result<(), Box<dyn Error>> {
        assert!(self.is_idle(), "writes are in flight");
        let mut planned = chain.plan_flush()?;
        loop {
            planned = match planned {
                PlannedFlush::Done => return Ok(()),
                // A program that may not block here hands this to another thread.
                PlannedFlush::Wait(wait) => {
                    wait.run()?;
                    chain.plan_flush()?
                }
                PlannedFlush::Ready(plan) => self.carry_out(plan.begin())?.done()?,
            };
        }
    }

    /// Carries out a step of a flush: its writes side by side, then the flush of the file.
    fn carry_out(&mut self, flight: FlushInFlight) -> Result<FlushInFlight, Box<dyn Error>> {
        let slot = self.free.pop().ok_or("the ring has no slots")?;
        let file = flight.storage().as_fd().ok_or("not a file of this machine")?.as_raw_fd();
        let buf = &mut self.slots[slot].buf;
        buf.clear();
        for write in flight.writes() {
            let (at, from, len) = (write.at.get(), buf.len(), write.bytes.len());
            buf.extend_from_slice(write.bytes);
            self.queue.push(Part { slot, file, at, from, len, op: Op::Write });
        }
        let has_flush = flight.has_flush();
        self.slots[slot].job = Some(Job::Flush(flight));
        self.submit(slot)?;
        self.finish(slot)?;
        if has_flush {
            self.queue.push(Part { slot, file, at: 0, from: 0, len: 0, op: Op::Sync });
            self.submit(slot)?;
            self.finish(slot)?;
        }
        self.free.push(slot);
        match self.slots[slot].job.take() {
            Some(Job::Flush(flight)) => Ok(flight),
            _ => unreachable!("it was put there"),
        }
    }

    /// Waits until all parts of the only slot in use have completed.
    fn finish(&mut self, slot: usize) -> io::Result<()> {
        while self.done.is_empty() {
            self.enter(1)?;
            self.reap()?;
        }
        assert_eq!(self.done.pop(), Some(slot));
        Ok(())
    }

    /// Starts a read of these places, or a write to them, without a plan. There must be room for it.
    pub fn start_bare(
        &mut self,
        token: usize,
        places: &Arc<[FilePlace]>,
        write: Option<&[u8]>,
    ) -> Result<(), Box<dyn Error>> {
        let number = self.free.pop().ok_or("as many as there may be are under way")?;
        let slot = &mut self.slots[number];
        slot.token = token;
        match write {
            Some(bytes) => {
                slot.buf.clear();
                slot.buf.extend_from_slice(bytes);
            }
            None => slot
                .buf
                .resize(places.iter().map(|place| place.from + place.len).max().unwrap_or(0), 0),
        }
        slot.job = Some(Job::Bare { _places: Arc::clone(places) });
        for FilePlace { storage, at, from, len } in places.iter() {
            let fd = storage.as_fd().ok_or("not a file of this machine")?.as_raw_fd();
            let (at, from, len) = (*at, *from, *len);
            let op = if write.is_some() { Op::Write } else { Op::Read };
            self.queue.push(Part { slot: number, file: fd, at, from, len, op });
        }
        Ok(self.submit(number)?)
    }

    /// Waits until at least one read or write is complete, and passes on all that are: the token and the bytes.
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
                Some(Job::WriteTable(load, chain)) => {
                    let planned = load.supply(&self.slots[slot].buf)?;
                    self.begin_write(slot, &chain, planned)?;
                }
                Some(Job::Write(flight)) => {
                    flight.commit()?;
                    each(self.slots[slot].token, &self.slots[slot].buf);
                    self.free.push(slot);
                }
                Some(Job::Read { .. } | Job::Bare { .. } | Job::Flush(_)) | None => {
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
                    let file = fd.as_raw_fd();
                    queue.push(Part { slot, file, at, from, len, op: Op::Read });
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
        Ok(self.submit(slot)?)
    }

    /// Starts writing what was planned from a free slot, or reading the tables that the plan needs.
    fn begin_write(
        &mut self,
        slot: usize,
        chain: &DiffChain,
        mut planned: PlannedWrite,
    ) -> Result<(), Box<dyn Error>> {
        let plan = loop {
            planned = match planned {
                PlannedWrite::Ready(plan) => break plan,
                PlannedWrite::Load(load) => {
                    let (buf, at) = (&mut self.slots[slot].buf, load.at().get());
                    buf.resize(load.len(), 0);
                    match load.storage().as_fd() {
                        Some(fd) => self.queue.push(Part {
                            slot,
                            file: fd.as_raw_fd(),
                            at,
                            from: 0,
                            len: buf.len(),
                            op: Op::Read,
                        }),
                        None => load.storage().read_exact_at(buf, at)?,
                    }
                    self.slots[slot].job = Some(Job::WriteTable(load, chain.clone()));
                    return Ok(self.submit(slot)?);
                }
                // A program that may not block here hands this to another thread.
                PlannedWrite::Wait(wait) => {
                    wait.run()?;
                    let (at, bytes) = &self.slots[slot].data;
                    chain.plan_write(*at..at + bytes.len() as u64)?
                }
            };
        };
        let Slot { buf, data, job, .. } = &mut self.slots[slot];
        std::mem::swap(buf, &mut data.1);
        let flight = job.insert(Job::Write(plan.begin()));
        let Job::Write(flight) = flight else { unreachable!("it was put there") };
        for step in flight.steps() {
            let (at, from, len) = (step.at.get(), step.buffer.start, step.buffer.len());
            match step.storage.as_fd() {
                Some(fd) => {
                    let file = fd.as_raw_fd();
                    self.queue.push(Part { slot, file, at, from, len, op: Op::Write });
                }
                None => step.storage.write_at(&buf[from..from + len], at)?,
            }
        }
        Ok(self.submit(slot)?)
    }

    /// Queues the parts of a slot, which is done if there are none.
    fn submit(&mut self, slot: usize) -> io::Result<()> {
        if self.queue.is_empty() {
            self.done.push(slot);
        }
        while let Some(part) = self.queue.pop() {
            self.ask_for(part)?;
        }
        Ok(())
    }

    /// Queues a part, submitting the queue if it is full.
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
        let Part { slot, file, at, from, len, op } = self.parts[number];
        let slot = &mut self.slots[slot];
        assert!(slot.job.is_some() && len <= slot.buf.len() && from <= slot.buf.len() - len);
        let place = slot.buf.as_mut_ptr().wrapping_add(from);
        let file = types::Fd(file);
        let entry = match op {
            Op::Read => opcode::Read::new(file, place, len as u32).offset(at).build(),
            Op::Write => opcode::Write::new(file, place, len as u32).offset(at).build(),
            Op::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        // SAFETY: The kernel accesses `len` bytes from `place` on, which were checked above to lie within the slot's
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
                0 if part.op != Op::Sync => {
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
        // Nothing is under way any more.
        for slot in &mut self.slots {
            if let Some(Job::Write(flight)) = slot.job.take() {
                flight.failed();
            }
        }
    }
}
