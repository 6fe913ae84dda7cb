//! Sound chains with a few changes.

use std::ops::Range;
use std::sync::OnceLock;

use avhdx_testkit::build::{Block, Data, Image, state};
use avhdx_testkit::fields::{Field, bat_entries, fields};
use avhdx_testkit::hostile::{Chain, Mutation, corpus, set};
use avhdx_testkit::sim::Bytes;

use crate::image::{bytes_of, reseal};
use crate::input::Input;

const MIB: u64 = 1 << 20;

/// A sound chain, base first, and what can be changed in it.
struct Sound {
    layers: Vec<Layer>,
}

struct Layer {
    bytes: Bytes,
    structures: Vec<(String, Range<u64>)>,
    fields: Vec<Field>,
    /// Where entries of the table are, and what to put there.
    entries: (Vec<u64>, Vec<u64>),
}

fn sound() -> &'static [Sound] {
    static SOUND: OnceLock<Vec<Sound>> = OnceLock::new();
    SOUND.get_or_init(|| {
        let mut chains = corpus();
        chains.push(Chain::new(&small()));
        chains.iter().map(|chain| Sound { layers: layers(chain) }).collect()
    })
}

/// A base and a child of every state, of a sector bitmap that two blocks share.
fn small() -> [Image; 2] {
    let mut base = Image::dynamic(4 * MIB);
    for (block, state) in (0..).zip([state::FULLY_PRESENT, state::ZERO, state::UNMAPPED]) {
        base.put(block, Block::full(Data::Bytes(vec![block as u8 + 1; 5000])).with_state(state));
    }
    let mut child = base.new_child();
    child.put(0, Block::partial_runs(Data::Bytes(vec![7; 9000]), &[(1, 3), (9, 1), (2047, 1)]));
    child.put(2, Block::partial_runs(Data::Bytes(vec![8; 9000]), &[(0, 8)]));
    child.put(3, Block::full(Data::Bytes(vec![9; 100])));
    child.put(1, Block::bare(state::UNDEFINED));
    [base, child]
}

fn layers(chain: &Chain) -> Vec<Layer> {
    let layer = |(image, structures): (&Image, &Vec<_>)| {
        let (bytes, layout) = bytes_of(image);
        let places: Vec<u64> =
            layout.payload.values().chain(layout.bitmaps.values()).copied().collect();
        let at = (0..image.block_count()).map(|block| layout.payload_entry(block).start);
        let at = at.chain([layout.bitmap_entry(0).start]).collect();
        let entries = (at, bat_entries(&places, layout.file_length));
        Layer { bytes, structures: structures.clone(), fields: fields(image), entries }
    };
    chain.images.iter().zip(&chain.structures).map(layer).collect()
}

/// A sound chain with up to four changes, and mostly right sums.
pub fn mutated(input: &mut Input<'_>) -> Vec<Bytes> {
    let sound = input.pick(sound());
    let mut files: Vec<Bytes> = sound.layers.iter().map(|layer| layer.bytes.clone()).collect();
    let is_sealed = !input.chance(1, 8);
    for _ in 0..1 + input.below(4) {
        // Usually the tip.
        let n = files.len() - 1 - input.below(files.len() as u64) as usize;
        change(&mut files[n], &sound.layers[n], input);
        if is_sealed {
            reseal(&mut files[n]);
        }
    }
    files
}

fn change(file: &mut Bytes, layer: &Layer, input: &mut Input<'_>) {
    let len = file.len();
    let there = |at: u64, width: u64| at.checked_add(width).is_some_and(|end| end <= len);
    match input.below(8) {
        0 | 1 => {
            let field = input.pick(&layer.fields);
            let width = u64::from(field.width);
            let value = if input.chance(1, 3) {
                input.number()
            } else {
                let mut now = vec![0; 8];
                if there(field.at[0], width) {
                    file.read(field.at[0], &mut now[..field.width as usize]);
                }
                let now = u64::from_le_bytes(now.try_into().expect("eight bytes"));
                *input.pick(&field.extremes(now))
            };
            for at in &field.at {
                if at + width <= file.len() {
                    set(file, *at, width, value);
                }
            }
        }
        2 | 3 => {
            let (at, value) = (*input.pick(&layer.entries.0), *input.pick(&layer.entries.1));
            if there(at, 8) {
                set(file, at, 8, value);
            }
        }
        kind => {
            let structure = input.below(layer.structures.len() as u64) as usize;
            let at = if input.chance(1, 2) { input.below(64) } else { input.below(5000) };
            let mutation = match kind {
                4 => Mutation::Flip { structure, at, bits: 1 << input.below(8) },
                5 => Mutation::Cut {
                    sectors: input.below(3000),
                    more: if input.chance(1, 2) { input.below(4096) } else { 0 },
                },
                6 => {
                    let to = input.below(layer.structures.len() as u64) as usize;
                    Mutation::Copy { from: structure, to, len: input.below(300) }
                }
                _ => {
                    let width = *input.pick(&[2, 4, 8]);
                    Mutation::Set { structure, at, width, value: input.number() }
                }
            };
            mutation.apply(file, &layer.structures);
        }
    }
}
