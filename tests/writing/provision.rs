//! Dynamic images that become fixed, and the other way round: the naive reader sees the same disk.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use avhdx::ops::{Check, Provision};
use avhdx::{DiffChain, ErrorKind, OpenOptions, VhdxFile};
use avhdx_testkit::build::{Block, Data, Image, state, write_chain};
use avhdx_testkit::naive::{Chain, Layer};
use tempfile::TempDir;

use crate::common::MIB;

/// Blocks of every state, over a part of the last one.
fn dynamic() -> Image {
    let mut image = Image::dynamic(7 * MIB + 4096);
    image.put(0, Block::full(Data::Pattern(1)));
    image.put(2, Block::bare(state::ZERO));
    image.put(3, Block::bare(state::UNMAPPED));
    image.put(4, Block::full(Data::Pattern(4)).with_state(state::UNMAPPED));
    image.put(5, Block::full(Data::Pattern(5)));
    image
}

#[test]
fn an_image_becomes_fixed_and_dynamic_again_and_its_disk_stays() {
    let folder = TempDir::new().unwrap();
    let mut child = dynamic().new_child();
    child.put(1, Block::partial_runs(Data::Pattern(9), &[(3, 5)]));
    let paths = write_chain(folder.path(), &[dynamic(), child]);
    let flats = [0, 1].map(|tip| Chain::open(&paths).unwrap().flat(tip).unwrap());
    let before = Layer::open(&paths[0]).unwrap();
    let len = || fs::metadata(&paths[0]).unwrap().len();
    let start = len();

    let forecast = Provision::fixed().forecast(&paths[0]).unwrap();
    // Two blocks have space.
    assert_eq!(forecast.peak, 6 * MIB);
    assert_eq!(len(), start);
    let done = Provision::fixed().run(&paths[0]).unwrap();
    assert_eq!((done.allocated, done.changed), (6 * MIB, true));
    let image = VhdxFile::open(&paths[0]).unwrap();
    assert!(image.info().leave_blocks_allocated);
    assert_eq!(image.count_blocks().unwrap().fully_present, 8);
    drop(image);
    let fixed = fs::read(&paths[0]).unwrap();
    let check = |what: &str| {
        let after = Chain::open(&paths).unwrap();
        assert!([0, 1].map(|tip| after.flat(tip).unwrap()) == flats, "{what}: another disk");
        assert_eq!(after.0[0].data_write_guid, before.data_write_guid, "{what}");
        assert!(!after.0[0].log_is_pending(), "{what}");
        assert_eq!(after.0[0].faults(), [""; 0], "{what}");
        assert_eq!(DiffChain::open(&paths[1]).unwrap().layers().len(), 2);
        let findings = Check::new().run(&paths[1]).unwrap();
        assert!(findings.is_sound(), "{what}: {findings:?}");
    };
    check("fixed");
    // Once more, and nothing changes.
    let again = Provision::fixed().run(&paths[0]).unwrap();
    assert_eq!((again.allocated, again.changed), (0, false));
    assert!(fs::read(&paths[0]).unwrap() == fixed);

    let forecast = Provision::dynamic().forecast(&paths[0]).unwrap();
    assert_eq!((forecast.peak, forecast.written), (0, 4096));
    let done = Provision::dynamic().run(&paths[0]).unwrap();
    assert_eq!((done.allocated, done.changed), (0, true));
    check("dynamic again");
    let image = VhdxFile::open(&paths[0]).unwrap();
    assert!(!image.info().leave_blocks_allocated);
    assert_eq!(image.count_blocks().unwrap().fully_present, 8);
}

#[test]
fn what_is_refused_or_stopped_leaves_the_disk() {
    let folder = TempDir::new().unwrap();
    let paths = write_chain(folder.path(), &[dynamic(), dynamic().new_child()]);
    let before = bytes(&paths);
    for provision in [Provision::fixed(), Provision::dynamic()] {
        let forecast = provision.forecast(&paths[1]).unwrap_err();
        for error in [forecast, provision.run(&paths[1]).unwrap_err()] {
            let code = "provision.differencing";
            assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, code));
            assert_eq!(error.file(), paths[1].to_str());
        }
    }
    let held = OpenOptions::new().open_image(&paths[0]).unwrap();
    assert_eq!(Provision::fixed().run(&paths[0]).unwrap_err().kind(), ErrorKind::InUse);
    drop(held);
    assert!(bytes(&paths) == before);
    let flat = Layer::open(&paths[0]).map(|layer| Chain(vec![layer]).flat(0).unwrap()).unwrap();
    let stopped = Provision::fixed().on_progress(|now| match now.done < 4 * MIB {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    });
    assert_eq!(stopped.run(&paths[0]).unwrap_err().kind(), ErrorKind::Cancelled);
    let layer = Layer::open(&paths[0]).unwrap();
    assert_eq!(layer.faults(), [""; 0]);
    assert!(Chain(vec![layer]).flat(0).unwrap() == flat);
    let done = Provision::fixed().run(&paths[0]).unwrap();
    assert!(done.changed && done.allocated < 6 * MIB, "{done:?}");
}

fn bytes(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Blocks that are there may be holes for the most part, and hosts without a way to zero a range may punch it instead.
#[test]
fn a_fixed_image_has_the_space_of_all_its_blocks() {
    use std::os::unix::fs::MetadataExt;
    // Both in memory and on the disk.
    for folder in [TempDir::new().unwrap(), TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()] {
        let path = folder.path().join("d.vhdx");
        drop(avhdx::CreateOptions::dynamic(24 * MIB).block_size(8 << 20).create(&path).unwrap());
        let chain = OpenOptions::new().writable(true).open(&path).unwrap();
        avhdx::Disk::write_at(&chain, b"hello", 5000).unwrap();
        drop(chain);
        let held = || fs::metadata(&path).unwrap().blocks() * 512;
        assert!(held() < 4 * MIB, "{}", held());
        let forecast = Provision::fixed().forecast(&path).unwrap();
        assert!(forecast.peak > 23 * MIB, "{}", forecast.peak);
        Provision::fixed().run(&path).unwrap();
        assert!(held() >= 24 * MIB, "{} bytes in {}", held(), path.display());
        let mut expected = vec![0; 24 << 20];
        expected[5000..5005].copy_from_slice(b"hello");
        assert!(Chain::open([&path]).unwrap().flat(0).unwrap() == expected);
    }
}

/// Damage is found before anything changes, as in the forecast.
#[test]
fn a_state_without_meaning_is_refused_before_the_file_changes() {
    let folder = TempDir::new().unwrap();
    let mut base = dynamic();
    base.bat_override.insert(6, 4);
    let mut child = dynamic().new_child();
    child.bat_override.insert(5, 4);
    child.put(1, Block::full(Data::Pattern(9)));
    let paths = write_chain(folder.path(), &[dynamic(), child]);
    let odd = folder.path().join("odd.vhdx");
    base.write_to(&odd);
    let other = folder.path().join("other.vhdx");
    Image::dynamic(7 * MIB + 4096).write_to(&other);
    let before = [&odd, &paths[1]].map(|path| fs::read(path).unwrap());
    let errors = [
        Provision::fixed().forecast(&odd).map(drop),
        Provision::fixed().run(&odd).map(drop),
        avhdx::ops::Rebase::new(&other).forecast(&paths[1]).map(drop),
        avhdx::ops::Rebase::new(&other).run(&paths[1]).map(drop),
    ];
    for error in errors {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Damaged);
    }
    assert!([&odd, &paths[1]].map(|path| fs::read(path).unwrap()) == before);
}
