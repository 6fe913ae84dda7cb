//! The table of suggestions.

/// A failure, the hints for it, and the commands to continue with, the likeliest first.
///
/// The first column is an error code, a code prefix (`log.*`), a kind of error or an exit code. With a verb before it,
/// the row applies to that verb only; with `parent` before it, to a file that is, or lies in place of, the parent of
/// another image. The most specific row wins. A hint about a flag is left out if the verb does not take the flag.
///
/// Words in capitals stand for parts of the command typed, and stay as they are if it has no such part:
/// - `IMAGE`: the image as typed; `TIP`: the same without `@SEL`;
/// - `FILE`: the file concerned, or else the image; `FOLDER`: its folder;
/// - `ELSEWHERE`: the command typed, with another output name;
/// - `PLAIN`: the file concerned under a name that can be recorded; `RENAMED`: the command typed with that name;
/// - `VERB`; `PARENTS`: the flags that say where parents are; `FORMAT`: that of a raw input; `ON`: that of a volume;
/// - `AGAIN`: the command typed. The row's command is dropped if the verb does not take the flags that follow. Alone it
///   would fail again: something else comes with it, a flag, a redirection or a command before it.
pub(crate) type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

/// What hides children.
const UNSEEN: &str = "a folder or file that this user may not read may hold a child of the image, which would lose its \
                      parent; the same command works for a user who may read it";

/// What mends a table of partitions.
const MENDED: &str =
    "the guest's own partitioning tool mends the table, and --fix-gpt moves its second copy then";

/// The way to look at a table of partitions.
const EXPORTED: &str =
    "avhdx convert -O raw PARENTS IMAGE OUT  # OUT: a new file; sgdisk -v OUT says what is wrong";

