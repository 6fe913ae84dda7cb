//! Accepted losses: cases beyond those of the random suite.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sim::{Bytes, FOLDER, Files, SimHost};
use avhdx::ops::{AcceptLoss, LossKind, Losses};
use avhdx::storage::Host;
use avhdx::{Budget, Disk, ErrorKind, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image, state};
use avhdx_testkit::naive::{Layer, Says};

const MIB: u64 = 1 << 20;

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn host(images: &[(&str, &Image)]) -> SimHost {
    let mut files = Files::default();
    for (number, (name, image)) in images.iter().enumerate() {
        let mut file = Bytes::default();
        for (n, page) in image.to_bytes().chunks(4096).enumerate() {
            file.write(n as u64 * 4096, page);
        }
        file.set_len(image.layout().file_length);
        *files.file_mut(number) = file;
        files.names.insert(path(name), number);
    }
    SimHost::new(files)
}

fn options(host: &SimHost) -> OpenOptions {
    OpenOptions::new().host(Arc::new(host.clone())).budget(Budget::new(1 << 20))
}

fn accept(host: &SimHost, name: &str) -> avhdx::Result<Losses> {
    let accept = AcceptLoss::new().options(options(host));
    accept.run(path(name), &mut |_| ControlFlow::Continue(()))
}

fn layer(host: &SimHost, name: &str) -> Layer {
    let bytes = host.files().file(&path(name)).unwrap().clone();
    Layer::from_source(Arc::new(bytes)).unwrap()
}

