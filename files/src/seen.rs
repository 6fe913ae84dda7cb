//! What a look at a disk found, and which bytes that rests on: whoever looks at the next point in time needs to look
//! again only if one of them changed.

use std::ops::Range;
use std::sync::Arc;

use avhdx::Disk;

use crate::boundary::union;
use crate::error::Result;
use crate::tree::{FileSystem, Options};
use crate::volumes::Volumes;

/// What was found in a file system of a disk, together with the bytes of the disk that decided it.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use avhdx::{DiffChain, DiskExt, Source};
/// use avhdx_files::{Options, Seen};
///
/// let chain = DiffChain::open("web_77F0.avhdx")?;
/// let monday = chain.view_at("monday")?;
/// let seen = Seen::look(Arc::new(monday), None, Options::default(), |tree| {
///     let file = tree.resolve(b"etc/motd")?;
///     tree.open(&file, None)?.read_to_end(1 << 20)
/// });
/// // What the checkpoint after Monday holds of these bytes, by its tables.
/// let after = chain.image(chain.layers()[0].id).expect("the tip");
/// let mut is_same = true;
/// for range in seen.touched() {
///     for extent in after.extents(range.clone()) {
///         is_same &= extent?.source == Source::Parent;
///     }
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Debug)]
pub struct Seen<T> {
    /// What was found, or why nothing was.
    pub found: Result<T>,
    touched: Vec<Range<u64>>,
}

impl<T> Seen<T> {
    /// Looks at the file system of the volume that the selector means, as [`Volumes::select`] has it.
    pub fn look(
        disk: Arc<dyn Disk>,
        volume: Option<&str>,
        options: Options,
        look: impl FnOnce(&FileSystem) -> Result<T>,
    ) -> Self {
        let size = disk.geometry().size;
        // Where a reader gives up before it tells what it read, anything may make it go on.
        let all = vec![Range { start: 0, end: size }];
        let volumes = match Volumes::of(disk) {
            Ok(volumes) => volumes,
            Err(error) => return Self { found: Err(error), touched: all },
        };
        let selected = volumes.select(volume);
        let touched = |more: Vec<Range<u64>>| {
            let all = volumes.touched().into_iter().chain(more);
            union(all.map(|range| range.start.min(size)..range.end.min(size)))
        };
        let selected = match selected {
            Ok(selected) => selected,
            Err(error) => return Self { found: Err(error), touched: touched(Vec::new()) },
        };
        match selected.open_with(options.record(true)) {
            Ok(tree) => {
                let found = look(&tree);
                Self { found, touched: touched(tree.touched()) }
            }
            Err(error) => Self { found: Err(error), touched: touched(vec![selected.range()]) },
        }
    }

    /// The ranges of the disk that were read, in order. As long as their bytes are the same, the same is found.
    pub fn touched(&self) -> &[Range<u64>] {
        &self.touched
    }
}
