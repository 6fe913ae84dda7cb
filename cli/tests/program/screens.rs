//! What the program shows on a terminal of 80 columns: a pseudo terminal, and a screen that follows its escape codes.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Folder, write_endless};
use pty_process::Size;
use pty_process::blocking::{Command, Pty};

const COLUMNS: u16 = 80;
const ROWS: u16 = 24;
/// How long to wait for something to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal that the program runs on.
struct Terminal {
    pty: Pty,
    program: Child,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    /// All that the program wrote.
    bytes: Vec<u8>,
}

impl Terminal {
    /// Runs the program with the words of `line` for arguments.
    fn run(folder: &Folder, line: &str) -> Self {
        Self::run_with(folder, line, |command| command)
    }

    /// The same, with further properties of the command.
    fn run_with(folder: &Folder, line: &str, more: impl FnOnce(Command) -> Command) -> Self {
        let (pty, child_side) = pty_process::blocking::open().unwrap();
        pty.resize(Size::new(ROWS, COLUMNS)).unwrap();
        let command = Command::new(env!("CARGO_BIN_EXE_avhdx"))
            .args(line.split_whitespace())
            .current_dir(folder.path())
            .env_remove("AVHDX_PARENT_DIRS")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm-256color");
        let program = more(command).spawn(child_side).unwrap();
        let (sender, output) = mpsc::channel();
        let mut reader = File::from(std::os::fd::AsFd::as_fd(&pty).try_clone_to_owned().unwrap());
        thread::spawn(move || {
            let mut buf = [0; 4096];
            // Linux reports the end of the program as an error.
            while let Ok(read @ 1..) = reader.read(&mut buf) {
                if sender.send(buf[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        let size = |cells| NonZeroU16::new(cells).unwrap();
        let screen = vt100::Parser::new(size(ROWS), size(COLUMNS), 0);
        Self { pty, program, output, screen, bytes: Vec::new() }
    }

    /// Follows the output until the screen is as wanted.
    #[track_caller]
    fn wait_for(&mut self, what: &str, is_so: impl Fn(&vt100::Screen) -> bool) {
        let start = Instant::now();
        while !is_so(self.screen.screen()) {
            assert!(start.elapsed() < PATIENCE, "no {what}:\n{}", self.text());
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.take(&bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("no {what}:\n{}", self.text()),
            }
        }
    }

    /// Waits for the end of the program, and returns its exit code.
    fn end(&mut self) -> Option<i32> {
        while let Ok(bytes) = self.output.recv_timeout(PATIENCE) {
            self.take(&bytes);
        }
        self.program.wait().unwrap().code()
    }

    fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.screen.process(bytes);
    }

    /// Presses Ctrl-C; the terminal echoes it.
    fn interrupt(&mut self) {
        self.pty.write_all(b"\x03").unwrap();
    }

    fn text(&self) -> String {
        self.screen.screen().contents()
    }

    /// The lines that are not empty.
    fn lines(&self) -> Vec<String> {
        let text = self.text();
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    }

    /// Nothing is left of a bar, and the cursor is shown.
    #[track_caller]
    fn assert_clean(&self) {
        let text = self.text();
        for rest in ["%", "█", "░", "^C", "left", "/s"] {
            assert!(!text.contains(rest), "{rest} is left:\n{text}");
        }
        assert!(!self.screen.screen().hide_cursor(), "the cursor is hidden");
    }
}

/// Whether a bar is shown on one line, the last, with room for the echo of Ctrl-C.
fn has_bar(screen: &vt100::Screen) -> bool {
    let (row, column) = screen.cursor_position();
    let mut lines = screen.rows(0, COLUMNS).skip(row.into());
    let line = lines.next().unwrap_or_default();
    let is_bar = line.contains('%') && line.contains('░') && column <= COLUMNS - 3;
    let is_one = screen.contents().matches('%').count() == 1;
    is_bar && is_one && lines.all(|line| line.trim().is_empty())
}

#[test]
fn a_bar_fits_and_leaves_nothing_behind_on_ctrl_c() {
    let folder = Folder::new();
    write_endless(&folder.file("a.vhdx"));
    write_endless(&folder.file("b.vhdx"));
    let lines = [
        "convert a.vhdx -O vhdx out.vhdx",
        "convert a.vhdx -O raw out.raw",
        "compare a.vhdx b.vhdx",
        "bench a.vhdx --seconds 60",
    ];
    for line in lines {
        let mut terminal = Terminal::run(&folder, line);
        terminal.wait_for("bar", has_bar);
        terminal.interrupt();
        assert_eq!(terminal.end(), Some(130), "{line}\n{}", terminal.text());
        terminal.assert_clean();
        let lines = terminal.lines();
        assert!(lines[0].starts_with("avhdx: interrupted"), "{line}: {lines:?}");
    }
}

#[test]
fn an_operation_that_is_interrupted_leaves_no_bar() {
    let folder = Folder::new();
    folder.run("create a.vhdx 64M").expect(0);
    folder.run("checkpoint a.vhdx --path b.avhdx").expect(0);
    folder.run_with("write b.avhdx --offset 0", &[7; 16 << 20]).expect(0);
    let mut terminal = Terminal::run(&folder, "merge b.avhdx --rate 2M");
    terminal.wait_for("bar", has_bar);
    terminal.interrupt();
    assert_eq!(terminal.end(), Some(130), "{}", terminal.text());
    terminal.assert_clean();
    let mut resumed = Terminal::run(&folder, "merge b.avhdx --resume --rate 12M");
    resumed.wait_for("bar", has_bar);
    assert_eq!(resumed.end(), Some(0), "{}", resumed.text());
    resumed.assert_clean();
}

#[test]
fn a_write_of_unknown_length_shows_how_much_was_written() {
    let folder = Folder::new();
    folder.run("create a.vhdx 256M").expect(0);
    let line = "write a.vhdx --offset 0";
    let mut terminal = Terminal::run_with(&folder, line, |command| command.stdin(Stdio::piped()));
    let mut input = terminal.program.stdin.take().unwrap();
    let feeding = thread::spawn(move || {
        // Ends when the program does.
        while input.write_all(&[7; 1 << 20]).is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    terminal.wait_for("rate", |screen| screen.contents().contains("MiB/s"));
    terminal.interrupt();
    assert_eq!(terminal.end(), Some(130), "{}", terminal.text());
    feeding.join().unwrap();
    terminal.assert_clean();
    let kept = "avhdx: interrupted; changes up to here are kept, and the image is closed";
    assert_eq!(terminal.lines(), [kept]);
}

#[test]
fn quiet_shows_no_bar_and_no_notes() {
    let folder = Folder::with_chain();
    // A note on standard error, without --quiet.
    folder.run("info l2.vhdx@-1").expect(0).says("l2.vhdx@-1 is l1.vhdx");
    for line in ["info l2.vhdx@-1 -q", "--quiet info l2.vhdx@-1 --json"] {
        let run = folder.run(line).expect(0);
        assert_eq!(run.stderr, "", "{line}");
        assert!(!run.stdout.is_empty(), "{line}");
    }
    folder.run("-q info none.vhdx").expect(3).says("none.vhdx: cannot open");
    folder.run("create a.vhdx 64M").expect(0);
    folder.run("checkpoint a.vhdx --path b.avhdx").expect(0);
    folder.run_with("write b.avhdx --offset 0", &[7; 4 << 20]).expect(0);
    let mut terminal = Terminal::run(&folder, "merge b.avhdx --rate 4M -q");
    assert_eq!(terminal.end(), Some(0));
    let shown = String::from_utf8_lossy(&terminal.bytes).into_owned();
    assert!(!shown.contains('%') && !shown.contains('\x1b'), "{shown:?}");
    // Nor JSON lines of progress.
    folder.run("checkpoint a.vhdx --path c.avhdx").expect(0);
    let merged = folder.run("merge c.avhdx --json -q").expect(0);
    assert_eq!(merged.stderr, "");
}
