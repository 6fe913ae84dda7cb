//! Promises after a failure of the host, by example. `tests/crash` makes every operation fail.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::sim::{Arrived, Event, FOLDER, Files, Refusal, SimHost, Step};
use avhdx::{CreateOptions, Disk, ErrorKind, OpenOptions, VhdxFile, Zeroing};

const MIB: u64 = 1 << 20;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn options(host: &SimHost) -> OpenOptions {
    OpenOptions::new().host(Arc::new(host.clone()))
}

fn create(host: &SimHost, name: &str) -> avhdx::Result<VhdxFile> {
    let options = CreateOptions::dynamic(8 * MIB).block_size(MIB as u32);
    options.create_on(Arc::new(host.clone()), path(name))
}

fn refuse(host: &SimHost, code: i32, is_meant: impl Fn(Step) -> bool + Send + Sync + 'static) {
    let refusal = Refusal { code, arrived: Arrived::Nothing };
    host.refuse(move |_, step| is_meant(step).then_some(refusal));
}

#[test]
fn a_machine_that_is_paused_by_a_full_disk_goes_on_when_there_is_space() {
    // On this host the file does not grow far ahead.
    let host = SimHost::showing_stale(true);
    let image = create(&host, "a.vhdx").unwrap();
    image.write_at(&[1; 4096], 0).unwrap();
    refuse(&host, ENOSPC, |step| matches!(step, Step::SetLen { .. }));
    for _ in 0..3 {
        let error = image.write_at(&[2; 8192], MIB - 4096).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "space.grow"));
        let error = std::io::Error::from(error);
        assert_eq!(error.kind(), std::io::Error::from_raw_os_error(ENOSPC).kind());
    }
    // Blocks with space can be written and flushed meanwhile.
    image.write_at(&[3; 4096], 4096).unwrap();
    image.flush().unwrap();
    refuse(&host, 0, |_| false);
    image.write_at(&[2; 8192], MIB - 4096).unwrap();
    image.close().unwrap();
    drop(image);
    let image = options(&host).open_image(path("a.vhdx")).unwrap();
    let mut found = [0; 8192];
    image.read_at(&mut found, MIB - 4096).unwrap();
    assert_eq!(found, [2; 8192]);
    image.read_at(&mut found, 0).unwrap();
    assert_eq!((&found[..4096], &found[4096..]), (&[1; 4096][..], &[3; 4096][..]));
}

#[test]
fn a_failed_flush_is_not_tried_again_and_not_believed() {
    let host = SimHost::default();
    let image = create(&host, "a.vhdx").unwrap();
    image.write_at(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    image.write_at(&[2; 512], 0).unwrap();
    // The first flush fails; later ones would succeed.
    let flushes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&flushes);
    refuse(&host, EIO, move |step| {
        matches!(step, Step::Flush(_)) && counted.fetch_add(1, Ordering::SeqCst) == 0
    });
    let error = image.flush().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "file.flush"));
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(image.write_at(&[3; 512], 0).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(image.close().unwrap_err().kind(), ErrorKind::Poisoned);
    let mut found = [0; 512];
    image.read_at(&mut found, 0).unwrap();
    assert_eq!(found, [2; 512]);
    drop(image);
    assert_eq!(flushes.load(Ordering::SeqCst), 1);
    assert!(options(&host).writable(true).open_image(path("a.vhdx")).is_ok());
}

