//! Shared by the tests of the program: a folder, the program, and a small chain.
#![allow(dead_code, clippy::disallowed_methods)] // each test file uses its part of it

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use avhdx_testkit::build::{Block, Contents, Data, IS_USER, Image, Item, state, write_chain};
use jsonschema::Validator;
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

/// The bytes of `notes.txt` in [`volume`].
pub const NOTES: &[u8] = b"what is in the notes\n";

/// A FAT volume of 8 MiB with a few files.
pub fn volume() -> Vec<u8> {
    let mut disk = std::io::Cursor::new(vec![0; 8 << 20]);
    let label = fatfs::FormatVolumeOptions::new().volume_label(*b"MY DISK    ");
    fatfs::format_volume(&mut disk, label).unwrap();
    let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
    let write = |path: &str, bytes: &[u8]| {
        volume.root_dir().create_file(path).unwrap().write_all(bytes).unwrap();
    };
    write("notes.txt", NOTES);
    volume.root_dir().create_dir("logs").unwrap();
    write("logs/today.txt", &[b'x'; 5000]);
    volume.unmount().unwrap();
    disk.into_inner()
}

/// The working directory of the program, so that its output contains no absolute paths.
pub struct Folder(TempDir);

/// The result of a run of the program.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with [`chain`] in it.
    pub fn with_chain() -> Self {
        let folder = Self::new();
        write_chain(folder.path(), &chain());
        folder
    }

    /// Adds an image with a FAT volume, which takes the whole disk: `notes.txt`, and `today.txt` in the folder `logs`.
    pub fn with_files(&self, image: &str) {
        fs::write(self.file("pc.raw"), volume()).unwrap();
        self.run(&format!("convert -f raw pc.raw -O vhdx {image}")).expect(0);
        fs::remove_file(self.file("pc.raw")).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Whether the program has started a file here, with or without a name.
    pub fn is_written_to(&self, program: &Child) -> bool {
        let is_temporary = |name: &String| name.ends_with(".tmp");
        self.names().iter().any(is_temporary) || self.draft_of(program).is_some()
    }

    /// The path in /proc of an unnamed file here that the program has open.
    pub fn draft_of(&self, program: &Child) -> Option<PathBuf> {
        let folder = self.path().canonicalize().unwrap();
        let open = fs::read_dir(format!("/proc/{}/fd", program.id())).ok()?;
        let mut files = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let is_deleted = |path: &PathBuf| path.to_string_lossy().ends_with(" (deleted)");
        files.find(|path| path.starts_with(&folder) && is_deleted(path))
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_avhdx"));
        command.args(args).current_dir(self.path()).env_remove("AVHDX_PARENT_DIRS");
        command.stdin(Stdio::null());
        command
    }

    /// A command line for a shell that finds the program.
    #[cfg(unix)]
    pub fn in_shell(&self, line: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_avhdx")).parent().unwrap().to_path_buf();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([program].into_iter().chain(std::env::split_paths(&path)));
        let mut command = Command::new("bash");
        command.args(["-c", line]).env("PATH", path.unwrap()).env_remove("AVHDX_PARENT_DIRS");
        command.current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// The verbs that the program's help lists.
    pub fn verbs(&self) -> Vec<String> {
        let help = self.run("--help").expect(0).text();
        let (_, verbs) = help.split_once("Commands:\n").unwrap();
        let (verbs, _) = verbs.split_once("\n\n").unwrap();
        // Two spaces, the verb, and its description, which continues further to the right.
        let verbs = verbs.lines().filter(|line| !line.starts_with("   "));
        let verbs = verbs.filter_map(|line| line.split_whitespace().next());
        verbs.filter(|verb| *verb != "help").map(str::to_owned).collect()
    }

    /// Runs the program with the words of `line` for arguments and `input` for standard input.
    pub fn run_with(&self, line: &str, input: &[u8]) -> Run {
        let mut command = self.command(line.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The program may fail before it reads its input.
        drop(child.stdin.take().unwrap().write_all(input));
        Run::of(child.wait_with_output().unwrap())
    }

    /// Runs the program with the words of `line` for arguments.
    pub fn run(&self, line: &str) -> Run {
        Run::of(self.command(line.split_whitespace()).output().unwrap())
    }
}

impl Run {
    /// Every JSON in the output must fit its schema.
    #[track_caller]
    pub fn of(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).unwrap();
        for object in json_of(stderr.as_bytes()).chain(json_of(&output.stdout)) {
            assert_fits(&object);
        }
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.text(), self.stderr);
        self.assert_suggestion();
        self
    }

    /// Every failure ends with a suggested command, except those of the argument parser.
    #[track_caller]
    fn assert_suggestion(&self) {
        let last = self.stderr.lines().last().unwrap_or_default();
        let is_ours = self.stderr.starts_with("avhdx: ") || self.stderr.starts_with('{');
        if !matches!(self.code, Some(2..=7)) || !is_ours {
            return;
        }
        let next = match serde_json::from_str::<Value>(last) {
            Ok(error) => error["next"][0].as_str().unwrap_or_default().to_owned(),
            Err(_) => last.trim_start().strip_prefix("next: ").unwrap_or_default().to_owned(),
        };
        assert!(next.contains("avhdx "), "no suggested command in\n{}", self.stderr);
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "no {part:?} in\n{}", self.stderr);
        self
    }

    #[track_caller]
    pub fn prints(self, part: &str) -> Self {
        let text = self.text();
        assert!(text.contains(part), "no {part:?} in\n{text}");
        self
    }

    /// The answer as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }

    /// The suggested commands.
    pub fn next(&self) -> Vec<String> {
        let last = self.stderr.lines().last().unwrap_or_default();
        match serde_json::from_str::<Value>(last) {
            Ok(error) => {
                let next = error["next"].as_array().cloned().unwrap_or_default();
                next.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            }
            Err(_) => {
                let lines = self.stderr.lines().map(str::trim_start);
                lines.filter_map(|line| line.strip_prefix("next: ")).map(str::to_owned).collect()
            }
        }
    }

    /// The last object on standard error.
    #[track_caller]
    pub fn error(&self) -> Value {
        serde_json::from_str(self.stderr.lines().last().unwrap()).unwrap()
    }
}

