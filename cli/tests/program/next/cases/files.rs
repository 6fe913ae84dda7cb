//! Files that are damaged, or of another format.

use std::fs;

use avhdx_testkit::build::{Block, Data, Descriptor, Image, LogEntry};
use avhdx_testkit::vhd::{Image as Vhd, Parent};
use avhdx_testkit::vmdk::descriptor;

use super::{Case, OUT, OUT_FED, case, dirty, make_fifo, of_chain, write_disk};
use crate::common::{Folder, guid};
use crate::next::{missing_tool, shell};

pub fn files() -> Vec<Case> {
    let mut cases = vec![
        case("rescue.nothing", 4, of_zeros, "rescue zeros.vhdx out.raw"),
        case("rescue.size-unknown", 4, of_ruin, "rescue ruin.vhdx out.raw"),
        case("exit 2", 2, of_ruin, "rescue ruin.vhdx out.raw --size 1000"),
        case(
            "log.no-entries",
            4,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.set_log_guid(guid(8));
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "log.pending",
            7,
            |f| {
                dirty().write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1 --log refuse",
        ),
        case(
            "kind log-overlay",
            7,
            |f| {
                let mut image = dirty();
                let payload = image.layout().payload[&0];
                image.log[0].descriptors.push(Descriptor::data(payload, vec![1; 4096]));
                image.write_to(f.file("a.vhdx"));
            },
            "map a.vhdx",
        )
        .filled(OUT),
        case(
            "log.*",
            4,
            |f| {
                let mut image = dirty();
                image.log[0].flushed_file_offset = Some(1 << 40);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "limit.header-sequence",
            7,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                let headers = image.headers.iter_mut().flatten();
                headers.zip([u64::MAX - 1, u64::MAX]).for_each(|(h, n)| h.sequence_number = n);
                image.write_to(f.file("a.vhdx"));
            },
            "write a.vhdx --offset 0",
        )
        .filled(OUT),
        case(
            "limit.log-changes",
            7,
            |f| {
                let mut image = Image::dynamic(1 << 20);
                image.log_length = 64 << 20;
                image.metadata_offset = 65 << 20;
                image.bat_offset = 66 << 20;
                image.set_log_guid(guid(8));
                let spare = image.layout().needed_length;
                let count = u64::from(image.log_length) / 32 - 2;
                let zeros = (0..count).map(|n| Descriptor::zero(spare + n * 8192, 4096)).collect();
                image.log = vec![LogEntry::new(7, zeros)];
                image.file_length = Some(spare);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "claim.*",
            4,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.put(3, Block::full(Data::Pattern(1)));
                image.file_length = Some(image.layout().needed_length - (1 << 20));
                image.write_to(f.file("a.vhdx"));
            },
            "zero a.vhdx --offset 3M --length 512",
        ),
        case(
            "loss.report",
            3,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.put(3, Block::full(Data::Pattern(1)));
                image.file_length = Some(image.layout().needed_length - (1 << 20));
                image.write_to(f.file("a.vhdx"));
                fs::write(f.file("list"), "").unwrap();
            },
            "zero a.vhdx --offset 0 --length 512 --accept-loss --loss-report list",
        )
        .filled(&[("LIST", "other")]),
        case(
            "repair.undo",
            3,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.bat_override.insert(3, 1 << 4);
                image.write_to(f.file("a.vhdx"));
                fs::write(f.file("list"), "").unwrap();
            },
            "repair a.vhdx --undo-file list",
        )
        .filled(&[("OUT.undo", "other")]),
        case(
            "undo.*",
            2,
            |f| {
                Image::dynamic(4 << 20).write_to(f.file("a.vhdx"));
                fs::write(f.file("list"), "").unwrap();
            },
            "repair a.vhdx --undo list",
        ),
        case(
            "kind damaged",
            4,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.bat_override.insert(3, 4);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 4M",
        ),
        case(
            "kind unsupported",
            7,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.headers.iter_mut().flatten().for_each(|header| header.version = 2);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "kind unsupported",
            7,
            |f| {
                let mut image = Image::dynamic(4 << 20);
                image.add_region(uuid::Uuid::from_u128(77), true, vec![1]);
                image.write_to(f.file("a.vhdx"));
            },
            "read a.vhdx --length 1",
        ),
        case(
            "kind not-vhdx",
            4,
            |f| fs::write(f.file("a.vhdx"), b"\x01\x02\x03").unwrap(),
            "info a.vhdx",
        ),
        case(
            "kind not-vhdx",
            4,
            |f| fs::write(f.file("a.vhdx"), "a letter").unwrap(),
            "info a.vhdx",
        ),
        case(
            "foreign.html",
            4,
            |f| fs::write(f.file("a.vhdx"), "\n<!DOCTYPE html>\n<html>").unwrap(),
            "info a.vhdx",
        ),
        case(
            "foreign.zeros",
            4,
            |f| fs::write(f.file("a.vhdx"), [0; 4096]).unwrap(),
            "info a.vhdx",
        ),
        case(
            "foreign.zeros",
            4,
            |f| fs::write(f.file("a.vhdx"), [0; 4096]).unwrap(),
            "read a.vhdx --length 1",
        ),
        case("file.not-regular", 2, |f| make_fifo(&f.file("pipe")), "read pipe -f raw --length 1")
            .filled(OUT_FED),
        case("kind not-vhdx", 4, |f| fs::write(f.file("a.vhdx"), "").unwrap(), "check a.vhdx"),
        case(
            "kind not-vhdx",
            4,
            |f| fs::write(f.file("a.vhdx"), b"MSWIM\0\0\0").unwrap(),
            "info a.vhdx",
        ),
        case(
            "kind not-vhdx",
            4,
            |f| {
                let mut bytes = vec![0; 40_000];
                bytes[32_769..32_774].copy_from_slice(b"CD001");
                fs::write(f.file("a.vhdx"), bytes).unwrap();
            },
            "info a.vhdx",
        ),
        case("foreign.disk", 4, |f| write_disk(&f.file("a.vhdx")), "read a.vhdx --length 512")
            .filled(OUT),
        case("foreign.disk", 4, |f| write_disk(&f.file("a.vhdx")), "check a.vhdx").filled(OUT),
        case(
            "foreign.disk",
            4,
            |f| {
                of_chain(f);
                write_disk(&f.file("a.vhdx"));
            },
            "compare l2.vhdx a.vhdx",
        )
        .filled(OUT),
    ];
    cases.extend(foreign());
    cases.extend(vhd());
    cases.extend(qcow2());
    cases.extend(vmdk());
    cases
}

