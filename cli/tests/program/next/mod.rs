//! Every row of the table of suggestions is provoked, and every command it suggests is run by a shell. That may find
//! faults (exit code 1) or succeed with losses (8), but must not fail in the same way again. Every code that ends
//! the program is provoked so too, or listed with the reason for which it is not.
//!
//! `cargo test --workspace --test program every_suggested -- --nocapture` prints what was provoked, with the first
//! suggestion and what it came to.
#![cfg(unix)] // commands are run by a shell

mod cases;
mod codes;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::common::{Folder, Run};
use cases::{Case, NOT_PROVOKED, cases};
use serde_json::Value;

#[test]
fn every_suggested_command_works() {
    let rows: BTreeSet<&str> = avhdx_cli::rows().into_iter().collect();
    let mut walked = BTreeSet::new();
    let mut provoked = BTreeSet::new();
    let mut wrong = Vec::new();
    for (case, done, codes) in walk_all(cases()) {
        walked.insert(case.row);
        provoked.extend(codes);
        match done {
            Ok(Walked::All(line)) => eprintln!("{line}"),
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

    let mut faults = Vec::new();
    for code in codes::of_the_page() {
        match (provoked.contains(&code), codes::reason_against(&code)) {
            (true, Some(reason)) => {
                faults.push(format!("{code} is provoked, but listed: {reason}"));
            }
            (false, None) => {
                faults.push(format!("{code} is neither provoked nor listed with a reason"));
            }
            (true, None) => {}
            (false, Some(reason)) => eprintln!("{code}: not provoked: {reason}"),
        }
    }
    faults.extend(codes::stale().map(|code| format!("{code} is listed, but ends nothing")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

enum Walked {
    /// What happened, as a line of the table.
    All(String),
    /// The case or a suggested command needs a tool that is not installed.
    Without(String),
}

/// What each case came to, and the codes that it provoked.
type Done = (Case, Result<Walked, String>, BTreeSet<String>);

/// Walks all cases, several at a time: each has folders of its own, and mostly waits for programs.
fn walk_all(cases: Vec<Case>) -> Vec<Done> {
    let left = Mutex::new(cases.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap().next();
                    let Some((at, case)) = next else { break };
                    let mut codes = BTreeSet::new();
                    let walked = walk(&case, &mut codes);
                    done.lock().unwrap().push((at, (case, walked, codes)));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, done)| done).collect()
}

fn walk(case: &Case, codes: &mut BTreeSet<String>) -> Result<Walked, String> {
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
    codes.insert(error["code"].as_str().unwrap_or_default().to_owned());
    refuse_empty_advice(&folder, case, &error, &lines)?;
    let mut missing = None;
    let mut first = None;
    for line in lines {
        // Each command starts from the same files.
        let folder = Folder::new();
        (case.set_up)(&folder);
        (case.first)(&folder);
        let held = hold(&folder, case);
        let command = filled(&line, case);
        // What waits for the other program sees it end.
        let ends = if command.starts_with("while ") { Duration::from_millis(300) } else { FOREVER };
        let _held = held.map(|file| Held::until(file, ends));
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
        let came_to = run.code.map_or("a signal".into(), |code| format!("exit {code}"));
        first.get_or_insert(format!("{command} -> {came_to}"));
    }
    let of = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let first = first.unwrap_or_default();
    let line = format!("{} | {} | {first}", of("code"), shortened(&of("message")));
    Ok(missing.map_or(Walked::All(line), Walked::Without))
}

/// Refuses a suggestion that is the command typed, or a remark alone, and a hint at a flag that the verb does not have.
fn refuse_empty_advice(
    folder: &Folder,
    case: &Case,
    error: &Value,
    lines: &[String],
) -> Result<(), String> {
    for line in lines {
        let (command, _) = line.split_once("  # ").unwrap_or((line, ""));
        let command = command.trim().trim_end_matches(" --json");
        let is_what_was_typed = command == format!("avhdx {}", case.typed);
        if is_what_was_typed || command.is_empty() || command.starts_with('#') {
            return Err(format!("leads nowhere: {line}"));
        }
    }
    let hints = error["hints"].as_array().cloned().unwrap_or_default();
    for hint in hints.iter().filter_map(Value::as_str) {
        let mut verb = case.typed.split(' ').next().unwrap_or_default();
        for word in hint.split([' ', ',', ';', ':']) {
            if VERBS.contains(&word) {
                verb = word;
            }
            let is_flag = word.len() > 2 && word.starts_with("--");
            let help = || folder.run(&format!("{verb} --help")).text();
            if is_flag && !help().contains(word) {
                return Err(format!("{verb} has no {word}: {hint}"));
            }
        }
    }
    Ok(())
}

/// Verbs that hints name, each with flags of its own.
const VERBS: [&str; 6] = ["check", "convert", "merge", "read", "reparent", "revert"];

/// A message on one short line.
fn shortened(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    match line.char_indices().nth(90) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

const FOREVER: Duration = Duration::MAX;

/// A file that another program has open, for a while.
struct Held {
    _file: Option<File>,
}

impl Held {
    fn until(file: File, ends: Duration) -> Self {
        if ends == FOREVER {
            return Self { _file: Some(file) };
        }
        thread::spawn(move || {
            thread::sleep(ends);
            drop(file);
        });
        Self { _file: None }
    }
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
    let mut tools = tools.filter(|tool| !matches!(*tool, "avhdx" | "ulimit" | "while"));
    tools.find(|tool| !is_installed(tool)).map(str::to_owned)
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).exists())
}

/// Runs a command line in a shell that finds the program.
fn shell(folder: &Folder, line: &str) -> Run {
    Run::of(folder.in_shell(line).output().unwrap())
}
