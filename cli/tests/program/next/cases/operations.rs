//! Operations on chains that are refused.

use std::fs;

use avhdx_testkit::build::{Block, Data, Image, write_chain};

use super::{Case, OUT, case, keep_base, of_chain, of_merge};
use crate::common::{chain, guid, mark};

pub fn operations() -> Vec<Case> {
    vec![
        case(
            "reparent.differs",
            7,
            |f| {
                of_chain(f);
                let mut other = chain().remove(0);
                other.set_data_write_guid(guid(9));
                other.put(0, Block::full(Data::Pattern(77)));
                other.write_to(f.file("other.vhdx"));
            },
            "reparent l1.vhdx --onto other.vhdx",
        ),
        case(
            "reparent: kind has-children",
            7,
            |f| {
                of_chain(f);
                let mut other = chain().remove(0);
                other.set_data_write_guid(guid(9));
                other.put(0, Block::full(Data::Pattern(77)));
                other.write_to(f.file("other.vhdx"));
            },
            "reparent l1.vhdx --onto other.vhdx --unproven",
        ),
        case(
            "merge.child-missing",
            5,
            |f| {
                of_merge(f);
                fs::create_dir(f.file("elsewhere")).unwrap();
                for name in ["l1.vhdx", "l2.vhdx"] {
                    fs::rename(f.file(name), f.file("elsewhere").join(name)).unwrap();
                }
            },
            "merge --resume l0.vhdx --parent-dir .",
        )
        .filled(&[("DIR", "elsewhere")]),
        case(
            "reparent.parent-lost",
            7,
            |f| keep_base(f, |path| fs::remove_file(path).unwrap()),
            "reparent l1.vhdx --onto kept.vhdx",
        ),
        case(
            "link.unfinished",
            7,
            |f| {
                of_merge(f);
                let mut other = chain().remove(0);
                other.set_data_write_guid(guid(9));
                other.write_to(f.file("other.vhdx"));
            },
            "reparent l1.vhdx --onto other.vhdx",
        ),
        case("link.*", 2, of_chain, "reparent l1.vhdx --onto l2.vhdx"),
        case("link.*", 2, of_chain, "reparent l1.vhdx --onto l1.vhdx"),
        case("exit 2", 2, of_chain, "delete l2.vhdx@-0"),
        case("exit 2", 2, of_chain, "delete l2.vhdx@base --subtree"),
        case(
            "exit 7",
            7,
            |f| {
                of_chain(f);
                f.run("create other.avhdx --parent l1.vhdx").expect(0);
            },
            "delete l2.vhdx@-1",
        ),
        case("kind in-use", 6, of_chain, "read l2.vhdx --length 1").held("l2.vhdx"),
        case("kind in-use", 6, of_chain, "merge l2.vhdx").held("l1.vhdx").filled(OUT),
        case("kind in-use", 6, of_chain, "map l2.vhdx").held("l0.vhdx"),
        case("kind has-children", 7, of_chain, "write l1.vhdx --offset 0")
            .filled(&[("CHILD", "c.avhdx")]),
        case("point.none", 2, of_chain, "revert l2.vhdx"),
        case("revert.newest", 2, of_chain, "revert l2.vhdx@-0"),
        case(
            "merge: kind has-children",
            7,
            |f| {
                of_chain(f);
                f.run("create other.avhdx --parent l1.vhdx").expect(0);
            },
            "merge l2.vhdx@-1",
        ),
        case(
            "merge.children-unknown",
            7,
            |f| {
                of_chain(f);
                std::os::unix::fs::symlink("odd.vhdx", f.file("odd.vhdx")).unwrap();
            },
            "merge l2.vhdx@-1",
        ),
        case(
            "merge.shrinks",
            7,
            |f| {
                let mut base = Image::dynamic(8 << 20);
                base.put(6, Block::full(Data::Pattern(3)));
                let mut small = Image::child(5 << 20, base.data_write_guid());
                small.parent_path(r".\base.vhdx");
                base.write_to(f.file("base.vhdx"));
                small.write_to(f.file("small.avhdx"));
            },
            "merge small.avhdx",
        ),
        case("delete.branch", 7, of_chain, "delete l2.vhdx@-0 --subtree"),
        case(
            "delete.children-unknown",
            7,
            |f| {
                of_chain(f);
                let mut image = vec![0; 4 << 20];
                image[..8].copy_from_slice(b"vhdxfile");
                fs::write(f.file("broken.avhdx"), image).unwrap();
            },
            "delete l2.vhdx@-0 --subtree --lose-branch",
        ),
        case(
            "delete.copies",
            7,
            |f| {
                of_chain(f);
                fs::copy(f.file("l1.vhdx"), f.file("copy.vhdx")).unwrap();
            },
            "delete l2.vhdx@-1 --subtree --lose-branch",
        ),
        case("label.frozen", 7, of_chain, "label l2.vhdx@-2 older"),
        case("label.tip", 2, of_chain, "label l2.vhdx@-0 now"),
        case("merge.no-parent", 2, of_chain, "merge l2.vhdx@base"),
        case("merge.not-begun", 2, of_chain, "merge --resume l2.vhdx"),
        case(
            "kind merged",
            7,
            |f| {
                let mut images = chain();
                mark(&mut images[2], 2, guid(1), "l1.vhdx");
                write_chain(f.path(), &images);
            },
            "read l2.vhdx --length 1",
        ),
        case("kind unfinished", 7, of_merge, "read l0.vhdx --length 1"),
    ]
}
