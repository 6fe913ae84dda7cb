//! Points that are given up, their labels, and branches that are removed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use avhdx::ops::{Checkpoint, Delete, DeleteBranch, Label, Merge, Revert};
use avhdx::{DiffChain, Disk, ErrorKind, LayerId, OpenOptions};

use super::unfinished::stopped_at;
use super::{MIB, base, bytes, naively, paths, writable};

const SIZE: u64 = 8 * MIB;

/// A chain of four labelled points under the tip, each with other bytes, and what each must read as, newest first.
fn labelled(folder: &Path) -> (DiffChain, Vec<Vec<u8>>) {
    let chain = base(folder, SIZE);
    let mut model = vec![0; SIZE as usize];
    let mut points = Vec::new();
    for (n, label) in ["mon", "tue", "wed", "thu", ""].into_iter().enumerate() {
        let (at, byte) = (n * 700_000, n as u8 + 1);
        chain.write_at(&vec![byte; 1_500_000], at as u64).unwrap();
        model[at..at + 1_500_000].fill(byte);
        points.insert(0, model.clone());
        if !label.is_empty() {
            Checkpoint::new().label(label).run(&chain).unwrap();
        }
    }
    chain.flush().unwrap();
    (chain, points)
}

fn labels(chain: &DiffChain) -> Vec<Option<String>> {
    chain.points().into_iter().map(|point| point.label).collect()
}

fn assert_points(chain: &DiffChain, expected: &[&Vec<u8>]) {
    let points = chain.points();
    assert_eq!(points.len(), expected.len());
    for (point, expected) in points.iter().zip(expected) {
        assert!(bytes(&chain.view(point.layer).unwrap()) == **expected, "{}", point.name);
    }
    for (n, expected) in expected.iter().enumerate() {
        assert!(naively(&paths(chain)[n..]) == **expected);
    }
}

#[test]
fn each_point_can_be_given_up_and_the_others_stay_with_their_labels() {
    let all = [None, Some("thu"), Some("wed"), Some("tue"), Some("mon")];
    for given_up in 1..5 {
        let folder = tempfile::tempdir().unwrap();
        let (chain, models) = labelled(folder.path());
        assert_eq!(labels(&chain), all.map(|label| label.map(str::to_owned)));
        let tip = paths(&chain).remove(0);
        let delete = Delete::point(chain.points()[given_up].layer);
        let forecast = delete.forecast(&chain).unwrap();
        assert!(forecast.lost == 0 && forecast.freed > 0);
        let done = delete.run(&chain).unwrap();
        assert!(done.warnings.is_empty(), "{:?}", done.warnings);
        assert_eq!(done.tip, (given_up == 1).then(|| tip.clone()));
        assert_eq!(done.removed.len(), 1);
        assert!(tip.exists() && done.removed.iter().all(|removed| !removed.exists()));
        chain.flush().unwrap();

        let mut left = all.to_vec();
        left.remove(given_up);
        let mut expected: Vec<&Vec<u8>> = models.iter().collect();
        expected.remove(given_up);
        let mut chain = chain;
        for _ in 0..2 {
            assert_eq!(
                labels(&chain),
                left.iter().map(|l| l.map(str::to_owned)).collect::<Vec<_>>()
            );
            assert_points(&chain, &expected);
            chain.close().unwrap();
            drop(chain);
            chain = writable(&tip);
        }
    }
}

#[test]
fn the_tip_is_no_point_to_give_up() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, _) = labelled(folder.path());
    let tip = chain.points()[0].layer;
    for error in [
        Delete::point(tip).forecast(&chain).unwrap_err(),
        Delete::point(tip).run(&chain).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "delete.tip"));
    }
    let other = labelled(tempfile::tempdir().unwrap().path()).0.points()[1].layer;
    let error = Delete::point(other).run(&chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

/// The disk goes on under the path of its tip, whatever happens to it afterwards.
#[test]
fn a_tip_that_keeps_its_name_goes_on_under_it() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, models) = labelled(folder.path());
    let tip = paths(&chain).remove(0);
    let mut expected: Vec<Vec<u8>> = models;
    for round in 0..3_u8 {
        // The layer under the tip, then the one under that, each time with writes in between.
        chain.write_at(&[0x40 + round; 5000], 3 * MIB).unwrap();
        expected[0][3 << 20..(3 << 20) + 5000].fill(0x40 + round);
        let done = Delete::point(chain.points()[1].layer).run(&chain).unwrap();
        assert!(done.warnings.is_empty(), "{:?}", done.warnings);
        assert_eq!(done.tip.as_deref(), Some(&*tip));
        assert_eq!(chain.points()[0].path.as_deref(), Some(&*tip));
        assert_eq!(chain.layers()[0].name, tip.display().to_string());
        expected.remove(1);
        assert_points(&chain, &expected.iter().collect::<Vec<_>>());
    }
    // A child of the renamed file records the name that it has now.
    let made = Checkpoint::new().label("after").run(&chain).unwrap();
    assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    chain.write_at(&[9; 512], 0).unwrap();
    chain.close().unwrap();
    drop(chain);
    let opened = OpenOptions::new().open(&made.path).unwrap();
    assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
    assert_eq!(opened.layers()[1].path.as_deref(), Some(&*tip));
    assert!(bytes(&opened.view_at("after").unwrap()) == expected[0]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[cfg(unix)]
#[test]
fn a_tip_that_was_opened_by_a_link_keeps_the_links_target() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, models) = labelled(folder.path());
    let tip = paths(&chain).remove(0);
    chain.close().unwrap();
    drop(chain);
    let link = folder.path().join("disk");
    std::os::unix::fs::symlink(&tip, &link).unwrap();
    let chain = writable(&link);
    let done = Delete::point(chain.points()[1].layer).run(&chain).unwrap();
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    drop(chain);
    assert!(bytes(&DiffChain::open(&link).unwrap()) == models[0]);
}

