//! Copies of whole disks into new files, for `avhdx convert` and `avhdx flatten`.

mod foreseen;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Compare, Export, Exported};
use avhdx::storage::LocalHost;
use avhdx::{CreateOptions, Disk, Lock, OpenOptions, RawDisk};
use avhdx_formats::qcow2::NewQcow2;
use avhdx_formats::vhd::NewVhd;

use crate::args::{
    CopyFormat, Format, ImageArg, NamingFlags, NewImageFlags, ReadFlags, ReplaceFlags,
};
use crate::endings;
use crate::failure::{Exit, Failure};
use crate::input::{Input, Stamps};
use crate::new_file::{NewFile, Place};
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{size, units};
use crate::{qcow2, vhd};
pub(crate) use foreseen::{CLUSTER, VHD_BLOCK, available_for, check_folder, refuse_no_space};

/// What is copied, where to and how.
#[derive(Debug)]
pub(crate) struct DiskCopy {
    pub(crate) image: ImageArg,
    pub(crate) out: PathBuf,
    pub(crate) flags: CopyFlags,
}

/// How a disk is copied.
#[derive(clap::Args, Debug)]
pub(crate) struct CopyFlags {
    /// Read the disk and the finished copy once more and compare them, before OUT appears. The host may answer from its
    /// memory.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Copy the data even if the file system can share it between the files.
    #[arg(long)]
    pub(crate) no_share: bool,
    /// Only print what would be written at most, by the tables of the disk and without sharing, and whether there is
    /// enough space for it.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) naming: NamingFlags,
    #[command(flatten)]
    pub(crate) replacing: ReplaceFlags,
    #[command(flatten)]
    pub(crate) new_image: NewImageFlags,
    #[command(flatten)]
    pub(crate) opening: ReadFlags,
}

/// A finished copy.
pub(crate) struct Copied {
    pub(crate) virtual_size: u64,
    /// The number of bytes of the disk that were written; the rest are zeros.
    pub(crate) written: u64,
    /// How many of them the file system was asked to share.
    pub(crate) handed_over: u64,
    /// The block size, if the copy is an image.
    pub(crate) block_size: Option<u32>,
}

impl Copied {
    pub(crate) fn of(done: &Exported, virtual_size: u64, block_size: Option<u32>) -> Self {
        let Exported { written, handed_over, .. } = *done;
        Self { virtual_size, written, handed_over, block_size }
    }
}

impl DiskCopy {
    /// Opens the disk to copy.
    pub(crate) fn input(
        &self,
        format: Option<Format>,
        console: &mut Console,
    ) -> Result<Input, Failure> {
        Input::open(&self.image.image, format, &self.flags.opening, console)
    }

    /// Makes the copy, durably. `asked` is the format that was asked for, if OUT's name does not decide alone. `padded` is a
    /// size in place of the disk's own.
    pub(crate) fn copy(
        &self,
        input: &Input,
        to: CopyFormat,
        asked: Option<CopyFormat>,
        padded: Option<u64>,
        console: &mut Console,
    ) -> Result<Copied, Failure> {
        let place = Place::find(&self.out, &self.flags.replacing, &input.paths(), console)?;
        endings::check_copy(&self.out, asked, self.flags.naming, console)?;
        let stamps = Stamps::of(input);
        let file = place.start(console)?;
        let copied = match to {
            CopyFormat::Raw => self.raw_copy(input, &file, console)?,
            CopyFormat::Vhdx | CopyFormat::VhdxFixed => {
                let options = image_options(input, &self.flags.new_image, to, console)?;
                self.image_copy(input, &file, &options, console)?
            }
            CopyFormat::Vhd | CopyFormat::VhdFixed => {
                let options = vhd::options(input, &self.flags.new_image, to, padded, console)?;
                self.vhd_copy(input, &file, &options, console)?
            }
            CopyFormat::Qcow2 => {
                let options = qcow2::options(input, &self.flags.new_image, console)?;
                self.qcow2_copy(input, &file, &options, console)?
            }
        };
        if self.flags.verify {
            let copy = read_back(&file, to).map_err(|error| file.failure(error))?;
            verify(input.disk(), copy.as_ref(), &file, &self.out, console)?;
        }
        stamps.check()?;
        file.publish(console)?;
        console.done();
        Ok(copied)
    }

