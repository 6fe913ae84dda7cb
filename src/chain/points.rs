//! The points in time of a chain.

use std::path::PathBuf;
use std::time::SystemTime;

use uuid::Uuid;

use super::diff_chain::DiffChain;
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};

/// A point in time of a chain: the disk as it was when a layer was the tip.
///
/// ```no_run
/// use avhdx::DiffChain;
///
/// let chain = DiffChain::open("web_1A2B.avhdx")?;
/// for point in chain.points() {
///     println!("{}  {}", point.name, point.label.as_deref().unwrap_or("-"));
/// }
/// let before = chain.view_at("before the upgrade")?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Point {
    /// The layer on top at this point. [`DiffChain::view`] reads the disk as it was.
    pub layer: LayerId,
    /// The name of the layer's file in errors.
    pub name: String,
    /// The path of the layer's file, if it is in a folder.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::types::shown_path"))]
    pub path: Option<PathBuf>,
    /// The `DataWriteGuid` of the layer, \[MS-VHDX\] 2.2.2: it identifies the point, whatever the file is called.
    pub data_write_guid: Uuid,
    /// The label of the checkpoint, if it has one. The tip has none.
    pub label: Option<String>,
    /// The time of the checkpoint, to the second. `None` for the tip, and for checkpoints by programs that record
    /// none.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::types::seconds_if_any"))]
    pub time: Option<SystemTime>,
}

impl DiffChain {
    /// The points in time of the chain, newest first. The first is the tip, which is the present.
    pub fn points(&self) -> Vec<Point> {
        let stack = self.stack();
        let images = stack.links().iter().map(|link| &link.image);
        // The child that a checkpoint made has the mark of the point below it.
        let marks = images.clone().map(|image| image.checkpoint());
        let marks = std::iter::once(None).chain(marks);
        let points = images.zip(marks).map(|(image, mark)| Point {
            layer: image.id(),
            name: image.name().to_owned(),
            path: image.path().map(PathBuf::from),
            data_write_guid: image.data_write_guid(),
            time: mark.as_ref().map(|mark| mark.time),
            label: mark.map(|mark| mark.label).filter(|label| !label.is_empty()),
        });
        points.collect()
    }

    /// A read-only view of the disk at the point with this label.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if no point has the label, or several have it; those of [`view`](Self::view).
    pub fn view_at(&self, label: &str) -> Result<Self> {
        let mut points = self.points();
        points.retain(|point| point.label.as_deref() == Some(label));
        let wrong = |code, message: &str, found: String| {
            Error::new(ErrorKind::InvalidInput, code, message)
                .in_file(self.tip_image().name())
                .with_found(found)
                .with_expected("a label that one point has")
        };
        match &points[..] {
            [point] => self.view(point.layer),
            [] => Err(wrong("point.unknown", "no point has this label", format!("{label:?}"))),
            several => {
                let guids = several.iter().map(|point| point.data_write_guid.to_string());
                let found = format!("{label:?} at {}", guids.collect::<Vec<_>>().join(", "));
                Err(wrong("point.ambiguous", "several points have this label", found))
            }
        }
    }
}
