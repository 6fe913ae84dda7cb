//! The suggestions for files of other formats.

use super::rows::Row;

/// The way to convert a foreign image with QEMU.
macro_rules! convert_by_qemu {
    ($format:literal) => {
        concat!(
            "qemu-img convert -f ",
            $format,
            " -O raw FILE OUT.raw && avhdx convert -f raw -O vhdx OUT.raw OUT.vhdx"
        )
    };
}

/// Where the parents of VHD images come from.
const VHD_PARENTS: &str = "--parent-dir DIR searches a folder, --with-parent FILE names the file";

/// Rows of the table.
pub(super) const FORMATS: &[Row] = &[
    (
        "foreign.disk",
        &["-f raw reads the file as a raw disk"],
        &["AGAIN -f raw", "avhdx convert -f raw -O vhdx FILE OUT  # makes an image from it"],
    ),
    (
        "foreign.qcow2",
        &["--format qcow2 reads a qcow2 image"],
        &["AGAIN -f qcow2", "avhdx convert -f qcow2 FILE OUT.vhdx  # makes a VHDX image of it"],
    ),
    ("foreign.qcow", &[], &[convert_by_qemu!("qcow")]),
    ("foreign.qed", &[], &[convert_by_qemu!("qed")]),
    (
        "foreign.vhd",
        &["--format vhd reads a VHD image"],
        &["AGAIN -f vhd", "avhdx convert -f vhd FILE OUT.vhdx  # makes a VHDX image of it"],
    ),
    (
        "foreign.vmdk",
        &["--format vmdk reads a VMDK image"],
        &["AGAIN -f vmdk", "avhdx convert -f vmdk FILE OUT.vhdx  # makes a VHDX image of it"],
    ),
    (
        "foreign.vmdk-text",
        &["the file only names the files that hold the disk; -f vmdk reads them"],
        &["AGAIN -f vmdk", "avhdx convert -f vmdk FILE OUT.vhdx  # makes a VHDX image of it"],
    ),
    ("foreign.vdi", &[], &[convert_by_qemu!("vdi")]),
    ("foreign.parallels", &[], &[convert_by_qemu!("parallels")]),
    ("foreign.gzip", &[], &["gzip -dc FILE > OUT && avhdx info OUT"]),
    ("foreign.xz", &[], &["xz -dc FILE > OUT && avhdx info OUT"]),
    ("foreign.zstd", &[], &["zstd -dc FILE > OUT && avhdx info OUT"]),
    ("foreign.bzip2", &[], &["bzip2 -dc FILE > OUT && avhdx info OUT"]),
    ("foreign.zip", &[], &["unzip FILE -d OUT && avhdx tree OUT"]),
    ("foreign.7z", &[], &["7z x FILE -oOUT && avhdx tree OUT"]),
    ("foreign.tar", &[], &["tar -xf FILE && avhdx tree ."]),
    (
        "foreign.html",
        &[
            "a server sent a page in place of the file: download it again, signed in or by another link",
        ],
        &["avhdx tree FOLDER  # lists the images"],
    ),
    (
        "foreign.zeros",
        &[
            "a copy that stopped early leaves zeros; -f raw reads the file as a raw disk without data",
        ],
        &["AGAIN -f raw", "avhdx tree FOLDER  # lists the images"],
    ),
    (
        "qcow2.parent-required",
        &[
            "--confine DIR opens backing files in DIR, --parent-dir DIR searches a folder for their names",
        ],
        &["AGAIN --confine FOLDER"],
    ),
    (
        "qcow2.parent-missing",
        &[
            "--confine DIR opens backing files in DIR, --parent-dir DIR searches a folder for their names",
        ],
        &["AGAIN --parent-dir DIR  # DIR: a folder that may contain it"],
    ),
    ("format.not-regular", &[], &["avhdx tree FOLDER  # lists the images of VHDX"]),
    (
        "qcow2.backing-format",
        &[
            "qemu-img rebase -u -b NAME -F qcow2 records that it is a qcow2 image, -F raw that it is a raw disk",
        ],
        &["avhdx info FILE  # shows what is recorded"],
    ),
    ("qcow2.backing-loop", &[], &["avhdx tree FOLDER  # lists the images of VHDX there"]),
    ("qcow2.*", &[], &[convert_by_qemu!("qcow2")]),
    ("new-qcow2.*", &[], &["avhdx VERB --help"]),
    ("vhd.is-vhdx", &[], &["AGAIN -f vhdx"]),
    ("vhd.parent-required", &[VHD_PARENTS], &["AGAIN --confine FOLDER"]),
    (
        "vhd.parent-missing",
        &[VHD_PARENTS],
        &["AGAIN --parent-dir DIR  # DIR: a folder that may contain it"],
    ),
    (
        "vhd.parent-mismatch",
        &[VHD_PARENTS],
        &["AGAIN --parent-dir DIR  # DIR: a folder that may contain it"],
    ),
    (
        "vhd.*",
        &["a copy of the file from before the damage is the way back"],
        &["avhdx tree FOLDER  # lists the images of VHDX there"],
    ),
    ("new-vhd.*", &[], &["avhdx VERB --help"]),
    (
        "vmdk.extent-missing",
        &["extents are opened in the folder of the image, and below a folder given with --confine"],
        &["avhdx info -f vmdk FILE  # lists the extents"],
    ),
    (
        "vmdk.extent-outside",
        &["extents are opened in the folder of the image, and below a folder given with --confine"],
        &["AGAIN --confine DIR  # DIR: the folder of the extent"],
    ),
    ("vmdk.parent-required", &[VHD_PARENTS], &["AGAIN --confine FOLDER"]),
    (
        "vmdk.parent-missing",
        &[VHD_PARENTS],
        &["AGAIN --parent-dir DIR  # DIR: a folder that may contain it"],
    ),
    (
        "vmdk.parent-mismatch",
        &[VHD_PARENTS],
        &["AGAIN --with-parent PARENT  # PARENT: the parent image as it was"],
    ),
    ("vmdk.*", &[], &[convert_by_qemu!("vmdk")]),
];
