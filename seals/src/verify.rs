//! Proves a chain by its seals.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

use avhdx::storage::{Host, LocalHost};
use avhdx::{DiffChain, Error, ErrorKind, Layer, LayerId, Result};

use crate::file::{SealFile, seal_path};
use crate::hash::Hash;
use crate::layer::{LeftOut, identity_of, image_of, left_out};
use crate::prove::{Found, Proof, Subject, What};
use crate::sealing::root_of;
use crate::work::{Listener, default_threads};

/// Proves that each layer of a chain is as its seal says: its bytes, and which sectors it answers for.
///
/// This guards against accident. Who can write to the images can also seal them anew: against people guards the
/// [root](Verified::root), kept where they do not reach.
#[derive(Debug)]
pub struct Verify<'a> {
    host: Arc<dyn Host>,
    threads: usize,
    range: Option<Range<u64>>,
    listener: Listener<'a>,
}

/// What was proven of a chain, and what was not.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Verified {
    /// From the tip down.
    pub layers: Vec<VerifiedLayer>,
    /// What is not as it should be.
    pub findings: Vec<SealFinding>,
    /// Findings of layers that have too many to be listed.
    pub unlisted: u64,
    /// The hash of the chain by its seals, as in [`Sealed::root`](crate::Sealed::root).
    pub root: Option<Hash>,
}

/// A layer, and whether it is as its seal says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VerifiedLayer {
    /// The layer.
    pub layer: LayerId,
    /// The name of its file.
    pub name: String,
    /// The seal file.
    pub seal: Option<PathBuf>,
    /// Why nothing was to be proven, if it was not.
    pub left_out: Option<LeftOut>,
    /// Whether all of the layer that was asked for is as it was.
    pub is_whole: bool,
    /// The hash of the layer, by its seal.
    pub hash: Option<Hash>,
    /// The bytes of the image's data that were read.
    pub read: u64,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SealFinding {
    /// `seal.changed`, `seal.stale`, `seal.missing` or `seal.damaged`.
    pub code: &'static str,
    /// The layer.
    pub layer: LayerId,
    /// The file that it is about: the image, or its seal.
    pub file: String,
    /// What is wrong.
    pub message: String,
    /// The range of the disk, in bytes.
    pub range: Range<u64>,
    /// The offset in the file, if it is known.
    pub offset: Option<u64>,
    /// What was found.
    pub found: Option<String>,
    /// What was expected.
    pub expected: Option<String>,
}

impl Verified {
    /// Whether every layer is as it was, except for those left out.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty() && self.unlisted == 0
    }
}

