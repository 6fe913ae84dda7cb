//! Images of file systems, each made once by its own tools, with the same files.
#![allow(clippy::disallowed_methods)] // the tools work on files

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use avhdx::storage::MemStorage;
use avhdx::{Disk, RawDisk};
use avhdx_files::{FileSystem, Options, Volumes};
use avhdx_testkit::rng::pattern;

pub const MIB: u64 = 1 << 20;

/// What a path should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    File(Vec<u8>),
    Folder,
    Link(String),
}

/// The files that every image has, by their paths.
pub fn model() -> BTreeMap<String, Model> {
    let file = |seed, len| {
        let mut bytes = vec![0; len];
        pattern(seed, 0, &mut bytes);
        Model::File(bytes)
    };
    let mut model = BTreeMap::from([
        ("empty".into(), file(0, 0)),
        ("small.txt".into(), Model::File(b"a few bytes\n".to_vec())),
        ("Mixed Case.Txt".into(), file(1, 700)),
        ("SHORT.TXT".into(), file(2, 4096)),
        ("large.bin".into(), file(3, 200_001)),
        ("name with ünïcode €.txt".into(), file(4, 33)),
        (format!("{}.long", "long name ".repeat(20)), file(5, 1)),
        ("many".into(), Model::Folder),
        ("a".into(), Model::Folder),
    ]);
    let mut deep = String::from("a");
    for level in 0..12 {
        deep += &format!("/level {level}");
        model.insert(deep.clone(), Model::Folder);
    }
    model.insert(format!("{deep}/bottom"), file(6, 10));
    for number in 0..300 {
        let name = format!("many/file number {number}.dat");
        model.insert(name, file(100 + number, (number * 7) as usize));
    }
    model
}

/// Writes the files of the model into a folder.
fn fill(folder: &Path, model: &BTreeMap<String, Model>) {
    for (path, model) in model {
        let path = folder.join(path);
        match model {
            Model::Folder => std::fs::create_dir(&path).unwrap(),
            Model::File(bytes) => std::fs::write(&path, bytes).unwrap(),
            Model::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
        }
    }
}

/// A tool of the system, which may be one of the administrator's; a missing one fails where interop is asked for.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|value| value == "1");
    assert!(found.is_some() || !wanted, "AVHDX_INTEROP=1, but {name} is not to be found");
    found
}

/// Runs a tool; `None` if it is missing.
pub fn run<S: AsRef<OsStr>>(name: &str, args: &[S]) -> Option<()> {
    let output = Command::new(tool(name)?).args(args).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

fn blank(folder: &Path, len: u64) -> PathBuf {
    let path = folder.join("image");
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    path
}

/// An image of ext of this type (`ext2`, `ext3`, `ext4`) with the model, a hole, links and a file with another mode.
pub fn ext(kind: &str, block: &str) -> Option<Vec<u8>> {
    ext_of(&ext_model(), kind, block, "")
}

/// The same of another model, with changed features.
pub fn ext_of(
    model: &BTreeMap<String, Model>,
    kind: &str,
    block: &str,
    features: &str,
) -> Option<Vec<u8>> {
    let mut args = vec!["-t", kind, "-b", block];
    if !features.is_empty() {
        args.extend(["-O", features]);
    }
    ext_with(model, &args)
}

/// The same with any arguments of the tool.
pub fn ext_with(model: &BTreeMap<String, Model>, more: &[&str]) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    fill(&files, model);
    if model.contains_key("small.txt") {
        let mode = std::fs::Permissions::from_mode(0o4751);
        std::fs::set_permissions(files.join("small.txt"), mode).unwrap();
    }
    let image = blank(folder.path(), 12 * MIB);
    let args = [&["-q", "-F", "-L", "of ext"], more, &["-d"]].concat();
    let args = args.into_iter().map(OsStr::new).chain([files.as_os_str(), image.as_os_str()]);
    run("mkfs.ext4", &args.collect::<Vec<_>>())?;
    Some(std::fs::read(image).unwrap())
}

pub fn ext_model() -> BTreeMap<String, Model> {
    let mut model = model();
    let mut holed = vec![0; MIB as usize + 5];
    pattern(7, 0, &mut holed[15_000..16_000]);
    pattern(8, 0, &mut holed[500_000..510_000]);
    model.extend([
        ("holed".into(), Model::File(holed)),
        ("to small".into(), Model::Link("small.txt".into())),
        ("to many".into(), Model::Link("/a/../many".into())),
        ("nowhere".into(), Model::Link("not/here".into())),
        ("in a circle".into(), Model::Link("in a circle".into())),
        ("far".into(), Model::Link("x".repeat(200))),
    ]);
    model
}

/// An image of FAT with tables of so many bits.
pub fn fat(bits: &str) -> Option<Vec<u8>> {
    fat_of(&model(), bits)
}

/// The same of another model.
pub fn fat_of(model: &BTreeMap<String, Model>, bits: &str) -> Option<Vec<u8>> {
    fat_with(model, bits, "512")
}

