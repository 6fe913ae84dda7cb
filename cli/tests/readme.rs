//! The README's story, command by command: after each one every image reads as a flat model says.
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::fs;

use avhdx_testkit::rng::Rng;
use common::Folder;

/// Where all of the story happens.
const LOOKED_AT: usize = 8 << 20;

/// What the disk is in each image, and which image is whose parent.
#[derive(Default)]
struct Model {
    images: BTreeMap<String, Vec<u8>>,
    parents: BTreeMap<String, String>,
    /// The image that holds the point in time of that name.
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

    /// The image that a point means.
    fn image(&self, point: &str) -> String {
        point.split_once('@').map_or(point.into(), |(_, label)| self.labels[label].clone())
    }

    fn newer_than(&self, image: &str, tip: &str) -> Vec<String> {
        let below = |image: &String| self.parents.get(image).cloned();
        std::iter::successors(Some(tip.to_owned()), below).take_while(|at| at != image).collect()
    }

    /// Takes a command of the program, and the bytes that it was given.
    fn take(&mut self, words: &[&str], input: &[u8]) {
        let flag = |name: &str| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
        let image = words[1];
        match words[0] {
            "create" => match flag("--parent") {
                Some(parent) => self.child(image, parent),
                None => drop(self.images.insert(image.into(), vec![0; LOOKED_AT])),
            },
            "write" => {
                let at: usize = flag("--offset").unwrap().trim_end_matches('M').parse().unwrap();
                let disk = self.images.get_mut(image).unwrap();
                disk[at << 20..][..input.len()].copy_from_slice(input);
            }
            "checkpoint" => {
                self.child(flag("--path").unwrap(), image);
                self.labels.insert(flag("--label").unwrap().into(), image.into());
            }
            "revert" => {
                let (tip, _) = image.split_once('@').unwrap();
                let point = self.image(image);
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
            "reparent" => {
                self.parents.insert(image.into(), flag("--onto").unwrap().into());
            }
            other => panic!("the model does not know {other}"),
        }
    }
}

#[test]
fn the_story_of_the_readme() {
    let readme = include_str!("../../README.md");
    let (_, story) = readme.split_once("## The life of a chain").unwrap();
    let (_, story) = story.split_once("```sh\n").unwrap();
    let (story, _) = story.split_once("```").unwrap();
    let folder = Folder::new();
    let mut model = Model::default();
    let mut rng = Rng::new(7);
    let mut commands = 0;
    for line in story.lines() {
        let line = line.split_once('#').map_or(line, |(command, _)| command).trim();
        let (command, from) = line.split_once(" < ").unwrap_or((line, ""));
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            [] => continue,
            ["mkdir", ref folders @ ..] => {
                folders.iter().for_each(|name| fs::create_dir(folder.file(name)).unwrap());
                continue;
            }
            ["mv", from, to] => {
                fs::rename(folder.file(from), folder.file(to)).unwrap();
                let disk = model.images.remove(from).unwrap();
                model.images.insert(to.into(), disk);
                // Its children are to find it with the next command.
                continue;
            }
            ["avhdx", ref words @ ..] => {
                let mut input = vec![0; if from.is_empty() { 0 } else { 700_000 }];
                rng.fill(&mut input);
                folder.run_with(&words.join(" "), &input).expect(0);
                model.take(words, &input);
            }
            _ => panic!("who runs {line:?}?"),
        }
        commands += 1;
        for (image, disk) in &model.images {
            let read = folder.run(&format!("read {image} --length {LOOKED_AT}")).expect(0);
            assert!(read.stdout == *disk, "{image} after {line}");
        }
    }
    assert!(commands > 20, "{commands} commands");
    let mut left = fs::read_dir(folder.file("vm")).unwrap().count();
    left += fs::read_dir(folder.file("archive")).unwrap().count();
    assert_eq!(left, model.images.len(), "what was removed is gone, and nothing else is left");
}
