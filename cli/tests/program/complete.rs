//! Completion by the program: of labels, in each shell as a person types, and without waiting for slow files.
#![cfg(unix)]

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Folder, Run};

/// A chain with labels that a shell has to quote.
fn labelled() -> Folder {
    let folder = Folder::new();
    folder.run("create web.vhdx 4M").expect(0);
    for (n, label) in ["before update", "a@b", "c:d"].into_iter().enumerate() {
        let tip = if n == 0 { "web.vhdx".into() } else { format!("web_{n}.avhdx") };
        let next = format!("web_{}.avhdx", n + 1);
        let mut command = folder.command(["checkpoint", &tip, "--label", label, "--path", &next]);
        assert!(command.output().unwrap().status.success());
    }
    folder
}

/// What fish would show for the last of these words.
fn candidates(folder: &Folder, words: &[&str]) -> Vec<String> {
    let mut command = folder.command(["--"].iter().chain(words));
    let run = Run::of(command.env("COMPLETE", "fish").output().unwrap()).expect(0);
    let text = run.text();
    let values = text.lines().map(|line| line.split('\t').next().unwrap().to_owned());
    values.collect()
}

#[test]
fn an_image_with_a_selector_completes_to_labels() {
    let folder = labelled();
    let before = fs::read(folder.file("web_3.avhdx")).unwrap();
    let of = |words: &[&str]| candidates(&folder, words);
    let all = ["web_3.avhdx@c:d", "web_3.avhdx@a@b", "web_3.avhdx@before update"];
    assert_eq!(of(&["avhdx", "read", "web_3.avhdx@"]), all);
    assert_eq!(of(&["avhdx", "read", "web_3.avhdx@be"]), all[2..]);
    assert_eq!(of(&["avhdx", "delete", "web_3.avhdx@a@"]), all[1..2]);
    assert_eq!(of(&["avhdx", "compare", "web.vhdx", "web_3.avhdx@c"]), all[..1]);
    assert_eq!(of(&["avhdx", "create", "x.avhdx", "--parent", "web_3.avhdx@c"]), all[..1]);
    // From below, the points above are not known.
    assert_eq!(of(&["avhdx", "read", "web_1.avhdx@"]), ["web_1.avhdx@before update"]);
    assert_eq!(of(&["avhdx", "read", "web_3.avhdx@nobody"]), [""; 0]);
    assert_eq!(of(&["avhdx", "points", "web_2"]), ["web_2.avhdx"]);
    assert!(of(&["avhdx", "revert", "--delete"]).contains(&"--delete-newer".to_owned()));
    assert!(fs::read(folder.file("web_3.avhdx")).unwrap() == before);
}

#[test]
fn verbs_are_offered_by_their_names() {
    let folder = Folder::new();
    let of = |start: &str| candidates(&folder, &["avhdx", start]);
    let all = of("");
    for verb in folder.verbs() {
        assert!(all.contains(&verb), "no {verb} in {all:?}");
    }
    for alias in ["apply", "commit", "snapshots"] {
        assert!(!all.iter().any(|name| name == alias), "{all:?}");
        let flags = candidates(&folder, &["avhdx", alias, "--with-p"]);
        assert_eq!(flags, ["--with-parent"], "an alias that was typed has its flags");
        folder.run(&format!("{alias} --help")).expect(0);
    }
    assert_eq!(of("rel"), ["relink"]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = folder.run(&format!("completions {shell}")).expect(0).text();
        assert!(script.contains("reparent") && script.contains("points"), "{shell}");
        assert!(!script.contains("snapshots"), "{shell}");
    }
}

