//! The commands of README.md and docs/program.md, one by one: after each one, every image must equal a flat model.

use std::collections::BTreeMap;
use std::fs;

use crate::common::Folder;
use avhdx_testkit::rng::Rng;

/// The part of the disk that the commands use.
const LOOKED_AT: usize = 8 << 20;

/// The content of each image, and its parent.
#[derive(Default)]
struct Model {
    images: BTreeMap<String, Vec<u8>>,
    parents: BTreeMap<String, String>,
    /// The image of each label.
    labels: BTreeMap<String, String>,
}

impl Model {
    fn child(&mut self, child: &str, parent: &str) {
        self.images.insert(child.into(), self.images[parent].clone());
        self.parents.insert(child.into(), parent.into());
    }

    fn remove(&mut self, image: &str) {
        self.images.remove(image).unwrap();
        self.parents.remove(image);
    }

    /// The image that a selector means.
    fn image(&self, point: &str) -> String {
        point.split_once('@').map_or(point.into(), |(_, label)| self.labels[label].clone())
    }

    fn newer_than(&self, image: &str, tip: &str) -> Vec<String> {
        let below = |image: &String| self.parents.get(image).cloned();
        std::iter::successors(Some(tip.to_owned()), below).take_while(|at| at != image).collect()
    }

    /// The disk at a point in time.
    fn disk(&self, point: &str) -> &[u8] {
        &self.images[&self.image(point)]
    }

    /// Applies a command and its input. Returns the exit code, and the output if that is data of the disk.
    fn take(&mut self, words: &[&str], input: &[u8]) -> (i32, Option<Vec<u8>>) {
        let flag = |name: &str| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
        let bytes = |name: &str| flag(name).map(bytes);
        let image = words[1];
        match words[0] {
            "create" => match flag("--parent") {
                Some(parent) => self.child(image, parent),
                None => drop(self.images.insert(image.into(), vec![0; LOOKED_AT])),
            },
            "write" => {
                let disk = self.images.get_mut(image).unwrap();
                disk[bytes("--offset").unwrap()..][..input.len()].copy_from_slice(input);
            }
            "zero" | "discard" => {
                let disk = self.images.get_mut(image).unwrap();
                let at = bytes("--offset").unwrap();
                disk[at..at + bytes("--length").unwrap()].fill(0);
            }
            "read" => {
                let at = bytes("--offset").unwrap();
                let read = &self.disk(image)[at..at + bytes("--length").unwrap()];
                return (0, Some(read.to_vec()));
            }
            "convert" | "flatten" => {
                let copy = self.disk(image).to_vec();
                self.images.insert((*words.last().unwrap()).into(), copy);
            }
            "compare" => return (i32::from(self.disk(image) != self.disk(words[2])), None),
            "checkpoint" => {
                self.child(flag("--path").unwrap(), image);
                self.labels.insert(flag("--label").unwrap().into(), image.into());
            }
            "revert" => {
                let (tip, _) = image.split_once('@').unwrap();
                let point = self.image(image);
                assert!(words.contains(&"--delete-newer"));
                for newer in self.newer_than(&point, tip) {
                    self.remove(&newer);
                }
                self.child(flag("--path").unwrap(), &point);
            }
            "merge" if words.contains(&"--dry-run") => {}
            "merge" => {
                let child = self.image(image);
                let parent = self.parents[&child].clone();
                self.images.insert(parent.clone(), self.images[&child].clone());
                self.remove(&child);
                for of in self.parents.values_mut().filter(|of| **of == child) {
                    of.clone_from(&parent);
                }
            }
            "delete" => {
                // The child above goes into the point's file; a tip keeps its own name.
                let (tip, _) = image.split_once('@').unwrap();
                let point = self.image(image);
                let above = self.newer_than(&point, tip).pop().unwrap();
                let disk = self.images[&above].clone();
                let below = self.parents.get(&point).cloned();
                if above == tip {
                    self.remove(&point);
                    self.parents.remove(tip);
                    self.images.insert(above.clone(), disk);
                    self.parents.extend(below.map(|below| (above, below)));
                } else {
                    self.remove(&above);
                    self.images.insert(point.clone(), disk);
                    for of in self.parents.values_mut().filter(|of| **of == above) {
                        of.clone_from(&point);
                    }
                }
            }
            "label" => {
                let point = self.parents[image.split_once('@').unwrap().0].clone();
                self.labels.insert(words[2].into(), point);
            }
            "reparent" | "rebase" => {
                self.parents.insert(image.into(), flag("--onto").unwrap().into());
            }
            "ls" | "cat" | "cp" | "versions" | "df" => {}
            "compact" | "info" | "tree" | "map" | "diff" | "metadata" | "explain" | "check"
            | "measure" | "bench" | "relink" | "repair" | "rescue" | "points" | "seal"
            | "verify" => {}
            // Behind what is looked at.
            "resize" => {}
            "completions" | "man" => {}
            other => panic!("the model does not support {other}"),
        }
        (0, None)
    }
}

