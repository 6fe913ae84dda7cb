//! What operations keep, and what they refuse because they could not keep it.

use std::ops::ControlFlow;

use avhdx::ops::{Merge, Revert};
use avhdx::{Budget, CreateOptions, Disk, ErrorKind, OpenOptions};

use super::unfinished::{chain_of, stopped_at};
use super::{MIB, bytes, naively, paths, writable};

/// The merge is complete by the time it waits for readers of the old tip.
#[test]
fn a_plan_that_outlives_the_merge_of_the_tip_does_not_end_its_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, mut model) = chain_of(2, folder.path());
    let child = paths(&chain).remove(0);
    let mut plan = None;
    let merge = Merge::new(chain.tip().id());
    let merged = merge
        .on_progress(|progress| {
            if progress.done > 0 && plan.is_none() {
                plan = Some(chain.plan_read(0..MIB).unwrap());
            }
            ControlFlow::Continue(())
        })
        .run(&chain);
    let merged = merged.unwrap_or_else(|error| panic!("{error}"));
    assert!(plan.is_some());
    assert!(merged.warnings.iter().any(|w| w.code == "merge.still-read"), "{:?}", merged.warnings);
    assert_eq!(merged.removed, [child]);
    chain.write_at(&[7; 4096], 3 * MIB).unwrap();
    model[3 << 20..(3 << 20) + 4096].fill(7);
    assert!(bytes(&chain) == model);
    drop(plan);
    chain.close().unwrap();
    let left = paths(&chain);
    assert_eq!(left.len(), 1);
    drop(chain);
    assert!(naively(&left) == model);
}

/// Two chains with one budget share a handle of their parent, and a lock.
#[test]
fn a_refused_merge_leaves_the_other_chain_its_lock() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, _) = chain_of(3, folder.path());
    let files = paths(&chain);
    drop(chain);
    let budget = Budget::new(8 << 20);
    let open = |writes| OpenOptions::new().writable(writes).budget(budget.clone());
    let other = open(false).open(&files[1]).unwrap();
    let chain = open(false).open(&files[0]).unwrap();
    let locked = || OpenOptions::new().writable(true).open_image(&files[2]).unwrap_err().kind();
    assert_eq!(locked(), ErrorKind::InUse);
    let error = Merge::new(chain.layers()[1].id).run(&chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    drop(chain);
    assert_eq!(locked(), ErrorKind::InUse, "the other chain reads it");
    drop(other);
    assert_eq!(locked(), ErrorKind::HasChildren, "nobody has it open");
}

/// The same if only the lower layer is shared, by a branch in a folder that is not searched.
#[test]
fn a_merge_refused_for_another_chain_leaves_that_its_lock() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, _) = chain_of(2, folder.path());
    let files = paths(&chain);
    drop(chain);
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let branch = elsewhere.join("branch.avhdx");
    let parent = OpenOptions::new().open_image(&files[1]).unwrap();
    drop(CreateOptions::child_of(&parent).unwrap().create(&branch).unwrap());
    drop(parent);
    let budget = Budget::new(8 << 20);
    let open = |path| OpenOptions::new().budget(budget.clone()).open(path).unwrap();
    let (other, chain) = (open(&branch), open(&files[0]));
    let error = Merge::new(chain.layers()[0].id).run(&chain).unwrap_err();
    assert_eq!(
        (error.kind(), error.found()),
        (ErrorKind::InUse, Some("another chain of this program"))
    );
    drop(chain);
    let writable = OpenOptions::new().writable(true).orphan_children(true);
    let locked = writable.open_image(&files[1]).unwrap_err();
    assert_eq!(locked.kind(), ErrorKind::InUse, "the other chain reads it");
    drop(other);
    writable.open_image(&files[1]).unwrap();
}

/// The target of a stopped merge is a mixture without the layer above it.
#[test]
fn no_operation_continues_on_the_target_of_an_unfinished_merge() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, model) = chain_of(4, folder.path());
    let ids: Vec<_> = chain.layers().iter().map(|layer| layer.id).collect();
    assert!(stopped_at(4, Merge::new(ids[1]), &chain));
    chain.close().unwrap();
    let files = paths(&chain);
    drop(chain);
    let chain = writable(&files[0]);
    let ids: Vec<_> = chain.layers().iter().map(|layer| layer.id).collect();
    let refused = |error: avhdx::Error| {
        assert_eq!(error.kind(), ErrorKind::Unfinished, "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
        assert!(paths(&chain) == files && bytes(&chain) == model);
    };
    refused(Revert::to(ids[2]).run(&chain).unwrap_err());
    // Merging it further down would move the mixture and remove its mark.
    refused(Merge::new(ids[2]).run(&chain).unwrap_err());
    // A merge into the layer that is being merged would make that impossible to resume.
    refused(Merge::new(ids[0]).run(&chain).unwrap_err());
    Merge::resume(ids[1]).run(&chain).unwrap();
    assert!(bytes(&chain) == model);
    chain.close().unwrap();
    assert!(naively(&paths(&chain)) == model);
}
