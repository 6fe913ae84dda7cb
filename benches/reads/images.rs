//! The images that are read, and the same reads as bare ones.
//!
//! Nothing is flushed: what is read comes from the page cache, and most images are gone before the
//! host would write them. Scattered pages can take a disk minutes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use avhdx::{DiffChain, Disk, DiskExt, Source};
use avhdx_testkit::build::{Image, Order as BlockOrder};
use avhdx_testkit::rng::{Rng, pattern};

use crate::Result;

pub const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// What Windows gives a new dynamic disk, and a new differencing one.
const BLOCK_SIZES: [u32; 2] = [32 << 20, 2 << 20];
const SEED: u64 = 0x7265_6164;

/// Where the reads of a list lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// 4 KiB each, every page of the disk once.
    Random,
    /// 1 MiB each, from the first to the last.
    Sequential,
}

impl Order {
    pub fn read_len(self) -> u64 {
        match self {
            Self::Random => PAGE,
            Self::Sequential => MIB,
        }
    }
}

/// A chain whose pages are owned by random layers, the files it is made of, and its contents raw.
pub struct Images {
    pub size: u64,
    pub depth: usize,
    pub disk: DiffChain,
    pub raw: File,
    files: Vec<File>,
    paths: Vec<PathBuf>,
}

/// A list of reads, and the bare reads that bring the same bytes.
pub struct Reads {
    pub order: Order,
    pub offsets: Vec<u64>,
    bare: Vec<Piece>,
    /// The first bare read of each read, and their number at the end.
    firsts: Vec<usize>,
}

/// One bare read.
struct Piece {
    file: usize,
    at: u64,
    /// Its place in the buffer.
    into: std::ops::Range<usize>,
}

/// Refuses to start on a volume that cannot hold the images.
pub fn check_space(folder: &Path, mib: &[u64]) -> Result<()> {
    // The raw file, the chain of the same contents, and its bitmaps and tables.
    let most = mib.iter().max().copied().unwrap_or_default();
    let needed = (2 * most + most / 2 + 256) * MIB;
    let in_folder = format!("{} MiB in {}", needed / MIB, folder.display());
    eprintln!("needs {in_folder} (TMPDIR chooses another), and as much memory for the page cache");
    #[cfg(unix)]
    {
        let volume = rustix::fs::statvfs(folder)?;
        let free = volume.f_bavail * volume.f_frsize;
        if free < needed {
            return Err(format!("needs {in_folder}, which has {} MiB free", free / MIB).into());
        }
    }
    Ok(())
}

/// Writes the disk's contents, the same for every depth.
pub fn write_raw(folder: &Path, size: u64) -> Result<PathBuf> {
    let path = folder.join("raw.img");
    let mut file = io::BufWriter::with_capacity(MIB as usize, File::create(&path)?);
    let mut page = [0; PAGE as usize];
    for at in (0..size).step_by(PAGE as usize) {
        pattern(SEED, at, &mut page);
        io::Write::write_all(&mut file, &page)?;
    }
    file.into_inner()?;
    Ok(path)
}

impl Images {
    pub fn build(folder: &Path, size: u64, depth: usize, raw: &Path) -> Result<Self> {
        let mut rng = Rng::new(SEED ^ size ^ depth as u64);
        let owners: Vec<usize> =
            (0..size / PAGE).map(|_| rng.below(depth as u64) as usize).collect();
        let path = |layer| folder.join(format!("l{layer}.vhdx"));
        let mut image = Image::dynamic(size);
        for layer in 0..depth {
            if layer > 0 {
                image = image.new_child();
                image.parent_path(&format!(".\\l{}.vhdx", layer - 1));
            }
            image.block_size = BLOCK_SIZES[layer.min(1)];
            image.order = BlockOrder::Shuffled(layer as u64);
            image.write_paged(
                path(layer),
                PAGE as u32,
                |page| owners[page as usize] == layer,
                |page, bytes| pattern(SEED, page * PAGE, bytes),
            );
        }
        let paths: Vec<PathBuf> = (0..depth).map(path).collect();
        let files = paths.iter().map(File::open).collect::<io::Result<_>>()?;
        let disk = DiffChain::open(&paths[depth - 1])?;
        Ok(Self { size, depth, disk, raw: File::open(raw)?, files, paths })
    }

    /// A list of reads of the whole disk, and where its bytes lie.
    pub fn reads(&self, order: Order) -> Result<Reads> {
        let len = order.read_len();
        let mut offsets: Vec<u64> = (0..self.size / len).map(|read| read * len).collect();
        if order == Order::Random {
            Rng::new(SEED).shuffle(&mut offsets);
        }
        let layers: Vec<_> = self.disk.layers().iter().rev().map(|layer| layer.id).collect();
        let (mut bare, mut firsts) = (Vec::new(), vec![0]);
        for start in &offsets {
            for extent in self.disk.extents(*start..start + len) {
                let extent = extent?;
                let Source::Data { layer, at } = extent.source else {
                    return Err("a page that no layer owns".into());
                };
                let file = layers.iter().position(|id| *id == layer).ok_or("a strange layer")?;
                let into =
                    (extent.range.start - start) as usize..(extent.range.end - start) as usize;
                bare.push(Piece { file, at: at.get(), into });
            }
            firsts.push(bare.len());
        }
        Ok(Reads { order, offsets, bare, firsts })
    }

    /// Reads everything in all three ways, which warms the page cache, and compares.
    pub fn check(&self, reads: &Reads) -> Result<()> {
        let len = reads.order.read_len() as usize;
        let [mut ours, mut bare, mut raw] = [(); 3].map(|()| vec![0; len]);
        for (read, at) in reads.offsets.iter().enumerate() {
            self.disk.read_at(&mut ours, *at)?;
            self.read_bare(reads, read..read + 1, &mut bare)?;
            read_exact_at(&self.raw, &mut raw, *at)?;
            if ours != raw || bare != raw {
                return Err(format!("the {len} bytes at {at} are not those of the raw file").into());
            }
        }
        Ok(())
    }

    /// The reads with these numbers, without the crate.
    pub fn read_bare(
        &self,
        reads: &Reads,
        which: std::ops::Range<usize>,
        buf: &mut [u8],
    ) -> io::Result<()> {
        for piece in &reads.bare[reads.firsts[which.start]..reads.firsts[which.end]] {
            read_exact_at(&self.files[piece.file], &mut buf[piece.into.clone()], piece.at)?;
        }
        Ok(())
    }

    pub fn remove(self) -> io::Result<()> {
        let paths = self.paths.clone();
        drop(self);
        paths.iter().try_for_each(fs::remove_file)
    }
}

/// A bare `pread`, again where it was cut short.
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
