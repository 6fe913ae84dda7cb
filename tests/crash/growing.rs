//! Workloads in which the file grows: new blocks and newly set bits, over zeros and over data of a parent, in grown,
//! freed and left-over space.

use avhdx::{DiffChain, Zeroing};

use crate::driver::{Driver, KIB, MIB, Setup};
use crate::interleave::interleaved;
use crate::workloads::{Workload, base, dynamic, flush, freed, headers_full, large, one, small};

pub const ALL: &[Workload] = &[
    small("new blocks, flush after flush", || one(dynamic(12 * MIB).start(), new_blocks)).on_both(),
    small("new blocks over an empty parent", || one(over_nothing(12 * MIB), new_blocks)).on_both(),
    small("new blocks over a full parent", || one(over_all(12 * MIB), new_blocks)).on_both(),
    small("more flushes than pages wait for", || one(dynamic(SIX_PAGES).start(), many_flushes))
        .on_both(),
    small("more flushes than pages wait for, empty parent", || {
        one(over_nothing(SIX_PAGES), many_flushes)
    }),
    small("more flushes than pages wait for, full parent", || {
        one(over_first_blocks(), many_flushes)
    }),
    small("whole blocks over anything", || one(over_some(), whole_blocks)).on_both(),
    small("bits over zeros and data", || one(over_some(), some_bits)).on_both(),
    small("bits over zeros, until the block is full", || one(over_nothing(4 * MIB), bits_fill))
        .on_both(),
    small("bits over zeros, sectors of 4096", bits_fill_in_large_sectors),
    small("growth in large blocks", || one(large_blocks(), growth_steps)).on_both(),
    small("growth in large blocks, empty parent", || {
        one(large_blocks_over_nothing(), growth_steps)
    }),
    small("discard and write again", || one(dynamic(6 * MIB).start(), discard_and_write)).on_both(),
    small("discard and write again, empty parent", || {
        one(over_nothing(6 * MIB), discard_and_write)
    }),
    small("discard and write again, full parent", || one(over_all(6 * MIB), discard_and_write)),
    small("freed space, dynamic", || one(dynamic(8 * MIB).start(), into_freed_space)).on_both(),
    small("freed space, empty parent", || one(over_nothing(8 * MIB), into_freed_space)).on_both(),
    small("freed space, full parent", || one(over_all(8 * MIB), into_freed_space)),
    small("grown and freed space in one commit", || one(dynamic(10 * MIB).start(), one_of_many))
        .on_both(),
    small("grown and freed space in one commit, child", || one(over_some(), one_of_many)),
    small("zeros over zeros in one commit with data", || one(over_some(), one_over_data)).on_both(),
    small("discards beside writes in place", || one(dynamic(6 * MIB).start(), only_discards)),
    small("zeros as data", || one(dynamic(6 * MIB).start(), zeros_as_data)).on_both(),
    small("zeros as data, empty parent", || one(over_nothing(6 * MIB), zeros_as_data)),
    small("zeros as data, full parent", || one(over_all(6 * MIB), zeros_as_data)),
    small("growing sessions", || one(dynamic(12 * MIB).start(), growing_sessions)).on_both(),
    small("growing sessions, empty parent", || one(over_nothing(12 * MIB), growing_sessions)),
    small("headers full, killed sessions", || one(headers_full().start(), killed_sessions)),
    small("left over by a killed session", || one(dynamic(10 * MIB).start(), left_over)).on_both(),
    small("left over by a killed session, empty parent", || one(over_nothing(10 * MIB), left_over))
        .on_both(),
    small("left over behind bits", || one(over_nothing(4 * MIB), left_behind_bits)).on_both(),
    small("left over behind bits, freed space", || one(over_nothing(4 * MIB), freed_behind_bits)),
    small("a new block's flush, a write in place meanwhile", || {
        interleaved(
            || dynamic(6 * MIB).start(),
            growing,
            flush,
            |d, c| {
                d.write(c, 60, 2 * MIB + 4 * KIB, 2 * KIB);
            },
        )
    }),
    small("a new block's flush, a new sector meanwhile", || {
        interleaved(
            || over_nothing(6 * MIB),
            growing,
            flush,
            |d, c| {
                d.write(c, 61, 2 * MIB + 64 * KIB, KIB);
            },
        )
    }),
    small("a new block's flush, a new block meanwhile", || {
        interleaved(
            || dynamic(6 * MIB).start(),
            growing,
            flush,
            |d, c| {
                d.write(c, 62, 4 * MIB + 8 * KIB, KIB);
            },
        )
    }),
    small("a new block's flush, its discard meanwhile", || {
        interleaved(
            || dynamic(6 * MIB).start(),
            growing,
            flush,
            |d, c| {
                d.discard(c, 2 * MIB, MIB);
                d.write(c, 63, 2 * MIB + 8 * KIB, KIB);
            },
        )
    }),
    small("a new block's flush, a write and a flush meanwhile", || {
        interleaved(
            || dynamic(6 * MIB).start(),
            growing,
            flush,
            |d, c| {
                d.write(c, 64, 4 * MIB + 8 * KIB, KIB);
                d.flush(c);
            },
        )
    }),
    small("reuse of a whole block, a flush meanwhile", || {
        interleaved(|| dynamic(4 * MIB).start(), freed, |d, c| d.write(c, 67, 3 * MIB, MIB), flush)
    }),
    large("log wraps under new blocks", || one(dynamic(170 * MIB).start(), new_blocks_wrap)),
    large("log wraps under new bits", || one(over_nothing(4 * MIB), new_bits_wrap)),
];

