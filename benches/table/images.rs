//! The images to read, and the equivalent bare reads.
//!
//! Nothing is flushed: everything is read from the page cache, and most images are removed before the
//! host would write them. Scattered pages can keep a disk busy for minutes.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use avhdx::{DiffChain, Disk, DiskExt, OpenOptions, Source};
use avhdx_testkit::build::{Block, Data, Image, Order as BlockOrder};
use avhdx_testkit::rng::{Rng, pattern};

use crate::Result;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const PAGE: u64 = 4 * KIB;
/// The block sizes that Windows uses for new dynamic and differencing disks.
pub const WINDOWS: [u64; 2] = [32 * MIB, 2 * MIB];
/// The size of blocks, and of contiguous pieces, on disks larger than their working set.
const PIECE: u64 = 2 * MIB;
const SEED: u64 = 0x7265_6164;

/// Which layer holds the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Each run of this many bytes lies in a random layer.
    Runs(u64),
    /// The base holds everything.
    Base,
    /// Nothing was ever written.
    Nobody,
}

/// A chain to build.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The size of the working set, which is the whole disk unless that is larger.
    pub size: u64,
    /// The size of the disk; the working set of a larger disk is spread over it in pieces of 2 MiB.
    pub disk: u64,
    pub depth: usize,
    pub owners: Owners,
    /// The block sizes of the base and of the layers above it.
    pub blocks: [u64; 2],
}

impl Shape {
    pub fn new(size: u64, depth: usize, owners: Owners) -> Self {
        Self { size, disk: size, depth, owners, blocks: WINDOWS }
    }

    /// The disk offset of a byte of the working set.
    fn place(&self, at: u64) -> u64 {
        if self.disk == self.size {
            return at;
        }
        let apart = self.disk / (self.size / PIECE) / PIECE * PIECE;
        at / PIECE * apart + at % PIECE
    }

    /// The layer that holds each run, counted from the base, and the length of a run.
    fn runs(&self) -> (Vec<u16>, u64) {
        match self.owners {
            Owners::Runs(len) => {
                let mut rng = Rng::new(SEED ^ self.size ^ self.depth as u64);
                let runs = self.size.div_ceil(len);
                ((0..runs).map(|_| rng.below(self.depth as u64) as u16).collect(), len)
            }
            Owners::Base => (vec![0], self.size),
            Owners::Nobody => (Vec::new(), self.size),
        }
    }
}

/// A chain and its files.
pub struct Chain {
    pub shape: Shape,
    pub disk: DiffChain,
    files: Vec<File>,
    paths: Vec<PathBuf>,
    /// The layer that holds each run.
    owners: Vec<u16>,
    run: u64,
}

/// A list of reads, and the bare reads for the same bytes.
pub struct Reads {
    pub len: u64,
    pub offsets: Vec<u64>,
    bare: Vec<Piece>,
    /// The index of each read's first bare read, and their total number.
    firsts: Vec<usize>,
}

/// One bare read.
struct Piece {
    at: u64,
    file: u32,
    /// Its offset in the buffer.
    from: u32,
    len: u32,
}

/// Writes the disk's contents as one flat file.
pub fn write_raw(folder: &Path, size: u64) -> Result<File> {
    let path = folder.join("raw.img");
    let mut file = io::BufWriter::with_capacity(MIB as usize, File::create(&path)?);
    let mut page = [0; PAGE as usize];
    for at in (0..size).step_by(PAGE as usize) {
        pattern(SEED, at, &mut page);
        io::Write::write_all(&mut file, &page)?;
    }
    file.into_inner()?;
    Ok(File::open(&path)?)
}