#[test]
fn a_name_in_another_folder_is_not_kept_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), SIZE);
    chain.write_at(&[3; 4096], MIB).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let tip = elsewhere.join("tip.avhdx");
    Checkpoint::new().path(&tip).run(&chain).unwrap();
    chain.write_at(&[4; 4096], 2 * MIB).unwrap();
    let expected = bytes(&chain);
    let done = Delete::point(chain.points()[1].layer).run(&chain).unwrap();
    let codes: Vec<_> = done.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["merge.name-not-kept"]);
    let now = folder.path().join("web.vhdx");
    assert_eq!(done.tip.as_deref(), Some(&*now));
    assert!(!tip.exists());
    chain.close().unwrap();
    drop(chain);
    assert!(bytes(&DiffChain::open(now).unwrap()) == expected);
}

/// The lowest layer that is to be merged, as a program would find it.
fn to_be_merged(chain: &DiffChain) -> Option<LayerId> {
    let is_one = |id: &LayerId| {
        let image = chain.image(*id).unwrap();
        image.merge_request().is_some() || image.merge_mark().is_some()
    };
    let ids: Vec<LayerId> = chain.layers().into_iter().map(|layer| layer.id).collect();
    let lowest = ids.into_iter().rev().find(is_one)?;
    // A mark in the target names the child above it.
    let is_target = chain.image(lowest).unwrap().merge_request().is_none()
        && chain
            .image(lowest)
            .unwrap()
            .merge_mark()
            .is_some_and(|mark| mark.state == avhdx::MergeState::Target);
    let at = chain.layers().iter().position(|layer| layer.id == lowest).unwrap();
    Some(if is_target { chain.layers()[at - 1].id } else { lowest })
}

/// Stopped at any report, a merge of several layers is completed as a whole by what resumes it.
#[test]
fn a_merge_of_several_layers_that_was_stopped_anywhere_is_completed_as_it_was_begun() {
    for (from, keeps_name) in [(0, true), (0, false), (1, false)] {
        let mut stops = 0;
        for n in 2.. {
            let folder = tempfile::tempdir().unwrap();
            let (chain, models) = labelled(folder.path());
            let model = &models[0];
            let files = paths(&chain);
            let layers = chain.layers();
            let merge = Merge::new(layers[from].id).into_layer(layers[4].id).keep_name(keeps_name);
            if !stopped_at(n, merge, &chain) {
                break;
            }
            stops += 1;
            assert!(bytes(&chain) == *model);
            chain.close().unwrap();
            drop(chain);
            let opened = OpenOptions::new().open(&files[0]).unwrap();
            assert!(bytes(&opened) == *model);
            let Some(_) = to_be_merged(&opened) else {
                assert!(n <= 2, "begun by its second report");
                continue;
            };
            let warned = opened.warnings();
            assert!(warned.iter().any(|w| w.code == "merge.unfinished"), "{warned:?}");
            drop(opened);

            let chain = writable(&files[0]);
            let resume = Merge::resume(to_be_merged(&chain).unwrap());
            let forecast = resume.forecast(&chain).unwrap();
            let done = resume.run(&chain).unwrap();
            assert!(done.warnings.is_empty(), "{:?}", done.warnings);
            let removed = forecast
                .files
                .iter()
                .filter(|file| file.kind == avhdx::ops::FileChangeKind::Removed);
            assert_eq!(removed.count(), done.removed.len());
            assert_eq!(chain.layers().len(), from + 1, "stop {n} from {from}");
            assert!(bytes(&chain) == *model);
            chain.close().unwrap();
            drop(chain);
            let tip = if from == 0 && !keeps_name { &files[4] } else { &files[0] };
            let opened = OpenOptions::new().open(tip).unwrap();
            assert!(bytes(&opened) == *model && opened.warnings().is_empty());
            let left: Vec<PathBuf> = paths(&opened);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), left.len());
            assert!(naively(&left) == *model);
        }
        assert!(stops > 2, "{stops} from {from}");
    }
}