/// Of longer ranges only both ends are compared, in bytes.
const LONGEST: u64 = 32 * KIB;

/// So large that its block allocation table has six pages.
const SIX_PAGES: u64 = 6 * 512 * MIB;

/// A block's place in the disk, such that blocks in sequence have their entries in different pages.
fn in_turn(block: u64) -> u64 {
    block % 6 * 512 * MIB + block * MIB
}

/// A child of a parent that has all blocks [in turn](in_turn).
fn over_first_blocks() -> Driver {
    let base = (0..12).fold(dynamic(SIX_PAGES), |base, n| base.write(in_turn(n), MIB));
    base.child(1 << 20).start()
}

/// A child of a parent that has no block.
fn over_nothing(size: u64) -> Driver {
    dynamic(size).child(1 << 20).start()
}

/// A child of a parent that has all of every block.
fn over_all(size: u64) -> Driver {
    (0..size / MIB)
        .fold(dynamic(size), |base, block| base.write(block * MIB, MIB))
        .child(1 << 20)
        .start()
}

/// A child of a parent that has all of each fourth block, 16 KiB of those after it, zeros as data in those after
/// these, and nothing of the others.
fn over_some() -> Driver {
    let some = (0..3).fold(dynamic(12 * MIB), |base, n| {
        let at = 4 * n * MIB;
        base.write(at, MIB).write(at + MIB + 8 * KIB, 16 * KIB).write_zeros(at + 2 * MIB, 64 * KIB)
    });
    some.child(1 << 20).start()
}

fn large_blocks_setup() -> Setup {
    base(512 * MIB, 32 << 20)
}

fn large_blocks() -> Driver {
    large_blocks_setup().start()
}

fn large_blocks_over_nothing() -> Driver {
    large_blocks_setup().child(32 << 20).start()
}

/// Each flush has new blocks, and writes in place to those before.
fn new_blocks(driver: &Driver) {
    let chain = driver.open();
    for round in 0..5 {
        let seed = 10 * round;
        driver.write(&chain, seed, 2 * round * MIB + 8 * KIB, 4 * KIB);
        if round % 2 == 1 {
            driver.write(&chain, seed + 1, (2 * round + 1) * MIB + 64 * KIB, 8 * KIB);
        }
        if let Some(before) = round.checked_sub(1) {
            driver.write(&chain, seed + 2, 2 * before * MIB + 10 * KIB, 2 * KIB);
        }
        if let Some(before) = round.checked_sub(2) {
            driver.write(&chain, seed + 3, 2 * before * MIB + 300 * KIB, 2 * KIB);
        }
        driver.flush(&chain);
    }
    // Without a change of the tables, and at once with one.
    driver.write(&chain, 60, 8 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 61, 11 * MIB, 2 * KIB);
    driver.close(&chain);
}

/// Table pages are written to their places once in several flushes, and at the close.
fn many_flushes(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    for round in 0..11 {
        driver.write(&chain, 10 * round, in_turn(round) + 8 * KIB, 4 * KIB);
        if let Some(before) = round.checked_sub(2) {
            driver.write(&chain, 10 * round + 1, in_turn(before) + 300 * KIB, 2 * KIB);
        }
        if round % 4 == 3 {
            driver.discard(&chain, in_turn(round - 3), MIB);
        }
        driver.flush(&chain);
    }
    driver.write(&chain, 200, in_turn(11), 2 * KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 201, in_turn(4), KIB);
    driver.close(&chain);
}

