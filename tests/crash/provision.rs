//! Crashes while a dynamic image becomes fixed: it has space for every block before it says so.

use std::collections::HashSet;

use avhdx::ops::Provision;
use avhdx_testkit::build::{Block, Data, ITEM_FILE_PARAMETERS, Image};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::naive::Chain;

use crate::driver::{MIB, path};
use crate::explore::story;
use crate::is_long;
use crate::outcomes::{Depth, Explorer};
use crate::sim::{Arrived, Bytes, Files, SimHost};
use crate::verdict::{layer, options};

const BLOCKS: u64 = 3;

fn start(shows_stale: bool) -> Files {
    let mut image = Image::dynamic(BLOCKS * MIB);
    image.logical_sector = 4096;
    image.put(1, Block::full(Data::Pattern(1)));
    let mut file = Bytes::default();
    let bytes = image.to_bytes();
    for (n, page) in bytes.chunks(4096).enumerate() {
        file.write(n as u64 * 4096, page);
    }
    file.set_len(bytes.len() as u64);
    let mut files = Files { shows_stale, ..Files::default() };
    *files.file_mut(0) = file;
    files.names.insert(path("data.vhdx"), 0);
    files
}

fn provision(host: &SimHost) -> avhdx::Result<avhdx::ops::Provisioned> {
    Provision::fixed().options(options(host)).run(path("data.vhdx"))
}

/// Whether it is fixed, or what is wrong with it.
fn judge(files: &Files, flat: &[u8]) -> Result<bool, String> {
    let found = layer(files, &path("data.vhdx"))?;
    if let [fault, ..] = &found.faults()[..] {
        return Err(fault.clone());
    }
    let parameters = found.items.iter().find(|(guid, ..)| *guid == ITEM_FILE_PARAMETERS);
    let is_fixed = parameters.is_some_and(|(.., bytes)| bytes[4] & 1 == 1);
    let missing = (0..BLOCKS).filter(|block| found.bat_entry(*block).is_ok_and(|e| e & 7 != 6));
    let missing = missing.count();
    if is_fixed && missing > 0 {
        return Err(format!("fixed, and {missing} blocks have no space"));
    }
    match difference(&Chain(vec![found]).flat(0)?, flat) {
        None => Ok(is_fixed),
        Some(at) => Err(format!("the disk reads otherwise at {at:#x}")),
    }
}

#[test]
fn a_crash_while_an_image_becomes_fixed_leaves_its_disk_and_never_half_a_fixed_image() {
    for shows_stale in [false, true] {
        let start = start(shows_stale);
        let before = layer(&start, &path("data.vhdx")).unwrap();
        let guid = before.data_write_guid;
        let flat = Chain(vec![before]).flat(0).unwrap();
        let host = SimHost::new(start.clone());
        host.record();
        assert_eq!(provision(&host).unwrap().allocated, 2 * MIB);
        let events = host.events();
        let depth = match is_long() {
            true => Depth { exhaustive: 10, samples: 200, torn: 60 },
            false => Depth { exhaustive: 4, samples: 4, torn: 3 },
        };
        let (mut seen, mut fixed) = (HashSet::new(), 0);
        Explorer::new(start.clone(), &events, depth, 11).run(0, &|_| 0, &mut |outcome| {
            let sum = outcome.files.sum().exact;
            if !seen.insert(sum) {
                return;
            }
            let story = story(&events, &outcome);
            let judged = judge(&outcome.files, &flat);
            fixed += usize::from(judged.unwrap_or_else(|why| panic!("{story}: {why}")));
            let identity = layer(&outcome.files, &path("data.vhdx")).unwrap().data_write_guid;
            assert_eq!(identity, guid, "{story}");
            if sum.is_multiple_of(4) {
                let host = SimHost::new(outcome.files.clone());
                provision(&host).unwrap_or_else(|error| panic!("{story}, once more: {error}"));
                assert_eq!(judge(&host.files(), &flat), Ok(true), "{story}, once more");
            }
        });
        assert!(fixed > 2 && seen.len() > fixed + 10, "{fixed} of {}", seen.len());
    }
}

#[test]
fn a_host_that_fails_while_an_image_becomes_fixed_leaves_its_disk() {
    let start = start(false);
    let flat = Chain(vec![layer(&start, &path("data.vhdx")).unwrap()]).flat(0).unwrap();
    let mut failed = 0;
    for n in 0.. {
        let host = SimHost::new(start.clone());
        let met = host.run_out_at(n, Arrived::Half);
        let done = provision(&host);
        host.relent();
        if met.load(std::sync::atomic::Ordering::SeqCst) <= n {
            break;
        }
        if let Err(error) = done {
            failed += 1;
            assert_eq!(error.kind(), avhdx::ErrorKind::Io, "{n}: {error}");
        }
        judge(&host.files(), &flat).unwrap_or_else(|why| panic!("{n}: {why}"));
        provision(&host).unwrap_or_else(|error| panic!("{n}, once more: {error}"));
        assert_eq!(judge(&host.files(), &flat), Ok(true), "{n}, once more");
    }
    assert!(failed > 5, "{failed}");
    // What is known not to fit is refused before a byte is written.
    let host = SimHost::new(start.clone());
    host.set_free_space(Some(2 * MIB - 1));
    assert_eq!(provision(&host).unwrap_err().kind(), avhdx::ErrorKind::NoSpace);
    assert!(host.files().sum() == start.sum());
}
