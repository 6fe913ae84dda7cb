//! Sound disks with partition tables.

use crate::disks::{Sound, few};
use crate::images::{self, MIB};
use crate::mutate::Seal;

/// Disks with tables.
pub fn tables() -> Vec<Sound> {
    let Some(volume) = images::fat_of(&few(), "12") else { return Vec::new() };
    let with_volumes = |mut disk: Vec<u8>, at: &[u64]| {
        for at in at {
            disk[(at * MIB) as usize..][..volume.len()].copy_from_slice(&volume);
        }
        disk
    };
    let script = "label: gpt\nstart=2048, size=8192\nstart=12288, size=8192\n";
    let disks = [("GPT", images::table(script), 512), ("GPT of 4096", Some(gpt_of_4096()), 4096)];
    let mut sound = Vec::new();
    for (name, disk, sector) in disks {
        let Some(disk) = disk else { return Vec::new() };
        let bytes = with_volumes(disk, &[1, 6]);
        let last = bytes.len() - sector;
        let headers = [(sector, 2 * sector), (last, last - 128 * 128)];
        let headers = headers.map(|(header, entries)| (header, entries..entries + 128 * 128));
        let places = headers.iter().flat_map(|(header, entries)| {
            [*header..header + 92, entries.start..entries.start + 384]
        });
        let places = std::iter::once(440..512).chain(places);
        let places = places.map(|range| range.start as u64..range.end as u64).collect();
        let seal = Some(Seal(headers.into()));
        sound.push(Sound { name, bytes, sector: sector as u32, places, seal });
    }
    let script = "label: dos\n1: start=2048, size=8192, type=c\n2: start=10240, size=51200, type=5\n\
                  5: start=12288, size=8192, type=c\n6: start=22528, size=8192, type=c\n";
    let Some(disk) = images::table(script) else { return Vec::new() };
    let bytes = with_volumes(disk, &[1, 6, 11]);
    let sectors = (0..bytes.len()).step_by(512);
    let is_table =
        |at: &usize| bytes[at + 510..at + 512] == [0x55, 0xAA] && bytes[*at..at + 3] == [0; 3];
    let tables: Vec<usize> = sectors.filter(is_table).map(|at| at + 446).collect();
    let places: Vec<_> = tables.iter().map(|at| *at as u64..*at as u64 + 66).collect();
    // The same in larger sectors: nothing lies in parts of them.
    let mut large = bytes.clone();
    for number in tables.iter().flat_map(|at| (0..8).map(move |n| at + n / 2 * 16 + 8 + n % 2 * 4))
    {
        let old = u32::from_le_bytes(large[number..number + 4].try_into().unwrap());
        large[number..number + 4].copy_from_slice(&(old / 8).to_le_bytes());
    }
    for (name, bytes, sector) in [("MBR", bytes, 512), ("MBR of 4096", large, 4096)] {
        sound.push(Sound { name, bytes, sector, places: places.clone(), seal: None });
    }
    sound
}

fn gpt_of_4096() -> Vec<u8> {
    let mut disk = std::io::Cursor::new(vec![0; 32 * MIB as usize]);
    ::gpt::mbr::ProtectiveMBR::with_lb_size(8191).overwrite_lba0(&mut disk).unwrap();
    let config = ::gpt::GptConfig::new().logical_block_size(::gpt::disk::LogicalBlockSize::Lb4096);
    let mut table = config.writable(true).create_from_device(&mut disk, None).unwrap();
    let partition = |first_lba| ::gpt::partition::Partition {
        part_type_guid: ::gpt::partition_types::BASIC,
        part_guid: "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap(),
        first_lba,
        last_lba: first_lba + 1023,
        flags: 0,
        name: "part".into(),
    };
    table.update_partitions([(1, partition(256)), (2, partition(1536))].into()).unwrap();
    table.write().unwrap();
    disk.into_inner()
}