/// VHD images, and what is asked of them.
fn vhd() -> Vec<Case> {
    vec![
        case(
            "vhd.*",
            4,
            |f| {
                let mut image = Vhd::new(3, 4 << 20, 512 << 10, 1);
                image.runs = vec![(0, vec![1; 512]), (1024, vec![2; 512])];
                let mut file = image.build();
                file.copy_within(1536..1540, 1540);
                fs::write(f.file("a.vhd"), file).unwrap();
            },
            "read a.vhd --length 1",
        ),
        case(
            "vhd.is-vhdx",
            7,
            |f| {
                of_chain(f);
                fs::copy(f.file("l0.vhdx"), f.file("a.vhd")).unwrap();
            },
            "info a.vhd",
        ),
        case("vhd.parent-missing", 5, |f| vhd_child(f, 1), "read a.vhd --length 1 --confine there")
            .filled(&[("DIR", "there")]),
        case(
            "vhd.parent-mismatch",
            5,
            |f| vhd_child(f, 1),
            "read a.vhd --length 1 --with-parent other.vhd",
        )
        .filled(&[("DIR", "there")]),
        case(
            "vhd.parent-required",
            5,
            |f| {
                vhd_child(f, 1);
                fs::rename(f.file("there/base.vhd"), f.file("base.vhd")).unwrap();
            },
            "read a.vhd --length 1",
        ),
        case(
            "exit 2",
            2,
            |f| {
                of_chain(f);
                fs::copy(f.file("l0.vhdx"), f.file("a.img")).unwrap();
            },
            "read a.img --length 1",
        ),
        case("exit 2", 2, of_chain, "convert l2.vhdx a.vhd --azure"),
        case("exit 2", 2, |f| vhd_child(f, 1), "info other.vhd@-1"),
        case(
            "exit 2",
            2,
            |f| {
                Image { logical_sector: 4096, ..Image::dynamic(4 << 20) }
                    .write_to(f.file("a.vhdx"));
            },
            "convert a.vhdx a.vhd",
        ),
    ]
}

