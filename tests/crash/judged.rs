//! The judge notices what it is there for: each outcome here is wrong in one way.

use avhdx_testkit::naive::{Chain, Who};

use crate::driver::{KIB, MIB, Recorded};
use crate::model::Expected;
use crate::sim::{Bytes, Files, STALE};
use crate::verdict::layer;
use crate::workloads::child_setup;

/// A child whose first block is partially present over data, and whose second is fully present. All is flushed.
fn flushed() -> (Recorded, Expected) {
    let driver = child_setup(4 * MIB).start();
    let chain = driver.open();
    driver.write(&chain, 1, 8 * KIB, 4 * KIB);
    driver.write(&chain, 2, MIB, MIB);
    driver.write_zeros(&chain, 14 * KIB, 2 * KIB);
    driver.close(&chain);
    let recorded = driver.finish();
    let cut = recorded.events.len() + 1;
    let expected = recorded.model.expected(&recorded.model.segments(), cut);
    (recorded, expected)
}

struct Tip<'a> {
    recorded: &'a Recorded,
    files: Files,
}

impl Tip<'_> {
    fn file(&mut self) -> &mut Bytes {
        let number = self.files.names[&self.recorded.judge.tip];
        self.files.file_mut(number)
    }

    /// The file offset of a sector that the tip has.
    fn place(&self, at: u64) -> u64 {
        let judge = &self.recorded.judge;
        let mut layers = judge.parents.clone();
        layers.push(layer(&self.files, &judge.tip).unwrap());
        match Chain(layers).who(1, at / 512).unwrap() {
            Who::Data { layer: 1, at } => at,
            who => panic!("{who:?} has the sector at {at:#x}"),
        }
    }

    fn unit(&mut self, at: u64) -> [u8; 512] {
        let mut unit = [0; 512];
        self.file().read(at, &mut unit);
        unit
    }

    /// Turns the bit of a sector of the first block.
    fn turn(&mut self, sector: u64) {
        let bitmap = layer(&self.files, &self.recorded.judge.tip).unwrap().bitmaps().unwrap()[0];
        let mut byte = [0];
        self.file().read(bitmap + sector / 8, &mut byte);
        self.file().write(bitmap + sector / 8, &[byte[0] ^ 1 << (sector % 8)]);
    }
}

fn verdict_on(change: impl FnOnce(&mut Tip<'_>)) -> Result<bool, String> {
    let (recorded, expected) = flushed();
    let mut tip = Tip { recorded: &recorded, files: recorded.end.clone() };
    change(&mut tip);
    recorded.judge.judge(&tip.files, &expected)
}

#[track_caller]
fn refuses(why: &str, change: impl FnOnce(&mut Tip<'_>)) {
    let refused = verdict_on(change).expect_err("the judge accepts it");
    assert!(refused.contains(why), "{refused}");
}

#[test]
fn the_judge_accepts_what_was_flushed() {
    assert_eq!(verdict_on(|_| {}), Ok(true));
}

#[test]
fn the_judge_notices_zeros_where_flushed_data_was() {
    refuses("reads zeros", |tip| {
        let at = tip.place(9 * KIB);
        tip.file().write(at, &[0; 512]);
    });
}

#[test]
fn the_judge_notices_zeros_where_the_parent_showed() {
    // Its bit is set, and the space behind it was never written to.
    refuses("reads zeros", |tip| tip.turn(12 * KIB / 512));
}

#[test]
fn the_judge_notices_the_parent_where_flushed_data_was() {
    refuses("other bytes", |tip| tip.turn(9 * KIB / 512));
    // The flushed data are zeros.
    refuses("other bytes", |tip| tip.turn(14 * KIB / 512));
}

#[test]
fn the_judge_notices_bytes_of_another_block() {
    refuses("what another place may be", |tip| {
        let (from, at) = (tip.place(MIB + 9 * KIB), tip.place(9 * KIB));
        let other = tip.unit(from);
        tip.file().write(at, &other);
    });
    // Where the block was not written to, but the other was.
    refuses("what another place may be", |tip| {
        let (from, at) = (tip.place(8 * KIB), tip.place(MIB + 8 * KIB));
        let other = tip.unit(from);
        tip.file().write(at, &other);
    });
}

#[test]
fn the_judge_notices_stale_bytes() {
    refuses("stale bytes", |tip| {
        let at = tip.place(9 * KIB);
        tip.file().write(at, &STALE.repeat(64));
    });
}