#[test]
fn completion_waits_for_nothing() {
    let folder = labelled();
    let fifo = Command::new("mkfifo").arg(folder.file("pipe.vhdx")).status().unwrap();
    assert!(fifo.success());
    // A chain whose parent is a pipe.
    fs::remove_file(folder.file("web_1.avhdx")).unwrap();
    fs::rename(folder.file("pipe.vhdx"), folder.file("web_1.avhdx")).unwrap();
    for word in ["web_1.avhdx@", "web_3.avhdx@", "missing.vhdx@", ".@"] {
        let begun = Instant::now();
        assert_eq!(candidates(&folder, &["avhdx", "read", word]), [""; 0], "{word}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{word}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_shell_that_is_not_known_is_an_error() {
    let folder = Folder::new();
    let mut command = folder.command(["--", "avhdx", ""]);
    let run = Run::of(command.env("COMPLETE", "frob").output().unwrap());
    assert_eq!(run.code, Some(2), "{}", run.stderr);
}

/// A shell on a terminal, and what it has printed.
struct Terminal {
    shell: Child,
    printed: Arc<Mutex<String>>,
}

impl Terminal {
    fn new(folder: &Folder, shell: &str) -> Self {
        let mut command = folder.in_shell(&format!("exec script -qec '{shell}' /dev/null"));
        command.env("TERM", "dumb").env("HOME", folder.path()).env("PS1", "> ");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().unwrap();
        let mut from = shell.stdout.take().unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        let to = Arc::clone(&printed);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { shell, printed }
    }

    fn type_in(&mut self, keys: &str) {
        self.shell.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn has_printed(&self, text: &str) -> bool {
        self.printed.lock().unwrap().contains(text)
    }

    /// Waits until the shell has printed a text.
    fn until(&self, text: &str) {
        let begun = Instant::now();
        while !self.has_printed(text) {
            let printed = self.printed.lock().unwrap().clone();
            assert!(begun.elapsed() < Duration::from_secs(60), "no {text:?} in {printed:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.shell.kill());
        drop(self.shell.wait());
    }
}

/// Whether a shell is there. With AVHDX_INTEROP it must be.
fn has(shell: &str) -> bool {
    let is_there = Command::new(shell).arg("--version").output().is_ok();
    assert!(is_there || std::env::var_os("AVHDX_INTEROP").is_none(), "no {shell} here");
    if !is_there {
        eprintln!("skipped: no {shell} here");
    }
    is_there
}

/// What is typed, and the word that the program then gets.
const TYPED: [(&str, &str); 4] = [
    ("web_3.avhdx@be", "web_3.avhdx@before update"),
    ("web_3.avhdx@a@", "web_3.avhdx@a@b"),
    ("web_3.avhdx@c:", "web_3.avhdx@c:d"),
    ("web_3.avhdx@c", "web_3.avhdx@c:d"),
];

/// Types the start of each word and a tab, and looks which words the command then has.
fn complete_in(mut terminal: Terminal, set_up: &str, more: &[(&str, &str)]) {
    terminal.type_in(&format!("{set_up}\necho READ''Y\n"));
    terminal.until("READY");
    for (n, (typed, expected)) in TYPED.iter().chain(more).enumerate() {
        // A busy machine may take long to complete.
        let has_completed = (1..6).any(|attempt| {
            terminal.type_in(&format!("avhdx read {typed}\t"));
            thread::sleep(Duration::from_millis(1000 * attempt));
            // Ctrl-A goes to the start of the line: the words are printed instead of run.
            terminal.type_in(&format!("\x01printf '{n}.{attempt}<%s>\\n' \n"));
            terminal.until(&format!("\n{n}.{attempt}<"));
            terminal.has_printed(&format!("\n{n}.{attempt}<{expected}>"))
        });
        assert!(has_completed, "{typed}: {}", terminal.printed.lock().unwrap());
    }
}

#[test]
fn bash_completes_labels() {
    if !has("bash") || !has("script") {
        return;
    }
    let folder = labelled();
    let terminal = Terminal::new(&folder, "bash --norc --noprofile -i");
    let more = [("'web_3.avhdx@be", "web_3.avhdx@before update"), ("web_2", "web_2.avhdx")];
    complete_in(terminal, "source <(COMPLETE=bash avhdx)", &more);
}

#[test]
fn zsh_completes_labels() {
    if !has("zsh") || !has("script") {
        return;
    }
    let folder = labelled();
    let terminal = Terminal::new(&folder, "zsh -f -i");
    let set_up = "autoload -U compinit; compinit -u; bindkey -e; source <(COMPLETE=zsh avhdx)";
    complete_in(terminal, set_up, &[("web_2", "web_2.avhdx")]);
}

#[test]
fn fish_completes_labels() {
    if !has("fish") {
        return;
    }
    let folder = labelled();
    for (typed, expected) in TYPED {
        let line = format!(
            "HOME=. exec fish --no-config -c 'COMPLETE=fish avhdx | source; complete -C \"avhdx read {typed}\"'"
        );
        let run = Run::of(folder.in_shell(&line).output().unwrap()).expect(0);
        let text = run.text();
        let found: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(found, [expected], "{}", run.stderr);
    }
}
