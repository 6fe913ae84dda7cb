//! A disk with three checkpoints, and its contents at four points in time.
//!
//! ```sh
//! cargo run --release --example checkpoints
//! ```
//!
//! Everything happens in a temporary folder that is removed at the end. What is read back is compared
//! with a copy kept in memory.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use avhdx::ops::forest::{Forest, NodeId};
use avhdx::{
    CreateOptions, DiffChain, Disk, DiskExt, LayerId, OpenOptions, PathSource, Source, VhdxFile,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
/// How many bytes one character of the map represents.
const CELL: u64 = 256 * KIB;

/// What a machine does to its disk between two checkpoints.
struct Chapter {
    file: &'static str,
    story: &'static str,
    /// Ranges that are written, as offset and length.
    writes: &'static [(u64, u64)],
    /// A range that is discarded.
    discards: Option<(u64, u64)>,
}

const CHAPTERS: [Chapter; 4] = [
    Chapter { file: "web.vhdx", story: "installed", writes: &[(0, 12 * MIB)], discards: None },
    Chapter {
        file: "web_1.avhdx",
        story: "updated",
        writes: &[(MIB, 2 * MIB), (6 * MIB, 512 * KIB)],
        discards: None,
    },
    Chapter {
        file: "web_2.avhdx",
        story: "cleaned up, a database added",
        writes: &[(13 * MIB, 2 * MIB), (2 * MIB + 512 * KIB, 256 * KIB)],
        discards: Some((8 * MIB, 2 * MIB)),
    },
    Chapter {
        file: "web_3.avhdx",
        story: "a few small writes",
        writes: &[(4 * MIB + 4 * KIB, 4 * KIB), (9 * MIB + 100, 1000), (14 * MIB, MIB)],
        discards: None,
    },
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let points = write_the_story(folder.path())?;

    let tip = folder.path().join(CHAPTERS[3].file);
    let chain = DiffChain::open(&tip)?;
    println!("\nThe tree of {}:\n", CHAPTERS[3].file);
    draw_the_tree(folder.path())?;

    // Layers numbered from the base up, as the chapters are.
    let mut layers: Vec<LayerId> = chain.layers().iter().map(|layer| layer.id).collect();
    layers.reverse();
    let numbers: HashMap<LayerId, usize> =
        layers.iter().enumerate().map(|(number, id)| (*id, number)).collect();
    println!(
        "\nWho owns what, one sign for each {} KiB: the number of the layer, . for zeros, + for several:\n",
        CELL / KIB
    );
    println!("  {:11}  0 MiB           4               8               12            16", "");
    for (number, layer) in layers.iter().enumerate() {
        let map = map(&chain.view(*layer)?, &numbers)?;
        println!("  {:11}  {map}", CHAPTERS[number].file);
    }

    println!("\nRead back, all {} MiB at each point in time:\n", SIZE / MIB);
    for (number, layer) in layers.iter().enumerate() {
        let mut found = vec![0; SIZE as usize];
        chain.view(*layer)?.read_at(&mut found, 0)?;
        if found != points[number] {
            return Err(format!("{} does not read as written", CHAPTERS[number].file).into());
        }
        println!("  {:11}  as written: {}", CHAPTERS[number].file, CHAPTERS[number].story);
    }
    Ok(())
}

/// Creates the disk and its checkpoints, and returns the expected contents of each point in time.
fn write_the_story(folder: &Path) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut disk = vec![0; SIZE as usize];
    let mut points = Vec::new();
    for (number, chapter) in CHAPTERS.iter().enumerate() {
        let path = folder.join(chapter.file);
        if number == 0 {
            println!("create      {}, a disk of {} MiB", chapter.file, SIZE / MIB);
            CreateOptions::dynamic(SIZE).block_size(MIB as u32).create(&path)?.close()?;
        } else {
            // A checkpoint: the present image is left alone, and a child receives later changes.
            let parent = CHAPTERS[number - 1].file;
            println!("checkpoint  {} on {parent}", chapter.file);
            let parent = VhdxFile::open(folder.join(parent))?;
            CreateOptions::child_of(&parent)?.create(&path)?.close()?;
        }
        let chain = OpenOptions::new().writable(true).open(&path)?;
        for (offset, len) in chapter.writes {
            let bytes = contents(number, *offset, *len);
            chain.write_at(&bytes, *offset)?;
            disk[*offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            println!("  write     {len:>8} bytes at {offset}");
        }
        if let Some((offset, len)) = chapter.discards {
            chain.discard(offset..offset + len)?;
            disk[offset as usize..][..len as usize].fill(0);
            println!("  discard   {len:>8} bytes at {offset}");
        }
        chain.flush()?;
        chain.close()?;
        points.push(disk.clone());
    }
    Ok(points)
}

/// Bytes that depend on offset and chapter, and are never zero.
fn contents(chapter: usize, offset: u64, len: u64) -> Vec<u8> {
    let byte = |at: u64| (at / 512 % 61 * 4 + chapter as u64 + 1) as u8;
    (offset..offset + len).map(byte).collect()
}

fn draw_the_tree(folder: &Path) -> Result<(), Box<dyn Error>> {
    let forest = Forest::scan([folder], &PathSource::new())?;
    for root in forest.trees() {
        draw_below(&forest, *root);
    }
    Ok(())
}

fn draw_below(forest: &Forest, id: NodeId) {
    let node = forest.node(id);
    let name = node.path.file_name().unwrap_or_default().to_string_lossy();
    let branch = match node.depth {
        0 => String::new(),
        depth => format!("{}└─ ", "   ".repeat(depth - 1)),
    };
    let mib = node.file_len as f64 / MIB as f64;
    println!("  {:22}  a file of {mib:>4.1} MiB", format!("{branch}{name}"));
    for child in &node.children {
        draw_below(forest, *child);
    }
}

/// One character for each cell of a disk.
fn map(disk: &DiffChain, numbers: &HashMap<LayerId, usize>) -> Result<String, Box<dyn Error>> {
    let mut map = String::new();
    for start in (0..SIZE).step_by(CELL as usize) {
        let mut signs = Vec::new();
        for extent in disk.extents(start..start + CELL) {
            signs.push(match extent?.source {
                Source::Data { layer, .. } => numbers[&layer].to_string(),
                Source::Zero { .. } | Source::Parent => ".".to_owned(),
            });
        }
        signs.dedup();
        map += if let [sign] = &signs[..] { sign } else { "+" };
    }
    Ok(map)
}
