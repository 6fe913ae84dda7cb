//! Plants all bugs of `tests/bugs` in a copy of the sources, builds its tests once, and has each bug hunted by the
//! tests that are to find it. Fails where one is not found.
//!
//! `AVHDX_ONLY` is a part of the names of the bugs to hunt. Without it, every fourth bug is hunted, the others on the next
//! three days, each by the first of its tests. With it, or with `AVHDX_ALL=1`, all are, by all of their tests.
//!
//! The copy shares the target folder of the checkout, so that registry dependencies are built once. Cargo takes the
//! packages of both for the same ones unless a workspace wrapper sets them apart: this program is that wrapper, too, and
//! runs the compiler that it is given.

#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use avhdx_testkit::planted::{Bug, Hunt, plant_copy, read_bugs};

/// The number of bugs hunted at a time: most tests have a thread at work, and wait now and then.
const HUNTERS: usize = 3;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let mut given = std::env::args_os().skip(1);
    if let Some(compiler) = given.next() {
        let status = Command::new(compiler).args(given).status();
        return ExitCode::from(u8::from(!status.is_ok_and(|status| status.success())));
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let checkout = checkout.canonicalize().map_err(|error| error.to_string())?;
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => std::path::absolute(target).map_err(|error| error.to_string())?,
        None => checkout.join("target"),
    };
    let only = std::env::var("AVHDX_ONLY").unwrap_or_default();
    let mut bugs = read_bugs(&checkout.join("tests/bugs"))?;
    let is_short = only.is_empty() && std::env::var_os("AVHDX_ALL").is_none_or(|all| all != "1");
    if is_short {
        let all: usize = bugs.iter().map(|bug| bug.hunts.len()).sum();
        println!("{} bugs, each hunted by the first of its tests ({all} hunts in all)", bugs.len());
        bugs.iter_mut().for_each(|bug| bug.hunts.truncate(1));
    }
    let copy = target.join("planted");
    plant_copy(&checkout, &copy, &bugs).map_err(|wrong| wrong.join("\n"))?;
    let mut wanted: Vec<&Bug> = bugs.iter().filter(|bug| bug.name.contains(&only)).collect();
    if is_short {
        let day =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() / 86_400);
        let part = wanted.iter().copied().skip((day % 4) as usize).step_by(4).collect();
        wanted = part;
        println!("today {} of them are hunted, the others tomorrow", wanted.len());
    }
    if wanted.is_empty() {
        return Err(format!("no bug has {only} in its name"));
    }
    let tests = Tests::build(&copy, &target, &wanted)?;
    let missed = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let hunters: Vec<_> = (0..HUNTERS)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(bug) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                        missed.lock().expect("no hunter panics").extend(tests.hunt(bug)?);
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        hunters.into_iter().try_for_each(|hunter| hunter.join().expect("no hunter panics"))
    })?;
    let missed = missed.into_inner().expect("no hunter panics");
    if missed.is_empty() { Ok(()) } else { Err(format!("not found:\n{}", missed.join("\n"))) }
}

/// The tests of the copy, built.
struct Tests {
    copy: PathBuf,
    images: PathBuf,
    /// The programs, by target, and the names of the tests in each.
    programs: BTreeMap<String, (PathBuf, Vec<String>)>,
    /// Those that were seen to pass without a bug.
    sound: Mutex<HashSet<Hunt>>,
}

