use std::cell::Cell;
use std::sync::mpsc::channel;
use std::thread::scope;
use std::time::Duration;

use super::*;
use crate::chain::Stack;
use crate::disk::Zeroing;
use crate::read::HasLayers;
use crate::tables::{Budget, Epoch, PageView, TableFile};
use crate::types::{FileOffset, MIB};
use crate::{CreateOptions, DiffChain, Disk, LayerId, OpenOptions};

/// Longer than any step takes that is not blocked.
const PATIENCE: Duration = Duration::from_millis(100);

/// A child open for writing over a base filled with one byte. The child holds the first sector of its first block.
fn pair(folder: &tempfile::TempDir) -> DiffChain {
    let paths = ["base.vhdx", "child.avhdx"].map(|name| folder.path().join(name));
    let base = CreateOptions::dynamic(8 * MIB).block_size(1 << 20).create(&paths[0]).unwrap();
    base.write_at(&[1; 2 << 20], 0).unwrap();
    base.close().unwrap();
    let child = CreateOptions::child_of(&base).unwrap().block_size(1 << 20);
    drop(base);
    drop(child.create(&paths[1]).unwrap());
    let options = OpenOptions::new().writable(true).budget(Budget::new(8 << 20));
    let chain = options.open(&paths[1]).unwrap();
    chain.write_at(&[2; 512], 0).unwrap();
    chain
}

fn byte(chain: &DiffChain, sector: u64) -> u8 {
    let mut bytes = [0xAA; 512];
    chain.read_at(&mut bytes, sector * 512).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

fn query(stack: &Stack, at: u64, len: u64) -> Query<'_> {
    stack.layers().query(0, DiskOffset(at), len).unwrap()
}

/// Whether the layer that holds the sector at this offset is cached.
fn is_known(chain: &DiffChain, at: u64) -> bool {
    query(&chain.stack(), at, 512).first_known().is_some()
}

/// Calls the function whenever the tables of this layer are accessed.
#[derive(Clone, Copy)]
struct Before<'a>(LayerId, &'a dyn Fn());

impl PageSource for Before<'_> {
    type Stop = crate::Error;
    const READS: bool = false;

    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(PageView<'_>) -> T,
    ) -> Result<T> {
        if file.id() == self.0 {
            (self.1)();
        }
        FromFile.page(file, at, epoch, look)
    }
}

/// A partial answer from before a write is not extended and cached after it.
#[test]
fn what_is_found_out_from_what_was_known_before_a_change_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let chain = pair(&folder);
    // A query for the first sector leaves the others open.
    query(&chain.stack(), 0, 512).learn(FromFile).map(drop).unwrap();
    assert!(is_known(&chain, 0));
    assert!(!is_known(&chain, 512));
    let base = chain.images().last().unwrap().id();
    scope(|scope| {
        // The writer blocks where it invalidates answers.
        let tip = chain.tip();
        let mut held = Some(tip.budget().answers().unwrap().hold());
        let (done, writer) = channel();
        let chain = &chain;
        scope.spawn(move || done.send(chain.write_at(&[3; 4096], 4096)));
        std::thread::sleep(PATIENCE);
        let go_on = std::cell::RefCell::new(&mut held);
        query(&chain.stack(), 512, 512)
            .learn(Before(base, &|| {
                if go_on.borrow_mut().take().is_some() {
                    writer.recv().unwrap().unwrap();
                }
            }))
            .map(drop)
            .unwrap();
        assert!(held.is_none(), "the base was asked");
    });
    assert_eq!([0, 1, 7, 8, 15, 16].map(|sector| byte(&chain, sector)), [2, 1, 1, 3, 3, 1]);
}

/// A write that finds nothing left to change, because another has just changed it, still returns only after that
/// change is visible.
#[test]
fn nobody_returns_before_answers_go_that_another_made_wrong() {
    type Change = fn(&DiffChain);
    let cases: [(u64, u8, Change, Change); 3] = [
        (
            8,
            3,
            |c| c.write_at(&[3; 4096], 4096).unwrap(),
            |c| c.write_at(&[3; 4096], 4096).unwrap(),
        ),
        // The last sectors make the block fully present.
        (
            8,
            3,
            |c| c.write_at(&[3; MIB as usize - 512], 512).unwrap(),
            |c| c.write_at(&[3; 512], 4096).unwrap(),
        ),
        (
            0,
            0,
            |c| c.discard(0..MIB).unwrap(),
            |c| c.write_zeroes(0..512, Zeroing::KeepSpace).unwrap(),
        ),
    ];
    for (i, (sector, expected, first, second)) in cases.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let chain = pair(&folder);
        query(&chain.stack(), 0, MIB).learn(FromFile).map(drop).unwrap();
        assert!(is_known(&chain, sector * 512));
        let found = scope(|scope| {
            let tip = chain.tip();
            let held = tip.budget().answers().unwrap().hold();
            let chain = &chain;
            scope.spawn(move || first(chain));
            std::thread::sleep(PATIENCE);
            let second = scope.spawn(move || {
                second(chain);
                byte(chain, sector)
            });
            std::thread::sleep(PATIENCE);
            drop(held);
            second.join().unwrap()
        });
        assert_eq!(found, expected, "case {i}");
    }
}

/// As when two threads miss the same span, and one keeps the whole answer before the other looks again.
#[test]
fn a_span_that_is_known_by_now_is_found_out_without_asking_a_layer() {
    let folder = tempfile::tempdir().unwrap();
    let chain = pair(&folder);
    let stack = chain.stack();
    // All of the span: no run of it is left open.
    query(&stack, 0, MIB).learn(FromFile).map(drop).unwrap();
    let asked = || panic!("no layer is to be asked");
    for layer in chain.layers() {
        let query = query(&stack, 0, 512);
        let span = query.learn(Before(layer.id, &asked)).unwrap();
        let mut runs = [PackedRun::default(); 3];
        let found = span.find(query.sectors(), (0, 2047), &mut runs);
        assert_eq!(found, 2, "the child's sector, and the base's");
    }
}

/// As a bad sector that the drive reads at the second try.
#[test]
fn a_table_that_the_host_reads_at_the_second_try_fails_the_read() {
    let folder = tempfile::tempdir().unwrap();
    let chain = pair(&folder);
    let base = chain.images().last().unwrap().id();
    // Where the base alone is asked for the whole span, and where the child has a part of it.
    for at in [MIB, 512] {
        let failed = Cell::new(false);
        let found = query(&chain.stack(), at, 512).learn(FailsOnce(base, &failed));
        assert!(failed.get(), "at {at}: the base was asked");
        assert_eq!(found.map(drop).unwrap_err().kind(), crate::ErrorKind::Io, "at {at}");
    }
}

/// Fails the first access to the tables of this layer.
#[derive(Clone, Copy)]
struct FailsOnce<'a>(LayerId, &'a Cell<bool>);

impl PageSource for FailsOnce<'_> {
    type Stop = crate::Error;
    const READS: bool = false;

    fn is_host_failure(stop: &Self::Stop) -> bool {
        FromFile::is_host_failure(stop)
    }

    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(PageView<'_>) -> T,
    ) -> Result<T> {
        if file.id() == self.0 && !self.1.replace(true) {
            return Err(std::io::Error::other("the cable is out").into());
        }
        FromFile.page(file, at, epoch, look)
    }
}