/// qcow2 images, and what is asked of them.
fn qcow2() -> Vec<Case> {
    vec![
        case(
            "qcow2.*",
            4,
            |f| {
                shell(f, "qemu-img create -q -f qcow2 a.qcow2 1M && qemu-io -f qcow2 -c 'write 0 1k' a.qcow2");
                let mut file = fs::read(f.file("a.qcow2")).unwrap();
                // A second table that lies at no cluster: QEMU reads zeros there.
                let l1 = u64::from_be_bytes(file[40..48].try_into().unwrap()) as usize;
                file[l1 + 6] |= 2;
                fs::write(f.file("a.qcow2"), file).unwrap();
            },
            "read a.qcow2 --length 1",
        )
        .filled(OUT),
        case(
            "qcow2.backing-format",
            7,
            |f| {
                shell(f, "qemu-img create -q -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2 1M");
                let mut file = fs::read(f.file("a.qcow2")).unwrap();
                let mark = [0xE2, 0x79, 0x2A, 0xCA];
                let at = file.windows(4).position(|bytes| bytes == mark).unwrap();
                file[at] = 0x12;
                fs::write(f.file("a.qcow2"), file).unwrap();
            },
            "read a.qcow2 --length 1 --confine .",
        ),
        case(
            "qcow2.backing-loop",
            7,
            |f| {
                let over = "qemu-img create -q -u -f qcow2 -F qcow2";
                shell(f, &format!("{over} -b b.qcow2 a.qcow2 1M; {over} -b a.qcow2 b.qcow2 1M"));
            },
            "read a.qcow2 --length 1 --confine .",
        ),
        case("new-qcow2.*", 2, of_chain, "convert l2.vhdx a.qcow2 --block 3M"),
        case("new-vhd.*", 2, of_chain, "convert l2.vhdx a.vhd --block 3M"),
        case("qcow2.parent-required", 5, qcow2_child, "read a.qcow2 --length 1"),
        case("qcow2.parent-missing", 5, |f| {
            qcow2_child(f);
            fs::create_dir(f.file("there")).unwrap();
            fs::rename(f.file("b.qcow2"), f.file("there/b.qcow2")).unwrap();
        }, "read a.qcow2 --length 1 --with-parent nothing.qcow2")
        .filled(&[("DIR", "there")]),
        case("exit 2", 2, of_chain, "convert --chain l2.vhdx nowhere"),
        case("exit 2", 2, qcow2_child, "convert --chain b.qcow2 ."),
        case("format.not-regular", 7, |f| fs::create_dir(f.file("a.qcow2")).unwrap(), "read a.qcow2 --length 1"),
    ]
}

fn qcow2_child(f: &Folder) {
    let child = "qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 a.qcow2";
    shell(f, &format!("qemu-img create -q -f qcow2 b.qcow2 1M && {child}"));
}

/// VMDK images, and what is asked of them.
fn vmdk() -> Vec<Case> {
    vec![
        case(
            "vmdk.*",
            4,
            |f| {
                shell(f, "qemu-img create -q -f vmdk a.vmdk 1M");
                // The bytes that tell a change of new lines, which QEMU does not look at.
                let mut file = fs::read(f.file("a.vmdk")).unwrap();
                file[73] = b'x';
                fs::write(f.file("a.vmdk"), file).unwrap();
            },
            "read a.vmdk --length 1",
        )
        .filled(OUT),
        case("vmdk.extent-missing", 3, |f| vmdk_extent(f, "b"), "read a.vmdk --length 1"),
        case(
            "vmdk.extent-outside",
            5,
            |f| {
                vmdk_extent(f, "../there/b");
                fs::create_dir(f.file("here")).unwrap();
                fs::rename(f.file("a.vmdk"), f.file("here/a.vmdk")).unwrap();
            },
            "read here/a.vmdk --length 1",
        )
        .filled(&[("DIR", "there")]),
        case("vmdk.parent-required", 5, vmdk_child, "read a.vmdk --length 1"),
        case(
            "vmdk.parent-missing",
            5,
            |f| {
                vmdk_child(f);
                fs::rename(f.file("b.vmdk"), f.file("there/b.vmdk")).unwrap();
            },
            "read a.vmdk --length 1 --confine .",
        )
        .filled(&[("DIR", "there")]),
        case(
            "vmdk.parent-mismatch",
            5,
            |f| {
                vmdk_child(f);
                fs::rename(f.file("b.vmdk"), f.file("there/b.vmdk")).unwrap();
                let changed = descriptor("custom", 9, None, &["RW 2048 ZERO"]);
                fs::write(f.file("b.vmdk"), changed).unwrap();
            },
            "read a.vmdk --length 1 --confine .",
        )
        .filled(&[("PARENT", "there/b.vmdk")]),
    ]
}

/// An image with an extent of this name, for which there is a file in the folder `there`.
fn vmdk_extent(f: &Folder, name: &str) {
    let line = format!("RW 2048 FLAT \"{name}\" 0");
    fs::write(f.file("a.vmdk"), descriptor("monolithicFlat", 1, None, &[&line])).unwrap();
    fs::create_dir(f.file("there")).unwrap();
    fs::write(f.file("there/b"), [1; 1 << 20]).unwrap();
}

