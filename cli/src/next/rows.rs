//! What helps after which failure.

use super::Row;

/// The way on from an image that QEMU knows by this name, where QEMU is installed.
macro_rules! convert_by_qemu {
    ($format:literal) => {
        concat!(
            "qemu-img convert -f ",
            $format,
            " -O raw FILE OUT.raw && avhdx convert -f raw -O vhdx OUT.raw OUT.vhdx"
        )
    };
}

/// All rows, those of exact codes and of kinds side by side.
pub(crate) const ROWS: &[Row] = &[
    // What was asked.
    (
        "create.parent-path",
        &[],
        &[r"AGAIN --absolute-win32-path 'D:\vm\NAME'  # Windows' name of the parent"],
    ),
    (
        "parent.astray",
        &[
            r"Windows parts folders by \ and drives by :, and writes names as Unicode: none of these in a name can be recorded",
        ],
        &["mv -n FILE PLAIN && RENAMED", "avhdx tree FOLDER  # the images that there are"],
    ),
    ("create.metadata", &["a name for the parent that is shorter fits"], &["avhdx create --help"]),
    (
        "parent: file.folder",
        &[],
        &["avhdx tree FILE  # the images in it", "AGAIN --with-parent PARENT"],
    ),
    ("file.folder", &[], &["avhdx tree FILE"]),
    ("file.not-regular", &[], &["avhdx tree FOLDER  # the images that there are"]),
    ("forest.place", &[], &["avhdx tree FOLDER  # the images that there are"]),
    ("file.open", &[], &["avhdx tree FOLDER  # the images that there are"]),
    (
        "file.vhd-set",
        &["the disk lies in the .avhdx images that the set belongs to"],
        &["avhdx tree --tips FOLDER  # which of them are tips, and how to go on with each"],
    ),
    ("man.verb", &[], &["avhdx --help"]),
    ("point.ambiguous", &[], &["avhdx info --chain PARENTS TIP"]),
    ("point.unknown", &[], &["avhdx info --chain PARENTS TIP"]),
    (
        "point.below-tip",
        &[],
        &[
            "avhdx create CHILD --parent IMAGE PARENTS  # a new disk from that point in time, to be written to instead",
        ],
    ),
    // What is to be made.
    ("create.exists", &[], &["AGAIN --path OUT  # OUT: another name"]),
    ("output.exists", &[], &["AGAIN --overwrite  # replaces it"]),
    (
        "output.swapped",
        &["somebody put another file in its place while the new one was made"],
        &["AGAIN  # replaces the file that has the name by then"],
    ),
    ("output.is-input", &[], &["ELSEWHERE"]),
    ("output.link", &[], &["ELSEWHERE"]),
    (
        "output.not-a-file",
        &["- writes to standard output, from where it can go anywhere"],
        &["ELSEWHERE"],
    ),
    ("output.is-source", &[], &["avhdx convert -O raw PARENTS IMAGE OUT  # OUT: another file"]),
    ("output.*", &[], &["ELSEWHERE"]),
    ("export.room", &[], &["avhdx measure PARENTS IMAGE  # how much room a copy needs"]),
    ("export.write", &[], &["avhdx measure PARENTS IMAGE  # how much room a copy needs"]),
    ("stdout.done", &[], &["avhdx tree FOLDER  # what there is now"]),
    // Logs.
    (
        "log.no-entries",
        &[
            "if its writer stopped before the first change was logged, --log ignore reads the disk as it was before",
        ],
        &["avhdx info --log ignore PARENTS IMAGE", "AGAIN --log ignore"],
    ),
    (
        "log.pending",
        &[
            "--log replay (the default) replays it in memory and leaves the file as it is",
            "--log ignore reads the file as if it had no log, which is not what the disk holds",
        ],
        &["AGAIN --log replay", "avhdx info PARENTS IMAGE"],
    ),
    (
        "kind log-overlay",
        &["read and convert serve these bytes: they need no place in the file"],
        &["avhdx convert -O raw PARENTS IMAGE OUT"],
    ),
    (
        "log.*",
        &["--log ignore reads the file as if it had no log, which is not what the disk holds"],
        &["avhdx info --log ignore PARENTS IMAGE  # shows the rest", "avhdx check FILE"],
    ),
    // Parents.
    (
        "kind parent-missing",
        &["--parent-dir DIR searches a folder, --with-parent FILE names the file, \
             --path-map 'D:\\vm=DIR' says where a Windows folder is found"],
        &[
            "avhdx tree FOLDER  # finds images below a folder by their identity",
            "AGAIN --parent-dir DIR  # DIR: a folder that may hold it",
        ],
    ),
    (
        "kind parent-mismatch",
        &[],
        &[
            "avhdx tree FOLDER  # whether another file below a folder has that identity",
            "AGAIN --with-parent PARENT  # PARENT: the one that has it",
        ],
    ),
    (
        "parent.leads-away",
        &[
            "a drive, another machine or a stream that a recorded path names is followed only where --path-map leads",
        ],
        &[
            "avhdx info IMAGE  # the paths that it records",
            "AGAIN --parent-dir DIR  # DIR: a folder that may hold it",
        ],
    ),
    (
        "kind parent-denied",
        &[
            "parents are served from the folders given with --confine alone, and where the host lets you read",
        ],
        &[
            "avhdx info IMAGE  # the paths that it records",
            "AGAIN --confine DIR  # DIR: where the parent lies",
        ],
    ),
    (
        "parent.no-access",
        &["the file is there, and the host does not let this user read it"],
        &[
            "AGAIN  # as a user who may read FILE",
            "AGAIN --with-parent PARENT  # PARENT: a copy of it",
        ],
    ),
    (
        "parent: foreign.*",
        &[],
        &[
            "avhdx tree FOLDER  # whether the parent is somewhere below",
            "AGAIN --with-parent PARENT  # PARENT: the one that has that identity",
        ],
    ),
    (
        "parent: kind not-vhdx",
        &[],
        &[
            "avhdx tree FOLDER  # whether the parent is somewhere below",
            "AGAIN --with-parent PARENT  # PARENT: the one that has that identity",
        ],
    ),
    ("parent: kind damaged", &[], &["avhdx check --layer FILE"]),
    ("parent: kind unsupported", &[], &["avhdx check --layer FILE"]),
    ("kind parent-required", &[], &["avhdx info --chain PARENTS IMAGE"]),
    ("chain.loop", &[], &["avhdx tree FOLDER  # which images lead back to each other"]),
    ("chain.sector-size", &[], &["avhdx tree FOLDER"]),
    (
        "reparent.differs",
        &[],
        &["avhdx tree FOLDER  # which images there are, and whose child each is"],
    ),
    (
        "reparent.parent-lost",
        &[
            "--unproven links the image all the same, and the disk is then what the new parent makes of it",
        ],
        &["avhdx tree FOLDER  # whether the old parent is somewhere below", "AGAIN --unproven"],
    ),
    ("reparent.unfinished", &[], &["avhdx merge --resume FILE"]),
    ("reparent.*", &[], &["avhdx tree FOLDER  # which images there are, and whose child each is"]),
    ("relink.*", &[], &["avhdx tree IMAGE  # who has which identity", "AGAIN --parent-dir DIR"]),
    // Limits.
    ("limit.depth", &["--max-depth N allows more layers"], &["AGAIN --max-depth 65536"]),
    (
        "limit.header-sequence",
        &["the image is read as ever; a copy of its disk starts anew, and can be written to"],
        &["avhdx convert -O vhdx PARENTS IMAGE OUT"],
    ),
    (
        "limit.log-changes",
        &["--log ignore reads the file as if it had no log, which is not what the disk holds"],
        &["avhdx info --log ignore PARENTS IMAGE"],
    ),
    ("limit.open-files", &["ulimit -n N allows more open files"], &["ulimit -n 4096 && AGAIN"]),
    // Who else is there.
    (
        "file.replaced",
        &["what was written to the file that was opened would be found by nobody"],
        &["AGAIN  # with the file that has the name by now"],
    ),
    (
        "kind in-use",
        &[
            "avhdx info works on an image in use",
            "a checkpoint below the tip is not written to: IMAGE@-1 reads the disk as it was then",
        ],
        &["avhdx info PARENTS TIP"],
    ),
    (
        "kind has-children",
        &["--orphan-children would allow it, and leave the child without its parent for good"],
        &[
            "avhdx create CHILD --parent IMAGE PARENTS  # another child, to be written to instead",
            "AGAIN --orphan-children",
        ],
    ),
    (
        "merge: image.children-unknown",
        &["what cannot be looked at may be a child, which a merge would leave without its parent"],
        &["AGAIN --no-other-children  # if you know that it is none"],
    ),
    (
        "reparent: kind has-children",
        &[
            "--orphan-children would allow it: the image gets another identity, and its children are to be linked anew",
        ],
        &["avhdx tree FOLDER  # whose child each image is", "AGAIN --orphan-children"],
    ),
    (
        "create: kind has-children",
        &["--orphan-children would allow it, and leave the child without its parent for good"],
        &["ELSEWHERE", "AGAIN --orphan-children"],
    ),
    (
        "convert: kind has-children",
        &["--orphan-children would allow it, and leave the child without its parent for good"],
        &["ELSEWHERE", "AGAIN --orphan-children"],
    ),
    // Operations.
    (
        "point.none",
        &[],
        &[
            "avhdx info --chain PARENTS IMAGE  # which points there are",
            "avhdx revert PARENTS IMAGE@-1",
        ],
    ),
    (
        "revert.newest",
        &["to give up what was written since the last checkpoint, go back to that"],
        &["avhdx revert PARENTS TIP@-1"],
    ),
    (
        "kind no-space",
        &["once there is that much room, the same command does it"],
        &["avhdx info --chain PARENTS IMAGE  # which layers there are, and how large"],
    ),
    (
        "merge.shrinks",
        &["--shrink would allow it, and what lies behind the end of the smaller disk is lost"],
        &["AGAIN --shrink"],
    ),
    (
        "merge: kind has-children",
        &[
            "a point that several disks stand on is not merged: the others are merged or removed first",
            "a layer below the tip is named by way of the tip: TIP@SEL",
        ],
        &["avhdx tree FOLDER  # whose child each image is"],
    ),
    ("merge.children-unknown", &[], &["AGAIN --no-other-children  # if you know it"]),
    (
        "merge.not-removed",
        &["all that it held is in its parent"],
        &["avhdx merge --resume PARENTS IMAGE  # once the file can be removed"],
    ),
    (
        "revert.kept",
        &["the new tip is the disk from now on; what is left over is a branch of its own"],
        &["avhdx tree FOLDER  # what there is now"],
    ),
    ("merge.no-parent", &[], &["avhdx info --chain PARENTS TIP"]),
    (
        "merge.child-missing",
        &["what is not merged yet is in that file alone"],
        &["AGAIN --children-in DIR  # DIR: where it lies"],
    ),
    ("merge.not-begun", &[], &["avhdx merge PARENTS IMAGE"]),
    ("kind merged", &[], &["avhdx merge --resume FILE"]),
    ("kind unfinished", &[], &["avhdx merge --resume FILE"]),
    // What the host did.
    (
        "kind poisoned",
        &["nothing more is written: opening the image again shows what of it reached the host"],
        &["avhdx check PARENTS IMAGE"],
    ),
    // What the image is.
    (
        "claim.*",
        &[
            "the image can be read as before, but for what was lost",
            "a copy that was cut short is best made anew",
            "--accept-loss goes on without what is gone, which reads as zeros from then on, and lists it in a file first",
        ],
        &["avhdx check --layer FILE  # what is damaged", "AGAIN --accept-loss"],
    ),
    ("loss.report", &[], &["AGAIN --loss-report LIST  # LIST: a new file for the list"]),
    (
        "foreign.disk",
        &["-f raw takes a file as a disk without a format"],
        &["AGAIN -f raw", "avhdx convert -f raw -O vhdx FILE OUT  # makes an image of it"],
    ),
    ("foreign.qcow2", &[], &[convert_by_qemu!("qcow2")]),
    ("foreign.qcow", &[], &[convert_by_qemu!("qcow")]),
    ("foreign.qed", &[], &[convert_by_qemu!("qed")]),
    ("foreign.vhd", &[], &[convert_by_qemu!("vpc")]),
    ("foreign.vmdk", &[], &[convert_by_qemu!("vmdk")]),
    (
        "foreign.vmdk-text",
        &["the disk lies in the files that it names"],
        &[convert_by_qemu!("vmdk")],
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
    ("kind not-vhdx", &[], &["avhdx tree FOLDER  # the images that there are"]),
    (
        "reparent: locator.*",
        &["--unproven writes a new link without asking what the old one says"],
        &["AGAIN --unproven"],
    ),
    (
        "locator.*",
        &[
            "--ignore-id-mismatch reads by what can be made out of the locator, with a warning",
            "reparent --unproven writes a new one, whatever the old one says",
        ],
        &[
            "AGAIN --ignore-id-mismatch --with-parent PARENT  # PARENT: the image that is its parent",
            "avhdx reparent FILE --onto PARENT --unproven  # PARENT: the image that is its parent",
            "avhdx check --layer FILE",
        ],
    ),
    ("kind unsupported", &[], &["avhdx check --layer FILE"]),
    ("kind damaged", &[], &["avhdx check --layer FILE"]),
    // All others.
    ("exit 2", &[], &["avhdx VERB --help"]),
    ("exit 3", &[], &["AGAIN  # once the host does what it was asked"]),
    ("exit 4", &[], &["avhdx check PARENTS IMAGE"]),
    ("exit 5", &[], &["avhdx tree FOLDER"]),
    ("exit 6", &[], &["avhdx info PARENTS TIP"]),
    ("exit 7", &[], &["avhdx info --chain PARENTS TIP"]),
];