/// A request that cannot be left in all layers is left in none.
#[test]
fn a_merge_that_is_refused_at_its_second_layer_leaves_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, _) = labelled(folder.path());
    let layers = chain.layers();
    let reader = OpenOptions::new().open_image(layers[1].path.as_ref().unwrap()).unwrap();
    let merge = Merge::new(layers[0].id).into_layer(layers[4].id);
    let error = merge.run(&chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    drop(reader);
    assert!(
        chain
            .layers()
            .iter()
            .all(|layer| { chain.image(layer.id).unwrap().merge_request().is_none() })
    );
    assert!(to_be_merged(&chain).is_none());
}

#[test]
fn labels_are_found_and_ambiguous_ones_named() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, models) = labelled(folder.path());
    assert!(bytes(&chain.view_at("tue").unwrap()) == models[3]);
    let error = chain.view_at("fri").unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "point.unknown"));
    Checkpoint::new().label("tue").run(&chain).unwrap();
    let error = chain.view_at("tue").unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "point.ambiguous"));
    for point in chain.points().iter().filter(|point| point.label.as_deref() == Some("tue")) {
        assert!(error.to_string().contains(&point.data_write_guid.to_string()), "{error}");
    }
}

#[test]
fn a_label_is_changed_and_no_child_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, models) = labelled(folder.path());
    let points = chain.points();
    let identities = |chain: &DiffChain| -> Vec<_> {
        chain.points().into_iter().map(|point| (point.data_write_guid, point.time)).collect()
    };
    let before = identities(&chain);

    Label::new(points[1].layer, "newest").run(&chain).unwrap();
    let error = Label::new(points[3].layer, "older").run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::HasChildren, "label.frozen"));
    Label::new(points[3].layer, "older").write_frozen(true).run(&chain).unwrap();
    Label::new(points[4].layer, "").write_frozen(true).run(&chain).unwrap();
    let error = Label::new(points[0].layer, "now").run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "label.tip"));
    let long = Label::new(points[1].layer, "x".repeat(4097)).run(&chain).unwrap_err();
    assert_eq!((long.kind(), long.code()), (ErrorKind::InvalidInput, "checkpoint.label"));

    let expected = [None, Some("newest"), Some("wed"), Some("older"), None];
    assert_eq!(labels(&chain), expected.map(|label| label.map(str::to_owned)));
    assert_eq!(identities(&chain), before);
    let tip = paths(&chain).remove(0);
    chain.close().unwrap();
    drop(chain);
    let chain = DiffChain::open(&tip).unwrap();
    assert!(chain.warnings().is_empty(), "{:?}", chain.warnings());
    assert_eq!(labels(&chain), expected.map(|label| label.map(str::to_owned)));
    assert_eq!(identities(&chain), before);
    assert_points(&chain, &models.iter().collect::<Vec<_>>());
}

/// A branch of two images, of which the lower has two children: its files, and the path that stays.
fn forked(folder: &Path) -> (Vec<PathBuf>, PathBuf, Vec<u8>) {
    let chain = base(folder, SIZE);
    chain.write_at(&[1; 1 << 20], 0).unwrap();
    let below = bytes(&chain);
    let point = chain.points()[0].layer;
    let mut branch = Vec::new();
    for name in ["a.avhdx", "b.avhdx"] {
        let path = folder.join(name);
        Checkpoint::new().path(&path).run(&chain).unwrap();
        chain.write_at(&[2; 64 << 10], 2 * MIB).unwrap();
        branch.push(path);
    }
    let made = Revert::to(chain.points()[1].layer).path(folder.join("c.avhdx"));
    branch.push(made.run(&chain).unwrap().path);
    chain.write_at(&[3; 32 << 10], 3 * MIB).unwrap();
    let kept = Revert::to(point).path(folder.join("kept.avhdx")).run(&chain).unwrap();
    chain.close().unwrap();
    (branch, kept.path, below)
}

#[test]
fn a_branch_is_removed_with_consent_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (branch, kept, below) = forked(folder.path());
    let delete = DeleteBranch::at(&branch[0]);
    let forecast = delete.forecast().unwrap();
    // Whole blocks that were new in a child of a dynamic disk count by the sectors that were written.
    assert_eq!(forecast.lost, (64 << 10) * 2 + (32 << 10));
    assert_eq!(forecast.files.len(), 3);
    let error = delete.clone().run().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::WouldLose, "delete.branch"));
    assert!(error.to_string().contains(&forecast.lost.to_string()), "{error}");
    assert!(branch.iter().all(|path| path.exists()));

    let done = delete.lose(true).run().unwrap();
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    assert_eq!(done.lost, forecast.lost);
    assert_eq!(done.removed.last(), Some(&branch[0]), "the lowest goes last");
    assert!(branch.iter().all(|path| !path.exists()));
    assert!(bytes(&DiffChain::open(kept).unwrap()) == below);
}

