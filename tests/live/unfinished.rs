//! Stopped merges, and what can be opened until they are completed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use avhdx::ops::{Checkpoint, Merge};
use avhdx::{DiffChain, Disk, ErrorKind, MergeState, OpenOptions};
use avhdx_testkit::rng::Rng;

use super::{MIB, base, bytes, naively, paths, writable};

const SIZE: u64 = 200 * MIB;

/// A chain of this many layers with up to 70 MiB each, and its contents.
pub(super) fn chain_of(layers: u64, folder: &Path) -> (DiffChain, Vec<u8>) {
    let chain = base(folder, SIZE);
    let mut model = vec![0; SIZE as usize];
    for n in 0..layers {
        if n > 0 {
            Checkpoint::new().run(&chain).unwrap();
        }
        let mut rng = Rng::new(n);
        for _ in 0..70 {
            let at = rng.below(SIZE - MIB);
            let byte = rng.next_u64() as u8 | 1;
            chain.write_at(&[byte; 1 << 20], at).unwrap();
            model[at as usize..(at + MIB) as usize].fill(byte);
        }
        chain.discard(n * MIB..(n + 3) * MIB).unwrap();
        model[(n * MIB) as usize..((n + 3) * MIB) as usize].fill(0);
    }
    chain.flush().unwrap();
    (chain, model)
}

/// Stops a merge at its `n`th report; returns whether there were that many.
pub(super) fn stopped_at(n: u64, merge: Merge, chain: &DiffChain) -> bool {
    let mut left = n;
    let done = merge
        .on_progress(|_| {
            left = left.saturating_sub(1);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .run(chain);
    match done {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            true
        }
    }
}

fn open(path: &Path) -> avhdx::Result<DiffChain> {
    OpenOptions::new().open(path)
}

#[test]
fn a_merge_that_was_stopped_anywhere_is_reported_and_completed() {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|long| long == "1");
    for (low_space, layer) in [(false, 1), (true, 0)] {
        for n in (1..).filter(|n| is_long || *n < 6 || n % 144 == 0) {
            let folder = tempfile::tempdir().unwrap();
            let (chain, mut model) = chain_of(3, folder.path());
            let files = paths(&chain);
            let merge = Merge::new(chain.layers()[layer].id).low_space(low_space);
            if !stopped_at(n, merge, &chain) {
                assert!(n > 4, "{n} stops");
                break;
            }
            assert!(bytes(&chain) == model, "stop {n} of {layer}");
            chain.write_at(&[9; 4096], 5 * MIB).unwrap();
            model[5 << 20..(5 << 20) + 4096].fill(9);
            chain.close().unwrap();
            drop(chain);

            // The next process reads the same.
            let (child, parent) = (&files[layer], &files[layer + 1]);
            assert!(naively(&files) == model, "stop {n} of {layer}");
            let opened = open(&files[0]).unwrap();
            assert!(bytes(&opened) == model, "stop {n} of {layer}");
            let mark = OpenOptions::new().open_image(child).unwrap().merge_mark();
            if let Some(mark) = &mark {
                assert_eq!((mark.state, mark.low_space), (MergeState::Merging, low_space));
                let warned = opened.warnings();
                assert!(warned.iter().any(|w| w.code == "merge.unfinished"), "{warned:?}");
                let error = open(parent).unwrap_err();
                assert_eq!((error.kind(), error.code()), (ErrorKind::Unfinished, "merge.target"));
                assert!(error.to_string().contains(child.file_name().unwrap().to_str().unwrap()));
                let point = opened.layers()[layer + 1].id;
                assert_eq!(opened.view(point).unwrap_err().kind(), ErrorKind::Unfinished);
                OpenOptions::new().unfinished(true).open(parent).unwrap();
            } else {
                assert!(n <= 2, "begun by its second word");
                assert!(open(parent).is_ok());
            }
            drop(opened);

            let chain = writable(&files[0]);
            let id = chain.layers()[layer].id;
            if mark.is_none() {
                let error = Merge::resume(id).run(&chain).unwrap_err();
                assert_eq!(error.code(), "merge.not-begun");
                continue;
            }
            let done = Merge::resume(id).low_space(low_space).run(&chain).unwrap();
            assert!(done.warnings.is_empty(), "{:?}", done.warnings);
            assert_eq!(done.removed, std::slice::from_ref(child));
            assert!(bytes(&chain) == model);
            chain.close().unwrap();
            let left = paths(&chain);
            drop(chain);
            assert!(naively(&left) == model);
            let opened = open(&left[0]).unwrap();
            assert!(bytes(&opened) == model && opened.warnings().is_empty());
            let marks =
                left.iter().map(|file| OpenOptions::new().open_image(file).unwrap().merge_mark());
            assert!(marks.into_iter().all(|mark| mark.is_none()));
        }
    }
}

/// Copies of a child from any time of its merge are never opened over a parent that has changed since.
#[test]
fn a_copy_of_a_merged_child_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, _) = chain_of(2, folder.path());
    let child = paths(&chain).remove(0);
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let keep = |name: &str| -> PathBuf {
        let copy = elsewhere.join(name);
        std::fs::copy(&child, &copy).unwrap();
        copy
    };
    // From before the merge and from during it.
    chain.close().unwrap();
    let before = keep("before.old");
    // And the file itself, under a name that is not removed.
    let spent = elsewhere.join("spent.old");
    std::fs::hard_link(&child, &spent).unwrap();
    let mut within = None;
    let merged = Merge::new(chain.tip().id())
        .on_progress(|progress| {
            if progress.done > 0 && within.is_none() {
                within = Some(keep("within.old"));
            }
            ControlFlow::Continue(())
        })
        .run(&chain);
    merged.unwrap();
    let base = paths(&chain);
    assert_eq!(base, [folder.path().join("web.vhdx")]);
    assert!(!child.exists());
    chain.write_at(&[0xEE; 512], 100 * MIB).unwrap();
    chain.close().unwrap();
    let model = bytes(&chain);
    drop(chain);
    for copy in [before, within.unwrap()] {
        std::fs::rename(&copy, &child).unwrap();
        let error = open(&child).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentMismatch, "{error}");
        assert!(bytes(&open(&base[0]).unwrap()) == model);
    }
    let error = open(&child).unwrap_err();
    assert!(error.to_string().contains("was being merged into web.vhdx"), "{error}");
    std::fs::rename(&spent, &child).unwrap();
    let error = open(&child).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Merged, "merge.spent"));
    assert!(error.to_string().contains("web.vhdx"), "{error}");
}
