//! A file on standard input: its holes are not read.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::sync::Arc;

use avhdx::ops::{Export, Progress};
use avhdx::storage::{FileId, FileStorage, LocalHost, Storage};
use avhdx::{CreateOptions, Disk, Extent, Geometry, RawDisk};

use crate::copying::Copied;
use crate::failure::{Exit, Failure};
use crate::new_file::NewFile;

/// What the file is called in errors.
const NAME: &str = "standard input";

/// The bytes of a file from its present offset on, as a disk.
pub(super) struct FileInput {
    file: File,
    storage: Arc<dyn Storage>,
    disk: RawDisk,
    start: u64,
    size: u64,
}

impl FileInput {
    /// The `size` bytes left of standard input; `None` if it cannot be read at offsets.
    pub(super) fn of_stdin(size: u64) -> Option<Self> {
        // The offset is shared with standard input.
        let file = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
        let start = (&file).stream_position().ok()?;
        let storage = FileStorage::from_file(file.try_clone().ok()?, NAME);
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let disk = RawDisk::new(Arc::clone(&storage)).ok()?;
        Some(Self { file, storage, disk, start, size })
    }

    /// Copies the disk to the file, as it is or into an image with these options.
    pub(super) fn copy(
        self,
        to: &NewFile,
        image: Option<&CreateOptions>,
        on: impl FnMut(Progress) -> ControlFlow<()> + Send,
    ) -> Result<Copied, Failure> {
        let export = Export::new().on_progress(on);
        let done = match image {
            None => export
                .run(&self, to.storage().as_ref())
                .map(|done| Copied::of(&done, done.size, None)),
            Some(options) => options.create_draft(&LocalHost, to.draft()).and_then(|image| {
                let done = export.onto(&self, &image)?;
                image.close()?;
                Ok(Copied::of(&done, image.geometry().size, Some(image.block_size())))
            }),
        };
        self.refuse_changed()?;
        let done = done.map_err(|error| match error.file() == Some(NAME) {
            true => Failure::stdin(error),
            false => to.failure(error),
        })?;
        // Who reads standard input next finds its end, as after a pipe.
        let _ = (&self.file).seek(SeekFrom::Start(self.start + self.size));
        Ok(done)
    }

    /// Refuses a file whose length has changed since it was looked up: its bytes are not those of one disk.
    fn refuse_changed(&self) -> Result<(), Failure> {
        let Ok(len) = self.storage.len() else { return Ok(()) };
        let (left, size) = (len.saturating_sub(self.start), self.size);
        let how = match left.cmp(&size) {
            Ordering::Equal => return Ok(()),
            Ordering::Less => "shorter",
            Ordering::Greater => "longer",
        };
        let message = format!(
            "standard input has {left} bytes, and had {size} before: the file became {how} meanwhile"
        );
        Err(Failure::new(Exit::InUse, "stdin.changed", message))
    }
}

impl Disk for FileInput {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.size, 512, 512)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> avhdx::Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        self.disk.read_at(buf, self.start + offset)
    }

    fn next_extent(&self, range: Range<u64>) -> avhdx::Result<Option<Extent>> {
        self.geometry().check_range(range.start, range.end.saturating_sub(range.start))?;
        // A file that became shorter ends before the range.
        let end = (self.start + range.end).min(self.disk.geometry().size);
        let found = self.disk.next_extent(self.start + range.start..end)?;
        Ok(found.map(|Extent { range, source }| Extent {
            range: range.start - self.start..range.end - self.start,
            source,
        }))
    }

    fn files(&self) -> Vec<FileId> {
        self.disk.files()
    }
}
