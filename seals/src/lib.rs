//! Seals of Hyper-V checkpoint chains: proof that a chain, or a range of its disk, is as it was.
//!
//! [`Seal`] writes a file beside each layer that is a point in time: a tree of BLAKE3 hashes over the bytes that the layer
//! itself has, and over the map that says for which sectors it answers. [`Verify`] proves a chain by them, and
//! [`Carry`] keeps them true through a merge. The file is described in `docs/seals.md`.
//!
//! A seal file is hostile until proven otherwise: every length and place is bounded before it is used, and each page has
//! a checksum and the hash that the page above names.
//!
//! ```no_run
//! use avhdx::DiffChain;
//! use avhdx_seals::{Seal, Verify};
//!
//! let chain = DiffChain::open("web_2.avhdx")?;
//! let sealed = Seal::new().run(&chain)?;
//! println!("{}", sealed.root.map_or("none".into(), |root| root.to_string()));
//!
//! let verified = Verify::new().run(&chain)?;
//! assert!(verified.is_whole() && verified.root == sealed.root);
//! # Ok::<(), avhdx::Error>(())
//! ```
//!
//! Modules from top to bottom, imports point down only:
//!
//! 1. `carry`: seals through a merge; `verify`: what is proven of a chain;
//! 2. `sealing`: seals of a chain; `prove`: whether an image is as its seal says;
//! 3. `layer`: layers and what is theirs; `build`: new seal files; `leaves`: hashes of leaves;
//! 4. `file`: seal files that are read; `work`: threads;
//! 5. `format`: bytes of a seal file;
//! 6. `map`: which sectors a layer answers for;
//! 7. `hash`.

mod build;
mod carry;
mod file;
mod format;
mod hash;
mod layer;
mod leaves;
mod map;
mod prove;
mod sealing;
mod verify;
mod work;

pub use carry::{Carried, CarriedSeals, Carry, sweep, sweep_removed};
pub use file::{SealFile, seal_path};
pub use hash::{Hash, Identity, chain_hash};
pub use layer::LeftOut;
pub use sealing::{Outcome, Seal, Sealed, SealedLayer};
pub use verify::{SealFinding, Verified, VerifiedLayer, Verify};