/// The same with sectors of another size.
pub fn fat_with(model: &BTreeMap<String, Model>, bits: &str, sector: &str) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).unwrap();
    fill(&files, model);
    let (len, per_cluster) = match bits {
        "12" => (4 * MIB, "4"),
        // Not so many clusters are another kind of FAT.
        "16" if sector != "512" => (20 * MIB, "1"),
        "16" => (12 * MIB, "2"),
        _ => (36 * MIB, "1"),
    };
    let image = blank(folder.path(), len);
    let per_cluster = if sector == "512" { per_cluster } else { "1" };
    let size = ["-F", bits, "-s", per_cluster, "-S", sector];
    let args = [&size[..], &["-n", "OF FAT", "-i", "1234ABCD"]].concat();
    let args: Vec<&OsStr> = args.into_iter().map(OsStr::new).collect();
    run("mkfs.vfat", &[&args[..], &[image.as_os_str()]].concat())?;
    let mut args: Vec<PathBuf> = ["-s", "-m", "-i"].map(Into::into).into();
    args.push(image.clone());
    let listed = std::fs::read_dir(&files).unwrap().map(|entry| entry.unwrap().path());
    args.extend(listed);
    args.push("::/".into());
    run("mcopy", &args)?;
    Some(std::fs::read(image).unwrap())
}

/// What `debugfs` prints.
pub fn debugfs(image: &Path, commands: &str) -> Option<String> {
    let script = image.with_extension("commands");
    std::fs::write(&script, commands).unwrap();
    let mut command = Command::new(tool("debugfs")?);
    let output = command.args(["-w", "-f"]).args([&script, image]).output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A disk of 32 MiB with the table that the script describes.
pub fn table(script: &str) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    let mut command = Command::new(tool("sfdisk")?);
    command.arg("-q").arg(&path);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(std::fs::read(path).unwrap())
}

/// A volume of NTFS that is mounted.
pub struct Mounted {
    child: Child,
    pub at: PathBuf,
    image: PathBuf,
    _folder: tempfile::TempDir,
}

impl Mounted {
    /// Makes a volume with clusters of so many bytes and mounts it.
    pub fn new(len: u64, cluster: &str) -> Option<Self> {
        Self::with_sectors(len, "512", cluster)
    }

    /// The same with sectors of another size.
    pub fn with_sectors(len: u64, sector: &str, cluster: &str) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("NOT TESTED: NTFS, because nothing can be mounted without /dev/fuse");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = blank(folder.path(), len);
        let geometry = ["-q", "-F", "-f", "-p", "0", "-H", "16", "-S", "63", "-s", sector];
        let args = [&geometry[..], &["-L", "of NTFS", "-c", cluster]].concat();
        let args: Vec<&OsStr> =
            args.into_iter().map(OsStr::new).chain([image.as_os_str()]).collect();
        run("mkntfs", &args)?;
        Self::of(folder, image)
    }

    /// Mounts a volume with these bytes again.
    pub fn again(bytes: &[u8]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::write(&image, bytes).unwrap();
        Self::of(folder, image)
    }

    fn of(folder: tempfile::TempDir, image: PathBuf) -> Option<Self> {
        let at = folder.path().join("mounted");
        std::fs::create_dir(&at).unwrap();
        let options = "no_detach,compression,streams_interface=windows";
        let mut command = Command::new(tool("ntfs-3g")?);
        command.args(["-o", options]).args([&image, &at]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let at_text = at.to_str().unwrap().to_owned();
        while !std::fs::read_to_string("/proc/mounts").unwrap().contains(&at_text) {
            assert!(start.elapsed() < Duration::from_secs(20), "ntfs-3g does not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { child, at, image, _folder: folder })
    }

    pub fn fill(&self, model: &BTreeMap<String, Model>) {
        fill(&self.at, model);
    }

    /// Sets what NTFS keeps of a file, by the name that the driver has for it.
    pub fn set(&self, path: &str, what: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (what, value, path) =
            (format!("system.{what}"), format!("0x{hex}"), self.at.join(path));
        let args = ["-n".as_ref(), what.as_ref(), "-v".as_ref(), value.as_ref(), path.as_os_str()];
        run("setfattr", &args).unwrap();
    }

    /// Unmounts the volume and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        // A program that is being started elsewhere has files open for a moment that this one had.
        let start = Instant::now();
        while !Command::new("umount").arg(&self.at).output().unwrap().status.success() {
            assert!(start.elapsed() < Duration::from_secs(20), "cannot unmount");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(self.child.wait().unwrap().success());
        std::fs::read(&self.image).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("umount").arg(&self.at).output();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// An image of NTFS with the model, made once.
pub fn ntfs() -> Option<&'static Vec<u8>> {
    static IMAGE: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let made = || {
        let mounted = Mounted::new(12 * MIB, "4096")?;
        mounted.fill(&model());
        Some(mounted.finish())
    };
    IMAGE.get_or_init(made).as_ref()
}

pub fn disk(bytes: Vec<u8>) -> Arc<dyn Disk> {
    Arc::new(RawDisk::new(Arc::new(MemStorage::new(bytes))).unwrap())
}

/// Opens the only volume of a disk.
pub fn tree(bytes: &[u8]) -> FileSystem {
    tree_with(bytes, Options::default())
}

pub fn tree_with(bytes: &[u8], options: Options) -> FileSystem {
    let volumes = Volumes::of(disk(bytes.to_vec())).unwrap();
    volumes.select(None).unwrap().open_with(options).unwrap()
}
