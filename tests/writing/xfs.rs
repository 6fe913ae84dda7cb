//! Copies on a real file system that shares, where one can be made: by root, with the programs of XFS.

use std::path::Path;

use avhdx::ops::Export;
use avhdx::storage::{Host, LocalHost};
use avhdx::{CreateOptions, DiffChain};
use avhdx_testkit::build::write_chain;
use avhdx_testkit::naive;

use crate::sharing::{known, naively};

const MIB: u64 = 1 << 20;

#[test]
fn a_copy_on_xfs_takes_no_space_and_has_the_same_bytes() {
    for can_share in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let Some(mounted) = Mounted::xfs(folder.path(), can_share) else { return };
        let at = folder.path().join("mounted");
        let [base, child] = known();
        let expected = child.flat(Some(&base.flat(None)));
        let paths = write_chain(&at, &[base, child]);
        std::fs::File::open(&paths[0]).unwrap().sync_all().unwrap();
        let chain = DiffChain::open(&paths[1]).unwrap();
        let before = std::fs::metadata(&paths[0]).unwrap();
        let image = CreateOptions::dynamic(24 * MIB).create(at.join("flat.vhdx")).unwrap();
        let onto = Export::new().onto(&chain, &image).unwrap();
        image.close().unwrap();
        drop(image);
        let free = || LocalHost.free_space(&at).unwrap().unwrap();
        let raw = LocalHost.create_new(&at.join("flat.img")).unwrap();
        let free_before = free();
        let done = Export::new().run(&chain, raw.as_ref()).unwrap();
        let taken = free_before.saturating_sub(free());
        assert_eq!(taken < 4 * MIB, can_share, "{taken} bytes");
        let own = LocalHost.create_new(&at.join("own.img")).unwrap();
        let by_hand = Export::new().share(false).run(&chain, own.as_ref()).unwrap();
        assert_eq!(by_hand.handed_over, 0);
        for done in [onto, done] {
            let range = if can_share { 11 * MIB..14 * MIB } else { 0..1 };
            assert!(range.contains(&done.handed_over), "{done:?} with sharing: {can_share}");
        }
        for name in ["flat.img", "own.img"] {
            assert!(std::fs::read(at.join(name)).unwrap() == expected, "{name}");
        }
        assert!(naively(std::fs::read(at.join("flat.vhdx")).unwrap()) == expected);
        // Neither is changed by asking whether it can be shared.
        let same = raw.sharing_unit(own.as_ref());
        assert_eq!(same, can_share.then_some(4096));
        assert!(std::fs::read(at.join("flat.img")).unwrap() == expected);
        // Writes to the copy stay in the copy.
        raw.write_at(&[0xCC; 1 << 20], 0).unwrap();
        let tip = naive::Chain::open(&paths).unwrap().flat(1).unwrap();
        assert!(tip == expected && before.len() == std::fs::metadata(&paths[0]).unwrap().len());
        drop((chain, raw, own, mounted));
    }
}

/// A file system in a file.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// XFS at `mounted` in the folder; `None` where there are no programs or rights for it.
    fn xfs(folder: &'a Path, can_share: bool) -> Option<Self> {
        let run = |program: &str, args: &[&str]| {
            let mut command = std::process::Command::new(program);
            let done = command.args(args).current_dir(folder).output();
            let done = done.map_err(|error| error.to_string()).and_then(|done| {
                let said = String::from_utf8_lossy(&done.stderr).into_owned();
                if done.status.success() { Ok(()) } else { Err(said) }
            });
            done.inspect_err(|error| eprintln!("skipped without XFS: {program}: {error}")).ok()
        };
        let file = std::fs::File::create(folder.join("xfs")).unwrap();
        file.set_len(512 * MIB).unwrap();
        std::fs::create_dir(folder.join("mounted")).unwrap();
        let reflink = if can_share { "reflink=1" } else { "reflink=0" };
        run("mkfs.xfs", &["-q", "-b", "size=4096", "-m", reflink, "xfs"])?;
        run("mount", &["-o", "loop", "xfs", "mounted"])?;
        Some(Self(folder))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let mut command = std::process::Command::new("umount");
        let done = command.arg("mounted").current_dir(self.0).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
