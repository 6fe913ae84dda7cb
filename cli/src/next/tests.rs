use std::ffi::OsString;

use clap::CommandFactory;

use super::*;
use crate::Cli;
use crate::failure::KINDS;

fn typed_as(args: &[OsString]) -> Option<Typed> {
    let matches = Cli::command().try_get_matches_from(args).unwrap();
    Typed::of(args, &matches, Cli::command())
}

fn is_understood(args: &[OsString]) -> bool {
    Cli::command().try_get_matches_from(args).is_ok()
}

const FILE: Concerned<'_> = Concerned { file: Some("vm/p.vhdx"), child: None };

#[test]
fn every_kind_and_every_exit_has_a_next_command() {
    let exits = [Exit::Usage, Exit::Io, Exit::Damaged, Exit::Parent, Exit::InUse, Exit::Refused];
    for exit in exits {
        for (_, kind) in KINDS {
            let advice = advice("no.such-code", Some(kind), exit, FILE);
            assert!(!advice.next.is_empty(), "{kind}");
        }
        assert!(
            !advice("no.such-code", None, exit, Concerned::default()).next.is_empty(),
            "{exit:?}"
        );
    }
}

#[test]
fn every_command_of_the_table_parses() {
    let typed = |line: &str| {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        typed_as(&args).unwrap()
    };
    let lines = [
        "avhdx write it's.vhdx --offset 0 --with-parent p.vhdx",
        "avhdx convert -O raw a.vhdx@-1 out.raw --path-map D:\\vm=/mnt",
        "avhdx create child.vhdx --parent a.vhdx",
        "avhdx read a.vhdx --length 1",
        "avhdx revert a.vhdx@-1 --delete-newer",
        "avhdx merge a.vhdx",
        "avhdx resize a.vhdx 1M",
        "avhdx write a.vhdx --offset 0 --accept-loss",
        "avhdx reparent a.vhdx --onto b.vhdx",
        "avhdx rebase a.vhdx --onto b.vhdx",
        "avhdx delete vm/a.vhdx@-1 --subtree",
        "avhdx label vm/a.vhdx@-1 text",
        "avhdx compact vm/a.vhdx",
        "avhdx rescue a.vhdx out.raw",
        "avhdx cp a.vhdx@-1 logs out",
        "avhdx repair vm/a.vhdx",
    ];
    for (of, _, next) in all_rows() {
        let mut filled = 0;
        for template in *next {
            for line in lines {
                let Some(command) = fill(template, Some(&typed(line)), FILE) else {
                    continue;
                };
                filled += 1;
                let (command, _) = command.split_once("  # ").unwrap_or((&command, ""));
                let command = command.split(" && ").last().unwrap();
                let command = command.split(['<', '>']).next().unwrap().trim();
                let words = unquoted(command);
                assert_eq!(words[0], "avhdx", "{of}: {command}");
                let is_help = command.ends_with("--help");
                assert!(is_help || is_understood(&words), "{of}: {command}");
            }
        }
        assert!(filled > 0, "{of}");
    }
}

/// The words that a shell splits a command into.
fn unquoted(command: &str) -> Vec<OsString> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in command.replace(r"'\''", "\u{1}").chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(if c == '\u{1}' { '\'' } else { c }),
        }
    }
    words.into_iter().map(OsString::from).collect()
}

#[test]
fn templates_are_filled_from_the_command_typed() {
    let args: Vec<OsString> =
        ["avhdx", "convert", "-O", "raw", "--parent-dir", "my dir", "vm/a.vhdx@-1", "o"]
            .map(Into::into)
            .into();
    let typed = typed_as(&args);
    let fill = |template| fill(template, typed.as_ref(), FILE);
    assert_eq!(
        fill("avhdx info PARENTS IMAGE  # why").unwrap(),
        "avhdx info --parent-dir 'my dir' vm/a.vhdx@-1  # why"
    );
    assert_eq!(fill("avhdx check FILE").unwrap(), "avhdx check vm/p.vhdx");
    // There is no folder vm.
    assert_eq!(fill("avhdx tree FOLDER").unwrap(), "avhdx tree .");
    assert_eq!(
        fill("AGAIN --overwrite").unwrap(),
        "avhdx convert -O raw --parent-dir 'my dir' vm/a.vhdx@-1 o --overwrite"
    );
    assert_eq!(fill("AGAIN --orphan-children"), None);
    assert_eq!(
        fill("AGAIN -O vhdx").unwrap(),
        "avhdx convert --parent-dir 'my dir' vm/a.vhdx@-1 o -O vhdx"
    );
    assert!(fill("ELSEWHERE").unwrap().contains(" vm/a.vhdx@-1 OUT  # "));
    // Other programs take what is before a colon for a protocol or a machine.
    let odd = |template| {
        let concerned = Concerned { file: Some("nbd:x.qcow2"), child: None };
        super::fill(template, typed.as_ref(), concerned).unwrap()
    };
    assert_eq!(odd("qemu-img info FILE"), "qemu-img info ./nbd:x.qcow2");
    assert_eq!(odd("tar -xf FILE && avhdx tree ."), "tar -xf ./nbd:x.qcow2 && avhdx tree .");
    assert_eq!(odd("avhdx check FILE"), "avhdx check nbd:x.qcow2");
}

/// The commands of a page, in code spans.
fn commands_of(page: &str) -> Vec<&str> {
    let spans = page.split('`').skip(1).step_by(2);
    spans.filter(|span| span.starts_with("avhdx ")).collect()
}

#[test]
fn the_commands_for_those_who_know_other_tools_are_understood() {
    let page = include_str!("../../../docs/from-other-tools.md");
    let commands = commands_of(page);
    assert!(commands.len() > 40, "{commands:?}");
    for command in commands {
        assert!(is_understood(&unquoted(command)), "{command}");
    }
    assert!(!is_understood(&unquoted("avhdx info --frob web.vhdx")));
}

#[test]
fn the_operand_of_a_command_is_filled_in() {
    let command = fill("dd if=FILE of=OUT bs=4096", None, FILE);
    assert_eq!(command.as_deref(), Some("dd if=vm/p.vhdx of=OUT bs=4096"));
}