impl Tests {
    fn build(copy: &Path, target: &Path, bugs: &[&Bug]) -> Result<Self, String> {
        let hunts = bugs.iter().flat_map(|bug| &bug.hunts);
        let targets: BTreeSet<&str> = hunts.map(|hunt| &*hunt.target).collect();
        let mut cargo = Command::new("cargo");
        // Of the whole workspace, or registry dependencies are built once more with other features.
        cargo.args(["test", "--workspace", "--locked", "--no-run"]);
        cargo.arg("--message-format=json-render-diagnostics");
        for name in &targets {
            match *name {
                "lib" => cargo.arg("--lib"),
                name => cargo.args(["--test", name]),
            };
        }
        let wrapper = std::env::current_exe().map_err(|error| error.to_string())?;
        cargo.env("RUSTC_WORKSPACE_WRAPPER", wrapper).env("CARGO_TARGET_DIR", target);
        cargo.current_dir(copy).stderr(Stdio::inherit());
        let built = cargo.output().map_err(|error| format!("cannot run cargo: {error}"))?;
        if !built.status.success() {
            return Err("the sources with the planted bugs do not build".into());
        }
        let images = std::env::var_os("AVHDX_IMAGES").map(PathBuf::from);
        let mut tests = Self {
            copy: copy.to_path_buf(),
            images: images.unwrap_or_else(|| {
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/images")
            }),
            programs: BTreeMap::new(),
            sound: Mutex::default(),
        };
        // Other packages have tests of the same names.
        let [of_library, of_tests] =
            ["Cargo.toml", "tests/Cargo.toml"].map(|path| format!("{:?}", copy.join(path)));
        let built = String::from_utf8_lossy(&built.stdout);
        for message in built.lines() {
            let program = field(message, "\"executable\":\"");
            let kind = field(message, "\"kind\":[\"");
            let name =
                message.split_once("\"target\":").and_then(|(_, rest)| field(rest, "\"name\":\""));
            let (Some(program), Some(kind), Some(name)) = (program, kind, name) else { continue };
            let name = match kind {
                "test" if message.contains(&of_tests) => name,
                "lib" if message.contains(&of_library) => "lib",
                _ => continue,
            };
            let listed = tests.command(Path::new(program)).arg("--list").output();
            let listed = listed.map_err(|error| format!("cannot run {program}: {error}"))?;
            let listed = String::from_utf8_lossy(&listed.stdout);
            let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
            let names = names.map(str::to_owned).collect();
            tests.programs.insert(name.into(), (program.into(), names));
        }
        Ok(tests)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.copy).env("AVHDX_IMAGES", &self.images);
        command.env_remove("AVHDX_MUTANT").env("RUST_BACKTRACE", "0");
        command
    }

    /// Hunts a bug, tells how that went, and returns what did not find it.
    fn hunt(&self, bug: &Bug) -> Result<Vec<String>, String> {
        let mut told = format!("{:<36} {}\n", bug.name, bug.what);
        let mut missed = Vec::new();
        for hunt in &bug.hunts {
            let started = Instant::now();
            let found = self.find(bug, hunt)?;
            let by = found.as_deref().unwrap_or("NOT FOUND");
            told += &format!("    {by} ({:.0} s)\n", started.elapsed().as_secs_f32());
            if found.is_none() {
                missed.push(format!("{} by {} of {}", bug.name, hunt.test, hunt.target));
            }
        }
        print!("{told}");
        Ok(missed)
    }

    /// What found the bug.
    fn find(&self, bug: &Bug, hunt: &Hunt) -> Result<Option<String>, String> {
        let whole = || format!("{} of {}", hunt.test, hunt.target);
        let (program, names) =
            self.programs.get(&hunt.target).ok_or(format!("there is no test {}", whole()))?;
        let ending = format!("::{}", hunt.test);
        let is_it = |name: &&String| **name == hunt.test || name.ends_with(&ending);
        let named: Vec<&String> = names.iter().filter(is_it).collect();
        let [name] = named[..] else {
            return Err(format!("{} tests are named {}", named.len(), whole()));
        };
        let mut command = self.command(program);
        command.args([name, "--exact", "--nocapture"]);
        if let Some(workload) = &hunt.workload {
            command.env("AVHDX_WORKLOAD", workload).env("AVHDX_MUTANT", &bug.name);
            let (passed, said) = outcome(command);
            return Ok(match said.lines().find(|line| line.starts_with("FOUND")) {
                Some(line) => Some(line.chars().take(300).collect()),
                // A workload that cannot even be recorded tells as much.
                None if !passed && !said.contains("outcomes, not") => {
                    Some("FOUND by a workload that did not get to its end".into())
                }
                None => None,
            });
        }
        let is_sound = self.sound.lock().expect("no hunter panics").contains(hunt);
        if !is_sound {
            if !outcome(command).0 {
                return Err(format!("{} fails where no bug is planted", whole()));
            }
            command = self.command(program);
            command.args([name, "--exact", "--nocapture"]);
            self.sound.lock().expect("no hunter panics").insert(hunt.clone());
        }
        command.env("AVHDX_MUTANT", &bug.name);
        Ok((!outcome(command).0).then(|| format!("FOUND by {}", whole())))
    }
}

/// Whether a test passed, and what it said.
fn outcome(mut command: Command) -> (bool, String) {
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.expect("a test can be run");
    let mut stdout = child.stdout.take().expect("it is piped");
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().expect("it can be ended");
            break child.wait().expect("it can be waited for");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (status.success(), said.join().unwrap_or_default())
}

/// The string behind a key in a line of JSON.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key).and_then(|(_, rest)| rest.split_once('"')).map(|(value, _)| value)
}