fn whole_blocks(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    // Over nothing, over all, over something, over zeros as data.
    for (seed, block) in [(1, 3), (2, 0), (3, 1), (4, 2)] {
        driver.write(&chain, seed, block * MIB, MIB);
        driver.flush(&chain);
    }
    driver.write(&chain, 5, 7 * MIB, MIB);
    driver.write(&chain, 6, 4 * MIB, MIB);
    driver.flush(&chain);
    driver.write(&chain, 7, 9 * MIB, 2 * MIB);
    driver.write(&chain, 8, 11 * MIB + 4 * KIB, KIB);
    driver.close(&chain);
}

fn some_bits(driver: &Driver) {
    let chain = driver.open();
    // Zeros of a block that has data.
    driver.write(&chain, 1, MIB + 64 * KIB, 2 * KIB);
    driver.flush(&chain);
    // Data alone, then both.
    driver.write(&chain, 2, MIB + 10 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, MIB + 23 * KIB, 2 * KIB);
    driver.flush(&chain);
    // A new block, over both; over data; over zeros as data; over nothing.
    driver.write(&chain, 4, 5 * MIB + 7 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 4 * MIB + 512, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 6, 2 * MIB + 8 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 7, 3 * MIB + 8 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 8, 3 * MIB + 64 * KIB, 700);
    driver.kill(chain);
}

fn bits_fill(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    for round in 0..4 {
        driver.write(&chain, 10 * round, 16 * round * KIB, 4 * KIB);
        driver.write(&chain, 10 * round + 1, MIB + 100 * KIB + 4 * round * KIB, 4 * KIB);
        driver.flush(&chain);
        driver.write(&chain, 10 * round + 2, 16 * round * KIB, 4 * KIB);
    }
    // All but the end of the second block, then the end.
    driver.write(&chain, 50, MIB, MIB - 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 51, 2 * MIB - 4 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 52, MIB + 8 * KIB, 4 * KIB);
    driver.write(&chain, 53, 0, MIB);
    driver.close(&chain);
}

fn bits_fill_in_large_sectors() -> Vec<crate::driver::Recorded> {
    let options = avhdx::CreateOptions::dynamic(4 * MIB).logical_sector(4096);
    let base = Setup::base(options, 4 * MIB, 1 << 20).write(3 * MIB, 8 * KIB);
    one(base.child(1 << 20).start(), bits_fill)
}

/// Blocks so large that few of them fit into a step by which the file grows.
fn growth_steps(driver: &Driver) {
    let block = 32 * MIB;
    let chain = driver.open();
    for round in 0..5 {
        driver.write(&chain, 10 * round, 2 * round * block + 4 * KIB, 4 * KIB);
        if round % 2 == 0 {
            driver.write(&chain, 10 * round + 1, (2 * round + 1) * block + 4 * KIB, 2 * KIB);
        }
        if round != 1 {
            driver.flush(&chain);
        }
        driver.write(&chain, 10 * round + 2, 2 * round * block + 5 * KIB, 2 * KIB);
    }
    driver.flush(&chain);
    driver.write(&chain, 60, 11 * block + 4 * KIB, KIB);
    driver.close(&chain);
}

fn discard_and_write(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    driver.write(&chain, 1, 0, MIB);
    driver.write(&chain, 2, MIB + 4 * KIB, 8 * KIB);
    driver.write(&chain, 3, 2 * MIB, 4 * KIB);
    driver.flush(&chain);
    // In one commit.
    driver.discard(&chain, 0, MIB);
    driver.write(&chain, 4, 8 * KIB, 2 * KIB);
    driver.flush(&chain);
    // In the next.
    driver.discard(&chain, MIB, MIB);
    driver.flush(&chain);
    driver.write(&chain, 5, MIB + 6 * KIB, 4 * KIB);
    driver.flush(&chain);
    // Twice, and a new block that is gone before it is flushed.
    driver.discard(&chain, 0, 2 * MIB);
    driver.write(&chain, 6, 10 * KIB, 2 * KIB);
    driver.write(&chain, 7, 3 * MIB, 8 * KIB);
    driver.discard(&chain, 0, MIB);
    driver.discard(&chain, 3 * MIB, MIB);
    driver.write(&chain, 8, 9 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 9, 3 * MIB + 4 * KIB, KIB);
    driver.close(&chain);
}