/// A child and its parent, and an empty folder `there`.
fn vmdk_child(f: &Folder) {
    fs::create_dir(f.file("there")).unwrap();
    let line = ["RW 2048 ZERO"];
    let child = descriptor("custom", 3, Some((1, "b.vmdk")), &line);
    fs::write(f.file("a.vmdk"), child).unwrap();
    fs::write(f.file("b.vmdk"), descriptor("custom", 1, None, &line)).unwrap();
}

/// A child whose parent lies in the folder `there`, and another image.
fn vhd_child(f: &Folder, of: u8) {
    let mut child = Vhd::new(4, 4 << 20, 512 << 10, 2);
    child.parent = Some(Parent {
        id: [of; 16],
        stamp: 0,
        name: "base.vhd".into(),
        relative: Some(r".\base.vhd".into()),
        absolute: None,
    });
    fs::write(f.file("a.vhd"), child.build()).unwrap();
    fs::create_dir(f.file("there")).unwrap();
    fs::write(f.file("there/base.vhd"), Vhd::new(3, 4 << 20, 512 << 10, 1).build()).unwrap();
    fs::write(f.file("other.vhd"), Vhd::new(3, 4 << 20, 512 << 10, 3).build()).unwrap();
}

/// A row, and the function that sets up its files.
type Made = (&'static str, fn(&Folder));

/// Images of other programs, made by them if they are installed.
fn foreign() -> Vec<Case> {
    let qemu: [Made; 7] = [
        ("foreign.qcow2", |f| by_qemu(f, "qcow2")),
        ("foreign.qcow", |f| by_qemu(f, "qcow")),
        ("foreign.qed", |f| by_qemu(f, "qed")),
        ("foreign.vhd", |f| by_qemu(f, "vpc")),
        ("foreign.vmdk", |f| by_qemu(f, "vmdk")),
        ("foreign.vdi", |f| by_qemu(f, "vdi")),
        ("foreign.parallels", |f| by_qemu(f, "parallels")),
    ];
    let packers: [Made; 7] = [
        ("foreign.gzip", |f| pack(f, "gzip -c l0.vhdx > a.vhdx")),
        ("foreign.xz", |f| pack(f, "xz -c l0.vhdx > a.vhdx")),
        ("foreign.zstd", |f| pack(f, "zstd -qc l0.vhdx > a.vhdx")),
        ("foreign.bzip2", |f| pack(f, "bzip2 -c l0.vhdx > a.vhdx")),
        ("foreign.zip", |f| pack(f, "zip -q a.zip l0.vhdx && mv a.zip a.vhdx")),
        ("foreign.7z", |f| pack(f, "7z a a.7z l0.vhdx > /dev/null && mv a.7z a.vhdx")),
        ("foreign.tar", |f| pack(f, "tar -cf a.vhdx l0.vhdx")),
    ];
    let mut cases: Vec<Case> = qemu
        .into_iter()
        .chain(packers)
        .map(|(row, set_up)| case(row, 4, set_up, "info a.vhdx").filled(OUT))
        .collect();
    cases.push(
        case(
            "foreign.vmdk-text",
            4,
            |f| {
                let options = "-f vmdk -o subformat=monolithicFlat a.vmdk 1M";
                shell(f, &format!("qemu-img create -q {options} && mv a.vmdk a.vhdx"));
            },
            "info a.vhdx",
        )
        .filled(OUT),
    );
    cases
}

fn by_qemu(folder: &Folder, format: &str) {
    shell(folder, &format!("qemu-img create -q -f {format} a.vhdx 1M"));
}

fn pack(folder: &Folder, line: &str) {
    of_chain(folder);
    if missing_tool(line).is_none() {
        shell(folder, line);
    }
    // The suggested command must restore the image.
    if folder.file("a.vhdx").metadata().is_ok_and(|made| made.len() == 0) {
        fs::remove_file(folder.file("a.vhdx")).unwrap();
    }
}

/// A file of zeros, beside images.
fn of_zeros(folder: &Folder) {
    of_chain(folder);
    fs::write(folder.file("zeros.vhdx"), vec![0; 4 << 20]).unwrap();
}

/// An image that has neither metadata nor a table.
fn of_ruin(folder: &Folder) {
    let mut image = Image::dynamic(6 << 20);
    image.put(1, Block::full(Data::Pattern(1)));
    let (mut bytes, layout) = (image.to_bytes(), image.layout());
    for lost in [layout.get("metadata"), layout.get("bat")] {
        bytes[lost.start as usize..lost.end as usize].fill(0);
    }
    fs::write(folder.file("ruin.vhdx"), bytes).unwrap();
}
