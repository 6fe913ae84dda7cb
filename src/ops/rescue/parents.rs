//! Finds the parents of damaged images.

use std::sync::Arc;

use uuid::Uuid;

use super::layer::Layer;
use super::open::open;
use super::shape::Given;
use crate::chain::{Candidate, FoundBy, Identity, Linkage};
use crate::image::{ParentLink, lock};
use crate::options::OpenOptions;
use crate::storage::{Access, LockMode, Storage};

/// The parent of the last of these layers, or why there is none. `Ok(None)` below a base.
pub(super) fn below(
    options: &OpenOptions,
    layers: &[Layer],
    seen: &mut Vec<Identity>,
) -> Result<Option<Layer>, String> {
    let Some(child) = layers.last().filter(|layer| layer.shape.has_parent) else {
        return Ok(None);
    };
    let (images, chain) = options.policies();
    let ignores_identity = chain.linkage == Linkage::Ignore;
    if layers.len() >= chain.max_depth {
        return Err(format!("the chain is deeper than {} images", chain.max_depth));
    }
    let Some(locator) = &child.locator else {
        return Err("the record of the parent is lost".into());
    };
    let linkages = locator.linkages_as_meant(0, &mut drop);
    let file = &child.anatomy.careful;
    let link = ParentLink::from_locator(locator, linkages, file.name(), file.path(), file.via());
    let mut second_best: Option<(Arc<dyn Storage>, &str)> = None;
    let mut why = None;
    let source = options.source();
    for Candidate { name, found_by, opened } in source.candidates(&link, Access::Read) {
        let storage = match opened {
            Ok(storage) => storage,
            Err(error) => {
                why.get_or_insert(format!("{name}: {error}"));
                continue;
            }
        };
        if let Err(error) = lock(storage.as_ref(), images.lock, LockMode::Shared, &mut Vec::new()) {
            return Err(error.in_file(&name).to_string());
        }
        let layer = match open(Arc::clone(&storage), &Given::default()) {
            Ok(layer) => layer,
            Err(error) => {
                why.get_or_insert(error.in_file(&name).to_string());
                continue;
            }
        };
        let guid = layer.anatomy.header.as_ref().map(|header| header.data_write_guid);
        match guid {
            Some(guid) if link.accepts(guid) => {
                remember(seen, &layer, guid)?;
                return Ok(Some(layer));
            }
            // A searched folder has files of any kind.
            _ if found_by == FoundBy::FolderSearch => {}
            None if found_by == FoundBy::Given || ignores_identity => {
                let text = "its identity is lost, and it was named as the parent";
                second_best.get_or_insert((storage, text));
            }
            None => {
                why.get_or_insert(format!("{name}: its identity is lost"));
            }
            Some(_) if ignores_identity => {
                let text = "its identity is another, which was to be ignored";
                second_best.get_or_insert((storage, text));
            }
            Some(guid) => {
                let wanted = link.linkage;
                why.get_or_insert(format!("{name}: its identity is {guid}, not {wanted}"));
            }
        }
    }
    let Some((storage, text)) = second_best else {
        return Err(why.unwrap_or_else(|| format!("no file with the identity {}", link.linkage)));
    };
    let mut layer = open(storage, &Given::default()).map_err(|error| error.to_string())?;
    let guid = layer.anatomy.header.as_ref().map(|header| header.data_write_guid);
    remember(seen, &layer, guid.unwrap_or_default())?;
    layer.anatomy.doubt(format!("this file is taken for the parent: {text}"));
    Ok(Some(layer))
}

/// Refuses a file that is in the chain already.
pub(super) fn remember(seen: &mut Vec<Identity>, layer: &Layer, guid: Uuid) -> Result<(), String> {
    let identity =
        Identity::of(layer.anatomy.careful.as_ref(), guid).map_err(|error| error.to_string())?;
    if seen.contains(&identity) {
        return Err(format!("{} is in the chain already", layer.name()));
    }
    seen.push(identity);
    Ok(())
}
