//! Examples of every verb, for its help and its manual page. A test runs each of them.

use clap::Command;

/// A command line, and what it does.
pub(crate) type Example = (&'static str, &'static str);

/// The examples of each verb. They use a chain web.vhdx, web_1.avhdx, web_2.avhdx with the points `monday` and
/// `tuesday`, and stay short enough for 80 columns.
const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "info",
        &[
            ("avhdx info web_2.avhdx", "the facts of one file"),
            ("avhdx info --chain web_2.avhdx", "and of all its parents"),
        ],
    ),
    (
        "tree",
        &[
            ("avhdx tree", "all chains below this folder"),
            ("avhdx tree --tips .", "their tips, and what to do with each"),
        ],
    ),
    (
        "map",
        &[
            ("avhdx map web_2.avhdx", "where the bytes of the disk are"),
            ("avhdx map web_2.avhdx@monday --json", "the same as qemu-img map has it"),
        ],
    ),
    (
        "explain",
        &[
            ("avhdx explain web_2.avhdx 1M", "which layer has this byte, why"),
            ("avhdx explain web_2.avhdx@monday 0x100000", "at an earlier point in time"),
        ],
    ),
    (
        "read",
        &[
            ("avhdx read web_2.avhdx --length 512 > boot.bin", "the first sector"),
            ("avhdx read web_2.avhdx@monday --offset 1M > old.bin", "all from 1 MiB on"),
        ],
    ),
    (
        "ls",
        &[
            ("avhdx ls pc.vhdx", "the files at the top of its volume"),
            ("avhdx ls pc.vhdx@-0 logs -R --json", "a folder and all below, as JSON"),
            ("avhdx ls pc.vhdx -R --hash blake3", "with hashes of the bytes"),
            ("avhdx ls pc.vhdx --volumes", "what there is to read"),
        ],
    ),
    (
        "cat",
        &[
            ("avhdx cat pc.vhdx logs/today.txt > today.txt", "one file"),
            ("avhdx cat pc.vhdx -p 'MY DISK' notes.txt > n.txt", "of a volume by its label"),
        ],
    ),
    (
        "cp",
        &[
            ("avhdx cp pc.vhdx notes.txt old-notes.txt", "one file under another name"),
            ("avhdx cp pc.vhdx -r logs notes.txt archive", "a folder and a file"),
            ("avhdx cp pc.vhdx -r / --to-tar all.tar", "all files, as an archive"),
        ],
    ),
    (
        "versions",
        &[
            ("avhdx versions pc.vhdx notes.txt", "the file at each point in time"),
            ("avhdx versions pc.vhdx logs/today.txt --json", "with whole hashes"),
        ],
    ),
    (
        "df",
        &[
            ("avhdx df pc.vhdx", "what its file systems use, and what could go"),
            ("avhdx df pc.vhdx@-0 --json", "at a point in time, in bytes"),
        ],
    ),
    (
        "convert",
        &[
            ("avhdx convert web_2.avhdx -O raw flat.raw", "a flat copy"),
            ("avhdx convert web_2.avhdx@monday -O vhdx old.vhdx", "of an earlier point"),
            ("avhdx convert -f raw disk.raw -O vhdx disk.vhdx", "an image of a raw disk"),
            ("avhdx convert --chain web_2.avhdx kvm", "qcow2 of all points"),
        ],
    ),
    (
        "flatten",
        &[
            ("avhdx flatten web_2.avhdx flat.vhdx", "the whole chain as one image"),
            ("avhdx flatten web_2.avhdx@-1 old.vhdx --verify", "an earlier point"),
        ],
    ),
    (
        "create",
        &[
            ("avhdx create new.vhdx 10G", "an empty disk; the file grows"),
            ("avhdx create fixed.vhdx 16M --fixed", "all its space from the start"),
            ("avhdx create test.avhdx --parent web_1.avhdx", "a branch off an image"),
        ],
    ),
    (
        "write",
        &[
            ("avhdx write web_2.avhdx --offset 1M < data.bin", "bytes of a file"),
            ("gzip -dc data.gz | avhdx write web_2.avhdx --offset 0", "or of a pipe"),
        ],
    ),
    (
        "zero",
        &[
            ("avhdx zero web_2.avhdx --offset 1M --length 64K", "from now on zeros"),
            ("avhdx zero web_2.avhdx --offset 0 --length 4M", "whole blocks take no space"),
        ],
    ),
    (
        "discard",
        &[
            ("avhdx discard web_2.avhdx --offset 0 --length 4M", "content does not matter"),
            ("avhdx discard web_2.avhdx --offset 2M --length 64K", "no whole block: no space"),
        ],
    ),
    (
        "checkpoint",
        &[
            ("avhdx checkpoint web_2.avhdx --label wednesday", "prints the new tip"),
            ("avhdx checkpoint web_2.avhdx --path web_3.avhdx", "names the new tip"),
        ],
    ),
    (
        "points",
        &[
            ("avhdx points web_2.avhdx", "what there is, and what can be deleted"),
            ("avhdx points web_2.avhdx --json", "for a script"),
        ],
    ),
    (
        "delete",
        &[
            ("avhdx delete web_2.avhdx@monday", "gives up a point alone"),
            ("avhdx delete web_2.avhdx@monday --dry-run", "says what it takes"),
            ("avhdx delete web_2.avhdx@-0 --subtree --dry-run", "a branch: what it holds"),
        ],
    ),
    (
        "label",
        &[
            ("avhdx label web_2.avhdx@tuesday 'before update'", "another label"),
            ("avhdx label web_2.avhdx@-1 ''", "none"),
        ],
    ),
    (
        "revert",
        &[
            ("avhdx revert web_2.avhdx@monday", "later points stay, as a branch"),
            ("avhdx revert web_2.avhdx@-1 --delete-newer", "gives up what came later"),
        ],
    ),
    (
        "merge",
        &[
            ("avhdx merge web_2.avhdx", "go on with its parent"),
            ("avhdx merge web_2.avhdx --keep-name", "go on with web_2.avhdx"),
            ("avhdx merge web_2.avhdx --into web.vhdx", "and all layers between"),
            ("avhdx merge web_2.avhdx --dry-run", "says what it takes"),
        ],
    ),
    (
        "rebase",
        &[
            ("avhdx rebase web_1.avhdx --onto copy.vhdx", "takes in what differs"),
            ("avhdx rebase web_1.avhdx --onto copy.vhdx --dry-run", "what it takes, at most"),
            ("avhdx rebase web_2.avhdx --onto web_2.avhdx@base", "takes in layers between"),
        ],
    ),
    (
        "compact",
        &[
            ("avhdx compact web_2.avhdx", "by the tables alone"),
            ("avhdx compact web_2.avhdx --content", "reads all data, drops zeros"),
            ("avhdx compact web_2.avhdx --punch", "moves nothing; a sparse file"),
            ("avhdx compact web_2.avhdx --free --dry-run", "what no file uses"),
        ],
    ),
    (
        "reparent",
        &[
            ("avhdx reparent web_1.avhdx --onto copy.vhdx", "if bytes are the same"),
            ("avhdx reparent web_1.avhdx --onto copy.vhdx --dry-run", "what it reads"),
        ],
    ),
    (
        "metadata",
        &[
            ("avhdx metadata web_2.avhdx", "items, the disk's identity"),
            ("avhdx metadata web_2.avhdx --disk-id new", "another identity"),
            ("avhdx metadata web_2.avhdx --physical-sector 512", "for the guest to see"),
        ],
    ),
    (
        "relink",
        &[
            ("avhdx relink .", "repairs the paths of all parents"),
            ("avhdx relink . --parent-dir archive", "looks for parents there too"),
            ("avhdx relink . --dry-run", "only says what would change"),
        ],
    ),
    (
        "repair",
        &[
            ("avhdx repair web_2.avhdx --dry-run", "says what it would put right"),
            ("avhdx repair web_2.avhdx", "does it, with an undo file beside"),
            ("avhdx repair web_2.avhdx --undo-file undo", "and the undo file elsewhere"),
        ],
    ),
    (
        "diff",
        &[
            ("avhdx diff web_2.avhdx@monday web_2.avhdx@tuesday", "written in between"),
            ("avhdx diff web_2.avhdx@tuesday --content", "sectors that differ"),
            ("avhdx diff pc.vhdx@-0 pc.vhdx --files", "files that differ"),
            ("avhdx diff web.vhdx disk.raw -F raw --content --json", "of other disks"),
        ],
    ),
    (
        "resize",
        &[
            ("avhdx resize web_2.avhdx +20G", "larger by 20 GiB"),
            ("avhdx resize web_2.avhdx 60G --dry-run", "says what it takes"),
        ],
    ),
    (
        "compare",
        &[
            ("avhdx compare web_2.avhdx web_2.avhdx@monday", "two points in time"),
            ("avhdx compare web.vhdx disk.raw -F raw", "an image and a raw disk"),
        ],
    ),
    (
        "check",
        &[
            ("avhdx check web_2.avhdx", "the chain"),
            ("avhdx check --layer web_1.avhdx", "one file of it, without its parents"),
        ],
    ),
    (
        "rescue",
        &[
            ("avhdx rescue web_2.avhdx web.raw", "what is left of it"),
            ("avhdx rescue web_2.avhdx a.vhdx --mapfile a.map", "for ddrescue"),
        ],
    ),
    (
        "seal",
        &[
            ("avhdx seal web_2.avhdx", "all points in time, and the tip"),
            ("avhdx seal --print web_2.avhdx > root.txt", "the hashes, to keep elsewhere"),
        ],
    ),
    (
        "verify",
        &[
            ("avhdx verify web_2.avhdx", "all that was sealed"),
            ("avhdx verify web_2.avhdx --offset 1M --length 4M", "a range of it"),
        ],
    ),
    (
        "measure",
        &[
            ("avhdx measure web_2.avhdx", "the size of a copy in each format"),
            ("avhdx measure web_2.avhdx -O vhdx", "in one"),
        ],
    ),
    (
        "bench",
        &[
            ("avhdx bench web_2.avhdx --seconds 1", "one second per kind of read"),
            ("avhdx bench web_2.avhdx --write --reads 100", "and writes"),
        ],
    ),
    (
        "completions",
        &[
            ("avhdx completions bash > avhdx.bash", "to be sourced"),
            ("avhdx completions zsh > _avhdx", "for a folder of $fpath"),
            ("avhdx completions fish > avhdx.fish", "for ~/.config/fish/completions"),
        ],
    ),
    (
        "man",
        &[
            ("avhdx man merge > avhdx-merge.1", "the page of one verb"),
            ("avhdx man --dir archive", "all pages, one file for each"),
        ],
    ),
];

/// The examples of a verb.
pub(crate) fn of(verb: &str) -> &'static [Example] {
    EXAMPLES.iter().find(|(of, _)| *of == verb).map_or(&[], |(_, examples)| examples)
}

/// The program with examples at the end of each verb's help.
pub(crate) fn shown_by(program: Command) -> Command {
    program.mut_subcommands(|verb| match of(verb.get_name()) {
        [] => verb,
        examples => verb.after_help(section(examples)),
    })
}

/// The examples below each other, what each does in a column of its own.
fn section(examples: &[Example]) -> String {
    let width = examples.iter().map(|(line, _)| line.len()).max().unwrap_or_default();
    let lines = examples.iter().map(|(line, what)| format!("\n  {line:width$}  # {what}"));
    lines.fold("Examples:".to_owned(), |text, line| text + &line)
}
