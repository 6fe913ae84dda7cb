//! Labels a point in time.

use std::ops::ControlFlow;
use std::time::SystemTime;

use crate::chain::{DiffChain, path_of};
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::CheckpointMark;
use crate::write::ItemEdit;

/// Gives a point in time another label.
///
/// The label is stored in the layer above the point. Only an item of avhdx in the metadata of that file changes: its
/// disk and its `DataWriteGuid` stay, so children still accept it.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Label;
///
/// let chain = OpenOptions::new().writable(true).open("web_3C4D.avhdx")?;
/// let point = chain.points()[1].layer;
/// Label::new(point, "before the upgrade").run(&chain)?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Label {
    point: LayerId,
    text: String,
    write_frozen: bool,
}

impl Label {
    /// Labels the point at which `layer` was the tip, in up to 4096 bytes. An empty text removes the label.
    pub fn new(layer: LayerId, text: impl Into<String>) -> Self {
        Self { point: layer, text: text.into(), write_frozen: false }
    }

    /// Consents to changing the metadata of a layer that is not the tip. Needed for every point but the newest.
    pub fn write_frozen(mut self, yes: bool) -> Self {
        self.write_frozen = yes;
        self
    }

    /// Writes the label, durably. A point without a mark gets the time at which its file was last written to.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the layer is the tip or is not in the chain, or the label is too long;
    /// [`ErrorKind::HasChildren`] if the label is stored in a frozen layer, without
    /// [consent](Self::write_frozen); [`ErrorKind::InUse`] if somebody else has that layer open, or another
    /// operation runs; [`ErrorKind::ReadOnly`] and [`ErrorKind::Io`] if the host does not allow it.
    pub fn run(self, chain: &DiffChain) -> Result<()> {
        let op = chain.operate()?;
        let point = op.find(self.point)?;
        let images = op.images();
        let Some(layer) = point.checked_sub(1) else {
            let message = "the tip is the present, and has no label yet";
            return Err(Error::new(ErrorKind::InvalidInput, "label.tip", message)
                .in_file(images[0].name())
                .with_found("the tip")
                .with_expected("an earlier point; a checkpoint gives the present a label"));
        };
        let holder = &images[layer];
        if self.text.len() > CheckpointMark::MOST_LABEL {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "checkpoint.label",
                "the label is too long",
            )
            .in_file(holder.name())
            .with_found(format_args!("{} bytes", self.text.len()))
            .with_expected(format_args!("at most {}", CheckpointMark::MOST_LABEL)));
        }
        if layer > 0 && !self.write_frozen {
            let message = "the label is stored in a layer that others lie on";
            return Err(Error::new(ErrorKind::HasChildren, "label.frozen", message)
                .in_file(holder.name())
                .with_found("a frozen layer")
                .with_expected("the newest point, or consent to change the layer's metadata"));
        }
        let time = match holder.checkpoint() {
            Some(mark) => mark.time,
            None => {
                let stat = op.host().stat(path_of(&images[point])?).ok();
                stat.and_then(|stat| stat.modified).unwrap_or_else(SystemTime::now)
            }
        };
        drop(images);
        let live = op.writer().filter(|writer| layer == 0 && writer.core().takes_writes());
        let edit = [ItemEdit::checkpoint_mark(&CheckpointMark { label: self.text, time })];
        if let Some(writer) = live {
            return writer.edit_metadata(&edit);
        }
        // As before any change: what lost something is left alone.
        op.check_claims(layer)?;
        let taken = op.take(&[layer], &mut || ControlFlow::Continue(()))?;
        let edited = taken.iter().try_for_each(|writer| writer.edit_metadata(&edit));
        let settled = taken.iter().try_for_each(|writer| op.settle(writer));
        edited.and(settled)
    }
}
