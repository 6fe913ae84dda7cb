//! Corruptions by chance.

pub use avhdx_testkit::hostile::{Chain, EXTREMES, GUID, Mutation, corpus, set};
use proptest::prelude::*;

pub fn any_mutation() -> impl Strategy<Value = Mutation> {
    let at = || prop_oneof![0..64_u64, 0..5000_u64];
    let structure = || 0..1000_usize;
    let width = || prop_oneof![Just(2_u8), Just(4), Just(8)];
    let value = || {
        prop_oneof![
            proptest::sample::select(&EXTREMES[..]),
            any::<u64>(),
            // A small number of MiB and a block state.
            (0..12_u64, 0..8_u64).prop_map(|(mib, state)| mib << 20 | state),
        ]
    };
    prop_oneof![
        4 => (structure(), at(), 1..=255_u8)
            .prop_map(|(structure, at, bits)| Mutation::Flip { structure, at, bits }),
        8 => (structure(), at(), width(), value())
            .prop_map(|(structure, at, width, value)| Mutation::Set { structure, at, width, value }),
        1 => (0..3000_u64, prop_oneof![Just(0_u64), 0..4096_u64])
            .prop_map(|(sectors, more)| Mutation::Cut { sectors, more }),
        1 => (structure(), structure(), any::<u64>())
            .prop_map(|(from, to, len)| Mutation::Copy { from, to, len }),
    ]
}
