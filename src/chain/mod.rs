//! A chain of images: read-only parents under one tip.

mod disk;
mod live;
mod locate;
mod open;
mod parents;
mod past;

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::counters::{AnswerTally, Counters};
use crate::disk::{Geometry, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::file::Seat;
use crate::image::{Core, ImagePolicy, MergeState};
use crate::read;
use crate::warning::Warning;

use crate::write::{OpenImage, Writer};

use live::{Live, View};
pub(crate) use live::{Opened, Operation, Retired, path_of};
pub use locate::{Candidate, FoundBy, ParentSource, PathSource};
pub use open::Linkage;
pub(crate) use open::{
    ChainPolicy, Identity, changed_meanwhile, check_sectors, file_id, find_parent, loop_error,
    too_deep,
};
use past::Kept;

/// A disk as it is seen from one image of a chain: its own bytes, and below them its parents'.
///
/// A base alone is a chain of one. Clones and [`view`](Self::view)s share the open files. Writes go to the
/// tip alone, and a failure means for them what it means for that [image](crate::VhdxFile#after-a-failure). A chain
/// takes them when its tip was opened for writing, whatever operations do to its layers; its views, and the images
/// that it hands out, never do.
///
/// Operations such as [`Checkpoint`](crate::ops::Checkpoint) and [`Merge`](crate::ops::Merge) change which layers a
/// chain has while other threads read and write it: clones follow, and a view stays at its point in time.
///
/// Which layer answers for a place is found out when the place is first read, and remembered within the
/// [`Budget`](crate::Budget): from then on a read costs the same however many layers there are. What a write to
/// the tip changes is forgotten before the write returns. Bytes that lie in one piece in a file are read
/// at once, and zeros are not read.
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
    /// What this view sees, and its clones.
    view: Arc<View>,
    /// What all views have in common.
    live: Arc<Live>,
}

/// The layers of a chain at one moment, as a view has them.
#[derive(Clone)]
pub(crate) struct Stack {
    /// From the chain's tip down to the base. Never empty.
    pub(crate) links: Arc<[Link]>,
    /// The layer that this view has for its tip.
    pub(crate) tip: usize,
    /// What is read: the layers from that one on.
    layers: Box<[read::Layer]>,
    /// Counts the questions of all clones and views which layer has some bytes.
    tally: Arc<AnswerTally>,
    is_counted: bool,
    /// What writes to the tip: there in the chain itself, where that was asked for, and in no view.
    pub(crate) writer: Option<Arc<Writer>>,
    /// What goes when nobody has these layers any more.
    kept: Arc<Kept>,
}

/// A layer, and how it was found from the one above.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) layer: read::Layer,
    /// Where those find the image who were given this layer.
    pub(crate) seat: Arc<Seat>,
    pub(crate) found_by: Option<FoundBy>,
}

/// Facts of one layer of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layer {
    /// What names the layer in extents.
    pub id: LayerId,
    /// What errors call its file.
    pub name: String,
    /// Where the file lies, if it lies in a folder.
    pub path: Option<PathBuf>,
    /// The name that it was opened by, where symbolic links led from that to its path.
    pub via: Option<PathBuf>,
    /// Its identity, \[MS-VHDX\] 2.2.2.
    pub data_write_guid: Uuid,
    /// Size and sector sizes of the disk as this layer has it.
    pub geometry: Geometry,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// Length of the file in bytes, a replayed log included.
    pub file_len: u64,
    /// Whether a log was replayed in memory.
    pub log_pending: bool,
    /// How it was found from the layer above; `None` for the tip.
    pub found_by: Option<FoundBy>,
}

