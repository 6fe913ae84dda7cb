//! Verbs that give an image another shape: sizes, tables of partitions, metadata, bases.

use std::fs;

use avhdx_testkit::build::Image;

use super::{Case, OUT, case, of_chain, of_tip_merge};
use crate::common::{Folder, volume};
use crate::next::shell;

pub fn reshaping() -> Vec<Case> {
    vec![
        case(
            "metadata.no-item",
            2,
            of_chain,
            "metadata l2.vhdx 5ac1c0de-0000-4000-8000-000000000001 --delete",
        ),
        case("metadata.edit-sector", 2, of_chain, "metadata l2.vhdx --physical-sector 1K"),
        case(
            "metadata.item-size",
            2,
            of_chain,
            "metadata l2.vhdx 5ac1c0de-0000-4000-8000-000000000001 --write",
        )
        .under("head -c 2M /dev/zero |"),
        case(
            "metadata.mark",
            2,
            of_chain,
            "metadata l2.vhdx 21898540-3963-47d4-a9ed-35ef1adeb3c0 --write",
        ),
        case(
            "metadata.format-item",
            2,
            of_chain,
            "metadata l2.vhdx 2FA54224-CD1B-4876-B211-5DBED83BF4B8 --write",
        ),
        case("link.*", 2, of_chain, "rebase l1.vhdx --onto l2.vhdx"),
        case("link.*", 2, of_chain, "rebase l0.vhdx --onto l1.vhdx"),
        case("provision.differencing", 2, of_chain, "metadata l2.vhdx --fixed").filled(OUT),
        case("exit 2", 2, of_chain, "rebase -u l1.vhdx --onto l0.vhdx"),
        case("resize.cuts", 7, of_chain, "resize l2.vhdx 3M"),
        case("resize.cuts", 7, of_chain, "resize l2.vhdx -3M"),
        case("exit 2", 2, of_chain, "resize l2.vhdx 1000"),
        case("exit 2", 2, of_chain, "resize l2.vhdx -6M"),
        case("kind has-children", 7, of_chain, "resize l1.vhdx +1M")
            .filled(&[("CHILD", "c.avhdx")]),
        case("resize.gpt", 7, of_gpt, "resize a.vhdx 3M"),
        case("exit 7", 7, of_gpt, "resize a.vhdx 1M --fix-gpt"),
        case(
            "resize.gpt-copies",
            7,
            |f| {
                of_gpt(f);
                f.run_with("write a.vhdx --offset 600", b"x").expect(0);
            },
            "resize a.vhdx 3M --fix-gpt",
        )
        .filled(OUT),
        case(
            "resize.gpt-hybrid",
            7,
            |f| {
                of_gpt(f);
                f.run_with("write a.vhdx --offset 466", b"x").expect(0);
            },
            "resize a.vhdx 3M --fix-gpt",
        )
        .filled(OUT),
        case(
            "exit 2",
            2,
            |f| {
                of_chain(f);
                f.run("create empty.vhdx 1M").expect(0);
            },
            "resize empty.vhdx --to-fit",
        ),
        case("compact: kind has-children", 7, of_chain, "compact l1.vhdx"),
        case("compact.free-children", 7, of_chain, "compact l1.vhdx --free"),
        case("unclean.*", 7, of_dirty_fat, "compact pc.vhdx --free"),
        case("compact.below-tip", 7, of_chain, "compact l2.vhdx@-1"),
        case(
            "compact.fixed",
            2,
            |f| fs::write(f.file("fixed.vhdx"), Image::fixed(2 << 20).to_bytes()).unwrap(),
            "compact fixed.vhdx",
        )
        .filled(&[("OUT", "dynamic.vhdx")]),
        case("kind unfinished", 7, of_tip_merge, "resize l1.vhdx +1M"),
        case(
            "metadata: kind has-children",
            7,
            of_chain,
            "metadata l1.vhdx 5ac1c0de-0000-4000-8000-000000000001 --write",
        ),
        case(
            "metadata.full",
            7,
            of_chain,
            "metadata l2.vhdx 5ac1c0de-0000-4000-8000-000000000001 --write",
        )
        .under("head -c 1M /dev/zero |"),
        case(
            "metadata.edit-size",
            7,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                (image.metadata_length, image.bat_offset) = (3 << 20, 8 << 20);
                image.write_to(f.file("a.vhdx"));
            },
            "metadata a.vhdx 5ac1c0de-0000-4000-8000-000000000001 --write",
        )
        .under("head -c 1M /dev/zero | tr '\\0' x |"),
    ]
}

/// An image with a GPT, as `sgdisk` makes it; none where that is not installed.
fn of_gpt(folder: &Folder) {
    fs::write(folder.file("disk.raw"), vec![0; 4 << 20]).unwrap();
    let made = shell(
        folder,
        "PATH=$PATH:/usr/sbin:/sbin sgdisk -a 1 -n 1:2048:3000 disk.raw && avhdx convert -f raw disk.raw a.vhdx",
    );
    assert!(made.code == Some(0) || !folder.file("a.vhdx").exists(), "{}", made.stderr);
}

/// A disk with a FAT volume that somebody had in use.
fn of_dirty_fat(folder: &Folder) {
    let mut volume = volume();
    volume[37] |= 1;
    fs::write(folder.file("pc.raw"), volume).unwrap();
    folder.run("convert -f raw pc.raw -O vhdx pc.vhdx").expect(0);
}
