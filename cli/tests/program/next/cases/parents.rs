//! Parents that cannot be found or used.

use std::fs;

use avhdx_testkit::build::write_chain;

use super::{Case, case, keep_base, of_chain, of_deep_chain, other_base};
use crate::common::{chain, guid};

pub fn parents() -> Vec<Case> {
    let read = "read l2.vhdx --length 6M";
    let parent = &[("PARENT", "kept.vhdx"), ("DIR", "elsewhere")][..];
    vec![
        case(
            "kind parent-missing",
            5,
            |f| keep_base(f, |path| fs::remove_file(path).unwrap()),
            read,
        )
        .filled(parent),
        case(
            "rebase: kind parent-missing",
            5,
            |f| keep_base(f, |path| fs::remove_file(path).unwrap()),
            "rebase l1.vhdx --onto kept.vhdx",
        )
        .filled(parent),
        case("kind parent-mismatch", 5, other_base, read).filled(parent),
        // A verb without --ignore-id-mismatch, and a parent that cannot be used.
        case("kind parent-mismatch", 5, other_base, "write l2.vhdx --offset 0").filled(parent),
        case(
            "kind parent-mismatch",
            5,
            |f| {
                keep_base(f, |path| {
                    let mut base = chain().remove(0);
                    base.set_data_write_guid(guid(9));
                    base.logical_sector = 4096;
                    base.write_to(path);
                })
            },
            read,
        )
        .filled(parent),
        case(
            "kind parent-denied",
            5,
            |f| {
                fs::create_dir(f.file("in")).unwrap();
                let mut images = chain();
                images[0].write_to(f.file("outside.vhdx"));
                images[1].parent_path(r"..\outside.vhdx");
                images[1].write_to(f.file("in/l1.vhdx"));
            },
            "read in/l1.vhdx --length 1 --confine in",
        )
        .filled(&[("DIR", ".")]),
        case(
            "parent.leads-away",
            5,
            |f| {
                let mut images = chain();
                fs::create_dir(f.file("elsewhere")).unwrap();
                images[0].write_to(f.file("elsewhere/l0.vhdx"));
                images[1].parent_path(r"\\server\share\l0.vhdx");
                images[1].write_to(f.file("l1.vhdx"));
            },
            "read l1.vhdx --length 1",
        )
        .filled(parent),
        case(
            "parent: file.folder",
            4,
            |f| {
                keep_base(f, |path| {
                    fs::remove_file(path).unwrap();
                    fs::create_dir(path).unwrap();
                })
            },
            read,
        )
        .filled(parent),
        case("parent: foreign.*", 4, |f| keep_base(f, |path| fs::write(path, "").unwrap()), read)
            .filled(parent),
        case(
            "parent: kind not-vhdx",
            4,
            |f| keep_base(f, |path| fs::write(path, b"\x01\x02\x03").unwrap()),
            read,
        )
        .filled(parent),
        case(
            "parent: kind damaged",
            4,
            |f| {
                keep_base(f, |path| {
                    let bytes = fs::read(path).unwrap();
                    fs::write(path, &bytes[..100 << 10]).unwrap();
                })
            },
            read,
        )
        .filled(parent),
        case(
            "parent: kind damaged",
            4,
            |f| {
                keep_base(f, |path| {
                    let bytes = fs::read(path).unwrap();
                    fs::write(path, &bytes[..2 << 20]).unwrap();
                })
            },
            read,
        )
        .filled(parent),
        case(
            "parent: kind unsupported",
            7,
            |f| {
                keep_base(f, |path| {
                    let mut base = chain().remove(0);
                    base.headers.iter_mut().flatten().for_each(|header| header.version = 2);
                    base.write_to(path);
                })
            },
            read,
        )
        .filled(parent),
        case(
            "chain.loop",
            4,
            |f| {
                let mut images = chain();
                images[1].locator.set("parent_linkage", format!("{{{}}}", guid(2)));
                write_chain(f.path(), &images);
                images[1].parent_path(r".\l2.vhdx");
                images[1].write_to(f.file("l1.vhdx"));
            },
            read,
        ),
        case(
            "chain.sector-size",
            4,
            |f| {
                let mut images = chain();
                images[0].logical_sector = 4096;
                write_chain(f.path(), &images);
            },
            read,
        ),
        case("limit.depth", 7, of_chain, "read l2.vhdx --length 1 --max-depth 2"),
        case("limit.open-files", 3, of_deep_chain, "read l29.vhdx --length 1")
            .under("ulimit -n 16; "),
        case(
            "locator.*",
            4,
            |f| {
                let mut images = chain();
                images[1].locator.set("parent_linkage", guid(0).to_string());
                write_chain(f.path(), &images);
            },
            read,
        )
        .filled(&[("PARENT", "l0.vhdx")]),
        case(
            "locator.*",
            7,
            |f| {
                let mut images = chain();
                images[1].locator.kind = uuid::Uuid::from_u128(7);
                write_chain(f.path(), &images);
            },
            "write l2.vhdx --offset 0",
        )
        .filled(&[("PARENT", "l0.vhdx")]),
        case(
            "reparent: locator.*",
            4,
            |f| {
                let mut images = chain();
                images[1].locator.remove("parent_linkage");
                write_chain(f.path(), &images);
            },
            "reparent l1.vhdx --onto l0.vhdx",
        ),
        case("relink.*", 7, |f| keep_base(f, |path| fs::remove_file(path).unwrap()), "relink .")
            .filled(&[("DIR", "elsewhere")])
            .first(|f| {
                // With several candidates, none is chosen.
                fs::remove_file(f.file("kept.vhdx")).unwrap();
            }),
    ]
}
