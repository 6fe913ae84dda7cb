//! What was asked for cannot be: arguments, names, points in time, and outputs.

use std::fs;

use super::{Case, OUT, case, make_fifo, of_chain, write_disk};
use crate::common::chain;

pub fn asked() -> Vec<Case> {
    vec![
        case(
            "create.metadata",
            7,
            of_chain,
            "create c.avhdx --parent l2.vhdx --absolute-win32-path LONG",
        ),
        case("file.folder", 4, of_chain, "info ."),
        case("file.folder", 2, of_chain, "read . -f raw --length 1"),
        case("file.open", 3, of_chain, "info nothing.vhdx"),
        case("file.open", 3, of_chain, "info no/folder/x.vhdx"),
        case(
            "file.vhd-set",
            7,
            |f| {
                of_chain(f);
                fs::write(f.file("set.vhds"), "").unwrap();
            },
            "info set.vhds",
        ),
        case(
            "file.not-regular",
            4,
            |f| {
                of_chain(f);
                make_fifo(&f.file("pipe.vhdx"));
            },
            "info pipe.vhdx",
        ),
        case(
            "file.not-regular",
            4,
            |f| {
                of_chain(f);
                make_fifo(&f.file("pipe.vhdx"));
            },
            "reparent pipe.vhdx --onto l1.vhdx",
        ),
        case("file.folder", 4, of_chain, "reparent . --onto l1.vhdx"),
        case("forest.place", 3, of_chain, "tree nothing"),
        case("stdout.done", 3, of_chain, "create b.vhdx --size 4M >/dev/full"),
        case("create.exists", 7, of_chain, "checkpoint l2.vhdx --path l0.vhdx").filled(OUT),
        case("diff.one-image", 2, of_chain, "diff l2.vhdx")
            .filled(&[("OTHER", "l0.vhdx")]),
        case("seal.changed", 7, changed_seal, "merge l2.vhdx@-1"),
        case("seal.damaged", 4, damaged_seal, "seal l2.vhdx"),
        case("seal.damaged", 4, damaged_seal, "merge l2.vhdx@-1"),
        case(
            "seal.version",
            7,
            |f| {
                of_chain(f);
                f.run("seal l2.vhdx").expect(0);
                let mut seal = f.read("l1.vhdx.seal");
                seal[8] = 9;
                fs::write(f.file("l1.vhdx.seal"), seal).unwrap();
            },
            "seal l2.vhdx",
        ),
        case(
            "seal.link",
            7,
            |f| {
                of_chain(f);
                std::os::unix::fs::symlink("l0.vhdx", f.file("l1.vhdx.seal")).unwrap();
            },
            "seal l2.vhdx",
        ),
        case("man.verb", 2, of_chain, "man frobnicate"),
        case(
            "point.ambiguous",
            2,
            |f| {
                of_chain(f);
                f.run("checkpoint l2.vhdx --label x --path a.avhdx").expect(0);
                f.run("checkpoint a.avhdx --label x --path b.avhdx").expect(0);
            },
            "read b.avhdx@x --length 1",
        ),
        case("point.unknown", 2, of_chain, "read l2.vhdx@nobody --length 1"),
        case("point.below-tip", 7, of_chain, "write l2.vhdx@-1 --offset 0")
            .filled(&[("CHILD", "c.avhdx")]),
        case("output.exists", 7, of_chain, "convert l0.vhdx -O vhdx l2.vhdx"),
        case("output.is-input", 7, of_chain, "convert l0.vhdx -O vhdx l0.vhdx --overwrite")
            .filled(OUT),
        case(
            "output.link",
            7,
            |f| {
                of_chain(f);
                std::os::unix::fs::symlink("nowhere", f.file("link")).unwrap();
            },
            "convert l0.vhdx -O raw link",
        )
        .filled(OUT),
        case(
            "convert: kind has-children",
            7,
            of_chain,
            "convert l0.vhdx -O vhdx l1.vhdx --overwrite",
        )
        .filled(OUT),
        case("flatten: kind has-children", 7, of_chain, "flatten l0.vhdx l1.vhdx --overwrite")
            .filled(OUT),
        case("create: kind has-children", 7, of_chain, "create l1.vhdx --size 4M --overwrite")
            .filled(OUT),
        case("output.is-source", 7, of_chain, "convert l2.vhdx -O raw - >>l0.vhdx").filled(OUT),
        case(
            "parent.astray",
            7,
            |f| _ = chain()[0].write_to(f.file(r"a\b.vhdx")),
            r"create c.avhdx --parent 'a\b.vhdx'",
        ),
        case("convert: output.not-a-file", 7, of_chain, "convert l0.vhdx -O raw .").filled(OUT),
        case("output.ending", 2, of_chain, "convert l0.vhdx -O raw new.vhdx").filled(OUT),
        case("output.no-writer", 2, of_chain, "convert l2.vhdx new.vdi").filled(OUT),
        case("output.ending", 2, of_chain, "flatten l2.vhdx new.raw").filled(OUT),
        case("exit 2", 2, of_chain, "flatten l2.vhdx -").filled(OUT),
        case("output.no-writer", 2, of_chain, "convert -O raw l2.vhdx its.VMDK").filled(OUT),
        case("output.ending", 2, of_chain, "create new.vhd 4M").filled(OUT),
        case("output.ending", 2, of_chain, "convert -O vhdx l2.vhdx new.vhd").filled(OUT),
        case("output.no-writer", 2, of_chain, "create new.vhds 4M").filled(OUT),
        case("output.ending", 2, of_chain, "create new.qcow2 --parent l2.vhdx").filled(OUT),
        case("output.ending", 2, of_chain, "create new.qcow2 4M").filled(OUT),
        case("output.*", 3, of_chain, "convert l0.vhdx -O raw nowhere/out").filled(OUT),
        case("output.*", 6, of_chain, "convert l0.vhdx -O vhdx l1.vhdx --overwrite")
            .held("l1.vhdx")
            .filled(OUT),
        case("export.write", 3, of_chain, "convert l2.vhdx -O raw out")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        case("import.write", 3, of_chain, "convert -f raw - out.raw")
            .under("trap '' XFSZ; ulimit -f 64; cat l2.vhdx | ")
            .filled(&[("OUT", "made.raw < l0.vhdx")]),
        case("exit 3", 3, of_chain, "flatten l2.vhdx out.vhdx")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        // The input is not to blame.
        case("exit 3", 3, |f| write_disk(&f.file("disk")), "convert -f raw disk out.vhdx")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        case("exit 3", 3, |f| write_disk(&f.file("disk")), "convert -f raw - out.vhdx")
            .under("trap '' XFSZ; ulimit -f 64; cat disk | ")
            .filled(&[("OUT", "made < disk")]),
        case(
            "exit 2",
            2,
            of_chain,
            "convert -f raw - o.raw --size 18446744073709551615 < l0.vhdx",
        ),
        case("exit 2", 2, of_chain, "convert - -"),
        case("exit 2", 2, |f| fs::write(f.file("empty"), "").unwrap(), "convert -f raw empty o.vhdx"),
        case("exit 2", 2, of_chain, "read l2.vhdx --length 7M"),
        case("exit 2", 2, of_chain, "create c.avhdx 1M --parent l2.vhdx"),
        case("exit 2", 2, of_chain, "convert l2.vhdx -O raw out.raw --block 1M"),
        case("exit 2", 2, of_chain, "create c.vhdx 4M --block 3M"),
        case("exit 2", 2, of_chain, "create c.vhdx 65T"),
        case("exit 2", 2, of_chain, "measure l2.vhdx --block-size 3M"),
        case("exit 2", 2, of_chain, "write l2.vhdx --offset 6M < l0.vhdx"),
        case("children.folder", 3, of_chain, "write l2.vhdx --offset 0 --children-in nowhere"),
        case("import.empty", 2, of_chain, "convert -f raw - new.vhdx < /dev/null")
            .filled(&[("IN", "l0.vhdx")]),
        case("exit 2", 2, of_chain, "convert -f raw - new.vhdx --size 512 < l0.vhdx"),
        case("stdin.read", 3, of_chain, "write l2.vhdx --offset 0 < .")
            .filled(&[("IN", "l0.vhdx")]),
        case("stdout.write", 3, of_chain, "read l2.vhdx --length 64K > /dev/full").filled(OUT),
        case("stdout.write", 3, of_chain, "man merge > /dev/full").filled(OUT),
        case("output.*", 3, of_chain, "man --dir nowhere"),
        case("output.*", 7, of_chain, "man --dir l0.vhdx").filled(&[("OUT", ".")]),
        case("output.*", 7, of_chain, "man --dir=l0.vhdx").filled(&[("--dir=OUT", "--dir=.")]),
        case("output.*", 7, of_chain, "create . 4M").filled(OUT),
        case("output.exists", 7, |f| fs::write(f.file("avhdx.1"), "a note").unwrap(), "man --dir ."),
        case("create.exists", 7, of_chain, "checkpoint l2.vhdx --path=l0.vhdx").filled(OUT),
        case("log.write", 3, of_chain, "write l2.vhdx --offset 5M < data")
            .under("head -c 512 l0.vhdx > data; trap '' XFSZ; ulimit -f 1; "),
        case("exit 3", 3, of_chain, "write l2.vhdx --offset 5M < data").under(
            "head -c 512 l0.vhdx > data; trap '' XFSZ; ulimit -f $(($(stat -c %s l2.vhdx) / 1024)); ",
        ),
        case("create: exit 3", 3, of_chain, "create big.vhdx 64M --fixed")
            .under("trap '' XFSZ; ulimit -f 64; ")
            .filled(OUT),
        case("exit 6", 6, |f| write_disk(&f.file("disk")), "read disk -f raw --length 512")
            .held("disk"),
    ]
}

/// A sealed chain whose middle layer has another byte than it had.
fn changed_seal(f: &crate::common::Folder) {
    of_chain(f);
    f.run("seal l2.vhdx").expect(0);
    let mut image = f.read("l1.vhdx");
    let map = f.run("map l2.vhdx --json").expect(0).text();
    let own = map.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let mut own = own.filter(|extent| extent["image"] == "l1.vhdx");
    let at = own.find_map(|extent| extent["offset"].as_u64()).unwrap();
    image[at as usize] ^= 1;
    fs::write(f.file("l1.vhdx"), image).unwrap();
}

/// A sealed chain of which a seal has another byte than it had.
fn damaged_seal(f: &crate::common::Folder) {
    of_chain(f);
    f.run("seal l2.vhdx").expect(0);
    let mut seal = f.read("l1.vhdx.seal");
    seal[100] ^= 1;
    fs::write(f.file("l1.vhdx.seal"), seal).unwrap();
}
