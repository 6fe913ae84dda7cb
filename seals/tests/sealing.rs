//! What is sealed, and by which hash.

use std::fs;

use avhdx::ops::Checkpoint;
use avhdx::{Disk, OpenOptions};
use avhdx_seals::{LeftOut, Outcome, Seal, SealFile, Verify, chain_hash};
use avhdx_testkit::rng::Rng;

use crate::common::{Files, long, open, seal_of};

#[test]
fn the_root_is_that_of_a_second_implementation() {
    for seed in 0..if long() { 40 } else { 8 } {
        let files = Files::random(seed, 1 + seed as usize % 4);
        let sealed = Seal::new().threads(1 + seed as usize % 3).run(&files.chain()).unwrap();
        assert_eq!(sealed.root, Some(files.naive_root()), "seed {seed}");
        let verified = Verify::new().run(&files.chain()).unwrap();
        assert!(verified.is_whole(), "seed {seed}: {:?}", verified.findings);
        assert_eq!(verified.root, sealed.root);
        assert!(verified.layers.iter().all(|layer| layer.is_whole));
    }
}

#[test]
fn a_seal_is_the_same_bytes_whoever_makes_it() {
    let files = Files::random(77, 3);
    Seal::new().threads(1).run(&files.chain()).unwrap();
    let first: Vec<_> = files.paths.iter().map(|path| fs::read(seal_of(path)).unwrap()).collect();
    Seal::new().threads(5).again(true).run(&files.chain()).unwrap();
    let again: Vec<_> = files.paths.iter().map(|path| fs::read(seal_of(path)).unwrap()).collect();
    assert!(first == again);
}

#[test]
fn only_a_layer_without_a_seal_of_its_identity_is_read() {
    let files = Files::random(5, 3);
    let first = Seal::new().run(&files.chain()).unwrap();
    let next = files.folder.path().join("next.avhdx");
    let chain = OpenOptions::new().writable(true).open(files.tip()).unwrap();
    let mut rng = Rng::new(1);
    let mut bytes = vec![0; 100_000];
    rng.fill(&mut bytes);
    chain.write_at(&bytes, 0).unwrap();
    let done = Checkpoint::new().path(&next).run(&chain).unwrap();
    assert_eq!(done.path.file_name(), next.file_name());
    chain.close().unwrap();
    drop(chain);

    let sealed = Seal::new().run(&open(&next)).unwrap();
    let outcomes: Vec<_> = sealed.layers.iter().map(|layer| layer.outcome).collect();
    // The new tip is closed, so it is a point in time too; the old one was written to.
    assert_eq!(outcomes, [Outcome::Written, Outcome::Written, Outcome::Kept, Outcome::Kept]);
    assert!(sealed.layers[2..].iter().all(|layer| layer.read == 0));
    assert!(sealed.layers[1].read >= 100_000);
    assert_ne!(sealed.root, first.root);
    let hashes: Vec<_> = sealed.layers.iter().map(|layer| layer.hash.unwrap()).collect();
    assert_eq!(sealed.root, Some(chain_hash(&hashes)));
    let again = Seal::new().run(&open(&next)).unwrap();
    assert!(again.layers.iter().all(|layer| layer.outcome == Outcome::Kept && layer.read == 0));
    assert_eq!(again.root, sealed.root);
}

#[test]
fn a_tip_in_use_and_one_with_a_log_are_left_out() {
    let files = Files::random(9, 2);
    let writer = OpenOptions::new().writable(true).open(files.tip()).unwrap();
    writer.write_at(&[7; 512], 0).unwrap();
    writer.flush().unwrap();
    let sealed = Seal::new().run(&files.chain()).unwrap();
    assert_eq!(sealed.layers[0].outcome, Outcome::LeftOut(LeftOut::InUse));
    assert_eq!(sealed.layers[1].outcome, Outcome::Written);
    assert!(sealed.root.is_some());
    assert!(!seal_of(files.tip()).exists());
    let verified = Verify::new().run(&files.chain()).unwrap();
    assert!(verified.is_whole());
    assert_eq!(verified.layers[0].left_out, Some(LeftOut::InUse));

    // The same file as a crash leaves it.
    let bytes = fs::read(files.tip()).unwrap();
    writer.close().unwrap();
    drop(writer);
    fs::write(files.tip(), bytes).unwrap();
    let sealed = Seal::new().run(&files.chain()).unwrap();
    assert_eq!(sealed.layers[0].outcome, Outcome::LeftOut(LeftOut::LogPending));
}

#[test]
fn an_image_that_changes_meanwhile_is_not_sealed() {
    let files = Files::random(12, 1);
    let chain = OpenOptions::new().lock(avhdx::Lock::None).open(files.tip()).unwrap();
    let mut was_changed = false;
    let tip = files.tip().to_owned();
    let error = Seal::new()
        .on_progress(|_, _| {
            if !std::mem::replace(&mut was_changed, true) {
                let options = OpenOptions::new().writable(true);
                let writer = options.open(&tip).unwrap();
                writer.write_at(&[1; 4096], 0).unwrap();
                writer.close().unwrap();
            }
            std::ops::ControlFlow::Continue(())
        })
        .run(&chain)
        .unwrap_err();
    assert_eq!(error.code(), "seal.moved");
    assert_eq!(fs::read_dir(files.folder.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_link_is_neither_followed_nor_replaced() {
    let files = Files::random(3, 1);
    let target = files.folder.path().join("target");
    fs::write(&target, b"precious").unwrap();
    std::os::unix::fs::symlink(&target, seal_of(files.tip())).unwrap();
    assert_eq!(Seal::new().run(&files.chain()).unwrap_err().code(), "seal.link");
    assert_eq!(Seal::new().again(true).run(&files.chain()).unwrap_err().code(), "seal.link");
    assert_eq!(Verify::new().run(&files.chain()).unwrap_err().code(), "seal.link");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    // A link to nothing too.
    fs::remove_file(&target).unwrap();
    assert_eq!(Seal::new().run(&files.chain()).unwrap_err().code(), "seal.link");
}

#[cfg(unix)]
#[test]
fn a_seal_has_the_mode_of_its_image() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::random(4, 1);
    for mode in [0o640, 0o600] {
        fs::set_permissions(files.tip(), fs::Permissions::from_mode(mode)).unwrap();
        Seal::new().again(true).run(&files.chain()).unwrap();
        let is = fs::metadata(seal_of(files.tip())).unwrap().permissions().mode();
        assert_eq!(is & 0o777, mode);
    }
}

#[test]
fn a_stopped_seal_leaves_nothing() {
    let files = Files::random(6, 1);
    let stopped = Seal::new().on_progress(|_, _| std::ops::ControlFlow::Break(()));
    assert_eq!(stopped.run(&files.chain()).unwrap_err().code(), "op.cancelled");
    assert_eq!(fs::read_dir(files.folder.path()).unwrap().count(), 1);
    assert!(SealFile::beside(&avhdx::storage::LocalHost, files.tip()).unwrap().is_none());
}
