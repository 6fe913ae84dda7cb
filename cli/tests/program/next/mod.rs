//! Every row of the table of suggestions is provoked, and every command it suggests is run. That may find faults (exit
//! code 1) or succeed with losses (8), but must not fail in the same way again.
#![cfg(unix)] // commands are run by a shell

mod cases;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{Folder, Run};
use cases::{Case, NOT_PROVOKED, cases};
use serde_json::Value;

#[test]
fn every_suggested_command_works() {
    let rows: BTreeSet<&str> = avhdx_cli::rows().into_iter().collect();
    let mut walked = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in cases() {
        walked.insert(case.row);
        match walk(&case) {
            Ok(Walked::All) => {}
            Ok(Walked::Without(tool)) if std::env::var_os("AVHDX_INTEROP").is_some() => {
                wrong.push(format!("{}: no {tool} here", case.row));
            }
            Ok(Walked::Without(tool)) => eprintln!("skipped {}: no {tool} here", case.row),
            Err(why) => wrong.push(format!("{}: avhdx {}\n{why}", case.row, case.typed)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let named: BTreeSet<&str> = NOT_PROVOKED.iter().map(|(row, _)| *row).collect();
    assert!(
        walked.is_disjoint(&named),
        "provoked, but listed as not provoked: {:?}",
        walked.intersection(&named)
    );
    let known: BTreeSet<&str> = walked.union(&named).copied().collect();
    assert_eq!(rows, known, "every row needs a case or a reason for none");
}

enum Walked {
    All,
    /// The case or a suggested command needs a tool that is not installed.
    Without(String),
}

fn walk(case: &Case) -> Result<Walked, String> {
    let folder = Folder::new();
    (case.set_up)(&folder);
    let words: Vec<&str> = case.typed.split(' ').collect();
    if words.contains(&"a.vhdx") && !folder.file("a.vhdx").exists() {
        return Ok(Walked::Without(format!("tool for {}", case.row)));
    }
    let (error, lines) = provoked(&folder, case)?;
    if error["exit"] != case.exit {
        return Err(format!("exit code {}, not {}: {error}", error["exit"], case.exit));
    }
    let row = avhdx_cli::row_of(words[0], &error);
    if row != Some(case.row) {
        return Err(format!("the row is {row:?}: {error}"));
    }
    if lines.is_empty() {
        return Err(format!("no command is suggested: {error}"));
    }
    let mut missing = None;
    for line in lines {
        // Each command starts from the same files.
        let folder = Folder::new();
        (case.set_up)(&folder);
        (case.first)(&folder);
        let _held = hold(&folder, case);
        let command = filled(&line, case);
        if let Some(tool) = missing_tool(&command) {
            missing = Some(tool);
            continue;
        }
        let run = shell(&folder, &command);
        let again =
            run.stderr.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        let is_same = again.as_ref().is_some_and(|again| again["code"] == error["code"]);
        let leads_on = matches!(run.code, Some(0 | 1 | 8));
        // A command that shows a broken image reports the same error after its output.
        let shows = command.starts_with("avhdx info ") && !run.stdout.is_empty();
        if !(leads_on || shows && is_same) {
            return Err(format!("{command}\ncomes to {:?}: {}", run.code, run.stderr));
        }
    }
    Ok(missing.map_or(Walked::All, Walked::Without))
}

/// The failure as JSON, and the suggested commands.
fn provoked(folder: &Folder, case: &Case) -> Result<(Value, Vec<String>), String> {
    let long = "D:\\".to_owned() + &"x".repeat(40_000);
    let held = hold(folder, case);
    let typed = case.typed.replace("LONG", &format!("'{long}'"));
    let run = shell(folder, &format!("{}avhdx {typed} --json", case.under));
    drop(held);
    let last = run.stderr.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(last)
        .map_err(|_| format!("no refusal: {:?} {}", run.code, run.stderr))?;
    let lines = error["next"].as_array().cloned().unwrap_or_default();
    let lines = lines.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok((error, lines))
}

fn hold(folder: &Folder, case: &Case) -> Option<File> {
    let path = folder.file(case.held?);
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.try_lock().unwrap();
    Some(file)
}

/// The command with the user's values for its placeholders.
fn filled(line: &str, case: &Case) -> String {
    let (command, _) = line.split_once("  # ").unwrap_or((line, ""));
    let fill = |word: &str| {
        let found = case.filled.iter().find(|(name, _)| *name == word);
        found.map_or_else(|| word.to_owned(), |(_, with)| (*with).to_owned())
    };
    let words: Vec<String> = command.split(' ').map(fill).collect();
    words.join(" ")
}

fn missing_tool(command: &str) -> Option<String> {
    let tools = command.split("&&").filter_map(|part| part.split_whitespace().next());
    let mut tools = tools.filter(|tool| !matches!(*tool, "avhdx" | "ulimit"));
    tools.find(|tool| !is_installed(tool)).map(str::to_owned)
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).exists())
}

/// Runs a command line in a shell that finds the program.
fn shell(folder: &Folder, line: &str) -> Run {
    let program = Path::new(env!("CARGO_BIN_EXE_avhdx")).parent().unwrap().to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([program].into_iter().chain(std::env::split_paths(&path)));
    let output = Command::new("bash")
        .args(["-c", line])
        .env("PATH", path.unwrap())
        .env_remove("AVHDX_PARENT_DIRS")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output();
    Run::of(output.unwrap())
}
