//! A chain of images as a disk, with its layers.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::live::{Live, Opened, View};
use super::locate::{ParentSource, PathSource};
use super::stack::{Layer, Stack};
use super::walk::{ChainPolicy, Walked, walk};
use crate::counters::Counters;
#[cfg(doc)]
use crate::disk::Disk;
use crate::disk::LayerId;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
use crate::file::read_only;
use crate::image::{Core, ImagePolicy, MergeState};
use crate::storage::{Host, LocalHost};
use crate::trace;
use crate::warning::Warning;
use crate::write::{OpenImage, Writer};

/// A disk as one image of a chain presents it: the image's own data over that of its parents.
///
/// A base alone is a chain of one layer. Clones and [`view`](Self::view)s share the open files. A chain is writable
/// if its tip was opened for writing, whatever operations do to its layers; its views and the images that it hands
/// out are read-only. Only the tip is written to, and a failed write has the same effect as for that
/// [image](crate::VhdxFile#after-a-failure).
///
/// Operations such as [`Checkpoint`](crate::ops::Checkpoint) and [`Merge`](crate::ops::Merge) change the layers of a
/// chain while other threads read and write it: clones follow, and a view stays at its point in time.
///
/// The first read of a range determines which layer holds each part, and the answer is cached within the
/// [`Budget`](crate::Budget): later reads cost the same for any number of layers. A write to the tip invalidates the
/// answers that it changes before it returns. Bytes that are contiguous in a file are read in one request, and zeros
/// are not read.
///
/// ```no_run
/// use avhdx::{Disk, DiffChain};
///
/// let chain = DiffChain::open("web_1A2B.avhdx")?;
/// let mut sector = [0; 512];
/// chain.read_at(&mut sector, 0)?;
/// for layer in chain.layers() {
///     println!("{} holds {} bytes", layer.name, layer.file_len);
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone)]
pub struct DiffChain {
    /// Shared with the clones of this chain or view.
    pub(super) view: Arc<View>,
    /// Shared by all views.
    pub(super) live: Arc<Live>,
}

/// The layers of a chain as far as they can be followed, found by
/// [`OpenOptions::follow`](crate::OpenOptions::follow).
#[derive(Debug)]
#[non_exhaustive]
pub struct Followed {
    /// From the tip down: the facts of each layer, and its image without its parents. Never empty.
    pub layers: Vec<(Layer, Arc<crate::VhdxFile>)>,
    /// Conditions that the caller should report.
    pub warnings: Vec<Warning>,
    /// Why the chain ends before its base, if it does.
    pub broken: Option<Error>,
}

impl Followed {
    pub(crate) fn follow(
        tip: crate::VhdxFile,
        policy: &ChainPolicy,
        images: &ImagePolicy,
        source: &dyn ParentSource,
    ) -> Self {
        let tip = tip.into_image();
        let writer = tip.writer.clone();
        let Walked { layers, warnings, broken } = walk(tip, policy, images, source);
        let of_images = layers.iter().flat_map(|link| link.image.warnings()).cloned();
        let warnings = of_images.chain(warnings).collect();
        // Only the tip can have been opened for writing.
        let handed_out = layers.into_iter().enumerate().map(|(n, link)| {
            let layer = Layer::of(&link);
            let image =
                OpenImage { core: link.layer.image, writer: writer.clone().filter(|_| n == 0) };
            (layer, Arc::new(crate::VhdxFile::own(image)))
        });
        let layers = handed_out.collect();
        Self { layers, warnings, broken }
    }
}

