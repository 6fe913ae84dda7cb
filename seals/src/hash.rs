//! The hashes of a seal: BLAKE3 in its mode for deriving keys, with a context for each of what is hashed.

use std::fmt;

use avhdx::uuid::Uuid;
use blake3::Hasher;

const HASH: usize = 32;

/// What a hash is of: one of another kind is never equal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Domain {
    Leaf,
    Map,
    Node,
    Layer,
    Chain,
    Page,
    Header,
}

impl Domain {
    fn context(self) -> &'static str {
        match self {
            Self::Leaf => "avhdx seal 1 leaf",
            Self::Map => "avhdx seal 1 map",
            Self::Node => "avhdx seal 1 node",
            Self::Layer => "avhdx seal 1 layer",
            Self::Chain => "avhdx seal 1 chain",
            Self::Page => "avhdx seal 1 page",
            Self::Header => "avhdx seal 1 header",
        }
    }

    pub(crate) fn hasher(self) -> Hasher {
        Hasher::new_derive_key(self.context())
    }

    pub(crate) fn hash(self, bytes: &[u8]) -> Hash {
        Hash(*self.hasher().update(bytes).finalize().as_bytes())
    }
}

/// A hash of 32 bytes. It is shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; HASH]);

impl Hash {
    /// The hash with these bytes.
    pub const fn new(bytes: [u8; HASH]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; HASH] {
        &self.0
    }

    /// The hash with these 64 hexadecimal digits, if that is what they are.
    pub fn parse(digits: &str) -> Option<Self> {
        let bytes = blake3::Hash::from_hex(digits).ok()?;
        Some(Self(*bytes.as_bytes()))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What tells the layer that a seal is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Changes with every visible change of the image once it was handed out, \[MS-VHDX\] 2.2.2.
    pub data_write_guid: Uuid,
    /// The identity of the disk, \[MS-VHDX\] 2.6.2.4.
    pub disk_id: Uuid,
    /// The size of the disk in bytes.
    pub size: u64,
    /// The size of a logical sector in bytes.
    pub sector: u32,
}

/// The hash of a chain whose layers, from the newest down, have these.
pub fn chain_hash(layers: &[Hash]) -> Hash {
    let mut hasher = Domain::Chain.hasher();
    hasher.update(&(layers.len() as u32).to_le_bytes());
    for layer in layers {
        hasher.update(layer.as_bytes());
    }
    Hash(*hasher.finalize().as_bytes())
}
