//! The cost of forecasting a merge of very many blocks.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use avhdx::ops::{Merge, Progress};
use avhdx::{Budget, DiffChain, ErrorKind, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image, write_chain};

use super::MIB;

const BLOCKS: u64 = 256 << 10;
/// How many pages of 4 KiB hold the entries of the blocks, including those of sector bitmaps.
const PAGES: u64 = BLOCKS / 512 + 1;

/// A base and two layers above it, the upper one of which has zeros in all blocks but one.
fn all_zeros(folder: &Path) -> Vec<PathBuf> {
    let base = Image::dynamic(BLOCKS * MIB);
    let middle = base.new_child();
    let mut tip = middle.new_child();
    tip.put(7, Block::full(Data::Pattern(7)));
    let place = tip.layout().payload[&7];
    let mut table = Vec::new();
    for block in 0..BLOCKS {
        let entry = if block == 7 { place | 6 } else { 2_u64 };
        table.extend(entry.to_le_bytes());
        if (block + 1) % tip.chunk_ratio() == 0 {
            table.extend([0; 8]);
        }
    }
    tip.patches.push((tip.bat_offset, table));
    write_chain(folder, &[base, middle, tip])
}

fn open(path: &Path, budget: usize) -> DiffChain {
    OpenOptions::new().writable(true).budget(Budget::new(budget)).open(path).unwrap()
}

#[test]
fn a_merge_can_be_stopped_during_its_forecast() {
    let folder = tempfile::tempdir().unwrap();
    let paths = all_zeros(folder.path());
    let contents = || paths.iter().map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>();
    let before = contents();
    let chain = open(&paths[2], 8 << 20);
    for low_space in [false, true] {
        let mut words = 0;
        let on = &mut |Progress { done, total, .. }: Progress| {
            words += 1;
            assert_eq!((done, total), (0, 0), "it is not known yet how much there is to do");
            if words == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let merge = Merge::new(chain.layers()[0].id).low_space(low_space);
        let error = merge.on_progress(on).run(&chain).unwrap_err();
        assert_eq!((error.kind(), words), (ErrorKind::Cancelled, 5), "{error}");
    }
    drop(chain);
    assert!(contents() == before);
}

/// Measured by loads into a cache that holds little more than a page: each page is loaded a few times, however
/// many blocks are asked for at once.
#[test]
fn a_forecast_of_a_merge_loads_each_table_page_a_few_times() {
    let folder = tempfile::tempdir().unwrap();
    let paths = all_zeros(folder.path());
    let chain = open(&paths[2], 16 << 10);
    for low_space in [false, true] {
        let before = chain.counters().table_loads;
        let merge = Merge::new(chain.layers()[0].id).low_space(low_space);
        let forecast = merge.forecast(&chain).unwrap();
        assert_eq!((forecast.read, forecast.written), (MIB, MIB));
        let loads = chain.counters().table_loads - before;
        assert!(loads <= 6 * PAGES, "{loads} loads of {PAGES} pages, low space: {low_space}");
    }
}