impl Chain {
    pub fn build(folder: &Path, shape: Shape) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (owners, run) = shape.runs();
        let mut held = vec![false; shape.depth];
        owners.iter().for_each(|owner| held[usize::from(*owner)] = true);
        let mut image = Image::dynamic(shape.disk);
        for (layer, held) in held.iter().enumerate() {
            if layer > 0 {
                image = image.new_child();
                image.parent_path(&format!(".\\l{}.vhdx", layer - 1));
            }
            image.block_size = shape.blocks[layer.min(1)] as u32;
            image.order = BlockOrder::Shuffled(layer as u64);
            let path = layer_path(folder, layer);
            if shape.disk > shape.size {
                let mine = (0..shape.size).step_by(PIECE as usize).zip(&owners);
                for (at, _) in mine.filter(|(_, owner)| usize::from(**owner) == layer) {
                    image.put(shape.place(at) / PIECE, Block::full(Data::Pattern(SEED)));
                }
                image.write_to(path);
            } else if *held {
                image.write_paged(
                    path,
                    PAGE as u32,
                    |page| usize::from(owners[(page * PAGE / run) as usize]) == layer,
                    |page, bytes| pattern(SEED, page * PAGE, bytes),
                );
            } else {
                image.write_to(path);
            }
        }
        Self::open(folder, shape)
    }

    /// Opens a chain that was built in the folder.
    pub fn open(folder: &Path, shape: Shape) -> Result<Self> {
        let (owners, run) = shape.runs();
        let paths: Vec<PathBuf> = (0..shape.depth).map(|layer| layer_path(folder, layer)).collect();
        let files = paths.iter().map(File::open).collect::<io::Result<_>>()?;
        let disk = DiffChain::open(&paths[shape.depth - 1])?;
        Ok(Self { shape, disk, files, paths, owners, run })
    }

    /// Reopens the chain with other options.
    pub fn reopened(self, options: &OpenOptions) -> Result<Self> {
        let Self { shape, disk, files, paths, owners, run } = self;
        drop(disk);
        let disk = options.open(&paths[shape.depth - 1])?;
        Ok(Self { shape, disk, files, paths, owners, run })
    }

    pub fn tip(&self) -> &Path {
        &self.paths[self.paths.len() - 1]
    }

    /// The files, base first.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// How many layers have to be asked for this offset, from the tip down to the one that holds it.
    pub fn asked(&self, at: u64) -> usize {
        self.shape.depth - usize::from(self.owners[(at / self.run) as usize])
    }

    /// Every page of the working set once, 4 KiB each, shuffled.
    pub fn random(&self) -> Result<Reads> {
        let pages = (0..self.shape.size).step_by(PAGE as usize);
        let mut offsets: Vec<u64> = pages.map(|at| self.shape.place(at)).collect();
        Rng::new(SEED).shuffle(&mut offsets);
        self.reads(PAGE, offsets)
    }

    /// The disk from start to end in reads of this length.
    pub fn sequential(&self, len: u64) -> Result<Reads> {
        self.reads(len, (0..self.shape.size).step_by(len as usize).collect())
    }

    /// Reads of this length at these offsets, and the places of their bytes.
    pub fn reads(&self, len: u64, offsets: Vec<u64>) -> Result<Reads> {
        let layers: Vec<_> = self.disk.layers().iter().rev().map(|layer| layer.id).collect();
        let (mut bare, mut firsts) = (Vec::new(), vec![0]);
        for start in &offsets {
            for extent in self.disk.extents(*start..start + len) {
                let extent = extent?;
                let from = (extent.range.start - start) as u32;
                match extent.source {
                    Source::Data { layer, at } => {
                        let file = layers.iter().position(|id| *id == layer);
                        let file = file.ok_or("a strange layer")? as u32;
                        let len = (extent.range.end - extent.range.start) as u32;
                        bare.push(Piece { at: at.get(), file, from, len });
                    }
                    Source::Zero { .. } if self.shape.owners == Owners::Nobody => {}
                    _ => return Err("a page that no layer owns".into()),
                }
            }
            firsts.push(bare.len());
        }
        Ok(Reads { len, offsets, bare, firsts })
    }

    /// Reads everything in both ways, which warms the page cache and the index, and compares it with
    /// the expected contents.
    pub fn check(&self, reads: &Reads) -> Result<()> {
        let [mut ours, mut bare, mut written] = [(); 3].map(|()| vec![0; reads.len as usize]);
        for (read, at) in reads.offsets.iter().enumerate() {
            self.disk.read_at(&mut ours, *at)?;
            self.read_bare(reads, read..read + 1, &mut bare)?;
            if self.shape.owners != Owners::Nobody {
                pattern(SEED, *at, &mut written);
            }
            if ours != written || bare != written {
                return Err(
                    format!("the {} bytes at {at} are not what was written", reads.len).into()
                );
            }
        }
        Ok(())
    }

    /// Executes the reads with these numbers without the crate.
    pub fn read_bare(&self, reads: &Reads, which: Range<usize>, buf: &mut [u8]) -> io::Result<()> {
        for piece in &reads.bare[reads.firsts[which.start]..reads.firsts[which.end]] {
            let into = piece.from as usize..(piece.from + piece.len) as usize;
            read_exact_at(&self.files[piece.file as usize], &mut buf[into], piece.at)?;
        }
        Ok(())
    }

    pub fn disk(&self) -> &DiffChain {
        &self.disk
    }

    /// Removes the files that merges left.
    pub fn remove_rest(self) -> Result<()> {
        let paths = self.paths.clone();
        drop(self);
        for path in paths.iter().filter(|path| path.exists()) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Executes the reads with these numbers.
    pub fn read_ours(&self, reads: &Reads, which: Range<usize>, buf: &mut [u8]) -> Result<()> {
        for at in &reads.offsets[which] {
            self.disk.read_at(buf, *at)?;
        }
        Ok(())
    }

    /// The first bare read of read number `read`, in a reopened file, for a cold start on the bare side.
    pub fn file_anew(&self, reads: &Reads, read: usize) -> Result<(File, u64)> {
        let piece = &reads.bare[reads.firsts[read]];
        Ok((File::open(&self.paths[piece.file as usize])?, piece.at))
    }

    pub fn remove(self) -> Result<()> {
        let paths = self.paths.clone();
        drop(self);
        Ok(paths.iter().try_for_each(fs::remove_file)?)
    }
}

impl Reads {
    /// The reads of a round, which continue the list, so that the whole disk is read in turn.
    pub fn of_round(&self, round: usize, bytes: u64) -> Range<usize> {
        let count = self.offsets.len();
        let per_round = ((bytes / self.len) as usize).clamp(1, count);
        let start = round % (count / per_round) * per_round;
        start..start + per_round
    }
}

fn layer_path(folder: &Path, layer: usize) -> PathBuf {
    folder.join(format!("l{layer}.vhdx"))
}

/// A bare `pread`, repeated if it was cut short.
pub fn read_exact_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buf, at);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buf.len() {
            match std::os::windows::fs::FileExt::seek_read(
                file,
                &mut buf[done..],
                at + done as u64,
            )? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(())
    }
}