#[test]
fn a_poisoned_image_refuses_zeros_even_over_zeros() {
    let host = SimHost::default();
    let image = create(&host, "a.vhdx").unwrap();
    image.write_at(&[1; 512], 0).unwrap();
    refuse(&host, EIO, |step| matches!(step, Step::Flush(_)));
    image.flush().unwrap_err();
    for how in [Zeroing::MayUnmap, Zeroing::KeepSpace] {
        for range in [MIB..2 * MIB, 3 * MIB + 512..3 * MIB + 1024] {
            let error = image.write_zeroes(range.clone(), how).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Poisoned);
        }
    }
    assert_eq!(image.discard(MIB..2 * MIB).unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn a_failed_create_leaves_nothing_behind_whatever_fails_and_frees_the_name() {
    let steps = Arc::new(AtomicUsize::new(0));
    for fails in 0.. {
        let host = SimHost::default();
        steps.store(0, Ordering::SeqCst);
        let counted = Arc::clone(&steps);
        refuse(&host, EIO, move |_| counted.fetch_add(1, Ordering::SeqCst) == fails);
        let created = create(&host, "a.vhdx");
        if steps.load(Ordering::SeqCst) <= fails {
            assert!(fails > 10 && created.is_ok());
            break;
        }
        assert_eq!(created.unwrap_err().kind(), ErrorKind::Io, "step {fails}");
        assert!(host.files().names.is_empty(), "step {fails}: {:?}", host.files().names);
        create(&host, "a.vhdx").unwrap();
    }
}

#[test]
fn a_create_that_fails_after_taking_the_name_of_another_file_leaves_a_whole_image() {
    let host = SimHost::default();
    drop(create(&host, "a.vhdx").unwrap());
    // The folder is synced once before the name is taken.
    let syncs = Arc::new(AtomicUsize::new(0));
    refuse(&host, EIO, move |step| {
        matches!(step, Step::Sync) && syncs.fetch_add(1, Ordering::SeqCst) == 1
    });
    let options_of_new = CreateOptions::dynamic(16 * MIB).overwrite(true);
    let error = options_of_new.create_on(Arc::new(host.clone()), path("a.vhdx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(host.files().names.len(), 1);
    let image = options(&host).open_image(path("a.vhdx")).unwrap();
    assert_eq!(image.geometry().size, 16 * MIB);
}

#[test]
fn a_parent_that_cannot_be_read_is_a_failure_of_the_host() {
    let host = SimHost::default();
    let base = create(&host, "a.vhdx").unwrap();
    let child = CreateOptions::child_of(&base).unwrap();
    drop(child.create_on(Arc::new(host.clone()), path("b.avhdx")).unwrap());
    drop(base);
    let is_broken = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&is_broken);
    refuse(&host, EIO, move |step| {
        matches!(step, Step::Read { file: 0, .. }) && asked.load(Ordering::SeqCst)
    });
    let error = options(&host).open(path("b.avhdx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.file().is_some_and(|file| file.ends_with("a.vhdx")), "{error}");
    is_broken.store(false, Ordering::SeqCst);
    assert!(options(&host).open(path("b.avhdx")).is_ok());
}

/// A process dies after it wrote the header that ends a session and before it flushed it. If the next session
/// overwrote the log first and the host then died without that header, the older header would refer to a log without
/// an entry, and the image would not open.
#[test]
fn a_header_that_was_left_unflushed_is_made_durable_before_the_log_is_written_over() {
    let host = SimHost::default();
    drop(create(&host, "a.vhdx").unwrap());
    let image = options(&host).writable(true).open_image(path("a.vhdx")).unwrap();
    image.write_at(&[1; 512], 0).unwrap();
    image.close().unwrap();
    // A write in place: the log of this session has its first entry and no other.
    image.write_at(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    let durable = Arc::new(Mutex::new(None::<Files>));
    let seen = Arc::clone(&durable);
    host.refuse(move |host, step| {
        let is_header = matches!(step, Step::Write { at, .. } if at < 192 << 10);
        is_header.then(|| *seen.lock().unwrap() = Some(host.files()));
        is_header.then_some(Refusal { code: EIO, arrived: Arrived::All })
    });
    image.close().unwrap_err();
    drop(image);
    host.refuse(|_, _| None);
    let mut durable = durable.lock().unwrap().take().unwrap();

    host.record();
    let image = options(&host).writable(true).open_image(path("a.vhdx")).unwrap();
    image.write_at(&[2; 512], 0).unwrap();
    std::mem::forget(image);
    // Everything that arrived before the first flush returned, except for that header.
    let is_flush = |event: &Event| matches!(event, Event::FlushEnd(..));
    for event in host.events().iter().take_while(|event| !is_flush(event)) {
        durable.apply(event);
    }
    let image = options(&SimHost::new(durable)).open_image(path("a.vhdx")).unwrap();
    let mut found = [0; 512];
    image.read_at(&mut found, 0).unwrap();
    assert_eq!(found, [1; 512]);
}

/// The same for the header that starts a session: with a second header in flight there might be none left.
#[test]
fn a_header_that_was_left_unflushed_is_made_durable_before_a_replay_writes_the_other() {
    let host = SimHost::default();
    let image = create(&host, "a.vhdx").unwrap();
    image.write_at(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    std::mem::forget(image);
    host.record();
    drop(options(&host).writable(true).open_image(path("a.vhdx")).unwrap());
    let changed = host.events().into_iter().find(|event| !matches!(event, Event::FlushStart(_)));
    assert!(matches!(changed, Some(Event::FlushEnd(..))), "{changed:?}");
}

/// A panic of the storage, or of a subscriber of events, in the middle of a flush or of the start of a session.
#[test]
fn a_panic_within_a_flush_is_not_forgotten_by_the_next() {
    for (at, is_first) in [(0, true), (1, true), (0, false), (1, false)] {
        let host = SimHost::default();
        let image = create(&host, "a.vhdx").unwrap();
        if !is_first {
            image.write_at(&[1; 512], 0).unwrap();
            image.flush().unwrap();
        }
        let flushes = AtomicUsize::new(0);
        host.hook(move |step| {
            let is_now = matches!(step, Step::Flush(_) | Step::Flushed(_))
                && flushes.fetch_add(1, Ordering::SeqCst) == at;
            assert!(!is_now, "a panic of the host");
            Ok(())
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            image.write_at(&[2; 512], 4 * MIB)?;
            image.flush()
        }));
        assert!(result.is_err(), "{at}, {is_first}");
        host.unhook();
        assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned, "{at}, {is_first}");
        assert_eq!(image.write_at(&[3; 512], 0).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(image.close().unwrap_err().kind(), ErrorKind::Poisoned);
    }
}
