//! Reads and writes an image that lies in a store of its own kind: objects of 1 MiB under keys, as in an object store.
//!
//! ```sh
//! cargo run --release --example storage
//! ```
//!
//! A [`Storage`] is one file. Six methods are enough; the others have defaults that say what the store cannot do. The
//! example counts what the library asks for: an object store is slow to answer, and wants to be asked seldom.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use avhdx::storage::{LocalHost, Storage};
use avhdx::{CreateOptions, Disk, OpenOptions};

const OBJECT: u64 = 1 << 20;

/// A file cut into objects. An object that is missing is zeros.
#[derive(Debug, Default)]
struct ObjectStorage {
    objects: Mutex<Objects>,
    gets: AtomicU64,
    puts: AtomicU64,
}

#[derive(Debug, Default)]
struct Objects {
    len: u64,
    by_key: BTreeMap<u64, Vec<u8>>,
}

impl ObjectStorage {
    fn objects(&self) -> std::sync::MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for ObjectStorage {
    fn name(&self) -> &str {
        "objects://web.vhdx"
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let objects = self.objects();
        let end = offset.saturating_add(buf.len() as u64).min(objects.len);
        for (key, at, place) in pieces(offset..end) {
            self.gets.fetch_add(1, Ordering::Relaxed);
            let to = &mut buf[place];
            match objects.by_key.get(&key) {
                Some(object) => to.copy_from_slice(&object[at..at + to.len()]),
                None => to.fill(0),
            }
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let mut objects = self.objects();
        for (key, at, place) in pieces(offset..end) {
            self.puts.fetch_add(1, Ordering::Relaxed);
            let object = objects.by_key.entry(key).or_insert_with(|| vec![0; OBJECT as usize]);
            object[at..at + place.len()].copy_from_slice(&buf[place]);
        }
        objects.len = objects.len.max(end);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        // A store that acknowledges only what it keeps has nothing more to do.
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.objects().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut objects = self.objects();
        // What lies beyond the end must read as zeros if the file grows again.
        let last = len / OBJECT;
        objects.by_key.retain(|key, _| *key <= last);
        if let Some(object) = objects.by_key.get_mut(&last) {
            object[(len % OBJECT) as usize..].fill(0);
        }
        objects.len = len;
        Ok(())
    }
}

/// The objects that a range touches: the key, where in the object, and where in the range.
fn pieces(
    range: std::ops::Range<u64>,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let end = range.end.min((at / OBJECT + 1) * OBJECT);
        let place = (at - range.start) as usize..(end - range.start) as usize;
        let piece = (at / OBJECT, (at % OBJECT) as usize, place);
        at = end;
        Some(piece)
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let store = Arc::new(ObjectStorage::default());
    let told = |what: &str| {
        let (gets, puts) =
            (store.gets.swap(0, Ordering::Relaxed), store.puts.swap(0, Ordering::Relaxed));
        println!("{what:32} {gets:>4} objects read, {puts:>4} written");
    };

    let shared: Arc<dyn Storage> = Arc::<ObjectStorage>::clone(&store);
    CreateOptions::dynamic(1 << 40).create_in(&LocalHost, Arc::clone(&shared))?.close()?;
    told("create a disk of 1 TiB");

    let image = OpenOptions::new().writable(true).open_file(Arc::clone(&shared))?;
    told("open it");
    image.write_at(&[7; 100_000], 5 << 30)?;
    image.flush()?;
    told("write 100,000 bytes and flush");
    image.close()?;
    told("close it");

    let image = OpenOptions::new().open_file(shared)?;
    let mut found = vec![0; 100_000];
    image.read_at(&mut found, 5 << 30)?;
    told("open it and read them");
    if found != [7; 100_000] {
        return Err("it does not read as written".into());
    }
    let objects = store.objects();
    println!("the image has {} objects, {} MiB", objects.by_key.len(), objects.len >> 20);
    Ok(())
}
