//! Builds the extents of VMDK images that ESX writes, byte by byte. Shares nothing with what reads them.
//!
//! - `COWD`: "ESXi Host Sparse Extents" of VMware's Virtual Disk Format 5.0, the fields as libvmdk's description of the format
//!   has their offsets.
//! - `SESPARSE`: VMware publishes no layout; the fields are those of `block/vmdk.c` of QEMU, which reads what is built.

/// A grain of an extent.
#[derive(Clone, Debug)]
pub enum Grain {
    /// These bytes, filled up with zeros.
    Data(Vec<u8>),
    /// Zeros, said so by the table. Of `SESPARSE` alone.
    Zeros,
    /// Unmapped by a guest. Of `SESPARSE` alone.
    Unmapped,
}

const SECTOR: usize = 512;
const ENTRIES: usize = 4096;

/// An extent `COWD` of so many sectors, in grains of so many, with these grains by their numbers, which lie in the file in this
/// order.
pub fn cowd(sectors: u32, grain: u32, grains: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let count = sectors.div_ceil(grain) as usize;
    let tables = count.div_ceil(ENTRIES);
    let mut file = vec![0; 4 * SECTOR];
    file[..4].copy_from_slice(b"COWD");
    for (at, number) in [(4, 1), (8, 3), (12, sectors), (16, grain), (20, 4), (24, tables as u32)] {
        file[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let directory = file.len();
    file.resize(directory + (tables * 4).next_multiple_of(SECTOR), 0);
    for (n, bytes) in grains {
        let entry = directory + n / ENTRIES * 4;
        let mut table = number(&file, entry) as usize * SECTOR;
        if table == 0 {
            table = file.len();
            file[entry..entry + 4].copy_from_slice(&((table / SECTOR) as u32).to_le_bytes());
            file.resize(table + ENTRIES * 4, 0);
        }
        let place = file.len();
        let entry = table + n % ENTRIES * 4;
        file[entry..entry + 4].copy_from_slice(&((place / SECTOR) as u32).to_le_bytes());
        file.extend(bytes);
        file.resize(place + grain as usize * SECTOR, 0);
    }
    let end = (file.len() / SECTOR) as u32;
    file[28..32].copy_from_slice(&end.to_le_bytes());
    file
}

/// An extent `SESPARSE` of so many sectors, with these grains of 4 KiB by their numbers, which lie in the file in this order.
pub fn se_sparse(sectors: u64, grains: &[(usize, Grain)]) -> Vec<u8> {
    let count = (sectors as usize).div_ceil(8);
    let tables = count.div_ceil(ENTRIES);
    let (volatile, directory) = (1_u64, 8_u64);
    let directory_len = ((tables * 8).div_ceil(SECTOR)) as u64;
    let first_table = directory + directory_len;
    let tables_len = tables as u64 * 64;
    let first_grain = (first_table + tables_len).next_multiple_of(8);
    let mut file = vec![0; first_grain as usize * SECTOR];
    let put = |file: &mut Vec<u8>, at: usize, number: u64| {
        file[at..at + 8].copy_from_slice(&number.to_le_bytes());
    };
    let data = grains.iter().filter(|(_, grain)| matches!(grain, Grain::Data(_))).count() as u64;
    for (at, number) in [
        (0, 0xCAFE_BABE),
        (8, 0x2_0000_0001),
        (16, sectors),
        (24, 8),
        (32, 64),
        (80, volatile),
        (88, 1),
        (96, 2),
        (104, 1),
        (112, 3),
        (120, 1),
        (128, directory),
        (136, directory_len),
        (144, first_table),
        (152, tables_len),
        (160, 4),
        (168, 1),
        (176, 5),
        (184, 1),
        (192, first_grain),
        (200, data * 8),
        (SECTOR, 0xCAFE_CAFE),
    ] {
        put(&mut file, at, number);
    }
    // Tables are given out in the order in which grains ask for them, not in that of the disk.
    let (mut given, mut index) = (0_u64, 0_u64);
    for (n, grain) in grains {
        let entry = directory as usize * SECTOR + n / ENTRIES * 8;
        if file[entry..entry + 8] == [0; 8] {
            put(&mut file, entry, 0x1000_0000_0000_0000 | given);
            given += 1;
        }
        let table = first_table as usize * SECTOR + number(&file, entry) as usize * ENTRIES * 8;
        let value = match grain {
            Grain::Unmapped => 1 << 60,
            Grain::Zeros => 2 << 60,
            Grain::Data(bytes) => {
                file.extend(bytes);
                file.resize(file.len().next_multiple_of(4096), 0);
                index += 1;
                // The twelve bits for the low part come first.
                let at = index - 1;
                3 << 60 | (at & 0xFFF) << 48 | at >> 12
            }
        };
        put(&mut file, table + n % ENTRIES * 8, value);
    }
    file
}

/// A descriptor of extents, such as `RW 2048 SPARSE "a.vmdk"`.
pub fn descriptor(
    create_type: &str,
    cid: u32,
    parent: Option<(u32, &str)>,
    extents: &[&str],
) -> String {
    let (parent_cid, hint) = match parent {
        Some((cid, name)) => (cid, format!("parentFileNameHint=\"{name}\"\n")),
        None => (u32::MAX, String::new()),
    };
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{create_type}\"\n{hint}\n\
         # Extent description\n{}\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\n",
        extents.join("\n")
    )
}

fn number(file: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]])
}
