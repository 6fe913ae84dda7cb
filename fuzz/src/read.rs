//! Mutated chains: what opens reads as the naive reader has it.

use avhdx::{Linkage, LogPolicy};

use crate::compare::{Errors, agrees, is_beyond_naive, is_of_locator};
use crate::input::Input;
use crate::mutated::mutated;
use crate::place::Place;
use crate::reading::{is_told, read_all};

pub fn run(input: &mut Input<'_>) {
    let place = Place::new(&mutated(input));
    let linkage = if input.chance(1, 2) { Linkage::Verify } else { Linkage::Ignore };
    let log = *input.pick(&[LogPolicy::Replay, LogPolicy::Replay, LogPolicy::Ignore]);
    let before = place.host.files().sum();
    match place.open(&place.options().linkage(linkage).log(log)) {
        Ok(chain) if log == LogPolicy::Replay && !is_beyond_naive(&chain) => {
            // A layer that is no child hides what is below it.
            let layers = chain.layers().len();
            match place.naive(layers) {
                Ok(naive) => agrees(&chain, &naive, layers - 1, &[], Errors::Allowed, input),
                Err(why) => {
                    // Without links the library reads what a damaged locator belongs to.
                    assert!(is_of_locator(&why), "it opens, but {why}");
                    read_all(&chain);
                }
            }
        }
        Ok(chain) => read_all(&chain),
        Err(error) => is_told(&error),
    }
    assert_eq!(place.host.files().sum(), before, "reading changed a file");
}
