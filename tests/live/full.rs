//! Hosts that run out of space in the middle of a change of a chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use avhdx::ops::{Checkpoint, Forecast, Merge, Revert};
use avhdx::storage::Host;
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, Zeroing};
use avhdx_testkit::naive;
use avhdx_testkit::rng::Rng;

use super::sim::{Arrived, Event, FOLDER, Files, SimHost};
use super::{MIB, bytes, go, paths};

const SIZE: u64 = 9 * MIB + 512 * 3;

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn open(host: &SimHost, tip: &Path) -> DiffChain {
    let options = OpenOptions::new().host(Arc::new(host.clone())).writable(true);
    options.open(tip).unwrap_or_else(|error| panic!("{error}"))
}

/// Three layers, all durable, and what each of their points reads as, tip first.
fn three() -> (Files, [Vec<u8>; 3]) {
    let host = SimHost::default();
    let shared: Arc<dyn Host> = Arc::new(host.clone());
    let options = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    drop(options.create_on(shared, file("base.vhdx")).unwrap());
    let chain = open(&host, &file("base.vhdx"));
    let mut rng = Rng::new(11);
    let mut points = Vec::new();
    for name in ["base", "middle", "tip"] {
        if name != "base" {
            let path = file(&format!("{name}.avhdx"));
            Checkpoint::new().path(path).run(&chain, &mut go).unwrap();
        }
        for _ in 0..5 {
            let at = rng.below(SIZE - 200_000);
            let len = 1 + rng.below(200_000);
            chain.write_at(&vec![rng.next_u64() as u8 | 1; len as usize], at).unwrap();
        }
        let whole = rng.below(9) * MIB;
        chain.write_at(&[rng.next_u64() as u8 | 1; 1 << 20], whole).unwrap();
        chain.write_zeroes(7 * MIB - 5..8 * MIB, Zeroing::MayUnmap).unwrap();
        chain.flush().unwrap();
        points.insert(0, bytes(&chain));
    }
    chain.close().unwrap();
    (host.files(), points.try_into().unwrap())
}

/// What a reader that knows nothing of the crate makes of these files, tip first.
fn naively(host: &SimHost, paths: &[PathBuf]) -> Vec<u8> {
    let files = host.files();
    let layers = paths.iter().rev().map(|path| {
        let file = files.file(path).unwrap();
        let mut bytes = vec![0; file.len() as usize];
        file.read(0, &mut bytes);
        bytes
    });
    naive::Chain::from_bytes(layers).unwrap().flat(paths.len() - 1).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Checkpoint,
    Revert,
    /// Of which layer, and whether space is short.
    Merge(usize, bool),
}

impl Change {
    fn run(self, chain: &DiffChain) -> avhdx::Result<()> {
        match self {
            Self::Checkpoint => {
                let path = file("new.avhdx");
                Checkpoint::new().path(path).run(chain, &mut go).map(drop)
            }
            Self::Revert => {
                let revert = Revert::to(chain.layers()[1].id).path(file("new.avhdx"));
                revert.run(chain, &mut go).map(drop)
            }
            Self::Merge(..) => self.merge(chain, false),
        }
    }

    fn merge(self, chain: &DiffChain, again: bool) -> avhdx::Result<()> {
        let Self::Merge(layer, low_space) = self else { unreachable!("{self:?}") };
        let id = chain.layers()[layer].id;
        let merge = if again { Merge::resume(id) } else { Merge::new(id) };
        merge.low_space(low_space).run(chain, &mut go).map(drop)
    }

    fn forecast(self, chain: &DiffChain) -> avhdx::Result<Forecast> {
        match self {
            Self::Checkpoint => Checkpoint::new().path(file("new.avhdx")).forecast(chain),
            Self::Revert => {
                Revert::to(chain.layers()[1].id).path(file("new.avhdx")).forecast(chain)
            }
            Self::Merge(layer, low_space) => {
                Merge::new(chain.layers()[layer].id).low_space(low_space).forecast(chain)
            }
        }
    }
}

const CHANGES: [Change; 6] = [
    Change::Checkpoint,
    Change::Revert,
    Change::Merge(0, false),
    Change::Merge(1, false),
    Change::Merge(0, true),
    Change::Merge(1, true),
];