impl Default for Verify<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Verify<'a> {
    /// Proves all of a chain on the local host, with two threads or more.
    pub fn new() -> Self {
        Self {
            host: Arc::new(LocalHost),
            threads: default_threads(),
            range: None,
            listener: Listener::default(),
        }
    }

    /// The host that has the files.
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// How many threads read and hash.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Proves this range of the disk alone, widened to multiples of 64 KiB.
    pub fn range(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// Calls `on` with how many bytes of the layers' disks are done, and how many there are. A break stops the operation
    /// with [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(u64, u64) -> ControlFlow<()> + Send + 'a) -> Self {
        self.listener = Listener::new(on);
        self
    }

    /// Proves the chain, which is opened as for [`Seal`](crate::Seal).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a seal of a newer version; `seal.link` for a link in the place of a seal; those of
    /// reading files; [`ErrorKind::Cancelled`]. What does not match is a finding, not an error.
    pub fn run(mut self, chain: &DiffChain) -> Result<Verified> {
        let layers = chain.layers();
        let total = layers.iter().map(|layer| layer.geometry.size).sum();
        let mut verified =
            Verified { layers: Vec::new(), findings: Vec::new(), unlisted: 0, root: None };
        let mut done = 0;
        for (depth, layer) in layers.iter().enumerate() {
            let before = verified.findings.len();
            let one = self.layer(chain, layer, depth == 0, (done, total), &mut verified)?;
            let is_whole = one.left_out.is_none() && verified.findings.len() == before;
            verified.layers.push(VerifiedLayer { is_whole, ..one });
            done += layer.geometry.size;
            self.listener.report(done, total)?;
        }
        verified.root = root_of(verified.layers.iter().map(|layer| layer.hash));
        Ok(verified)
    }

    fn layer(
        &mut self,
        chain: &DiffChain,
        layer: &Layer,
        is_tip: bool,
        (done, total): (u64, u64),
        verified: &mut Verified,
    ) -> Result<VerifiedLayer> {
        let image = image_of(chain, layer)?;
        let mut one = VerifiedLayer {
            layer: layer.id,
            name: layer.name.clone(),
            seal: None,
            left_out: None,
            is_whole: false,
            hash: None,
            read: 0,
        };
        let whole = self.range.clone().unwrap_or(0..u64::MAX);
        let range = whole.start.min(layer.geometry.size)..whole.end.min(layer.geometry.size);
        let finding = |code, message: &str| SealFinding {
            code,
            layer: layer.id,
            file: layer.name.clone(),
            message: message.to_owned(),
            range: range.clone(),
            offset: None,
            found: None,
            expected: None,
        };
        let out = left_out(layer, &image, is_tip)?;
        let (None, Some(path)) = (out, &layer.path) else {
            one.left_out = out.or(Some(LeftOut::NoFolder));
            if !is_tip {
                verified.findings.push(finding("seal.missing", "the layer has no seal"));
            }
            return Ok(one);
        };
        one.seal = Some(seal_path(path));
        let seal = match SealFile::beside(self.host.as_ref(), path) {
            Ok(Some(seal)) => seal,
            Ok(None) if is_tip => {
                one.left_out = Some(LeftOut::NotSealed);
                return Ok(one);
            }
            Ok(None) => {
                verified.findings.push(finding("seal.missing", "the layer has no seal"));
                return Ok(one);
            }
            Err(error) if error.kind() == ErrorKind::Damaged => {
                verified.findings.push(damaged(finding("seal.damaged", ""), &error));
                return Ok(one);
            }
            Err(error) => return Err(error),
        };
        let (is, sealed) = (identity_of(&image), seal.identity());
        if is != sealed {
            let message = "the seal is of an earlier state of the layer, or of another one";
            let show =
                |identity: crate::Identity| match is.data_write_guid == sealed.data_write_guid {
                    false => identity.data_write_guid.to_string(),
                    true => format!(
                        "disk {} of {} bytes with sectors of {}",
                        identity.disk_id, identity.size, identity.sector
                    ),
                };
            verified.findings.push(SealFinding {
                found: Some(show(sealed)),
                expected: Some(show(is)),
                ..finding("seal.stale", message)
            });
            return Ok(one);
        }
        one.hash = Some(seal.hash());
        let subject = Subject::new(&image, &seal, chain, layer.id);
        let listener = &mut self.listener;
        let Proof { found, unlisted, read } = subject.prove(
            range.clone(),
            self.threads,
            |_| Ok(Some(Box::new(|_| true))),
            |at| listener.report(done + at, total),
        )?;
        one.read = read;
        verified.unlisted += unlisted;
        verified.findings.extend(found.into_iter().map(|Found { range, what }| {
            let finding = |code, message| SealFinding { range, ..finding(code, message) };
            match what {
                What::Contents => {
                    finding("seal.changed", "the bytes are not those that were sealed")
                }
                What::Map => {
                    finding("seal.changed", "the layer answers for sectors for which it did not")
                }
                What::Unreadable(error) => SealFinding {
                    offset: error.offset(),
                    found: error.found().map(str::to_owned),
                    expected: error.expected().map(str::to_owned),
                    ..finding(
                        "seal.changed",
                        &format!("what was sealed cannot be read: {}", error.message()),
                    )
                },
                What::Damaged(error) => damaged(finding("seal.damaged", ""), &error),
            }
        }));
        Ok(one)
    }
}

fn damaged(finding: SealFinding, error: &Error) -> SealFinding {
    SealFinding {
        file: error.file().unwrap_or(&finding.file).to_owned(),
        message: error.message().to_owned(),
        offset: error.offset(),
        found: error.found().map(str::to_owned),
        expected: error.expected().map(str::to_owned),
        ..finding
    }
}
