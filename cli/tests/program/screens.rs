//! What the program shows on a terminal of 80 columns: a pseudo terminal, and a screen that follows its escape codes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Folder, write_crowded_table, write_endless};
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
        Self::start(folder, line, COLUMNS, more)
    }

    /// The same, on a terminal of another width.
    fn run_at(folder: &Folder, line: &str, columns: u16) -> Self {
        Self::start(folder, line, columns, |command| command)
    }

    fn start(
        folder: &Folder,
        line: &str,
        columns: u16,
        more: impl FnOnce(Command) -> Command,
    ) -> Self {
        let (pty, child_side) = pty_process::blocking::open().unwrap();
        pty.resize(Size::new(ROWS, columns)).unwrap();
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
        let screen = vt100::Parser::new(size(ROWS), size(columns), 0);
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

    /// Shows all that was printed, not the last lines alone.
    fn show_all(&mut self) {
        let size = |cells| NonZeroU16::new(cells).unwrap();
        self.screen = vt100::Parser::new(size(1000), size(COLUMNS), 0);
        self.screen.process(&self.bytes);
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
    let columns = screen.size().1.get();
    let mut lines = screen.rows(0, columns).skip(row.into());
    let line = lines.next().unwrap_or_default();
    let is_bar = line.contains('%') && line.contains('░') && column <= columns - 3;
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
fn a_narrow_terminal_has_a_bar_and_names_that_can_be_told_apart() {
    let folder = Folder::with_chain();
    write_endless(&folder.file("a.vhdx"));
    for columns in [40, 63, 64, 80, 200] {
        let mut terminal = Terminal::run_at(&folder, "convert a.vhdx out.raw", columns);
        terminal.wait_for("bar", has_bar);
        terminal.interrupt();
        assert_eq!(terminal.end(), Some(130), "{}", terminal.text());
        terminal.assert_clean();
    }
    fs::remove_file(folder.file("a.vhdx")).unwrap();
    for line in ["tree .", "points l2.vhdx"] {
        let mut terminal = Terminal::run_at(&folder, line, 40);
        assert_eq!(terminal.end(), Some(0));
        let shown = String::from_utf8_lossy(&terminal.bytes).into_owned();
        for name in ["l0.vhdx", "l1.vhdx", "l2.vhdx"] {
            assert!(shown.contains(name), "{line}: no {name} in\n{shown}");
        }
    }
}

#[test]
fn what_reads_tables_and_headers_alone_shows_how_far_it_is() {
    let folder = Folder::new();
    write_crowded_table(&folder.file("a.vhdx"));
    fs::create_dir(folder.file("many")).unwrap();
    for n in 0..30_000 {
        File::create(folder.file(&format!("many/{n}.vhdx"))).unwrap();
    }
    let lines = [
        ("check a.vhdx", "checking  ", "avhdx: interrupted"),
        ("measure a.vhdx", "measuring  ", "avhdx: interrupted"),
        // It ends between two images.
        ("relink many", "reading the images  ", "avhdx: stopped as asked"),
    ];
    for (line, what, end) in lines {
        let mut terminal = Terminal::run(&folder, line);
        terminal.wait_for("bar", |screen| has_bar(screen) && screen.contents().contains(what));
        terminal.interrupt();
        assert_eq!(terminal.end(), Some(130), "{line}\n{}", terminal.text());
        terminal.assert_clean();
        assert_eq!(terminal.lines(), [end], "{line}");
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
fn an_archive_is_not_printed_on_a_terminal() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    let mut terminal = Terminal::run(&folder, "cp pc.vhdx -r / --to-tar -");
    assert_eq!(terminal.end(), Some(2));
    let text = terminal.text();
    assert!(text.contains("an archive is not for a terminal"), "{text}");
    assert!(text.contains("next: avhdx cp pc.vhdx -r / --to-tar - > OUT"), "{text}");
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

/// The lines of the output beyond the terminal's width are those that are longer than it.
fn too_wide(terminal: &Terminal) -> Vec<String> {
    let size = |cells| NonZeroU16::new(cells).unwrap();
    let mut wide = vt100::Parser::new(size(500), size(1000), 0);
    wide.process(&terminal.bytes);
    let screen = wide.screen();
    let whole = screen.rows(0, 1000).zip(screen.rows(COLUMNS, 1000 - COLUMNS));
    whole.filter(|(_, beyond)| !beyond.trim().is_empty()).map(|(line, _)| line).collect()
}

const LONG: &str =
    "virtual-machine-of-the-accounting-department_1A2B3C4D-5E6F-7081-92A3-B4C5D6E7F809.avhdx";
const CJK: &str = "虛擬機器磁碟會計部門的虛擬機器磁碟會計部門的虛擬機器磁碟會計部門💾💾💾.vhdx";

/// A disk with long names and labels.
fn with_long_names() -> Folder {
    let folder = Folder::new();
    folder.run(&format!("create {CJK} 64M")).expect(0);
    let label = "before-the-upgrade-of-the-accounting-system-to-its-next-version";
    folder.run(&format!("checkpoint {CJK} --path {LONG} --label {label}")).expect(0);
    folder.run(&format!("create branch_{LONG} --parent {CJK}")).expect(0);
    let mut tip = LONG.to_owned();
    for n in 1..=30 {
        let next = format!("{n:02}_{LONG}");
        folder.run(&format!("checkpoint {tip} --path {next} --label 快照{n}")).expect(0);
        tip = next;
    }
    folder
}

#[test]
fn trees_tips_and_points_of_long_names_fit_the_terminal() {
    let folder = with_long_names();
    let verbs = ["tree .", "tree . --ascii", "tree . --tips", &format!("points 30_{LONG}")];
    for line in verbs {
        let mut terminal = Terminal::run(&folder, line);
        assert_eq!(terminal.end(), Some(0), "{}", terminal.text());
        assert_eq!(too_wide(&terminal), Vec::<String>::new(), "{line}");
        let text = String::from_utf8_lossy(&terminal.bytes).into_owned();
        let gap = if line.contains("ascii") { "..." } else { "…" };
        assert!(text.contains(gap) && text.contains(".avhdx") && text.contains("30_"), "{text}");
        assert!(!text.contains(LONG), "{text}");
        // A file gets the names in full.
        let piped = folder.run(line).expect(0).text();
        assert!(piped.contains(&format!("30_{LONG}")), "{piped}");
        assert!(!piped.contains('\x1b'), "{piped:?}");
    }
    // Labels are on lines of their own where they do not fit beside their image.
    let mut tree = Terminal::run(&folder, "tree .");
    tree.end();
    let text = String::from_utf8_lossy(&tree.bytes).into_owned();
    assert!(text.contains("@'快照30'") && text.contains("@'before-the-upgrade"), "{text}");
    // A missing base is told within the width too, but for the commands.
    std::fs::remove_file(folder.file(CJK)).unwrap();
    let mut tips = Terminal::run(&folder, "tree . --tips");
    assert_eq!(tips.end(), Some(1));
    let wide = too_wide(&tips);
    assert!(wide.iter().all(|line| line.starts_with("    avhdx ")), "{wide:#?}");
    let shown = String::from_utf8_lossy(&tips.bytes).into_owned();
    assert!(shown.contains("broken: "), "{shown}");
}

#[test]
fn columns_of_wide_characters_are_aligned() {
    let folder = Folder::new();
    folder.run("create 虛擬.vhdx 64M").expect(0);
    folder.run("checkpoint 虛擬.vhdx --path 💾.avhdx --label 快照").expect(0);
    folder.run("checkpoint 💾.avhdx --path plain.avhdx --label x").expect(0);
    let mut terminal = Terminal::run(&folder, "points plain.avhdx");
    assert_eq!(terminal.end(), Some(0));
    let screen = terminal.screen.screen();
    let rows: Vec<u16> = (1..5).collect();
    let cell = |row, column| screen.cell(row, column).unwrap().contents().to_owned();
    let is_margin =
        |column: u16| rows.iter().all(|row| matches!(cell(*row, column).as_str(), "" | " "));
    // Every column is preceded by two blanks in all rows; below the names of the last is a file each.
    let header = screen.rows(0, COLUMNS).nth(1).unwrap();
    for name in ["label", "taken", "delete", "file"] {
        let at = header.find(name).unwrap() as u16;
        assert!(is_margin(at - 1) && is_margin(at - 2), "{name}:\n{}", terminal.text());
        assert!(rows.iter().all(|row| !cell(*row, at).is_empty()), "{name}:\n{}", terminal.text());
    }
}

/// The colour and weight of the first place of a text on the screen.
fn look_of(terminal: &Terminal, text: &str) -> (vt100::Color, bool) {
    let screen = terminal.screen.screen();
    for (row, line) in screen.rows(0, COLUMNS).enumerate() {
        if let Some(at) = line.find(text) {
            let column = line[..at].chars().count() as u16;
            let cell = screen.cell(row as u16, column).unwrap();
            return (cell.fgcolor(), cell.bold());
        }
    }
    panic!("no {text:?} in\n{}", terminal.text())
}

#[test]
fn colours_show_what_is_broken_and_what_is_the_tip() {
    const PLAIN: (vt100::Color, bool) = (vt100::Color::Default, false);
    const RED: (vt100::Color, bool) = (vt100::Color::Idx(1), false);
    const TIP: (vt100::Color, bool) = (vt100::Color::Idx(2), true);
    let folder = Folder::with_chain();
    let mut sound = Terminal::run(&folder, "tree .");
    assert_eq!(sound.end(), Some(0));
    assert_eq!(look_of(&sound, "l2.vhdx"), TIP);
    assert_eq!(look_of(&sound, "l1.vhdx"), PLAIN);
    let mut points = Terminal::run(&folder, "points l2.vhdx");
    assert_eq!(points.end(), Some(0));
    assert_eq!(look_of(&points, "@-0"), TIP);
    assert_eq!(look_of(&points, "@-1"), PLAIN);
    std::fs::remove_file(folder.file("l0.vhdx")).unwrap();
    let broken = [
        ("tree .", "!! orphan", 1),
        ("tree . --tips", "broken: ", 1),
        ("check l2.vhdx", "NOT SOUND", 1),
        ("check l2.vhdx", "error", 1),
        ("info l2.vhdx", "BROKEN", 0),
    ];
    for (line, text, code) in broken {
        let mut terminal = Terminal::run(&folder, line);
        assert_eq!(terminal.end(), Some(code), "{line}");
        terminal.show_all();
        assert_eq!(look_of(&terminal, text), RED, "{line}");
        assert!(!folder.run(line).text().contains('\x1b'), "{line}");
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let mut plain = Terminal::run_with(&folder, line, |command| command.env(name, value));
            assert_eq!(plain.end(), Some(code), "{line}");
            assert!(!plain.bytes.contains(&0x1b), "{line}, {name}");
        }
    }
    let mut json = Terminal::run(&folder, "tree . --json");
    assert_eq!(json.end(), Some(1));
    assert!(!json.bytes.contains(&0x1b));
}