/// Whatever it is that finds no space, the chain reads as before, there and then and opened anew, and where a
/// merge was under way it is completed once there is space.
#[test]
fn a_change_that_finds_no_space_harms_nothing() {
    let (files, points) = three();
    for change in CHANGES {
        // For good, or for a moment.
        for (arrived, most) in
            [(Arrived::Nothing, usize::MAX), (Arrived::Half, usize::MAX), (Arrived::Nothing, 1)]
        {
            for n in 0_usize.. {
                let what = format!("{change:?}, no space for {most} from {n} on, {arrived:?}");
                let host = SimHost::new(files.clone());
                let chain = open(&host, &file("tip.avhdx"));
                let count = host.run_out(n..n.saturating_add(most), arrived);
                let done = change.run(&chain);
                let steps = count.load(Ordering::SeqCst);
                if let Err(error) = &done {
                    assert_eq!(error.kind(), ErrorKind::Io, "{what}: {error}");
                }
                let after = match (change, &done) {
                    (Change::Revert, Ok(())) => &points[1],
                    _ => &points[0],
                };
                assert!(bytes(&chain) == *after, "{what}");
                let now = paths(&chain);
                // Its end finds no space either, or just so.
                if n % 2 == 0 {
                    host.relent();
                }
                drop(chain);
                host.relent();

                let tip = if done.is_ok() { now[0].clone() } else { file("tip.avhdx") };
                let chain = match host.files().file(&tip) {
                    Some(_) => open(&host, &tip),
                    // The tip's merge was complete but for a word about it.
                    None => open(&host, &now[0]),
                };
                assert!(bytes(&chain) == *after, "{what}, opened anew");
                let mark = match change {
                    Change::Merge(layer, _) => chain.layers().get(layer).and_then(|layer| {
                        let options = OpenOptions::new().host(Arc::new(host.clone()));
                        options.open_image(layer.path.as_ref()?).ok()?.merge_mark()
                    }),
                    _ => None,
                };
                if mark.is_some_and(|mark| mark.state != avhdx::MergeState::Target) {
                    change.merge(&chain, true).unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(chain.layers().len(), 2, "{what}");
                }
                chain.write_at(&[1; 3], 0).unwrap();
                chain.close().unwrap();
                let mut model = after.clone();
                model[..3].fill(1);
                let paths = paths(&chain);
                drop(chain);
                assert!(naively(&host, &paths) == model, "{what}");
                let warnings = open(&host, &paths[0]).warnings();
                assert!(warnings.is_empty(), "{what}: {warnings:?}");
                host.empty();
                if steps <= n {
                    assert!(done.is_ok(), "{what}: {:?}", done.unwrap_err());
                    break;
                }
            }
        }
    }
}

/// What does not fit is refused with nothing written, and what is said to fit does.
#[test]
fn a_change_is_refused_before_a_byte_when_the_space_will_not_do() {
    let (files, points) = three();
    for change in CHANGES {
        let host = SimHost::new(files.clone());
        let chain = open(&host, &file("tip.avhdx"));
        let before = host.files().sum();
        let forecast = change.forecast(&chain).unwrap();
        assert_eq!(forecast.available, None);
        let lens = |files: &Files| -> u64 {
            files.names.values().map(|number| files.files[*number].len()).sum()
        };
        let needed = forecast.peak;
        if needed > 0 {
            host.set_free_space(Some(needed - 1));
            let error = change.run(&chain).unwrap_err();
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::NoSpace, "op.space"),
                "{change:?}"
            );
            assert!(error.to_string().contains("by 1 bytes"), "{error}");
            assert_eq!(host.files().sum(), before, "{change:?}");
            assert!(bytes(&chain) == points[0]);
        }
        host.set_free_space(Some(needed));
        let (most, at_first) = (lens(&host.files()), Arc::new(std::sync::Mutex::new(0)));
        let seen = Arc::clone(&at_first);
        host.record();
        change.run(&chain).unwrap_or_else(|error| panic!("{change:?}: {error}"));
        // Files grow by more than they use, which takes no space: what is written counts.
        let mut now = files.clone();
        for event in host.events() {
            now.apply(&event);
            if let Event::Write(..) = event {
                let mut seen = seen.lock().unwrap();
                *seen = (*seen).max(lens(&now).saturating_sub(most));
            }
        }
        let slack = 4 * MIB;
        let grown = *at_first.lock().unwrap();
        assert!(grown <= needed + slack, "{change:?}: {needed} said, and {grown} taken");
        drop(chain);
        host.empty();
    }
}
