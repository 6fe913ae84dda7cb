//! Images with a pending log that are refused when opened for writing: the log is not replayed to the file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sim::{Bytes, FOLDER, Files, SimHost};
use avhdx::ops::{AcceptLoss, Checkpoint, Losses, Merge, Relink, Reparent};
use avhdx::storage::Host;
use avhdx::{Budget, Disk, Error, OpenOptions, PathSource};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive::Layer;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const LOG: Uuid = Uuid::from_u128(0x9e4d_0000_0000_4000_8000_0000_0000_0001);
/// A block in another page of the table than those in the log.
const BLOCK: u64 = 600;

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn host(images: &[(&str, &Image)]) -> SimHost {
    let mut files = Files::default();
    for (number, (name, image)) in images.iter().enumerate() {
        let mut file = Bytes::default();
        for (n, page) in image.to_bytes().chunks(4096).enumerate() {
            file.write(n as u64 * 4096, page);
        }
        file.set_len(image.layout().file_length);
        *files.file_mut(number) = file;
        files.names.insert(path(name), number);
    }
    SimHost::new(files)
}

fn options(host: &SimHost) -> OpenOptions {
    OpenOptions::new().host(Arc::new(host.clone())).budget(Budget::new(1 << 20))
}

fn layer(host: &SimHost, name: &str) -> Layer {
    let bytes = host.files().file(&path(name)).unwrap().clone();
    Layer::from_source(Arc::new(bytes)).unwrap()
}

/// The fault of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// A block lies beyond the end of the file.
    Lost,
    /// Two blocks lie at the same offset.
    Shared,
}

const FAULTS: [(Fault, &str); 2] = [(Fault::Lost, "claim.lost"), (Fault::Shared, "claim.shared")];

/// An image that gets a block through its pending log.
fn pending(image: &Image, fault: Fault) -> Image {
    let mut before = image.clone();
    before.put(0, Block::full(Data::Pattern(1))).put(BLOCK, Block::full(Data::Pattern(2)));
    let mut after = before.clone();
    after.put(1, Block::full(Data::Pattern(3)));
    let layout = after.layout();
    let place = match fault {
        Fault::None => None,
        Fault::Lost => Some(layout.file_length + MIB),
        Fault::Shared => Some(layout.payload[&0]),
    };
    if let Some(place) = place {
        for image in [&mut before, &mut after] {
            let index = image.bat_index(BLOCK);
            image.bat_override.insert(index, place | 6);
        }
    }
    Image::dirty(&before, &after, LOG, 1)
}

fn base() -> Image {
    Image::dynamic(1024 * MIB)
}

/// The call is refused, and every file is unchanged.
fn refused<T>(host: &SimHost, code: &str, what: &str, tried: impl FnOnce() -> Result<T, Error>) {
    let before = host.files().sum();
    let error = tried().map(drop).expect_err(what);
    assert_eq!(error.code(), code, "{what}: {error}");
    assert!(host.files().sum() == before, "{what}: the files are others");
}

#[test]
fn a_log_is_not_replayed_into_an_image_that_is_refused_for_its_claims() {
    for (fault, code) in FAULTS {
        let host = host(&[("a.vhdx", &pending(&base(), fault))]);
        let open = || options(&host).writable(true);
        refused(&host, code, "an image", || open().open_image(path("a.vhdx")));
        refused(&host, code, "a chain", || open().open(path("a.vhdx")));
        // Reading is always possible.
        let chain = options(&host).open(path("a.vhdx")).unwrap();
        let mut bytes = vec![0; MIB as usize];
        chain.read_at(&mut bytes, MIB).unwrap();
        assert!(bytes.iter().any(|byte| *byte != 0));
    }
    // A sound image is replayed.
    let host = host(&[("a.vhdx", &pending(&base(), Fault::None))]);
    options(&host).writable(true).open(path("a.vhdx")).unwrap().close().unwrap();
    assert!(!layer(&host, "a.vhdx").log_is_pending());
}

