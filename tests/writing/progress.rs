//! What operations report on their way: a known total, which they reach.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Check, Measure, Progress, Relink};
use avhdx::storage::MemStorage;
use avhdx::{CreateOptions, ErrorKind, OpenOptions, Result};
use avhdx_testkit::build::{Block, Data, Image};

const MIB: u64 = 1 << 20;

type Callback<'a> = &'a mut (dyn FnMut(Progress) -> ControlFlow<()> + Send);

/// What an operation reports: from 0 up to `total`, which never changes. It can be stopped at each report but the last.
#[track_caller]
fn assert_reaches<T>(total: u64, least: usize, run: impl Fn(Callback<'_>) -> Result<T>) -> T {
    let mut seen = Vec::new();
    let done = run(&mut |now| {
        assert_eq!(now.total, total);
        seen.push(now.done);
        ControlFlow::Continue(())
    });
    assert!(seen.is_sorted() && seen.len() >= least, "{seen:?}");
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&total)));
    for stop in 1..seen.len() {
        let mut calls = 0;
        let stopped = run(&mut |_| {
            calls += 1;
            if calls < stop { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!(stopped.err().map(|error| error.kind()), Some(ErrorKind::Cancelled), "{stop}");
        assert_eq!(calls, stop, "it is not asked again");
    }
    done.unwrap_or_else(|error| panic!("{error}"))
}

fn child(parent: &Path, size: Option<u64>, path: &Path) {
    let parent = OpenOptions::new().open_image(parent).unwrap();
    let new = CreateOptions::child_of(&parent).unwrap();
    let new = size.into_iter().fold(new, |new, size| new.size(size));
    drop(new.create(path).unwrap());
}

/// A base of 9 GiB under two children of 20 GiB, the upper one with data in many chunks.
fn chain(folder: &Path) -> Vec<PathBuf> {
    let paths = ["base.vhdx", "one.avhdx", "two.avhdx"].map(|name| folder.join(name));
    drop(CreateOptions::dynamic(9 << 30).create(&paths[0]).unwrap());
    child(&paths[0], Some(20 << 30), &paths[1]);
    child(&paths[1], None, &paths[2]);
    let tip = OpenOptions::new().writable(true).open(&paths[2]).unwrap();
    use avhdx::Disk;
    for gib in 0..20 {
        tip.write_at(&[7; 512], gib << 30).unwrap();
    }
    tip.close().unwrap();
    paths.into()
}

#[test]
fn a_check_counts_the_disks_of_all_layers() {
    let folder = tempfile::tempdir().unwrap();
    let paths = chain(folder.path());
    let report =
        assert_reaches((9 + 20 + 20) << 30, 8, |on| Check::new().on_progress(on).run(&paths[2]));
    assert!(report.is_sound() && report.layers.len() == 3, "{:?}", report.findings);
    let alone = |on: Callback<'_>| Check::new().alone(true).on_progress(on).run(&paths[2]);
    assert_reaches(20 << 30, 5, alone);
    // What has no table counts nothing.
    let mut bytes = Image::dynamic(8 * MIB).to_bytes();
    bytes.truncate(2 * MIB as usize);
    let cut = Arc::new(MemStorage::new(bytes));
    assert_reaches(0, 1, |on| Check::new().on_progress(on).run_file(cut.clone()));
}

#[test]
fn a_check_lists_the_findings_of_a_layer_together() {
    let folder = tempfile::tempdir().unwrap();
    let paths = chain(folder.path());
    for path in &paths {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        // No whole number of MiB, and a block behind the end.
        file.set_len(file.metadata().unwrap().len() + 100).unwrap();
        std::fs::write(format!("{}.rct", path.display()), "").unwrap();
    }
    let report = Check::new().run(&paths[2]).unwrap();
    let layers: Vec<&str> = report.findings.iter().map(|found| found.layer.as_str()).collect();
    let mut runs = layers.clone();
    runs.dedup();
    assert!(layers.len() >= 8, "{:#?}", report.findings);
    assert_eq!(runs, [&paths[2], &paths[1], &paths[0]].map(|path| path.to_str().unwrap()));
}

#[test]
fn a_measurement_counts_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let paths = chain(folder.path());
    let disk = OpenOptions::new().open(&paths[2]).unwrap();
    let size = 20 << 30;
    let raw = assert_reaches(size, 20, |on| Measure::raw().on_progress(on).run(&disk));
    assert_eq!(raw.required, 20 * 4096);
    let image = assert_reaches(size, 20, |on| Measure::vhdx(1 << 20).on_progress(on).run(&disk));
    assert!(image.required >= 20 * MIB);
    // Nothing is looked up.
    let mut seen = Vec::new();
    let on = |now: Progress| {
        seen.push((now.done, now.total));
        ControlFlow::Continue(())
    };
    Measure::vhdx_fixed(1 << 20).on_progress(on).run(&disk).unwrap();
    assert_eq!(seen, [(size, size)]);
}

#[test]
fn a_relink_counts_the_files_and_can_be_stopped_between_two_images() {
    let folder = tempfile::tempdir().unwrap();
    let names = |n: u32| folder.path().join(format!("tip_{n}.avhdx"));
    let base = folder.path().join("base.vhdx");
    Image::dynamic(8 * MIB).put(0, Block::full(Data::Pattern(1))).write_to(&base);
    for n in 0..3 {
        child(&base, None, &names(n));
    }
    std::fs::create_dir(folder.path().join("below")).unwrap();
    std::fs::write(folder.path().join("below/notes.txt"), "no image").unwrap();
    std::fs::rename(&base, folder.path().join("below/moved.vhdx")).unwrap();
    let relink = Relink::folder(folder.path());
    let plan = assert_reaches(5, 6, |on| relink.clone().on_progress(on).plan());
    assert_eq!(plan.images.len(), 3);

    // Each file twice: five that are read, then those that stay as they are at once, and the others one by one.
    let mut seen = Vec::new();
    let on = |now: Progress| {
        seen.push((now.done, now.total));
        if now.done < 8 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let error = relink.clone().on_progress(on).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 7, 8].map(|done| (done, 10)));
    // One has its paths, two are left.
    let mut seen = Vec::new();
    let on = |now: Progress| {
        seen.push((now.done, now.total));
        ControlFlow::Continue(())
    };
    assert_eq!(relink.clone().on_progress(on).run().unwrap().images.len(), 2);
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 8, 9, 10].map(|done| (done, 10)));
    for n in 0..3 {
        drop(OpenOptions::new().open(names(n)).unwrap());
    }
    let mut calls = 0;
    let on = |_: Progress| {
        calls += 1;
        ControlFlow::Continue(())
    };
    let done = relink.on_progress(on).run().unwrap();
    assert!(done.images.is_empty() && done.refused.is_empty() && calls == 7);
}