    fn raw_copy(
        &self,
        input: &Input,
        file: &NewFile,
        console: &Console,
    ) -> Result<Copied, Failure> {
        let mut meter = ProgressMeter::new(console);
        let export = Export::new().share(!self.flags.no_share).on_progress(|now| meter.report(now));
        let done = export.run(input.disk(), file.storage().as_ref());
        drop(meter);
        let done = done.map_err(|error| file.failure(error))?;
        Ok(Copied::of(&done, done.size, None))
    }

    fn image_copy(
        &self,
        input: &Input,
        file: &NewFile,
        options: &CreateOptions,
        console: &Console,
    ) -> Result<Copied, Failure> {
        let image = options.create_draft(&LocalHost, file.draft());
        let image = image.map_err(|error| file.failure(error))?;
        let done = self.fill(input, file, &image, avhdx::VhdxFile::close, console)?;
        Ok(Copied::of(&done, image.geometry().size, Some(image.block_size())))
    }

    fn vhd_copy(
        &self,
        input: &Input,
        file: &NewFile,
        options: &avhdx_formats::vhd::CreateOptions,
        console: &Console,
    ) -> Result<Copied, Failure> {
        let image = options.create(Arc::clone(file.storage()));
        let image = image.map_err(|error| file.failure(error))?;
        let done = self.fill(input, file, &image, NewVhd::finish, console)?;
        Ok(Copied::of(&done, image.geometry().size, image.block_size()))
    }

    fn qcow2_copy(
        &self,
        input: &Input,
        file: &NewFile,
        options: &avhdx_formats::qcow2::CreateOptions,
        console: &Console,
    ) -> Result<Copied, Failure> {
        let image = options.create(Arc::clone(file.storage()));
        let image = image.map_err(|error| file.failure(error))?;
        let done = self.fill(input, file, &image, NewQcow2::finish, console)?;
        Ok(Copied::of(&done, image.geometry().size, Some(image.cluster_size())))
    }

    /// Copies the disk into a new image and completes that.
    fn fill<D: Disk>(
        &self,
        input: &Input,
        file: &NewFile,
        image: &D,
        complete: impl FnOnce(&D) -> avhdx::Result<()>,
        console: &Console,
    ) -> Result<Exported, Failure> {
        let mut meter = ProgressMeter::new(console);
        let export = Export::new().share(!self.flags.no_share).on_progress(|now| meter.report(now));
        let done = export.onto(input.disk(), image);
        drop(meter);
        let done = done.and_then(|exported| complete(image).map(|()| exported));
        done.map_err(|error| file.failure(error))
    }

    /// The finished copy in one line.
    pub(crate) fn line(&self, copied: &Copied) -> String {
        let Copied { virtual_size, written, handed_over, block_size } = *copied;
        let out = self.out.display();
        let mut line = format!("{out}: {}, {} written", size(virtual_size), size(written));
        if handed_over > 0 {
            line += &format!(" ({} of it shared)", size(handed_over));
        }
        if let Some(block_size) = block_size {
            line += &format!(", block size {}", units(block_size.into()));
        }
        if self.flags.verify {
            line += ", read back and compared";
        }
        line
    }
}

fn image_options(
    input: &Input,
    new_image: &NewImageFlags,
    format: CopyFormat,
    console: &mut Console,
) -> Result<CreateOptions, Failure> {
    let geometry = input.disk().geometry();
    let sector = match new_image.sector {
        Some(sector) => sector,
        None if input.has_sectors() => geometry.logical_sector.into(),
        None => 512,
    };
    let whole = geometry.size.checked_next_multiple_of(sector.max(1)).unwrap_or(geometry.size);
    if whole > geometry.size {
        let message = format!(
            "the copy has {whole} bytes, {} more than the input: a disk is a whole number of sectors",
            whole - geometry.size
        );
        console.warn("convert.padded", &message);
    }
    let mut options = match format {
        CopyFormat::VhdxFixed => CreateOptions::fixed(whole),
        _ => CreateOptions::dynamic(whole),
    };
    if input.has_sectors() {
        options = options
            .logical_sector(geometry.logical_sector)
            .physical_sector(geometry.physical_sector);
        if sector != u64::from(geometry.logical_sector) {
            let message = format!(
                "the sector size changes from {} to {sector} bytes: partition tables count in sectors",
                geometry.logical_sector
            );
            console.warn("convert.sector-size", &message);
        }
    }
    new_image.apply(options)
}