/// The layers of a chain as far as they can be followed, found by
/// [`OpenOptions::follow`](crate::OpenOptions::follow).
#[derive(Debug)]
#[non_exhaustive]
pub struct Followed {
    /// From the tip downwards, the facts of each layer and its image alone. Never empty.
    pub layers: Vec<(Layer, Arc<crate::VhdxFile>)>,
    /// What the user of the chain should hear of.
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
        let open::Walked { layers, warnings, broken } = open::walk(tip, policy, images, source);
        let of_images = layers.iter().flat_map(|link| link.image.warnings()).cloned();
        let warnings = of_images.chain(warnings).collect();
        // Only of the tip is there somebody who may have asked to write to it.
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
        crate::OpenOptions::new().open(path)
    }

    /// The layers from the tip down to the base.
    pub fn layers(&self) -> Vec<Layer> {
        self.stack().links().iter().map(Layer::of).collect()
    }

    /// The image of a layer, `None` when it is not in this view. It is there to be looked at: writes go to the
    /// chain.
    pub fn image(&self, layer: LayerId) -> Option<Arc<crate::VhdxFile>> {
        let stack = self.stack();
        let link = stack.links().iter().find(|link| link.image.id() == layer)?;
        Some(Arc::new(crate::VhdxFile::of_layer(&link.seat)))
    }

    /// The image at the tip, as [`image`](Self::image) has it. A checkpoint puts another in its place.
    pub fn tip(&self) -> Arc<crate::VhdxFile> {
        Arc::new(crate::VhdxFile::of_layer(&self.stack().links()[0].seat))
    }

    /// The disk as it was when `layer` was its tip, to be read only.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the layer is not in this chain; [`ErrorKind::Unfinished`] when another is
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

    /// What the user of the chain should hear of, from all its layers.
    pub fn warnings(&self) -> Vec<Warning> {
        let stack = self.stack();
        let of_images = stack.links().iter().flat_map(|link| link.image.warnings());
        of_images.chain(self.live.warnings()).cloned().collect()
    }

    /// What was done since the chain was opened, clones and views included.
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

    /// Ends the session that writes to the tip; see [`VhdxFile::close`](crate::VhdxFile::close). For a view, and where
    /// the chain is not open for writing, there is nothing to be done.
    ///
    /// # Errors
    /// As [`Disk::flush`].
    pub fn close(&self) -> Result<()> {
        self.stack().writer.as_ref().map_or(Ok(()), |writer| writer.close())
    }

    pub(crate) fn tip_image(&self) -> Arc<Core> {
        Arc::clone(&self.stack().links()[0].image)
    }

    /// The images from the tip down to the base.
    pub(crate) fn images(&self) -> Vec<Arc<Core>> {
        self.stack().links().iter().map(|link| Arc::clone(&link.image)).collect()
    }
}

impl Stack {
    fn new(
        links: Arc<[Link]>,
        tip: usize,
        writer: Option<Arc<Writer>>,
        tally: Arc<AnswerTally>,
        kept: Arc<Kept>,
    ) -> Self {
        let layers = links[tip..].iter().map(|link| link.layer.clone()).collect();
        // Where there is one layer it has all bytes, unless they may change.
        let is_counted = links.len() > tip + 1 || links[tip].is_written();
        Self { links, tip, layers, tally, is_counted, writer, kept }
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links[self.tip..]
    }

    pub(crate) fn tip(&self) -> &Core {
        &self.layers[0].image
    }

    /// Where below the tip a layer is.
    fn position(&self, layer: LayerId) -> Result<usize> {
        let found = self.links().iter().position(|link| link.image.id() == layer);
        found.ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "chain.layer", "no such layer in the chain")
                .in_file(self.tip().name())
                .with_found(layer)
                .with_expected(format_args!("one of its {} layers", self.links().len()))
        })
    }
}

impl Link {
    fn new(image: &OpenImage, found_by: Option<FoundBy>) -> Self {
        let layer = read::Layer::new(Arc::clone(&image.core));
        Self { layer, seat: Seat::new(image), found_by }
    }

    /// The same layer with another handle of its file.
    fn with_image(&self, image: &OpenImage) -> Self {
        let layer = read::Layer { image: Arc::clone(&image.core), ..self.layer.clone() };
        Self { layer, seat: self.seat.replace(image), found_by: self.found_by }
    }
}

impl Deref for Link {
    type Target = read::Layer;

    fn deref(&self) -> &read::Layer {
        &self.layer
    }
}

impl Layer {
    fn of(link: &Link) -> Self {
        let image = &link.image;
        Self {
            id: image.id(),
            name: image.name().to_owned(),
            path: image.path().map(Path::to_path_buf),
            via: image.via().map(Path::to_path_buf),
            data_write_guid: image.data_write_guid(),
            geometry: image.geometry(),
            block_size: image.block_size(),
            file_len: image.file_len(),
            log_pending: image.has_replayed_log(),
            found_by: link.found_by,
        }
    }
}

impl fmt::Debug for DiffChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stack().fmt(f)
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.links().iter().map(|link| &link.image)).finish()
    }
}