impl DiffChain {
    /// Opens the image at `path` with all its parents for reading, with the defaults of
    /// [`OpenOptions`](crate::OpenOptions).
    ///
    /// # Errors
    /// As [`OpenOptions::open`](crate::OpenOptions::open).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let host: Arc<dyn Host> = Arc::new(LocalHost);
        let source = PathSource::new().host(Arc::clone(&host));
        let (images, child_folders) = (ImagePolicy::default(), Vec::new());
        let opened = Opened { host, images, child_folders };
        Self::assemble(crate::VhdxFile::open(path)?, &ChainPolicy::default(), &source, opened)
    }

    /// The layers from the tip down to the base.
    pub fn layers(&self) -> Vec<Layer> {
        self.stack().links().iter().map(Layer::of).collect()
    }

    /// The image of a layer, for inspection: it is read-only, and writes go to the chain. `None` if the layer is not
    /// in this view.
    pub fn image(&self, layer: LayerId) -> Option<Arc<crate::VhdxFile>> {
        let stack = self.stack();
        let link = stack.links().iter().find(|link| link.image.id() == layer)?;
        Some(Arc::new(crate::VhdxFile::of_layer(&link.seat)))
    }

    /// The image at the tip, as from [`image`](Self::image). A checkpoint replaces it.
    pub fn tip(&self) -> Arc<crate::VhdxFile> {
        Arc::new(crate::VhdxFile::of_layer(&self.stack().links()[0].seat))
    }

    /// A read-only view of the disk as it was when `layer` was the tip.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the layer is not in this chain; [`ErrorKind::Unfinished`] if another layer is
    /// being merged into it.
    pub fn view(&self, layer: LayerId) -> Result<Self> {
        let stack = self.stack();
        let below = stack.position(layer)?;
        let image = &stack.links()[below].image;
        if below > 0 && image.merge_mark().is_some_and(|mark| mark.state == MergeState::Target) {
            image.check_point()?;
        }
        let (links, tally) = (Arc::clone(&stack.links), Arc::clone(&stack.tally));
        let kept = Arc::clone(&stack.kept);
        let view = self.live.view(Stack::new(links, stack.tip + below, None, tally, kept))?;
        Ok(Self { view, live: Arc::clone(&self.live) })
    }

    /// Conditions in all layers that the caller should report.
    pub fn warnings(&self) -> Vec<Warning> {
        let stack = self.stack();
        let of_images = stack.links().iter().flat_map(|link| link.image.warnings());
        of_images.chain(self.live.warnings()).cloned().collect()
    }

    /// The counts since the chain was opened, including those of clones and views.
    pub fn counters(&self) -> Counters {
        let stack = self.stack();
        let (index_hits, index_misses) = stack.tally.now();
        let of_layers = stack.links().iter().map(|link| link.image.counters().table_loads);
        Counters {
            table_loads: of_layers.sum(),
            index_hits,
            index_misses,
            ..stack.tip().counters()
        }
    }

    /// Ends the session that writes to the tip; see [`VhdxFile::close`](crate::VhdxFile::close). Does nothing for a
    /// view or a read-only chain.
    ///
    /// # Errors
    /// As [`Disk::flush`], and [`ErrorKind::InUse`] while [planned writes](Self::plan_write) are open.
    pub fn close(&self) -> Result<()> {
        self.stack().writer.as_ref().map_or(Ok(()), |writer| writer.close())
    }

    /// Finds and opens the parents of `tip`, one by one.
    pub(crate) fn assemble(
        tip: crate::VhdxFile,
        policy: &ChainPolicy,
        source: &dyn ParentSource,
        opened: Opened,
    ) -> Result<Self> {
        let tip = tip.into_image();
        let writer = tip.writer.clone();
        if !policy.unfinished {
            tip.core.check_point()?;
        }
        let Walked { layers, mut warnings, broken } = walk(tip, policy, &opened.images, source);
        warnings.extend(layers.iter().filter_map(|link| unfinished(&link.image)));
        match broken {
            Some(error) => Err(error),
            None => {
                trace::chain_opened(layers[0].image.name(), layers.len());
                let (view, live) = Live::start(opened, layers, writer, warnings);
                Ok(Self { view, live })
            }
        }
    }

    /// Changes the tip, or its successor if the tip is frozen meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] if the chain is not open for writing, and those of `change`.
    pub(super) fn change(&self, change: impl Fn(&Writer, &Stack) -> Result<()>) -> Result<()> {
        loop {
            let stack = self.stack();
            let Some(writer) = &stack.writer else {
                return Err(read_only(stack.tip().name()));
            };
            match change(writer, &stack) {
                Err(error)
                    if error.code() == "image.frozen" && !Arc::ptr_eq(&stack, &self.stack()) => {}
                done => return done,
            }
        }
    }

    pub(crate) fn tip_image(&self) -> Arc<Core> {
        Arc::clone(&self.stack().links()[0].image)
    }

    /// The images from the tip down to the base.
    pub(crate) fn images(&self) -> Vec<Arc<Core>> {
        self.stack().links().iter().map(|link| Arc::clone(&link.image)).collect()
    }
}

/// The warning for a layer with an unfinished merge.
fn unfinished(image: &Core) -> Option<Warning> {
    let Some(mark) = image.merge_mark().filter(|mark| mark.state != MergeState::Target) else {
        image.merge_request()?;
        let message = "its merge into the layer below was requested and has not begun: the chain reads right, and \
                       the merge is to be resumed";
        let warning = Warning::new("merge.unfinished", image.name(), message.to_owned());
        return Some(warning.of_layer(image.id()));
    };
    let parent = mark.name;
    let what = match mark.state {
        MergeState::Spent => "is complete, but for what links to the child",
        _ => "was interrupted",
    };
    let message = format!(
        "its merge into {parent} {what}: the chain reads right, and the merge is to be resumed"
    );
    Some(Warning::new("merge.unfinished", image.name(), message).of_layer(image.id()))
}

impl fmt::Debug for DiffChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stack().fmt(f)
    }
}