/// Opens the finished copy anew: nothing that was remembered while it was written answers.
fn read_back(file: &NewFile, format: CopyFormat) -> avhdx::Result<Box<dyn Disk>> {
    let storage = Arc::clone(file.storage());
    Ok(match format {
        CopyFormat::Raw => Box::new(RawDisk::new(storage)?),
        // The draft holds the lock.
        CopyFormat::Vhdx | CopyFormat::VhdxFixed => {
            Box::new(OpenOptions::new().lock(Lock::None).open_file(storage)?)
        }
        CopyFormat::Vhd | CopyFormat::VhdFixed => {
            Box::new(avhdx_formats::vhd::OpenOptions::new().open_file(storage)?)
        }
        CopyFormat::Qcow2 => Box::new(avhdx_formats::qcow2::OpenOptions::new().open_file(storage)?),
    })
}

/// Compares the copy with the disk.
pub(crate) fn verify(
    disk: &dyn Disk,
    copy: &dyn Disk,
    file: &NewFile,
    out: &Path,
    console: &Console,
) -> Result<(), Failure> {
    let mut meter = ProgressMeter::new(console);
    let compared = Compare::new().on_progress(|now| meter.report(now)).run(disk, copy);
    drop(meter);
    let found = compared.map_err(|error| file.failure(error))?;
    let Some(first) = found.first_difference else { return Ok(()) };
    let byte = |byte: Option<u8>| byte.map_or("nothing".into(), |byte| format!("{byte:#04x}"));
    let message = format!(
        "{}: the copy does not read as the disk does: byte {} is {}, and {} on the disk; the unfinished file is removed",
        out.display(),
        first.offset,
        byte(first.b),
        byte(first.a),
    );
    Err(Failure::new(Exit::Io, "convert.differs", message))
}

#[cfg(test)]
mod tests {
    use avhdx::storage::Host;
    use avhdx::{Extent, Geometry};

    use super::*;

    /// A disk that reads otherwise each time, as on a drive that fails.
    struct Fickle(std::sync::atomic::AtomicU8);

    impl Disk for Fickle {
        fn geometry(&self) -> Geometry {
            Geometry::new(8192, 512, 512)
        }
        fn read_at(&self, buf: &mut [u8], _: u64) -> avhdx::Result<()> {
            buf.fill(7);
            buf[4099] = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        }
        fn next_extent(&self, range: std::ops::Range<u64>) -> avhdx::Result<Option<Extent>> {
            Err(avhdx::Error::new(avhdx::ErrorKind::LogOverlay, "test.nowhere", "at no place")
                .at(range.start))
        }
    }

    #[test]
    fn a_copy_that_reads_otherwise_is_refused_and_not_named() {
        let folder = tempfile::tempdir().unwrap();
        let (out, mut console) = (folder.path().join("out"), Console::new(false, true));
        let replacing = ReplaceFlags::overwrite(false);
        for format in [CopyFormat::Raw, CopyFormat::Vhdx] {
            let disk = Fickle(1.into());
            let place = Place::find(&out, &replacing, &[], &mut console).unwrap();
            let file = place.start(&mut console).unwrap();
            if format == CopyFormat::Raw {
                Export::new().run(&disk, file.storage().as_ref()).unwrap();
            } else {
                let options = CreateOptions::dynamic(8192);
                let image = options.create_draft(&LocalHost, file.draft()).unwrap();
                Export::new().onto(&disk, &image).unwrap();
                image.close().unwrap();
            }
            let copy = read_back(&file, format).unwrap();
            let failure = verify(&disk, copy.as_ref(), &file, &out, &console).unwrap_err();
            assert_eq!((failure.exit, failure.code()), (Exit::Io, "convert.differs"));
            let message = failure.message();
            assert!(message.contains("byte 4099 is 0x01, and 0x02 on the disk"), "{message}");
            // The same disk, read the same way, passes.
            let disk = Fickle(1.into());
            verify(&disk, copy.as_ref(), &file, &out, &console).unwrap();
            drop((copy, file));
            assert_eq!(LocalHost.list(folder.path()).unwrap().len(), 0);
        }
    }
}