/// Space is freed, its freeing flushed, and another block put into it.
fn into_freed_space(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    driver.write(&chain, 1, 0, MIB);
    driver.write(&chain, 2, MIB, MIB);
    driver.write(&chain, 3, 2 * MIB, MIB);
    driver.flush(&chain);
    driver.discard(&chain, 0, 2 * MIB);
    driver.flush(&chain);
    driver.write(&chain, 4, 4 * MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 5 * MIB, MIB);
    driver.flush(&chain);
    // More of the first of them, then both at once.
    driver.write(&chain, 6, 4 * MIB + 64 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.discard(&chain, 4 * MIB, 2 * MIB);
    driver.write(&chain, 7, 2 * MIB + 8 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 8, 6 * MIB + 4 * KIB, 4 * KIB);
    driver.write(&chain, 9, 7 * MIB + 4 * KIB, 4 * KIB);
    driver.close(&chain);
}

/// Each commit has blocks in grown space, and one in freed space.
fn one_of_many(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    driver.write(&chain, 1, 3 * MIB, MIB);
    driver.write(&chain, 2, 7 * MIB, MIB);
    driver.flush(&chain);
    driver.discard(&chain, 3 * MIB, MIB);
    driver.flush(&chain);
    // The first takes the freed space.
    driver.write(&chain, 3, 3 * MIB + 8 * KIB, 4 * KIB);
    driver.write(&chain, 4, 2 * MIB + 8 * KIB, 4 * KIB);
    driver.write(&chain, 5, 6 * MIB, 4 * KIB);
    driver.flush(&chain);
    driver.discard(&chain, 7 * MIB, MIB);
    driver.flush(&chain);
    driver.write(&chain, 6, 8 * MIB, MIB);
    driver.write(&chain, 7, 9 * MIB + 8 * KIB, 4 * KIB);
    driver.close(&chain);
}

/// Each commit has a block over zeros, and a change over data of the parent.
fn one_over_data(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    driver.write(&chain, 1, 3 * MIB + 8 * KIB, 4 * KIB);
    driver.write(&chain, 2, 0, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, 7 * MIB + 8 * KIB, 4 * KIB);
    driver.write(&chain, 4, 4 * MIB, MIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 3 * MIB + 32 * KIB, 4 * KIB);
    driver.write(&chain, 6, 8 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 7, 11 * MIB, MIB);
    driver.discard(&chain, 8 * MIB, MIB);
    driver.zero(&chain, 9 * MIB + 8 * KIB, 4 * KIB, Zeroing::MayUnmap);
    driver.close(&chain);
}

fn only_discards(driver: &Driver) {
    let chain = driver.open();
    for block in 0..5 {
        driver.write(&chain, block, block * MIB, 8 * KIB);
    }
    driver.flush(&chain);
    for block in 0..3 {
        driver.discard(&chain, block * MIB, MIB);
        driver.write(&chain, 10 + block, 3 * MIB + 2 * block * KIB, 2 * KIB);
        driver.flush(&chain);
    }
    driver.discard(&chain, 3 * MIB, 2 * MIB);
    driver.close(&chain);
}

fn zeros_as_data(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    driver.write_zeros(&chain, 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write_zeros(&chain, MIB, MIB);
    driver.write(&chain, 1, 2 * MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    // Zeros over data, and data over zeros.
    driver.write_zeros(&chain, 2 * MIB + 10 * KIB, 2 * KIB);
    driver.write(&chain, 2, MIB + 8 * KIB, 2 * KIB);
    driver.flush(&chain);
    driver.discard(&chain, MIB, MIB);
    driver.flush(&chain);
    // Into freed space.
    driver.write_zeros(&chain, 3 * MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, 4 * MIB + 8 * KIB, 2 * KIB);
    driver.write_zeros(&chain, 4 * MIB + 10 * KIB, 2 * KIB);
    driver.close(&chain);
}

/// Three sessions that grow the file: a close with the same handle used on, another handle, and a kill.
fn growing_sessions(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 8 * KIB, 4 * KIB);
    driver.write(&chain, 2, MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, 2 * MIB + 8 * KIB, 4 * KIB);
    driver.close(&chain);
    driver.session();
    driver.write(&chain, 4, 3 * MIB + 8 * KIB, 4 * KIB);
    driver.write(&chain, 5, 8 * KIB, KIB);
    driver.flush(&chain);
    driver.write(&chain, 6, 4 * MIB + 8 * KIB, 4 * KIB);
    driver.close(&chain);
    drop(chain);
    let chain = driver.open();
    driver.write(&chain, 7, 5 * MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 8, 6 * MIB + 8 * KIB, 4 * KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 9, 6 * MIB + 10 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 10, 7 * MIB + 8 * KIB, 4 * KIB);
    driver.close(&chain);
}

/// Sessions that are killed at once, with a header and no flush of their own since, or after one flush.
fn killed_sessions(driver: &Driver) {
    let mut chain = driver.open();
    for round in 0..3 {
        driver.write(&chain, 10 * round, round * MIB + 8 * KIB, 2 * KIB);
        if round == 1 {
            driver.flush(&chain);
        }
        driver.kill(chain);
        chain = driver.open_after_kill();
    }
    driver.write(&chain, 31, 3 * MIB + 8 * KIB, 2 * KIB);
    driver.close(&chain);
    driver.session();
    driver.write(&chain, 32, 3 * MIB + 10 * KIB, 2 * KIB);
    driver.kill(chain);
}

/// New blocks of a killed session have bytes in the file and no entry in the table.
fn left_over(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 2, MIB, 96 * KIB);
    driver.write(&chain, 3, 2 * MIB, 96 * KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 4, 3 * MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, 4 * MIB + 64 * KIB, 4 * KIB);
    driver.write(&chain, 6, 3 * MIB + 64 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 7, 5 * MIB, 96 * KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 8, 6 * MIB + 8 * KIB, 4 * KIB);
    driver.close(&chain);
}

/// Sectors of a killed session have bytes in their block and no bits.
fn left_behind_bits(driver: &Driver) {
    let chain = driver.open();
    driver.write(&chain, 1, 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 2, 32 * KIB, 16 * KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 3, 36 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 4, MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 5, MIB + 32 * KIB, 4 * KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 6, 32 * KIB, 2 * KIB);
    driver.write(&chain, 7, MIB + 32 * KIB, 2 * KIB);
    driver.close(&chain);
}

/// A partially present block lies in space that was another's: behind its bits are that block's bytes.
fn freed_behind_bits(driver: &Driver) {
    driver.model().look_at_most(LONGEST);
    let chain = driver.open();
    driver.write(&chain, 1, 0, MIB);
    driver.flush(&chain);
    driver.discard(&chain, 0, MIB);
    driver.flush(&chain);
    driver.write(&chain, 2, MIB + 8 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, MIB + 32 * KIB, 4 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 4, MIB + 12 * KIB, 4 * KIB);
    driver.write(&chain, 5, 2 * MIB + 8 * KIB, 4 * KIB);
    driver.close(&chain);
}

/// Before an interrupted flush: new blocks, one with a neighbor in the table that was flushed before.
fn growing(driver: &Driver, chain: &DiffChain) {
    driver.write(chain, 1, 4 * KIB, 4 * KIB);
    driver.flush(chain);
    driver.write(chain, 2, MIB + 4 * KIB, 4 * KIB);
    driver.flush(chain);
    driver.write(chain, 3, 2 * MIB + 4 * KIB, 4 * KIB);
    driver.write(chain, 4, 6 * KIB, 2 * KIB);
}

/// A new block in each round, until the ring has wrapped.
fn new_blocks_wrap(driver: &Driver) {
    let chain = driver.open();
    for round in 0..140 {
        driver.write(&chain, round, round * MIB + 4 * KIB, 2 * KIB);
        if round % 3 == 2 {
            driver.write(&chain, 200 + round, (round - 1) * MIB + 5 * KIB, KIB);
        }
        driver.flush(&chain);
        if round == 122 {
            driver.look_from_here();
        }
    }
    driver.kill(chain);
}

/// New sectors in each round.
fn new_bits_wrap(driver: &Driver) {
    let chain = driver.open();
    for round in 0..140 {
        driver.write(&chain, round, round * 4 * KIB, KIB);
        driver.flush(&chain);
        if round == 122 {
            driver.look_from_here();
        }
    }
    driver.close(&chain);
}