#[test]
fn a_branch_that_is_not_known_or_in_use_stays_whole() {
    let refused = |prepare: fn(&Path, &[PathBuf]) -> Option<avhdx::VhdxFile>, kind, code| {
        let folder = tempfile::tempdir().unwrap();
        let (branch, ..) = forked(folder.path());
        let held = prepare(folder.path(), &branch);
        let error = DeleteBranch::at(&branch[0]).lose(true).run().unwrap_err();
        assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
        assert!(branch.iter().all(|path| path.exists()));
        drop(held);
    };
    refused(
        |_, branch| Some(OpenOptions::new().open_image(&branch[2]).unwrap()),
        ErrorKind::InUse,
        "lock.in-use",
    );
    refused(
        |folder, _| {
            let mut image = vec![0; 4 << 20];
            image[..8].copy_from_slice(b"vhdxfile");
            std::fs::write(folder.join("broken.avhdx"), image).unwrap();
            None
        },
        ErrorKind::HasChildren,
        "delete.children-unknown",
    );
    refused(
        |folder, branch| {
            std::fs::copy(&branch[0], folder.join("copy.avhdx")).unwrap();
            None
        },
        ErrorKind::HasChildren,
        "delete.copies",
    );
    let folder = tempfile::tempdir().unwrap();
    forked(folder.path());
    let base = folder.path().join("web.vhdx");
    let error = DeleteBranch::at(base).lose(true).run().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "delete.base"));
}

#[test]
fn a_removal_that_is_stopped_leaves_a_shorter_branch() {
    let folder = tempfile::tempdir().unwrap();
    let (branch, ..) = forked(folder.path());
    let mut left = 2;
    let error = DeleteBranch::at(&branch[0])
        .lose(true)
        .on_progress(|_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .run();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(branch.iter().filter(|path| path.exists()).count(), 2);
    for path in branch.iter().filter(|path| path.exists()) {
        DiffChain::open(path).unwrap();
    }
    let done = DeleteBranch::at(&branch[0]).lose(true).run().unwrap();
    assert_eq!(done.removed.len(), 2);
}

/// A deletion that was refused because its point's file was in use happened with the next one that was resumed.
#[test]
fn a_deletion_that_is_refused_when_its_files_are_locked_leaves_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, models) = labelled(folder.path());
    let points = chain.points();
    let into_the_second = || Merge::new(points[0].layer).into_layer(points[2].layer);
    for (held, merge) in [
        (1, Merge::new(points[0].layer).keep_name(true)),
        (1, into_the_second()),
        (2, into_the_second()),
    ] {
        let reader = OpenOptions::new().open_image(points[held].path.as_ref().unwrap()).unwrap();
        let error = merge.run(&chain).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(to_be_merged(&chain).is_none(), "{error}");
        drop(reader);
    }
    assert_points(&chain, &models.iter().collect::<Vec<_>>());
}

/// A later merge obeyed the request of an earlier one that had never begun.
#[test]
fn a_merge_does_what_it_is_told_and_not_what_an_earlier_request_says() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, models) = labelled(folder.path());
    let files = paths(&chain);
    assert!(stopped_at(3, Merge::new(chain.layers()[0].id).keep_name(true), &chain));
    assert!(to_be_merged(&chain).is_some());
    let done = Merge::new(chain.layers()[0].id).run(&chain).unwrap();
    assert_eq!(done.tip.as_ref(), Some(&files[1]), "{:?}", done.warnings);
    assert!(bytes(&chain) == models[0] && !files[0].exists());
}

#[cfg(unix)]
#[test]
fn a_folder_that_is_spelled_in_two_ways_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, models) = labelled(folder.path());
    let files = paths(&chain);
    chain.close().unwrap();
    drop(chain);
    // The parent is found through a link, and its path is resolved.
    let real = folder.path().join("real.avhdx");
    std::fs::rename(&files[1], &real).unwrap();
    std::os::unix::fs::symlink("real.avhdx", &files[1]).unwrap();
    let chain = writable(&files[0]);
    let done = Delete::point(chain.points()[1].layer).run(&chain).unwrap();
    assert!(!done.warnings.iter().any(|w| w.code == "merge.name-not-kept"), "{:?}", done.warnings);
    assert_eq!(done.tip.as_ref(), Some(&files[0]));
    assert!(bytes(&chain) == models[0]);
}
