//! A raw disk that arrives on standard input.

use std::io::{self, StdinLock};
use std::ops::ControlFlow;

use avhdx::CreateOptions;
use avhdx::ops::{Import, Imported};
use avhdx::storage::LocalHost;

#[cfg(unix)]
use super::file::FileInput;
use crate::args::{CopyFormat, NewImageFlags};
use crate::copying::Copied;
use crate::failure::{Exit, Failure};
use crate::input::known_length;
use crate::new_file::NewFile;
use crate::output::Console;
use crate::progress::ProgressMeter;

/// The size that an image starts with if that of the disk is not known. It grows from there.
const FIRST_SIZE: u64 = 1 << 30;

/// Standard input, and what becomes of it.
pub(super) struct Stream {
    input: StdinLock<'static>,
    import: Import<'static>,
    /// The size of the disk, if it is known.
    size: Option<u64>,
    /// Whether the user gave it.
    is_given: bool,
    /// The bytes that standard input has if it is a file.
    known: Option<u64>,
    /// The properties of the image, if it becomes one.
    image: Option<CreateOptions>,
}

impl Stream {
    pub(super) fn new(
        given: Option<u64>,
        new_image: &NewImageFlags,
        format: CopyFormat,
    ) -> Result<Self, Failure> {
        let input = io::stdin().lock();
        // Files without a length, such as those of /proc, may have bytes all the same.
        let known = known_length(&input)?.filter(|length| *length > 0);
        let is_image = format != CopyFormat::Raw;
        let sector = new_image.sector.unwrap_or(512).max(1);
        let size = match (given, known) {
            (Some(size), Some(length)) if length > size => {
                let message = format!("standard input has {length} bytes, the disk {size}");
                return Err(Failure::usage("import.too-long", message));
            }
            (Some(size), _) => Some(size),
            (None, Some(length)) if is_image => length.checked_next_multiple_of(sector),
            (None, known) => known,
        };
        let is_fixed = format == CopyFormat::VhdxFixed;
        if is_fixed && size.is_none() {
            let message = "a fixed image needs --size: standard input does not say how long it is";
            return Err(Failure::usage("usage", message));
        }
        let first = size.unwrap_or(FIRST_SIZE);
        let options = match is_fixed {
            true => CreateOptions::fixed(first),
            false => CreateOptions::dynamic(first),
        };
        let image = is_image.then(|| new_image.apply(options)).transpose()?;
        let import = size.map_or_else(Import::new, |size| Import::new().size(size));
        Ok(Self { input, import, size, is_given: given.is_some(), known, image })
    }

    /// Writes the disk to the file.
    pub(super) fn copy(self, file: &NewFile, console: &mut Console) -> Result<Copied, Failure> {
        #[cfg(unix)]
        if let Some(known) = self.known.filter(|known| !self.is_given || self.size == Some(*known))
            && let Some(input) = FileInput::of_stdin(known)
        {
            let mut meter = ProgressMeter::new(console);
            let copied = input.copy(file, self.image.as_ref(), |now| meter.report(now))?;
            drop(meter);
            self.warn_padded(copied.virtual_size, known, console);
            return Ok(copied);
        }
        self.copy_bytes(file, console)
    }

    /// The same, byte by byte.
    fn copy_bytes(mut self, file: &NewFile, console: &mut Console) -> Result<Copied, Failure> {
        // How far an input of unknown length is means nothing.
        let mut meter = self.size.map(|_| ProgressMeter::new(console));
        let import = self.import.clone().on_progress(|now| match &mut meter {
            Some(meter) => meter.report(now),
            None => ControlFlow::Continue(()),
        });
        let input = &mut self.input;
        let done = match &self.image {
            None => import.run(input, file.storage().as_ref()).map(|done| (None, done)),
            Some(options) => options
                .create_draft(&LocalHost, file.draft())
                .and_then(|image| import.into_image(input, image))
                .and_then(|(image, done)| image.close().map(|()| (Some(image.block_size()), done))),
        };
        drop(meter);
        let (block_size, Imported { size, read, written, .. }) = done.map_err(|error| {
            if error.code() == "import.read" {
                return Failure::stdin(error);
            }
            file.failure(error)
        })?;
        if let Some(known) = self.known.filter(|known| read < *known) {
            let message = format!(
                "standard input ended after {read} of {known} bytes: the file became shorter meanwhile"
            );
            return Err(Failure::new(Exit::InUse, "stdin.changed", message));
        }
        self.warn_padded(size, read, console);
        Ok(Copied { virtual_size: size, written, handed_over: 0, block_size })
    }

    fn warn_padded(&self, size: u64, read: u64, console: &mut Console) {
        if size > read && !self.is_given {
            let message = format!(
                "the disk has {size} bytes, {} more than the input: a disk is a whole number of sectors",
                size - read
            );
            console.warn("convert.padded", &message);
        }
    }
}
