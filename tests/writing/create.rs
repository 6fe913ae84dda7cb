//! Images created by this crate: how others read them, and what is refused on creation and writing.

// The tests examine the files with std::fs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use avhdx::{
    CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, RawDisk, Zeroing, storage::FileStorage,
    storage::Host, storage::LocalHost,
};
use avhdx_testkit::qemu::Qemu;
use avhdx_testkit::rng::pattern;
use avhdx_testkit::{images, naive};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(seed, 0, &mut bytes);
    bytes
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_fixed_image_has_its_whole_size_at_once_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fixed.vhdx");
    let disk = CreateOptions::fixed(9 * MIB).block_size(2 << 20).create(&path).unwrap();
    let before = fs::metadata(&path).unwrap();
    assert!(before.len() >= 10 * MIB);
    assert!(before.blocks() * 512 >= before.len(), "the host has not reserved the space");
    disk.write_at(&bytes(1, 3 << 20), MIB).unwrap();
    disk.discard(0..9 * MIB).unwrap();
    disk.close().unwrap();
    let counts = disk.count_blocks().unwrap();
    assert_eq!((counts.blocks, counts.fully_present), (5, 5));
    assert_eq!(fs::metadata(&path).unwrap().len(), before.len());
}

#[test]
fn defaults_are_those_of_windows() {
    let folder = tempfile::tempdir().unwrap();
    let base = CreateOptions::dynamic(64 * MIB).create(folder.path().join("b.vhdx")).unwrap();
    assert_eq!(base.block_size(), 32 << 20);
    let geometry = base.geometry();
    assert_eq!((geometry.logical_sector, geometry.physical_sector), (512, 4096));
    let child = CreateOptions::child_of(&base).unwrap().create(folder.path().join("c.avhdx"));
    let child = child.unwrap();
    assert_eq!(child.block_size(), 2 << 20);
    assert_eq!(child.info().disk_id, base.info().disk_id);
    let link = child.parent_link().unwrap().unwrap();
    assert_eq!(link.relative_path.as_deref(), Some(".\\b.vhdx"));
    assert_eq!((link.linkage, link.absolute_win32_path), (base.data_write_guid(), None));
}

#[test]
fn images_with_given_identities_are_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = folder.path().join(name);
        let ids = [1, 2, 3].map(Uuid::from_u128);
        let options = CreateOptions::dynamic(8 * MIB).write_guids(ids[0], ids[1]).disk_id(ids[2]);
        drop(options.create(&path).unwrap());
        fs::read(path).unwrap()
    };
    assert!(make("a.vhdx") == make("b.vhdx"));
}

#[test]
fn a_child_has_mode_of_its_parent_and_may_be_larger() {
    let folder = tempfile::tempdir().unwrap();
    let (base_path, path) = (folder.path().join("b.vhdx"), folder.path().join("sub/c.avhdx"));
    fs::create_dir(folder.path().join("sub")).unwrap();
    let base = CreateOptions::dynamic(4 * MIB).block_size(1 << 20).create(&base_path).unwrap();
    base.write_at(&bytes(1, 4 << 20), 0).unwrap();
    base.close().unwrap();
    fs::set_permissions(&base_path, fs::Permissions::from_mode(0o640)).unwrap();
    let child = CreateOptions::child_of(&base).unwrap().size(6 * MIB).create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    drop((base, child));
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    // Across the parent's end, unaligned.
    chain.write_at(b"over the end", 4 * MIB - 6).unwrap();
    chain.close().unwrap();
    let mut expected = bytes(1, 4 << 20);
    expected.resize(6 << 20, 0);
    expected[(4 << 20) - 6..][..12].copy_from_slice(b"over the end");
    let mut found = vec![0; 6 << 20];
    chain.read_at(&mut found, 0).unwrap();
    assert!(found == expected);
    assert!(naive::Chain::open(&[base_path, path]).unwrap().flat(1).unwrap() == expected);
}

