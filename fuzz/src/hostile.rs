//! Mutated chains: every call that reads, sessions that write, and operations that give an image another shape, by the
//! tests of hostile images.

use std::sync::Arc;

use avhdx_testkit::sim::Bytes;

use crate::input::Input;
use crate::mutated::mutated;
use crate::{reading, reshaping, writing};

pub fn run(input: &mut Input<'_>) {
    let files: Vec<Arc<Vec<u8>>> = mutated(input).iter().map(dense).collect();
    match input.below(3) {
        0 => writing::change(&files, input.any()),
        1 => reading::exercise(&files),
        _ => drop(reshaping::reshape(&files, input.any())),
    }
}

fn dense(bytes: &Bytes) -> Arc<Vec<u8>> {
    let mut dense = vec![0; bytes.len() as usize];
    bytes.read(0, &mut dense);
    Arc::new(dense)
}
