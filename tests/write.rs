//! Writes held against a model that is a plain vector of bytes.

use avhdx::{Budget, CreateOptions, DiffChain, Disk, OpenOptions, Zeroing};
use avhdx_testkit::rng::Rng;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, len: u64, seed: u64 },
    Zero { at: u64, len: u64, keep: bool },
    Discard { at: u64, len: u64 },
    Flush,
    Close,
    Reopen,
}

fn range(size: u64) -> impl Strategy<Value = (u64, u64)> {
    let any_length = prop_oneof![
        1..600_u64,
        (1..40_u64).prop_map(|sectors| sectors * 512),
        Just(MIB),
        1..3 * MIB,
    ];
    let place = prop_oneof![
        0..size,
        (0..size / 512).prop_map(|s| s * 512),
        (0..size / MIB).prop_map(|b| b * MIB)
    ];
    (place, any_length).prop_map(move |(at, len)| (at, len.min(size - at)))
}

fn op(size: u64) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (range(size), any::<u64>()).prop_map(|((at, len), seed)| Op::Write { at, len, seed }),
        1 => (range(size), any::<bool>()).prop_map(|((at, len), keep)| Op::Zero { at, len, keep }),
        2 => range(size).prop_map(|(at, len)| Op::Discard { at, len }),
        2 => Just(Op::Flush),
        1 => Just(Op::Close),
        1 => Just(Op::Reopen),
    ]
}

/// Runs the operations on a chain of `layers` and on a vector, and compares them after each.
fn check(ops: &[Op], size: u64, layers: usize, sector: u32, budget: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = |layer: usize| folder.path().join(format!("l{layer}.vhdx"));
    let open = |layer| {
        let options = OpenOptions::new().writable(true).budget(Budget::new(budget));
        options.open(path(layer)).unwrap()
    };
    let mut model = vec![0; size as usize];
    let base = CreateOptions::dynamic(size).block_size(1 << 20).logical_sector(sector);
    drop(base.create(path(0)).unwrap());
    let mut rng = Rng::new(1);
    for layer in 1..layers {
        let parent = open(layer - 1);
        for _ in 0..10 {
            let at = rng.below(size - 70_000);
            let bytes: Vec<u8> = (0..rng.below(70_000)).map(|_| rng.next_u64() as u8).collect();
            parent.write_at(&bytes, at).unwrap();
            model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        parent.close().unwrap();
        let child = CreateOptions::child_of(parent.tip()).unwrap().block_size(2 << 20);
        drop(parent);
        drop(child.create(path(layer)).unwrap());
    }
    let mut chain = open(layers - 1);
    for op in ops {
        match *op {
            Op::Write { at, len, seed } => {
                let mut rng = Rng::new(seed);
                let bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
                chain.write_at(&bytes, at).unwrap();
                model[at as usize..][..len as usize].copy_from_slice(&bytes);
            }
            Op::Zero { at, len, keep } => {
                let how = if keep { Zeroing::KeepSpace } else { Zeroing::MayUnmap };
                chain.write_zeroes(at..at + len, how).unwrap();
                model[at as usize..][..len as usize].fill(0);
            }
            Op::Discard { at, len } => {
                chain.discard(at..at + len).unwrap();
                model[at as usize..][..len as usize].fill(0);
            }
            Op::Flush => chain.flush().unwrap(),
            Op::Close => chain.close().unwrap(),
            Op::Reopen => {
                drop(chain);
                chain = open(layers - 1);
            }
        }
        let mut bytes = vec![0; size as usize];
        chain.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == model, "after {op:?}");
    }
    chain.close().unwrap();
    drop(chain);
    let paths: Vec<_> = (0..layers).map(path).collect();
    let naive = avhdx_testkit::naive::Chain::open(&paths).unwrap();
    assert!(naive.flat(layers - 1).unwrap() == model, "the naive reader sees something else");
    DiffChain::open(path(layers - 1)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn writes_read_back_as_from_a_plain_array(
        ops in proptest::collection::vec(op(6 * MIB + 4096), 1..25),
        layers in 1_usize..4,
        large_sectors in any::<bool>(),
        budget in prop_oneof![Just(0), Just(64 << 20)],
    ) {
        let sector = if large_sectors { 4096 } else { 512 };
        check(&ops, 6 * MIB + 4096, layers, sector, budget);
    }
}