/// All rows, grouped by subject.
pub(crate) const ROWS: &[Row] = &[
    // Arguments.
    (
        "create.parent-path",
        &[],
        &[r"AGAIN --absolute-win32-path 'D:\vm\NAME'  # the parent's path on Windows"],
    ),
    (
        "parent.astray",
        &[
            r"a name with \, : or bytes that are not Unicode cannot be recorded: Windows reads it as another path",
        ],
        &["mv -n FILE PLAIN && RENAMED", "avhdx tree FOLDER  # lists the images"],
    ),
    ("create.metadata", &["a shorter path for the parent fits"], &["avhdx create --help"]),
    (
        "parent: file.folder",
        &[],
        &["avhdx tree FILE  # lists the images in it", "AGAIN --with-parent PARENT"],
    ),
    ("file.folder", &[], &["avhdx tree FILE"]),
    ("file.not-regular", &[], &["avhdx tree FOLDER  # lists the images"]),
    ("forest.place", &[], &["avhdx tree FOLDER  # lists the images"]),
    ("file.open", &[], &["avhdx tree FOLDER  # lists the images"]),
    (
        "file.vhd-set",
        &["the disk is in the .avhdx images of the set"],
        &["avhdx tree --tips FOLDER  # lists the tips, with commands for each"],
    ),
    (
        "diff.one-image",
        &[],
        &[
            "avhdx points PARENTS TIP  # lists the points in time",
            "AGAIN OTHER  # OTHER: another image, or a point in time",
        ],
    ),
    ("man.verb", &[], &["avhdx --help"]),
    (
        "metadata.edit-size",
        &["a change goes through the log in one piece: shorter items fit, one at a time"],
        &["avhdx metadata IMAGE  # lists the items"],
    ),
    ("metadata.edit-sector", &[], &["avhdx metadata --help"]),
    ("metadata.format-item", &[], &["avhdx metadata IMAGE  # lists the items"]),
    (
        "metadata.full",
        &["all items share the region, whose length stays as it is: another item has to go first"],
        &["avhdx metadata IMAGE  # lists the items and their lengths"],
    ),
    ("metadata.item-size", &[], &["avhdx metadata IMAGE  # lists the items"]),
    ("metadata.mark", &[], &["avhdx metadata IMAGE  # lists the items"]),
    ("metadata.no-item", &[], &["avhdx metadata IMAGE  # lists the items"]),
    ("point.ambiguous", &[], &["avhdx info --chain PARENTS TIP"]),
    ("point.unknown", &[], &["avhdx info --chain PARENTS TIP"]),
    (
        "point.below-tip",
        &[],
        &[
            "avhdx create CHILD --parent IMAGE PARENTS  # a new disk from that point in time, which can be written",
        ],
    ),
    // Output files.
    ("create.exists", &[], &["AGAIN --path OUT  # OUT: another name"]),
    ("output.exists", &[], &["AGAIN --overwrite  # replaces it"]),
    (
        "output.swapped",
        &[
            "another program replaced the file meanwhile; the same command replaces the one that has the name now",
        ],
        &["ELSEWHERE"],
    ),
    ("output.is-input", &[], &["ELSEWHERE"]),
    ("output.link", &[], &["ELSEWHERE"]),
    ("convert: output.not-a-file", &["with -O raw, - stands for standard output"], &["ELSEWHERE"]),
    ("output.is-source", &[], &["avhdx convert -O raw PARENTS IMAGE OUT  # OUT: another file"]),
    ("output.ending", &["--any-name accepts any name"], &["ELSEWHERE", "AGAIN --any-name"]),
    ("output.no-writer", &[], &["ELSEWHERE"]),
    ("output.*", &[], &["ELSEWHERE"]),
    (
        "convert.differs",
        &[
            "the input changed meanwhile, or a drive or the memory gives other bytes than it was given",
        ],
        &["ELSEWHERE"],
    ),
    ("export.write", &[], &["ELSEWHERE"]),
    ("import.write", &[], &["ELSEWHERE"]),
    ("export.room", &[], &["avhdx measure PARENTS IMAGE  # how much space a copy needs"]),
    ("stdout.done", &[], &["avhdx tree FOLDER  # shows the result"]),
    ("stdout.write", &[], &["AGAIN > OUT  # OUT: a file on a disk with space"]),
    ("import.empty", &[], &["AGAIN < IN  # IN: a file with the bytes"]),
    ("stdin.read", &[], &["AGAIN < IN  # IN: a file with the bytes"]),
    (
        "children.folder",
        &["a folder that cannot be listed may have children of the image in it"],
        &["avhdx tree FOLDER  # lists the images and their parents"],
    ),
    // Seals.
    (
        "seal.changed",
        &["a copy of the file as it was sealed is what to go on with"],
        &["avhdx verify PARENTS TIP  # lists what changed", "AGAIN --ignore-seals"],
    ),
    (
        "seal.damaged",
        &[],
        &[
            "avhdx seal --again PARENTS TIP  # reads and seals the layers again",
            "AGAIN --ignore-seals",
        ],
    ),
    (
        "seal.version",
        &["the avhdx that made the seal reads it"],
        &[
            "avhdx seal --again PARENTS TIP  # reads and seals the layers again",
            "AGAIN --ignore-seals",
        ],
    ),
    (
        "seal.link",
        &["a seal is a file of its own beside its image"],
        &["rm FILE && AGAIN  # removes the link, not what it leads to"],
    ),
    // Logs.
    (
        "log.no-entries",
        &["if its writer stopped before it logged a change, --log ignore reads the disk as it was"],
        &[
            "avhdx info --log ignore PARENTS IMAGE",
            "AGAIN --log ignore",
            "avhdx repair PARENTS FILE --dry-run  # says whether the log can be given up",
        ],
    ),
    (
        "log.pending",
        &[
            "--log replay (the default) replays the log in memory and does not change the file",
            "--log ignore reads the file without its log, which is not the content of the disk",
        ],
        &["AGAIN --log replay", "avhdx info PARENTS IMAGE"],
    ),
    (
        "kind log-overlay",
        &["these bytes are in the log only; read and convert return them"],
        &["avhdx convert -O raw PARENTS IMAGE OUT"],
    ),
    ("log.write", &[], &["avhdx check PARENTS IMAGE  # shows whether the image is sound"]),
    (
        "log.*",
        &["--log ignore reads the file without its log, which is not the content of the disk"],
        &["avhdx info --log ignore PARENTS IMAGE  # shows everything else", "avhdx check FILE"],
    ),
    // Parents.
    (
        "kind parent-missing",
        &["--parent-dir DIR searches a folder, --with-parent FILE names the file, \
             --path-map 'D:\\vm=DIR' maps a Windows folder"],
        &[
            "avhdx tree FOLDER  # finds images by their identity",
            "AGAIN --parent-dir DIR  # DIR: a folder that may contain it",
        ],
    ),
    (
        "rebase: kind parent-missing",
        &[
            "--parent-dir DIR searches a folder, --with-parent FILE names the file, \
             --path-map 'D:\\vm=DIR' maps a Windows folder",
            "without the old parent, its data cannot be taken in: reparent --unproven changes the link alone",
        ],
        &[
            "avhdx tree FOLDER  # finds images by their identity",
            "AGAIN --parent-dir DIR  # DIR: a folder that may contain it",
        ],
    ),
    (
        "kind parent-mismatch",
        &[],
        &[
            "avhdx tree FOLDER  # shows whether another file has that identity",
            "AGAIN --with-parent PARENT  # PARENT: the image with that identity",
        ],
    ),
    (
        "parent.leads-away",
        &[
            "a recorded path to a drive, another machine or a stream is followed only with --path-map",
        ],
        &[
            "avhdx info IMAGE  # shows the recorded paths",
            "AGAIN --parent-dir DIR  # DIR: a folder that may contain it",
        ],
    ),
    (
        "kind parent-denied",
        &["parents must lie below a folder given with --confine, and be readable"],
        &[
            "avhdx info IMAGE  # shows the recorded paths",
            "AGAIN --confine DIR  # DIR: the folder of the parent",
        ],
    ),
    (
        "parent.no-access",
        &["the file exists, but this user may not read it; another user may run the same command"],
        &["AGAIN --with-parent PARENT  # PARENT: a copy of it that may be read"],
    ),
    (
        "parent: foreign.*",
        &[],
        &[
            "avhdx tree FOLDER  # shows whether the parent is below it",
            "AGAIN --with-parent PARENT  # PARENT: the image with that identity",
        ],
    ),
    (
        "parent: kind not-vhdx",
        &[],
        &[
            "avhdx tree FOLDER  # shows whether the parent is below it",
            "AGAIN --with-parent PARENT  # PARENT: the image with that identity",
        ],
    ),
    ("parent: kind damaged", &[], &["avhdx check --layer FILE"]),
    ("parent: kind unsupported", &[], &["avhdx check --layer FILE"]),
    ("kind parent-required", &[], &["avhdx info --chain PARENTS IMAGE"]),
    ("chain.loop", &[], &["avhdx tree FOLDER  # shows the loop"]),
    ("chain.sector-size", &[], &["avhdx tree FOLDER"]),
    ("reparent.differs", &[], &["avhdx tree FOLDER  # lists the images and their parents"]),
    (
        "reparent.parent-lost",
        &[
            "--unproven changes the link without a proof; the content of the disk then depends on the new parent",
        ],
        &["avhdx tree FOLDER  # shows whether the old parent is below it", "AGAIN --unproven"],
    ),
    ("link.unfinished", &[], &["avhdx merge --resume FILE"]),
    ("link.*", &[], &["avhdx tree FOLDER  # lists the images and their parents"]),
    (
        "provision.differencing",
        &["a copy can be fixed: it is flat, and has no parent"],
        &["avhdx convert -O vhdx-fixed PARENTS IMAGE OUT"],
    ),
    (
        "relink.*",
        &[],
        &["avhdx tree IMAGE  # lists the images and their identities", "AGAIN --parent-dir DIR"],
    ),
    // Limits.
    ("limit.depth", &["--max-depth N allows more layers"], &["AGAIN --max-depth 65536"]),
    (
        "limit.header-sequence",
        &["the image can still be read; a copy starts with a new sequence and can be written"],
        &["avhdx convert -O vhdx PARENTS IMAGE OUT"],
    ),
    (
        "limit.log-changes",
        &["--log ignore reads the file without its log, which is not the content of the disk"],
        &["avhdx info --log ignore PARENTS IMAGE"],
    ),
    ("limit.open-files", &["ulimit -n N allows more open files"], &["ulimit -n 4096 && AGAIN"]),
    // Other users of the files.
    (
        "file.replaced",
        &[
            "writes to the file that was opened would be lost; the same command opens the file that has the name now",
        ],
        &["avhdx info PARENTS TIP  # shows the file that has the name now"],
    ),
    ("kind in-use", &["avhdx info works on an image that is in use"], &["avhdx info PARENTS TIP"]),
    (
        "kind has-children",
        &["--orphan-children allows it; the child then loses its parent for good"],
        &[
            "avhdx create CHILD --parent IMAGE PARENTS  # another child, which can be written",
            "AGAIN --orphan-children",
        ],
    ),
    (
        "merge: image.children-unknown",
        &["a file that cannot be read may be a child, which would lose its parent"],
        &["AGAIN --no-other-children  # if you know that it is not a child"],
    ),
    (
        "label: image.children-unknown",
        &[UNSEEN],
        &["ls -ld FOLDER && AGAIN  # as a user who may read what is in the folder"],
    ),
    (
        "checkpoint: image.children-unknown",
        &[UNSEEN],
        &[
            "ls -ld FOLDER && AGAIN  # as a user who may read what is in the folder",
            "AGAIN --orphan-children  # if you know that the image has no child",
        ],
    ),
    (
        "metadata: kind has-children",
        &["a child has items of its own; --fixed and --dynamic change a parent too"],
        &[
            "avhdx metadata IMAGE  # lists the items",
            "avhdx tree FOLDER  # lists the images and their parents",
        ],
    ),
    (
        "reparent: kind has-children",
        &[
            "--orphan-children allows it; the image gets a new identity, and its children must be linked again",
        ],
        &["avhdx tree FOLDER  # lists the images and their parents", "AGAIN --orphan-children"],
    ),
    (
        "create: kind has-children",
        &["--orphan-children allows it; the child then loses its parent for good"],
        &["ELSEWHERE", "AGAIN --orphan-children"],
    ),
    (
        "flatten: kind has-children",
        &["--orphan-children allows it; the child then loses its parent for good"],
        &["ELSEWHERE", "AGAIN --orphan-children"],
    ),
    (
        "convert: kind has-children",
        &["--orphan-children allows it; the child then loses its parent for good"],
        &["ELSEWHERE", "AGAIN --orphan-children"],
    ),
    // Operations.
    (
        "op.remove",
        &["only who may write to a folder can remove a file from it"],
        &["ls -ld FOLDER && AGAIN  # as a user who may write to the folder"],
    ),
    (
        "checkpoint: create.file",
        &["a checkpoint makes a new file, in the folder of the image unless --path says where"],
        &["AGAIN --path OUT.avhdx  # OUT: a name in a folder that you may write to"],
    ),
    (
        "point.none",
        &[],
        &[
            "avhdx info --chain PARENTS IMAGE  # lists the points in time",
            "avhdx revert PARENTS IMAGE@-1",
        ],
    ),
    (
        "revert.newest",
        &["to discard the changes since the last checkpoint, revert to it"],
        &["avhdx revert PARENTS TIP@-1"],
    ),
    (
        "kind no-space",
        &["the same command succeeds once there is enough space"],
        &["avhdx info --chain PARENTS IMAGE  # lists the layers and their sizes"],
    ),
    (
        "merge.shrinks",
        &["--shrink allows it; data past the end of the smaller disk is lost"],
        &["AGAIN --shrink"],
    ),
    (
        "resize.gpt",
        &["--fix-gpt moves the second copy of the GPT to the new end first"],
        &["AGAIN --fix-gpt", "AGAIN --fix-gpt --dry-run  # says what it takes"],
    ),
    ("resize.gpt-copies", &[MENDED], &[EXPORTED]),
    ("resize.gpt-hybrid", &[MENDED], &[EXPORTED]),
    ("resize.gpt-write", &[MENDED], &[EXPORTED]),
    (
        "resize.cuts",
        &["--shrink allows it; the bytes behind the new end are lost for good"],
        &["AGAIN --shrink", "AGAIN --shrink --dry-run  # says what is lost"],
    ),
    (
        "compact: kind has-children",
        &[
            "--with-children allows it; the children read the same afterwards, and still accept the image",
        ],
        &["AGAIN --with-children"],
    ),
    (
        "compact.fixed",
        &["a dynamic copy takes up only what it holds"],
        &[
            "avhdx compact IMAGE --punch  # gives back what no block uses",
            "avhdx convert -O vhdx PARENTS IMAGE OUT  # OUT: a new dynamic image",
        ],
    ),
    (
        "compact.punch",
        &["without --punch blocks move down instead, and the file is cut"],
        &["avhdx compact IMAGE"],
    ),
    (
        "compact.free-children",
        &["the tip of the chain is what can be compacted with --free"],
        &[
            "avhdx tree FOLDER  # lists the images and their parents",
            "avhdx compact IMAGE --with-children  # by the tables alone",
        ],
    ),
    (
        "unclean.*",
        &[
            "a guest that is shut down, not hibernated or saved, leaves its file systems clean (Windows: shutdown /s /f /t 0)",
            "what the guest itself discards needs no --free (fstrim, Optimize-Volume)",
        ],
        &[
            "avhdx df PARENTS IMAGE  # says which file systems are clean",
            "avhdx compact IMAGE  # by the tables alone",
        ],
    ),
    (
        "compact.below-tip",
        &[],
        &["avhdx info --chain PARENTS TIP  # lists the layers and their files"],
    ),
    (
        "merge: kind has-children",
        &[
            "a layer with several children cannot be merged: merge or remove the other children first",
            "a layer below the tip is written TIP@SEL",
        ],
        &["avhdx tree FOLDER  # lists the images and their parents"],
    ),
    (
        "delete: kind has-children",
        &["a point on which several branches lie cannot be deleted before all but one are gone"],
        &["avhdx tree FOLDER  # lists the images and their parents"],
    ),
    (
        "delete.branch",
        &["--lose-branch allows it; nothing brings these bytes back"],
        &["AGAIN --lose-branch"],
    ),
    (
        "delete.children-unknown",
        &[],
        &["AGAIN --no-other-children  # if you know that there are none"],
    ),
    ("delete.copies", &[], &["avhdx tree FOLDER  # lists the images and their identities"]),
    ("delete.kept", &["the remaining files form a shorter branch"], &["avhdx tree FOLDER"]),
    ("label.frozen", &[], &["AGAIN --write-frozen  # only the label changes there"]),
    ("label.tip", &[], &["avhdx checkpoint --label TEXT PARENTS TIP  # labels the present"]),
    ("point.gone", &[], &["avhdx points PARENTS TIP"]),
    (
        "merge.children-unknown",
        &[],
        &["AGAIN --no-other-children  # if you know that there are none"],
    ),
    (
        "merge.not-removed",
        &["its data is in the parent"],
        &["avhdx merge --resume PARENTS IMAGE  # once the file can be removed"],
    ),
    (
        "revert.kept",
        &["the new tip is in place; the remaining files form a branch of their own"],
        &["avhdx tree FOLDER  # shows the result"],
    ),
    (
        "merge.no-parent",
        &["below the base is nothing to merge it into; a layer above it is merged as TIP@SEL"],
        &["avhdx points PARENTS TIP"],
    ),
    (
        "merge.child-missing",
        &["data that is not merged yet is in that file only"],
        &["AGAIN --children-in DIR  # DIR: its folder"],
    ),
    ("merge.not-begun", &[], &["avhdx points PARENTS TIP"]),
    ("kind merged", &[], &["avhdx merge --resume FILE"]),
    ("kind unfinished", &[], &["avhdx merge --resume FILE"]),
    // Host errors.
    (
        "kind poisoned",
        &["no further writes are accepted; reopen the image to see which ones reached the host"],
        &["avhdx check PARENTS IMAGE"],
    ),
    // File systems on the disk.
    (
        "files.volume-unknown",
        &[],
        &["avhdx ls PARENTS FORMAT IMAGE --volumes  # lists the volumes"],
    ),
    (
        "files.volume-ambiguous",
        &[],
        &["avhdx ls PARENTS FORMAT IMAGE --volumes  # lists the volumes", "AGAIN --volume VOLUME"],
    ),
    ("files.not-found", &[], &["avhdx ls PARENTS FORMAT ON IMAGE  # lists the files at the top"]),
    (
        "files.*",
        &[],
        &[
            "avhdx ls PARENTS FORMAT IMAGE --volumes  # lists the volumes",
            "avhdx read PARENTS FORMAT IMAGE > OUT.raw  # the bytes of the disk",
        ],
    ),
    ("versions.image", &["name the tip of a chain"], &["avhdx versions --help"]),
    ("versions.none", &[], &["avhdx ls PARENTS FORMAT ON IMAGE  # lists the files at the top"]),
    ("cp.folder", &[], &["AGAIN -r"]),
    ("cp.not-folder", &[], &["mkdir DIR && avhdx cp --help  # DIR: a folder for the files"]),
    (
        "cp.special",
        &["--devices makes devices and pipes too, and devices as root alone; an archive has both"],
        &["AGAIN --devices", "avhdx ls PARENTS FORMAT ON IMAGE  # lists the files at the top"],
    ),
    ("cp.terminal", &[], &["AGAIN > OUT  # OUT: a file for the archive"]),
    ("cp.*", &[], &["ELSEWHERE"]),
    (
        "ext.*",
        &["what else the disk holds can be read all the same"],
        &[
            "avhdx ls PARENTS FORMAT IMAGE --volumes  # lists the volumes",
            "avhdx read PARENTS FORMAT IMAGE > OUT.raw  # the bytes of the disk",
        ],
    ),
    (
        "fat.*",
        &["what else the disk holds can be read all the same"],
        &[
            "avhdx ls PARENTS FORMAT IMAGE --volumes  # lists the volumes",
            "avhdx read PARENTS FORMAT IMAGE > OUT.raw  # the bytes of the disk",
        ],
    ),
    (
        "ntfs.*",
        &["what else the disk holds can be read all the same"],
        &[
            "avhdx ls PARENTS FORMAT IMAGE --volumes  # lists the volumes",
            "avhdx read PARENTS FORMAT IMAGE > OUT.raw  # the bytes of the disk",
        ],
    ),
    // Content of the file.
    (
        "claim.*",
        &[
            "everything except the lost data can still be read",
            "if the file is a truncated copy, copy it again",
            "--accept-loss lists the lost ranges in a file, then continues; they read as zeros from then on",
        ],
        &[
            "avhdx check --layer FILE  # shows the damage",
            "avhdx repair PARENTS FILE --dry-run  # says what can be put right without a loss",
            "AGAIN --accept-loss",
        ],
    ),
    (
        "repair.undo",
        &[
            "the undo file must not exist yet; it lies beside the image unless --undo-file says where",
        ],
        &["AGAIN --undo-file OUT.undo  # OUT: a name in a folder that you may write to"],
    ),
    (
        "undo.*",
        &["an undo file restores one image, as long as nothing else has changed it since"],
        &["avhdx check PARENTS IMAGE  # shows what the image is now"],
    ),
    ("loss.report", &[], &["AGAIN --loss-report LIST  # LIST: a new file for the list"]),
    (
        "raw.*",
        &["the host fails to read the file; a copy has zeros in place of what cannot be read"],
        &["dd bs=4096 conv=noerror,sync < FILE > OUT && avhdx measure -f raw OUT"],
    ),
    ("kind not-vhdx", &[], &["avhdx tree FOLDER  # lists the images"]),
    (
        "reparent: locator.*",
        &["--unproven writes a new link and ignores the old one"],
        &["AGAIN --unproven"],
    ),
    (
        "locator.*",
        &[
            "--ignore-id-mismatch uses the readable part of the locator, with a warning",
            "reparent --unproven writes a new locator",
        ],
        &[
            "AGAIN --ignore-id-mismatch --with-parent PARENT  # PARENT: the parent image",
            "avhdx reparent FILE --onto PARENT --unproven  # PARENT: the parent image",
            "avhdx check --layer FILE",
        ],
    ),
    ("rescue.nothing", &[], &["avhdx tree FOLDER  # lists the images"]),
    (
        "rescue.size-unknown",
        &["--block says what size the blocks have, if that is known too"],
        &["AGAIN --size 64M  # instead of 64M: the size of the disk"],
    ),
    ("kind unsupported", &[], &["avhdx check --layer FILE"]),
    (
        "kind damaged",
        &[],
        &[
            "avhdx check --layer FILE",
            "avhdx repair PARENTS FILE --dry-run  # says what can be put right",
        ],
    ),
    // Everything else.
    ("exit 2", &[], &["avhdx VERB --help"]),
    ("create: exit 3", &[], &["ELSEWHERE"]),
    ("tree: exit 3", &[], &["avhdx tree --help"]),
    ("relink: exit 3", &[], &["avhdx relink --help"]),
    ("man: exit 3", &[], &["avhdx man --help"]),
    ("completions: exit 3", &[], &["avhdx completions --help"]),
    ("exit 3", &[], &["avhdx check PARENTS IMAGE  # shows whether the image is sound"]),
    ("exit 4", &[], &["avhdx check PARENTS IMAGE"]),
    ("exit 5", &[], &["avhdx tree FOLDER"]),
    ("exit 6", &[], &["avhdx info PARENTS TIP"]),
    ("exit 7", &[], &["avhdx info --chain PARENTS TIP"]),
];