/// The objects with a schema in an output: the whole, or its lines.
fn json_of(output: &[u8]) -> impl Iterator<Item = Value> {
    let is_one = |value: &Value| value["schema"].as_str().is_some_and(|s| s.starts_with("avhdx."));
    let objects = match serde_json::from_slice(output) {
        Ok(whole) => vec![whole],
        Err(_) if !output.starts_with(b"{") => Vec::new(),
        Err(_) => {
            let lines = output.split(|byte| *byte == b'\n');
            lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
        }
    };
    objects.into_iter().filter(is_one)
}

/// Asserts that an object has the keys and values that its schema in `docs/schema` lists, and no others.
#[track_caller]
pub fn assert_fits(object: &Value) {
    static VALIDATORS: OnceLock<BTreeMap<String, Validator>> = OnceLock::new();
    let name = object["schema"].as_str().unwrap();
    let validator = VALIDATORS.get_or_init(validators).get(name);
    let validator = validator.unwrap_or_else(|| panic!("no schema of {name} in docs/schema"));
    let errors: Vec<String> = validator
        .iter_errors(object)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "not as docs/schema has {name}: {errors:#?}\n{object:#}");
}

/// The schemas by their names. Keys that a schema does not list are refused: programs accept them, tests do not.
fn validators() -> BTreeMap<String, Validator> {
    fn close(schema: &mut Value) {
        if let Value::Object(keys) = schema {
            if keys.contains_key("properties") {
                keys.insert("additionalProperties".into(), false.into());
            }
            keys.values_mut().for_each(close);
        }
        if let Value::Array(list) = schema {
            list.iter_mut().for_each(close);
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let schemas = files.map(|path| {
        let mut schema: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let name = schema["title"].as_str().unwrap().to_owned();
        close(&mut schema);
        (name, jsonschema::validator_for(&schema).unwrap())
    });
    schemas.collect()
}

/// The names of all schemas.
pub fn schemas() -> Vec<String> {
    validators().into_keys().collect()
}

/// The identity of layer `n` of [`chain`].
pub fn guid(n: u8) -> Uuid {
    Uuid::parse_str(&format!("{n}{n}{n}{n}aaaa-0000-4000-8000-00000000000{n}")).unwrap()
}

/// Gives an image fixed GUIDs.
pub fn name(image: &mut Image, n: u8) {
    for header in image.headers.iter_mut().flatten() {
        header.data_write_guid = guid(n);
        header.file_write_guid = Uuid::from_u128(u128::from(n) + 1);
    }
}

/// Adds a merge mark, in the layout that README documents.
pub fn mark(image: &mut Image, state: u8, other: Uuid, name: &str) {
    let mut bytes = vec![1, 0, state, 0];
    bytes.extend((name.len() as u32).to_le_bytes());
    bytes.extend(other.to_bytes_le());
    bytes.extend(name.as_bytes());
    let id = Uuid::parse_str("917330e3-c6a3-4d5f-913e-f0fa001aaec7").unwrap();
    let item = Item::new("merge", id, IS_USER, Contents::Bytes(bytes));
    image.metadata.items.push(item);
}

/// Three layers, base first. The base (4 MiB) has blocks 0 and 2; the middle has 16 sectors of block 0; the tip (6 MiB)
/// has a zero block 2 and block 3.
pub fn chain() -> Vec<Image> {
    let mut base = Image::dynamic(4 << 20);
    name(&mut base, 0);
    base.put(0, Block::full(Data::Pattern(1)));
    base.put(2, Block::full(Data::Pattern(2)));
    let mut middle = base.new_child();
    name(&mut middle, 1);
    middle.put(0, Block::partial_runs(Data::Pattern(3), &[(8, 16)]));
    let mut tip = middle.new_child();
    name(&mut tip, 2);
    tip.size = 6 << 20;
    tip.put(2, Block::bare(state::ZERO));
    tip.put(3, Block::full(Data::Pattern(4)));
    vec![base, middle, tip]
}

/// The flat disk of each layer of [`chain`].
pub fn flats() -> Vec<Vec<u8>> {
    let [base, middle, tip] = &chain()[..] else { unreachable!() };
    let base = base.flat(None);
    let middle = middle.flat(Some(&base));
    let tip = tip.flat(Some(&middle));
    vec![base, middle, tip]
}

/// Writes an image of 32 TiB whose 32 million entries name the same place: its table takes long to look through.
pub fn write_crowded_table(path: &Path) {
    let mut image = Image::dynamic(32 << 40);
    image.block_size = 1 << 20;
    image.put(0, Block::full(Data::Zeros));
    let layout = image.write_to(path);
    let mut bytes = fs::read(path).unwrap();
    let count = (image.bat_index(image.block_count() - 1) + 1) as usize;
    let start = layout.bat_entry(0).start as usize;
    let first = bytes[start..start + 8].to_vec();
    bytes[start..][..8 * count].copy_from_slice(&first.repeat(count));
    fs::write(path, bytes).unwrap();
}

/// Writes an image of 1 TiB whose blocks share the same zeros: a small file that takes very long to read.
pub fn write_endless(path: &Path) {
    let mut image = Image::dynamic(1 << 40);
    image.block_size = 256 << 20;
    let place = 64 << 20;
    image.put(0, Block::full(Data::Zeros).at(place));
    for block in 1..image.block_count() {
        let entry = image.bat_index(block);
        image.bat_override.insert(entry, place | u64::from(state::FULLY_PRESENT));
    }
    image.write_to(path);
}
