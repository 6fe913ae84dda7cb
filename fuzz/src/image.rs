//! Images as bytes that are cheap to copy, and their sums.

use avhdx_testkit::build::{Image, Layout};
use avhdx_testkit::mutate::{reseal_headers, reseal_log, reseal_region_tables, u32_at, u64_at};
use avhdx_testkit::sim::Bytes;

/// Logs that are longer keep the sums that they have.
const LONGEST_LOG: u64 = 4 << 20;
const FRONT: u64 = 0x5_0000;

/// Writes an image to memory.
pub fn bytes_of(image: &Image) -> (Bytes, Layout) {
    let mut bytes = Bytes::default();
    let layout = image.put_to(&mut |at, piece| bytes.write(at, piece));
    bytes.set_len(layout.file_length);
    (bytes, layout)
}

/// Corrects the sums of headers, region tables and log entries.
pub fn reseal(bytes: &mut Bytes) {
    let mut front = vec![0; FRONT.min(bytes.len()) as usize];
    bytes.read(0, &mut front);
    let was = front.clone();
    let header = |front: &[u8], at: u64| {
        let is_there = front.len() as u64 >= at + 4096;
        is_there.then(|| (u64_at(front, at + 72), u64::from(u32_at(front, at + 68))))
    };
    let mut logs = [0x1_0000, 0x2_0000].map(|at| header(&front, at)).to_vec();
    logs.dedup();
    reseal_headers(&mut front);
    reseal_region_tables(&mut front);
    put_changed(bytes, 0, &was, &front);
    for (at, len) in logs.into_iter().flatten() {
        if len > LONGEST_LOG || at.checked_add(len).is_none_or(|end| end > bytes.len()) {
            continue;
        }
        let mut ring = vec![0; len as usize];
        bytes.read(at, &mut ring);
        let was = ring.clone();
        reseal_log(&mut ring, 0..len);
        put_changed(bytes, at, &was, &ring);
    }
}

fn put_changed(bytes: &mut Bytes, at: u64, was: &[u8], is: &[u8]) {
    for (n, (was, is)) in was.chunks(4096).zip(is.chunks(4096)).enumerate() {
        if was != is {
            bytes.write(at + n as u64 * 4096, is);
        }
    }
}