#[test]
fn a_failed_create_leaves_nothing_behind_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    let impossible = CreateOptions::dynamic(MIB + 1).create(&path).unwrap_err();
    assert_eq!(impossible.kind(), ErrorKind::InvalidInput);
    // Larger than the file systems of test machines.
    let huge = CreateOptions::fixed(64 << 40).create(&path).unwrap_err();
    assert_eq!(huge.kind(), ErrorKind::Io);
    assert!(names(folder.path()).is_empty());

    fs::write(&path, "precious").unwrap();
    let taken = CreateOptions::dynamic(MIB).create(&path).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Io);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    drop(CreateOptions::dynamic(MIB).overwrite(true).create(&path).unwrap());
    assert_eq!(names(folder.path()), ["a.vhdx"]);
}

#[test]
fn a_second_writer_is_told_that_the_image_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    let first = CreateOptions::dynamic(MIB).create(&path).unwrap();
    for writable in [true, false] {
        let second = OpenOptions::new().writable(writable).open_image(&path).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::InUse);
    }
    drop(first);
    OpenOptions::new().writable(true).open_image(&path).unwrap();
}

#[test]
fn an_image_with_children_is_written_only_with_consent() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.vhdx");
    let base = CreateOptions::dynamic(MIB).create(&path).unwrap();
    let child = folder.path().join("c.avhdx");
    drop(CreateOptions::child_of(&base).unwrap().create(&child).unwrap());
    drop(base);
    let open = || OpenOptions::new().writable(true);
    let before = fs::read(&path).unwrap();
    let refused = open().open_image(&path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    assert!(refused.to_string().contains("c.avhdx"), "{refused}");
    assert!(fs::read(&path).unwrap() == before);

    let moved = elsewhere.path().join("c.avhdx");
    fs::rename(&child, &moved).unwrap();
    open().open_image(&path).unwrap();
    let refused = open().children_in(elsewhere.path()).open_image(&path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    open().children_in(elsewhere.path()).orphan_children(true).open_image(&path).unwrap();
}

#[test]
fn a_possible_child_that_cannot_be_examined_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.vhdx");
    drop(CreateOptions::dynamic(MIB).create(&path).unwrap());
    let open = || OpenOptions::new().writable(true);
    assert_eq!(open().open_image(&path).unwrap().warnings(), []);
    // A dangling link, and a circular one for tests that run as root.
    std::os::unix::fs::symlink("circle.avhdx", folder.path().join("circle.avhdx")).unwrap();
    let image = open().open_image(&path).unwrap();
    let [warning] = image.warnings() else { panic!("{:?}", image.warnings()) };
    assert_eq!(warning.code, "image.children-unread");
    assert!(warning.file.ends_with("circle.avhdx"), "{warning:?}");
    assert_eq!(warning.layer, Some(image.id()));
    drop(image);
    let missing = folder.path().join("missing");
    let refused = open().children_in(&missing).open_image(&path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io);
    assert!(refused.to_string().contains("missing"), "{refused}");
    open().children_in(&missing).orphan_children(true).open_image(&path).unwrap();
}

#[test]
fn stale_change_trackers_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.vhdx");
    drop(CreateOptions::dynamic(MIB).create(&path).unwrap());
    fs::write(folder.path().join("b.vhdx.rct"), "").unwrap();
    let image = OpenOptions::new().writable(true).open_image(&path).unwrap();
    assert!(image.warnings().iter().any(|w| w.code == "image.stale-tracker"));
}

#[test]
fn consent_to_orphan_children_does_not_silence_stale_trackers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.vhdx");
    drop(CreateOptions::dynamic(MIB).create(&path).unwrap());
    fs::write(folder.path().join("b.vhdx.mrt"), "").unwrap();
    let options = OpenOptions::new().writable(true).orphan_children(true);
    let image = options.open_image(&path).unwrap();
    assert!(image.warnings().iter().any(|w| w.code == "image.stale-tracker"));
}

#[test]
fn opening_for_writing_changes_nothing_and_the_identity_changes_with_the_first_write_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.vhdx");
    drop(CreateOptions::dynamic(8 * MIB).create(&path).unwrap());
    let before = fs::read(&path).unwrap();
    let image = OpenOptions::new().writable(true).open_image(&path).unwrap();
    let first = image.data_write_guid();
    let mut byte = [0];
    image.read_at(&mut byte, 0).unwrap();
    // Zeros over zeros are not a change.
    image.write_zeroes(0..8 * MIB, Zeroing::MayUnmap).unwrap();
    image.flush().unwrap();
    image.close().unwrap();
    assert!(fs::read(&path).unwrap() == before);
    image.write_at(b"x", 0).unwrap();
    let second = image.data_write_guid();
    assert_ne!(first, second);
    image.write_at(b"y", 1).unwrap();
    assert_eq!(image.data_write_guid(), second);
    drop(image);
    assert_eq!(OpenOptions::new().open_image(&path).unwrap().data_write_guid(), second);
}