/// The log may be what makes the image sound.
#[test]
fn the_claims_are_those_that_the_image_has_once_its_log_is_replayed() {
    let after = pending(&base(), Fault::None);
    let mut before = after.clone();
    let index = before.bat_index(1);
    before.bat_override.insert(index, (before.layout().file_length + 7 * MIB) | 6);
    let mut sound = after.clone();
    (sound.log, sound.patches) = Default::default();
    let host = host(&[("a.vhdx", &Image::dirty(&before, &sound, LOG, 1))]);
    assert!(layer(&host, "a.vhdx").log_is_pending());
    options(&host).writable(true).open(path("a.vhdx")).unwrap().close().unwrap();
    let found = layer(&host, "a.vhdx");
    assert!(!found.log_is_pending() && !found.losses().refused);
}

#[test]
fn a_refused_operation_does_not_replay_a_log() {
    for (fault, code) in FAULTS {
        let root = base();
        let mut tip = root.new_child();
        tip.parent_path(".\\base.vhdx");
        // A fault of the parent.
        let parent = pending(&root, fault);
        let below = host(&[("base.vhdx", &parent), ("tip.avhdx", &tip)]);
        let chain = options(&below).writable(true).open(path("tip.avhdx")).unwrap();
        let merge = || Merge::new(chain.layers()[0].id).run(&chain);
        refused(&below, code, "a merge", merge);
        drop(chain);

        // A fault of the image itself.
        let above = host(&[("base.vhdx", &root), ("tip.avhdx", &pending(&tip, fault))]);
        let chain = options(&above).open(path("tip.avhdx")).unwrap();
        refused(&above, code, "a merge", || Merge::new(chain.layers()[0].id).run(&chain));
        refused(&above, code, "a checkpoint", || {
            let chain = options(&above).writable(true).open(path("tip.avhdx"))?;
            Checkpoint::new().run(&chain)
        });
        drop(chain);

        above.rename(&path("base.vhdx"), &path("moved.vhdx")).unwrap();
        // What the image leaves to its parent is examined first.
        let first = if fault == Fault::Lost { "bat.payload-place" } else { code };
        refused(&above, first, "a reparent", || {
            let reparent = Reparent::new(path("moved.vhdx")).unproven(true);
            let reparent = reparent.options(options(&above));
            reparent.run(path("tip.avhdx"))
        });
        refused(&above, code, "a relink", || {
            let source = PathSource::new().host(Arc::new(above.clone()));
            let mut relinked = Relink::folder(FOLDER).parents(source).run()?;
            assert!(relinked.images.is_empty());
            relinked.refused.pop().map_or(Ok(()), Err)
        });
    }
}

fn accept(host: &SimHost, goes_on: bool) -> Result<Losses, Error> {
    let accept = AcceptLoss::new().options(options(host));
    accept.run(path("a.vhdx"), &mut |_| match goes_on {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    })
}

#[test]
fn a_log_is_replayed_once_the_losses_are_accepted_and_not_before() {
    for (fault, _) in FAULTS {
        let host = host(&[("a.vhdx", &pending(&base(), fault))]);
        let mut sum = Default::default();
        refused(&host, "op.cancelled", "who is told stops it", || accept(&host, false));
        let run = AcceptLoss::new().options(options(&host)).run(path("a.vhdx"), &mut |losses| {
            assert!(losses.damaged && losses.report.is_some());
            sum = host.files().file(&path("a.vhdx")).unwrap().sum();
            ControlFlow::Continue(())
        });
        let untouched = self::host(&[("a.vhdx", &pending(&base(), fault))]);
        let before = untouched.files().file(&path("a.vhdx")).unwrap().sum();
        assert!(sum == before, "nothing is changed when the list is there");
        assert!(!run.unwrap().list.is_empty());
        let after = layer(&host, "a.vhdx");
        assert!(!after.log_is_pending() && !after.losses().refused);
        let mut bytes = vec![0; MIB as usize];
        options(&host).open(path("a.vhdx")).unwrap().read_at(&mut bytes, MIB).unwrap();
        let flat = pending(&base(), Fault::None).flat(None);
        assert!(bytes == flat[MIB as usize..2 * MIB as usize], "what the log brought is there");
    }
    // If nothing is lost, the log is replayed as usual.
    let host = host(&[("a.vhdx", &pending(&base(), Fault::None))]);
    assert_eq!(accept(&host, true).unwrap(), Losses::default());
    assert!(!layer(&host, "a.vhdx").log_is_pending());
    assert_eq!(host.files().names.len(), 1, "and there is no list");
}