/// A byte count as the program parses it.
fn bytes(text: &str) -> usize {
    let shift = match text.trim_start_matches(|digit: char| digit.is_ascii_digit()) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        unit => panic!("unit {unit}"),
    };
    text.trim_end_matches(|unit: char| !unit.is_ascii_digit()).parse::<usize>().unwrap() << shift
}

/// The commands of the first `sh` block after `heading` that starts with `first`.
fn commands<'a>(page: &'a str, heading: &str, first: &str) -> Vec<&'a str> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let mut blocks = section.split("```sh\n").skip(1);
    let block = blocks.find(|block| block.starts_with(first)).unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let without_comment =
        |line: &'a str| line.split_once('#').map_or(line, |(line, _)| line).trim();
    block.lines().map(without_comment).filter(|line| !line.is_empty()).collect()
}

/// Runs the commands in `folder`, and compares every image with the model after each.
fn run(commands: &[&str], folder: &Folder) -> Model {
    let mut model = Model::default();
    let mut rng = Rng::new(7);
    for &line in commands {
        let (command, output) = line.split_once(" > ").unwrap_or((line, ""));
        let (command, from) = command.split_once(" < ").unwrap_or((command, ""));
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["mkdir", ref folders @ ..] => {
                folders.iter().for_each(|name| fs::create_dir(folder.file(name)).unwrap());
                continue;
            }
            ["mv", from, to] => {
                fs::rename(folder.file(from), folder.file(to)).unwrap();
                let disk = model.images.remove(from).unwrap();
                model.images.insert(to.into(), disk);
                // The next command makes its children find it.
                continue;
            }
            ["avhdx", ref words @ ..] => {
                let mut input = vec![0; if from.is_empty() { 0 } else { 700_000 }];
                rng.fill(&mut input);
                let run = folder.run_with(&words.join(" "), &input);
                let (code, bytes) = model.take(words, &input);
                let run = run.expect(code);
                assert!(bytes.is_none_or(|bytes| bytes == run.stdout), "the output of {line}");
                assert!(output.is_empty() || !run.stdout.is_empty(), "{line} has no output");
            }
            _ => panic!("unexpected line {line:?}"),
        }
        for (image, disk) in &model.images {
            let format = if image.ends_with(".raw") { "raw" } else { "vhdx" };
            let reading = format!("read {image} --length {LOOKED_AT} -f {format}");
            let read = folder.run(&reading).expect(0);
            assert!(read.stdout == *disk, "{image} after {line}");
        }
    }
    model
}

#[test]
fn the_readme_shows_every_verb_once_and_its_commands_work() {
    let readme = include_str!("../../../README.md");
    let commands = commands(readme, "The program", "# Make");
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    run(&commands, &folder);

    let verbs = folder.verbs();
    let mut shown: Vec<&str> =
        commands.iter().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    shown.sort_unstable();
    let mut verbs: Vec<&str> = verbs.iter().map(String::as_str).collect();
    verbs.sort_unstable();
    assert_eq!(shown, verbs, "each verb once");
}

#[test]
fn the_commands_of_the_life_of_a_chain_work() {
    let page = include_str!("../../../docs/program.md");
    let blocks = ["mkdir", "avhdx diff"].map(|first| commands(page, "The life of a chain", first));
    let commands = blocks.concat();
    assert!(commands.len() > 28, "{} commands", commands.len());
    let folder = Folder::new();
    let model = run(&commands, &folder);
    let mut left = fs::read_dir(folder.file("vm")).unwrap().count();
    left += fs::read_dir(folder.file("archive")).unwrap().count();
    assert_eq!(left, model.images.len(), "removed files are gone, and no other files are left");
}
