//! Logs of other writers: with zero descriptors, which this crate never writes, over existing data and beyond the end.

use avhdx::storage::Host;
use avhdx_testkit::build::{Block, Data, Descriptor, Image, LogEntry, SECTOR};
use uuid::Uuid;

use crate::driver::{KIB, MIB, Recorded, Setup, host, path, pattern};
use crate::sim::Bytes;

const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0003);

/// A replay that zeros a block and a half, writes a page into them and grows the file; then some writes.
pub fn zeros() -> Vec<Recorded> {
    let mut image = Image::dynamic(4 * MIB);
    for block in 0..3 {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let mut disk = image.flat(None);
    let layout = image.layout();
    let (place, end) = (layout.payload[&1], layout.needed_length);
    assert_eq!(layout.payload[&2], place + MIB, "side by side");
    let page = pattern(7, 8 * KIB, SECTOR as u64);
    let mut entry = LogEntry::new(
        1,
        vec![
            Descriptor::zero(place, 1536 * KIB),
            Descriptor::data(place + 8 * KIB, page.clone()),
            Descriptor::zero(end + MIB, 2 * MIB),
        ],
    );
    entry.last_file_offset = Some(end + 3 * MIB);
    image.log = vec![entry];
    image.set_log_guid(GUID);
    disk[MIB as usize..(MIB + 1536 * KIB) as usize].fill(0);
    disk[(MIB + 8 * KIB) as usize..][..SECTOR].copy_from_slice(&page);
    let mut bytes = Bytes::default();
    bytes.write(0, &disk);

    let (host, tip) = (host(), path("base.vhdx"));
    let file = host.create_new(&tip).unwrap();
    file.write_at(&image.to_bytes(), 0).unwrap();
    file.flush().unwrap();
    let watched = vec![0..8 * KIB, MIB - 4 * KIB..MIB + 16 * KIB, 2 * MIB..3 * MIB];
    let driver = Setup { host, tip, disk: bytes, watched, size: 4 * MIB, block_size: MIB }.start();
    let chain = driver.open();
    driver.write(&chain, 1, MIB + 2 * KIB, KIB);
    driver.write(&chain, 2, 3 * MIB, 2 * KIB);
    driver.flush(&chain);
    driver.write(&chain, 3, 2 * MIB, KIB);
    driver.kill(chain);
    let chain = driver.open_after_kill();
    driver.write(&chain, 4, 0, KIB);
    driver.close(&chain);
    vec![driver.finish()]
}