#[test]
fn a_log_left_by_windows_is_brought_to_the_file() {
    let Some(source) = images::image("hyperv/dirty-log.vhdx.gz") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dirty-log.vhdx");
    images::gunzip(&source, &path);
    let flat = |path: &Path| {
        let disk = DiffChain::open(path).unwrap();
        images::sha256_hex(avhdx::Cursor::new(disk))
    };
    let before = flat(&path);
    let writable = OpenOptions::new().writable(true).open_image(&path).unwrap();
    assert!(writable.info().headers.iter().all(|h| h.as_ref().unwrap().log_guid.is_nil()));
    drop(writable);
    let clean = OpenOptions::new().log(avhdx::LogPolicy::Refuse).open_image(&path).unwrap();
    drop(clean);
    assert_eq!(flat(&path), before);
}

#[test]
fn qemu_reads_what_we_wrote_and_we_read_what_it_wrote() {
    let Some(qemu) = Qemu::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("dynamic", CreateOptions::dynamic(20 * MIB).block_size(1 << 20)),
        ("large-blocks", CreateOptions::dynamic(100 * MIB)),
        ("fixed", CreateOptions::fixed(20 * MIB).block_size(2 << 20)),
        ("large-log", CreateOptions::dynamic(20 * MIB).log_size(4 << 20)),
    ] {
        let path = folder.path().join(format!("{name}.vhdx"));
        let raw = folder.path().join("flat.raw");
        let disk = options.create(&path).unwrap();
        let mut model = vec![0; disk.geometry().size as usize];
        for i in 0..40_u64 {
            let part = bytes(i, 1 + (i as usize * 7919) % 90_000);
            let at = (i * 7_777_777) as usize % (model.len() - part.len());
            disk.write_at(&part, at as u64).unwrap();
            model[at..][..part.len()].copy_from_slice(&part);
        }
        disk.discard(2 * MIB..5 * MIB).unwrap();
        model[2 << 20..5 << 20].fill(0);
        disk.close().unwrap();
        drop(disk);
        qemu.check(&path);
        qemu.to_raw(&path, &raw);
        assert!(fs::read(&raw).unwrap() == model, "{name}: qemu reads something else");

        qemu.write_pattern(&path, 3 * MIB + 512, 70_000 / 512 * 512, 0xA5);
        model[(3 << 20) + 512..][..70_000 / 512 * 512].fill(0xA5);
        let mut found = vec![0; model.len()];
        let chain = DiffChain::open(&path).unwrap();
        chain.read_at(&mut found, 0).unwrap();
        assert!(found == model, "{name}: we read something else");
    }
}

#[test]
fn a_raw_disk_is_written_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    fs::write(&path, [0; 1024]).unwrap();
    let storage: Arc<_> = LocalHost.open(&path, avhdx::storage::Access::ReadWrite).unwrap();
    let disk = RawDisk::new(storage).unwrap();
    disk.write_at(b"raw", 1021).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.write_at(b"raw", 1022).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(&fs::read(&path).unwrap()[1021..], b"raw");
}

/// A process that is being spawned by another thread shares all open files until its program starts.
#[test]
fn a_lock_ends_with_its_image_even_if_a_process_inherited_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    drop(CreateOptions::dynamic(MIB).create(&path).unwrap());
    for writable in [true, false] {
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let copy = file.try_clone().unwrap();
        let storage = Arc::new(FileStorage::from_file(file, "copied"));
        let image = OpenOptions::new().writable(writable).open_file(storage).unwrap();
        let refused = OpenOptions::new().writable(true).open(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InUse);
        drop(image);
        OpenOptions::new().writable(true).open(&path).unwrap();
        drop(copy);
    }
}
