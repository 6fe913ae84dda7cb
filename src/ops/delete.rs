//! Gives up a point in time.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{Forecast, Merge, Merged, Pace, Progress};
use crate::chain::DiffChain;
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};

/// Gives up a point in time of a chain and keeps all others: the layer above it is [merged](Merge) into the layer that
/// was on top at this point.
///
/// The chain may be in use, and every other point reads the same bytes before, meanwhile and afterwards. If the point
/// below the tip is given up, the disk is found [under the tip's path](Self::keep_name) afterwards. After a crash or a
/// failure, [`Merge::resume`] completes the deletion.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Delete;
///
/// let chain = OpenOptions::new().writable(true).open("web_3C4D.avhdx")?;
/// let oldest = chain.points().pop().expect("a chain has a base");
/// let deleted = Delete::point(oldest.layer).run(&chain)?;
/// println!("{} bytes moved", deleted.moved);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Delete<'a> {
    point: LayerId,
    merge: Merge<'a>,
}

impl<'a> Delete<'a> {
    /// Gives up the point at which `layer` was the tip.
    pub fn point(layer: LayerId) -> Self {
        // The layer to merge is known once the chain is.
        Self { point: layer, merge: Merge::new(layer).keep_name(true) }
    }

    /// Whether the disk keeps the path of its tip if the point below the tip is given up, as for
    /// [`Merge::keep_name`]. The default is yes.
    pub fn keep_name(mut self, yes: bool) -> Self {
        self.merge = self.merge.keep_name(yes);
        self
    }

    /// As [`Merge::no_other_children`].
    pub fn no_other_children(mut self, yes: bool) -> Self {
        self.merge = self.merge.no_other_children(yes);
        self
    }

    /// As [`Merge::children_in`].
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.merge = self.merge.children_in(folder);
        self
    }

    /// As [`Merge::low_space`].
    pub fn low_space(mut self, yes: bool) -> Self {
        self.merge = self.merge.low_space(yes);
        self
    }

    /// As [`Merge::shrink`].
    pub fn shrink(mut self, yes: bool) -> Self {
        self.merge = self.merge.shrink(yes);
        self
    }

    /// As [`Merge::share`].
    pub fn share(mut self, yes: bool) -> Self {
        self.merge = self.merge.share(yes);
        self
    }

    /// As [`Merge::pace`].
    pub fn pace(mut self, pace: Pace) -> Self {
        self.merge = self.merge.pace(pace);
        self
    }

    /// As [`Merge::on_progress`].
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.merge = self.merge.on_progress(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do, without changing anything.
    ///
    /// # Errors
    /// Those of [`Merge::forecast`], and [`ErrorKind::InvalidInput`] if the layer is the tip.
    pub fn forecast(&self, chain: &DiffChain) -> Result<Forecast> {
        self.merge_in(chain)?.forecast(chain)
    }

    /// Whether each point of the chain could be given up in the way of this one, in the order of
    /// [`DiffChain::points`]: the error with which [`run`](Self::run) would refuse it before anything is changed, except
    /// for a lack of space. Reads tables, but no data.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a view of an earlier point; [`ErrorKind::InUse`] while another operation runs.
    pub fn check_points(&self, chain: &DiffChain) -> Result<Vec<Result<()>>> {
        let below = self.merge.check_each(chain)?;
        Ok(std::iter::once(Err(the_tip(chain.tip().name()))).chain(below).collect())
    }

    /// Gives up the point, in this chain and all its clones.
    ///
    /// # Errors
    /// Those of [`Merge::run`], and [`ErrorKind::InvalidInput`] if the layer is the tip or is not in the chain.
    pub fn run(self, chain: &DiffChain) -> Result<Merged> {
        self.merge_in(chain)?.run(chain)
    }

    /// The merge of the layer above the point.
    fn merge_in(&self, chain: &DiffChain) -> Result<Merge<'a>> {
        let layers = chain.layers();
        let above = match layers.iter().position(|layer| layer.id == self.point) {
            Some(0) => return Err(the_tip(&layers[0].name)),
            Some(point) => layers[point - 1].id,
            // The merge refuses a layer that is not in the chain.
            None => self.point,
        };
        Ok(self.merge.clone().of_child(above))
    }
}

fn the_tip(name: &str) -> Error {
    let message = "the tip is the present, not a point that can be given up";
    Error::new(ErrorKind::InvalidInput, "delete.tip", message)
        .in_file(name)
        .with_found("the tip")
        .with_expected("an earlier point; a revert gives up what came after it")
}
