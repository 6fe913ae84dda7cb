//! Structures with fields of their own: headers, region tables, metadata, parent locator.

use uuid::Uuid;

/// The BAT's region GUID. [MS-VHDX] 2.2.3.2
pub const REGION_BAT: Uuid = Uuid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
/// The metadata region's GUID. [MS-VHDX] 2.2.3.2
pub const REGION_METADATA: Uuid = Uuid::from_u128(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);
/// File Parameters. [MS-VHDX] 2.6.2.1
pub const ITEM_FILE_PARAMETERS: Uuid = Uuid::from_u128(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
/// Virtual Disk Size. [MS-VHDX] 2.6.2.2
pub const ITEM_DISK_SIZE: Uuid = Uuid::from_u128(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
/// Virtual Disk ID. [MS-VHDX] 2.6.2.3
pub const ITEM_DISK_ID: Uuid = Uuid::from_u128(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
/// Logical Sector Size. [MS-VHDX] 2.6.2.4
pub const ITEM_LOGICAL_SECTOR: Uuid = Uuid::from_u128(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
/// Physical Sector Size. [MS-VHDX] 2.6.2.5
pub const ITEM_PHYSICAL_SECTOR: Uuid = Uuid::from_u128(0xCDA348C7_445D_4471_9CC9_E9885251C556);
/// Parent Locator. [MS-VHDX] 2.6.2.6
pub const ITEM_PARENT_LOCATOR: Uuid = Uuid::from_u128(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
/// The locator type of VHDX parents. [MS-VHDX] 2.6.2.6.3
pub const LOCATOR_VHDX: Uuid = Uuid::from_u128(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);

/// Metadata entry flag: a user item. [MS-VHDX] 2.6.1.2
pub const IS_USER: u32 = 1;
/// Metadata entry flag: belongs to the virtual disk, not to the file. [MS-VHDX] 2.6.1.2
pub const IS_VIRTUAL_DISK: u32 = 2;
/// Metadata entry flag: a program that does not know the item must not open the file. [MS-VHDX] 2.6.1.2
pub const IS_REQUIRED: u32 = 4;

/// How a checksum field is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// With the right checksum.
    #[default]
    Right,
    /// With one bit of the right checksum flipped.
    Wrong,
    /// With this value.
    Value(u32),
}

impl Checksum {
    pub(super) fn over(self, bytes: &[u8], field: usize) -> u32 {
        match self {
            Self::Right => crate::crc::sealed(bytes, field),
            Self::Wrong => crate::crc::sealed(bytes, field) ^ 0x8000,
            Self::Value(v) => v,
        }
    }
}

/// One of the two headers. [MS-VHDX] 2.2.2
#[derive(Clone, Debug)]
pub struct Header {
    /// `head`.
    pub signature: [u8; 4],
    /// The checksum of the 4 KiB.
    pub checksum: Checksum,
    /// The higher one of two valid headers is current.
    pub sequence_number: u64,
    /// Changes with every session that writes.
    pub file_write_guid: Uuid,
    /// Changes with the visible bytes; the identity that children record.
    pub data_write_guid: Uuid,
    /// Nil: nothing to replay.
    pub log_guid: Uuid,
    /// 0.
    pub log_version: u16,
    /// 1.
    pub version: u16,
    /// `None`: the image's log length.
    pub log_length: Option<u32>,
    /// `None`: the image's log offset.
    pub log_offset: Option<u64>,
}

impl Header {
    /// A valid header.
    pub fn new(sequence_number: u64, file_write_guid: Uuid, data_write_guid: Uuid) -> Self {
        Self {
            signature: *b"head",
            checksum: Checksum::Right,
            sequence_number,
            file_write_guid,
            data_write_guid,
            log_guid: Uuid::nil(),
            log_version: 0,
            version: 1,
            log_length: None,
            log_offset: None,
        }
    }

    pub(super) fn bytes(&self, log_offset: u64, log_length: u32) -> Vec<u8> {
        let mut b = vec![0; 4096];
        b[0..4].copy_from_slice(&self.signature);
        b[8..16].copy_from_slice(&self.sequence_number.to_le_bytes());
        b[16..32].copy_from_slice(&self.file_write_guid.to_bytes_le());
        b[32..48].copy_from_slice(&self.data_write_guid.to_bytes_le());
        b[48..64].copy_from_slice(&self.log_guid.to_bytes_le());
        b[64..66].copy_from_slice(&self.log_version.to_le_bytes());
        b[66..68].copy_from_slice(&self.version.to_le_bytes());
        b[68..72].copy_from_slice(&self.log_length.unwrap_or(log_length).to_le_bytes());
        b[72..80].copy_from_slice(&self.log_offset.unwrap_or(log_offset).to_le_bytes());
        let sum = self.checksum.over(&b, 4);
        b[4..8].copy_from_slice(&sum.to_le_bytes());
        b
    }
}

/// One of the two region tables. [MS-VHDX] 2.2.3
#[derive(Clone, Debug)]
pub struct RegionTable {
    /// `regi`.
    pub signature: [u8; 4],
    /// The checksum of the 64 KiB.
    pub checksum: Checksum,
    /// `None`: the true number.
    pub entry_count: Option<u32>,
    /// The entries, in this order; those that do not fit in 64 KiB are left out.
    pub entries: Vec<RegionEntry>,
}

impl Default for RegionTable {
    fn default() -> Self {
        Self {
            signature: *b"regi",
            checksum: Checksum::Right,
            entry_count: None,
            entries: vec![RegionEntry::new(REGION_BAT), RegionEntry::new(REGION_METADATA)],
        }
    }
}

/// An entry of a region table. [MS-VHDX] 2.2.3.2
#[derive(Clone, Debug)]
pub struct RegionEntry {
    /// The region.
    pub guid: Uuid,
    /// `None`: the offset of the region with this GUID in the image (zero if there is none).
    pub offset: Option<u64>,
    /// `None`: the length of that region.
    pub length: Option<u32>,
    /// Bit 0: required.
    pub required: u32,
}

impl RegionEntry {
    /// A required region, at its place in the image.
    pub fn new(guid: Uuid) -> Self {
        Self { guid, offset: None, length: None, required: 1 }
    }
}

impl RegionTable {
    /// Serializes the table; `find` returns the place of a region of the image.
    pub(super) fn bytes(&self, find: impl Fn(Uuid) -> (u64, u32)) -> Vec<u8> {
        let mut b = vec![0; 64 << 10];
        b[0..4].copy_from_slice(&self.signature);
        let count = self.entry_count.unwrap_or(self.entries.len() as u32);
        b[8..12].copy_from_slice(&count.to_le_bytes());
        for (e, at) in self.entries.iter().zip(b[16..].chunks_exact_mut(32)) {
            let (offset, length) = find(e.guid);
            at[0..16].copy_from_slice(&e.guid.to_bytes_le());
            at[16..24].copy_from_slice(&e.offset.unwrap_or(offset).to_le_bytes());
            at[24..28].copy_from_slice(&e.length.unwrap_or(length).to_le_bytes());
            at[28..32].copy_from_slice(&e.required.to_le_bytes());
        }
        let sum = self.checksum.over(&b, 4);
        b[4..8].copy_from_slice(&sum.to_le_bytes());
        b
    }
}

/// A region unknown to the format, which writers must preserve.
#[derive(Clone, Debug)]
pub struct ExtraRegion {
    /// Its GUID, to which region entries refer.
    pub guid: Uuid,
    /// `None`: after the BAT and the extra regions before it.
    pub offset: Option<u64>,
    /// Padded to whole MiB.
    pub contents: Vec<u8>,
}

/// The metadata table and its items. [MS-VHDX] 2.6
#[derive(Clone, Debug)]
pub struct Metadata {
    /// `metadata`.
    pub signature: [u8; 8],
    /// `None`: the true number.
    pub entry_count: Option<u16>,
    /// The items, in the order of the table.
    pub items: Vec<Item>,
}

/// A metadata item and its table entry. [MS-VHDX] 2.6.1.2
#[derive(Clone, Debug)]
pub struct Item {
    /// A name for `Image::item` and the layout; not in the file.
    pub name: String,
    /// The item's GUID.
    pub id: Uuid,
    /// [`IS_USER`], [`IS_VIRTUAL_DISK`], [`IS_REQUIRED`], or invalid flags.
    pub flags: u32,
    /// The contents of the item.
    pub contents: Contents,
    /// From the start of the region. `None`: after the items before it (zero if empty).
    pub offset: Option<u32>,
    /// The length in the table. `None`: the true length.
    pub length: Option<u32>,
    /// The whole table entry, overriding the other fields.
    pub raw_entry: Option<[u8; 32]>,
}

/// The contents of a metadata item; all but `Bytes` follow from the image's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Block size and flags. [MS-VHDX] 2.6.2.1
    FileParameters,
    /// [MS-VHDX] 2.6.2.2
    DiskSize,
    /// [MS-VHDX] 2.6.2.3
    DiskId,
    /// [MS-VHDX] 2.6.2.4
    LogicalSector,
    /// [MS-VHDX] 2.6.2.5
    PhysicalSector,
    /// [MS-VHDX] 2.6.2.6
    Locator,
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Item {
    /// An item of any kind; the system items come with the image.
    pub fn new(name: &str, id: Uuid, flags: u32, contents: Contents) -> Self {
        Self { name: name.into(), id, flags, contents, offset: None, length: None, raw_entry: None }
    }
}

/// The parent locator. [MS-VHDX] 2.6.2.6
#[derive(Clone, Debug)]
pub struct Locator {
    /// [`LOCATOR_VHDX`].
    pub kind: Uuid,
    /// 0.
    pub reserved: u16,
    /// `None`: the true number.
    pub count: Option<u16>,
    /// Keys and values, in this order; keys may occur twice.
    pub pairs: Vec<(String, String)>,
}

impl Default for Locator {
    fn default() -> Self {
        Self { kind: LOCATOR_VHDX, reserved: 0, count: None, pairs: Vec::new() }
    }
}

impl Locator {
    /// Sets the first pair of this key, or adds it.
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> &mut Self {
        match self.pairs.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value.into(),
            None => self.pairs.push((key.into(), value.into())),
        }
        self
    }

    /// Removes all pairs with this key.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.pairs.retain(|(k, _)| k != key);
        self
    }

    /// The item's bytes, as a basis for overrides.
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = self.kind.to_bytes_le().to_vec();
        head.extend(self.reserved.to_le_bytes());
        head.extend(self.count.unwrap_or(self.pairs.len() as u16).to_le_bytes());
        let strings_at = 20 + 12 * self.pairs.len();
        let mut strings = Vec::new();
        for (key, value) in &self.pairs {
            let (key, value) = (utf16(key), utf16(value));
            let key_at = (strings_at + strings.len()) as u32;
            head.extend(key_at.to_le_bytes());
            head.extend((key_at + key.len() as u32).to_le_bytes());
            head.extend((key.len() as u16).to_le_bytes());
            head.extend((value.len() as u16).to_le_bytes());
            strings.extend(key);
            strings.extend(value);
        }
        head.extend(strings);
        head
    }
}

/// Formats a linkage. [MS-VHDX] 2.6.2.6.3
pub fn braced(guid: Uuid) -> String {
    format!("{{{guid}}}")
}

fn utf16(s: &str) -> Vec<u8> {
    s.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
