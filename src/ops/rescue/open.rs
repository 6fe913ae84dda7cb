//! Reads one file as far as it goes.

use std::sync::Arc;

use super::anatomy::Anatomy;
use super::items::Items;
use super::layer::Layer;
use super::shape::{self, Given};
use crate::error::Result;
use crate::storage::Storage;

/// What is left of the image in `storage`.
pub(super) fn open(storage: Arc<dyn Storage>, given: &Given) -> Result<Layer> {
    let mut anatomy = Anatomy::find(storage)?;
    let items = Items::find(&mut anatomy);
    let shape = shape::find(&mut anatomy, &items, given)?;
    let mut layer = Layer::new(anatomy, shape, items.locator);
    layer.settle();
    Ok(layer)
}