fn cut(blocks: u64, lost: u64) -> Image {
    let mut image = Image::dynamic(blocks * MIB);
    for block in 0..blocks {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    image.file_length = Some(image.layout().needed_length - lost);
    image
}

#[test]
fn a_lost_block_becomes_zeros_and_never_the_parents_data() {
    let mut base = Image::dynamic(4 * MIB);
    for block in 0..4 {
        base.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let mut tip = base.new_child();
    tip.parent_path(".\\base.vhdx");
    tip.put(0, Block::full(Data::Pattern(10)));
    // The parent has all sectors of this block but eight.
    tip.put(1, Block::partial_runs(Data::Pattern(11), &[(8, 8)]));
    tip.put(2, Block::full(Data::Pattern(12)));
    let layout = tip.layout();
    tip.file_length = Some(layout.payload[&1].min(layout.payload[&2]));
    let host = host(&[("base.vhdx", &base), ("tip.vhdx", &tip)]);
    let losses = accept(&host, "tip.vhdx").unwrap();
    let list: Vec<_> = losses.list.iter().map(|loss| (loss.range.clone(), loss.kind)).collect();
    let eight = MIB + 8 * 512..MIB + 16 * 512;
    assert_eq!(list, [(eight.clone(), LossKind::Lost), (2 * MIB..3 * MIB, LossKind::Lost)]);
    assert_eq!(losses.bytes(), MIB + 8 * 512);
    let after = layer(&host, "tip.vhdx");
    assert_eq!(after.bat_entry(2).unwrap(), u64::from(state::ZERO), "ZERO, and no place");
    assert_eq!(after.says(MIB / 512).unwrap(), Says::NotHere, "what was the parent's is so still");
    assert!(matches!(after.says(eight.start / 512).unwrap(), Says::Data(_)));
    let chain = options(&host).open(path("tip.vhdx")).unwrap();
    let mut bytes = vec![0xAA; 4 * MIB as usize];
    chain.read_at(&mut bytes, 0).unwrap();
    let mut expected = base.flat(None);
    expected[..MIB as usize].copy_from_slice(&tip.flat(None)[..MIB as usize]);
    expected[eight.start as usize..eight.end as usize].fill(0);
    expected[2 * MIB as usize..3 * MIB as usize].fill(0);
    assert!(bytes == expected);
}

#[test]
fn an_image_with_children_is_refused_and_nothing_is_written() {
    let base = cut(3, MIB);
    let mut tip = base.new_child();
    tip.parent_path(".\\base.vhdx");
    let host = host(&[("base.vhdx", &base), ("tip.vhdx", &tip)]);
    let sum = host.files().sum();
    let error = accept(&host, "base.vhdx").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
    assert!(host.files().sum() == sum);
    // The child itself has lost nothing.
    assert_eq!(accept(&host, "tip.vhdx").unwrap(), Losses::default());
    assert!(host.files().sum() == sum);
}

#[test]
fn the_callback_can_stop_the_operation() {
    let host = host(&[("a.vhdx", &cut(3, MIB))]);
    let before = host.files();
    let accept = AcceptLoss::new().options(options(&host));
    let survey = accept.survey(path("a.vhdx")).unwrap();
    assert!(host.files().sum() == before.sum(), "a survey changes nothing");
    let error = accept
        .run(path("a.vhdx"), &mut |losses| {
            assert_eq!(losses.list, survey.list);
            ControlFlow::Break(())
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(host.files().sum() == before.sum(), "no list is left of what was not done");
    // An existing file is not used for the list.
    let error =
        accept.report(path("a.vhdx")).run(path("a.vhdx"), &mut |_| ControlFlow::Continue(()));
    assert_eq!(error.unwrap_err().code(), "loss.report");
    assert!(host.files().sum() == before.sum());
}

#[test]
fn copies_that_do_not_fit_are_not_begun() {
    let mut image = cut(3, 0);
    let place = image.layout().payload[&0];
    image.bat_override.insert(1, place | 6);
    let host = host(&[("a.vhdx", &image)]);
    let sum = host.files().sum();
    host.set_free_space(Some(MIB - 1));
    let error = accept(&host, "a.vhdx").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(host.files().sum() == sum);
    host.set_free_space(Some(MIB));
    assert_eq!(accept(&host, "a.vhdx").unwrap().list.len(), 2);
}

/// Without holes, a block at the end of the file that stays takes up all of its space.
#[test]
fn blocks_that_the_file_grows_for_need_their_space_too() {
    let host = host(&[("a.vhdx", &cut(3, MIB / 2))]);
    let sum = host.files().sum();
    host.set_free_space(Some(MIB / 2 - 1));
    let error = accept(&host, "a.vhdx").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(host.files().sum() == sum);
    host.set_free_space(Some(MIB / 2));
    assert_eq!(accept(&host, "a.vhdx").unwrap().list[0].kind, LossKind::Rest);
}

#[test]
fn a_block_over_the_table_cannot_be_repaired() {
    let mut image = cut(3, 0);
    image.bat_override.insert(1, image.bat_offset | 6);
    let host = host(&[("a.vhdx", &image)]);
    let sum = host.files().sum();
    let error = accept(&host, "a.vhdx").unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "loss.structure"), "{error}");
    assert!(host.files().sum() == sum);
    // A block over the log, whose contents do not matter, is repaired.
    let mut image = cut(3, 0);
    image.bat_override.insert(1, image.log_offset | 6);
    let host = self::host(&[("a.vhdx", &image)]);
    assert_eq!(accept(&host, "a.vhdx").unwrap().list[0].kind, LossKind::Lost);
}

/// 300 pages of the table, each with a lost block: more than fits in one log entry.
fn scattered() -> Image {
    let mut image = Image::dynamic(300 * 512 * MIB);
    image.put(0, Block::full(Data::Pattern(1)));
    let end = image.layout().needed_length;
    for page in 0..300 {
        let block = page * 512 + 9;
        image.bat_override.insert(image.bat_index(block), (end + page * MIB) | 6);
    }
    image
}

#[test]
fn a_repair_larger_than_a_log_entry_is_made_in_several() {
    let image = scattered();
    let host = host(&[("a.vhdx", &image)]);
    let model = layer(&host, "a.vhdx").losses();
    assert_eq!(accept(&host, "a.vhdx").unwrap().list.len(), 300);
    assert_eq!(model.list.len(), 300);
    let after = layer(&host, "a.vhdx");
    assert!(!after.log_is_pending() && after.losses().list.is_empty() && !after.losses().refused);
    assert_eq!(after.faults(), [""; 0]);
}

#[test]
fn an_interrupted_repair_of_several_log_entries_is_completed() {
    let image = scattered();
    let fresh = host(&[("a.vhdx", &image)]);
    let mut partly = 0;
    for n in 1.. {
        let host = SimHost::new(fresh.files());
        // From some point on every step fails, as if the host were gone.
        host.run_out_at(n * 40, crate::sim::Arrived::Half);
        let done = accept(&host, "a.vhdx");
        host.relent();
        if done.is_ok() {
            break;
        }
        let left = layer(&host, "a.vhdx").losses().list.len();
        partly += usize::from(left > 0 && left < 300);
        assert_eq!(accept(&host, "a.vhdx").unwrap().list.len(), left);
        assert!(!layer(&host, "a.vhdx").losses().refused);
    }
    assert!(partly > 0);
}

#[test]
fn real_files_are_repaired_and_their_list_lies_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("a.vhdx");
    for n in 1..=2 {
        cut(3, MIB + 100_000).write_to(&at);
        let accept = AcceptLoss::new();
        let losses = accept.run(&at, &mut |_| ControlFlow::Continue(())).unwrap();
        let report = losses.report.unwrap();
        let name = if n == 1 { "a.vhdx.lost" } else { "a.vhdx.lost-2" };
        assert_eq!(report, folder.path().join(name));
        let storage =
            avhdx::storage::LocalHost.open(&report, avhdx::storage::Access::Read).unwrap();
        assert!(!storage.is_empty().unwrap());
        assert!(!Layer::open(&at).unwrap().losses().refused);
    }
}
